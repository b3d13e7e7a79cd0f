//! Who waits for whom, over both servers. Pure.
//!
//! Each server finds the circles among its own processes. A mirrored transaction has a process on each side, and when one
//! of them waits the other one holds what it has: a circle may go over both sides, and neither server sees it.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet, VecDeque},
    fmt::Write as _,
};

use crate::Side;

/// Class of the advisory locks by which processes that apply rows say for whom: the second number is the process id of the
/// transaction on the other side.
pub const JOIN_CLASS: i32 = 407_140;

/// A server process.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Process {
    /// Of which server.
    pub side: Side,
    /// Its process id there.
    pub pid: i32,
}

impl std::fmt::Display for Process {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "process {} on the {}", self.pid, self.side)
    }
}

/// `waiter` waits for a lock that `blocker` holds, or waits for before it.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Wait {
    /// Who waits.
    pub waiter: Process,
    /// For whom.
    pub blocker: Process,
}

/// What is known of waits at one moment.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    waits: BTreeSet<Wait>,
    /// Processes of one transaction have the same number.
    transactions: BTreeMap<Process, usize>,
    /// Who waits for a transaction that is prepared.
    in_doubt: BTreeSet<Process>,
}

impl Graph {
    /// These processes work for one transaction.
    pub fn join(&mut self, processes: &[Process]) {
        let known: Vec<usize> = processes.iter().filter_map(|p| self.transactions.get(p)).copied().collect();
        let number = known.first().copied().unwrap_or(self.transactions.len());
        for other in self.transactions.values_mut().filter(|n| known.contains(n)) {
            *other = number;
        }
        self.transactions.extend(processes.iter().map(|p| (*p, number)));
    }

    /// `waiter` waits for this process of the same server; 0 is a prepared transaction, as `pg_blocking_pids` has it.
    pub fn wait(&mut self, waiter: Process, blocker: i32) {
        if blocker == 0 {
            self.in_doubt.insert(waiter);
        } else {
            self.waits.insert(Wait { waiter, blocker: Process { pid: blocker, ..waiter } });
        }
    }

    /// Is nobody known to wait?
    pub fn is_empty(&self) -> bool {
        self.waits.is_empty() && self.in_doubt.is_empty()
    }

    /// Those of whom it must be known for whom they wait: blockers, and whoever works for the same transactions.
    pub fn concerned(&self) -> BTreeSet<Process> {
        let blockers = self.waits.iter().map(|w| w.blocker);
        blockers.flat_map(|b| self.transaction(b)).collect()
    }

    /// Who waits for a transaction that is prepared there?
    pub fn waits_in_doubt(&self, side: Side) -> bool {
        self.in_doubt.iter().any(|p| p.side == side)
    }

    /// Is each of these waits known?
    pub fn has(&self, circle: &[Wait]) -> bool {
        circle.iter().all(|wait| self.waits.contains(wait))
    }

    /// All processes of the transaction of this one, itself included.
    pub fn transaction(&self, process: Process) -> Vec<Process> {
        let Some(number) = self.transactions.get(&process) else { return vec![process] };
        self.transactions.iter().filter(|(_, n)| *n == number).map(|(p, _)| *p).collect()
    }

    fn same(&self, a: Process, b: Process) -> bool {
        a == b || self.transactions.get(&a).is_some_and(|n| self.transactions.get(&b) == Some(n))
    }

    /// Waits in a circle that no server sees: each blocker's transaction is the next one's waiter, at least once by
    /// another process. The shortest there is.
    pub fn circle(&self) -> Option<Vec<Wait>> {
        self.waits.iter().filter_map(|first| self.circle_of(*first)).min_by_key(Vec::len)
    }

    fn circle_of(&self, first: Wait) -> Option<Vec<Wait>> {
        // Where a path has come to, and whether it has gone from one process of a transaction to another.
        let mut paths = VecDeque::from([(vec![first], false)]);
        let mut seen = HashSet::from([(first, false)]);
        while let Some((path, crossed)) = paths.pop_front() {
            let last = *path.last().expect("it begins with the first");
            for next in self.waits.iter().filter(|w| self.same(w.waiter, last.blocker)) {
                let crossed = crossed || next.waiter != last.blocker;
                if *next == first && crossed {
                    return Some(path);
                }
                if seen.insert((*next, crossed)) {
                    let mut longer = path.clone();
                    longer.push(*next);
                    paths.push_back((longer, crossed));
                }
            }
        }
        None
    }

    /// A circle in words.
    pub fn describe(&self, circle: &[Wait]) -> String {
        let mut text = String::new();
        for (i, wait) in circle.iter().enumerate() {
            let before = circle[(i + circle.len() - 1) % circle.len()].blocker;
            let _ = if before == wait.waiter {
                write!(text, "{} waits for {}", wait.waiter, wait.blocker)
            } else {
                write!(text, "{} (for {before}) waits for {}", wait.waiter, wait.blocker)
            };
            text.push_str(if i + 1 < circle.len() { ";\n" } else { "." });
        }
        text[..1].make_ascii_uppercase();
        text
    }
}

/// A transaction of a circle that may be told to give way.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    /// Its process on the lead.
    pub lead: Process,
    /// When it began, in seconds since 1970 by its server's clock.
    pub began: Option<f64>,
    /// Its rows are on their way to the follower: every instance can see that.
    pub applies: bool,
}

/// Who gives way: the youngest. Of those that every instance sees, if there are any: then all instances agree.
pub fn victim(candidates: &[Candidate]) -> Option<Candidate> {
    let age = |c: &Candidate| c.began.unwrap_or(f64::NEG_INFINITY);
    let order = |a: &&Candidate, b: &&Candidate| {
        a.applies.cmp(&b.applies).then(age(a).total_cmp(&age(b))).then(a.lead.cmp(&b.lead))
    };
    candidates.iter().max_by(order).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(name: &str) -> Process {
        let (side, pid) = name.split_at(1);
        let side = if side == "s" { Side::Source } else { Side::Target };
        Process { side, pid: pid.parse().expect("a number") }
    }

    /// `joins`: "s1 t1", `waits`: "s1>s2"; what the circle is, in the same words.
    #[track_caller]
    fn check(joins: &[&str], waits: &[&str], expected: Option<&str>) {
        let mut graph = Graph::default();
        for join in joins {
            graph.join(&join.split(' ').map(process).collect::<Vec<_>>());
        }
        for wait in waits {
            let (waiter, blocker) = wait.split_once('>').expect("a wait");
            let blocker = if blocker == "0" { 0 } else { process(blocker).pid };
            graph.wait(process(waiter), blocker);
        }
        let short = |p: Process| format!("{}{}", &p.side.name()[..1], p.pid);
        let circle = graph.circle();
        if let Some(circle) = &circle {
            assert!(graph.has(circle));
        }
        let found = circle.map(|c| {
            let waits: Vec<_> =
                c.iter().map(|w| format!("{}>{}", short(w.waiter), short(w.blocker))).collect();
            waits.join(" ")
        });
        assert_eq!(found.as_deref(), expected, "{joins:?} {waits:?}");
    }

    #[test]
    fn circles_over_both_servers() {
        // Two transactions, led by different sides.
        check(&["s1 t1", "s2 t2"], &["t1>t2", "s2>s1"], Some("s2>s1 t1>t2"));
        // A third one between them, and somebody of whom nothing is known.
        check(&["s1 t1", "s2 t2", "s3 t3"], &["t1>t2", "s2>s3", "t3>t1"], Some("s2>s3 t3>t1 t1>t2"));
        check(&["s1 t1", "s2 t2"], &["t1>t9", "t9>t2", "s2>s1"], Some("s2>s1 t1>t9 t9>t2"));
        // Only one of them has two processes there, both on one side.
        check(&["s1 t1 t5"], &["t1>t9", "t9>t5"], Some("t1>t9 t9>t5"));
        // Behind a queue of others.
        check(&["s1 t1", "s2 t2"], &["t7>t1", "t8>t7", "t1>t2", "s2>s1", "s6>s2"], Some("s2>s1 t1>t2"));
    }

    #[test]
    fn what_is_none() {
        check(&["s1 t1", "s2 t2"], &["t1>t2"], None);
        check(&["s1 t1", "s2 t2"], &["t1>t2", "s1>s2"], None);
        // Each server sees its own.
        check(&[], &["s1>s2", "s2>s1"], None);
        check(&["s1 t1", "s2 t2"], &["s1>s2", "s2>s1"], None);
        check(&["s1 t1", "s2 t2"], &["s1>s2", "s2>s1", "t1>t2"], Some("s2>s1 t1>t2"));
        // Equal process ids of two servers are nobody's.
        check(&[], &["s1>s2", "t2>t1"], None);
        check(&["s1 t1"], &["t1>0"], None);
        check(&[], &[], None);
    }

    #[test]
    fn joins_are_closed() {
        let mut graph = Graph::default();
        for join in ["s1 t1", "s2 t2", "t3", "t1 t3", "t2 s4"] {
            graph.join(&join.split(' ').map(process).collect::<Vec<_>>());
        }
        assert_eq!(graph.transaction(process("t3")), ["s1", "t1", "t3"].map(process));
        assert_eq!(graph.transaction(process("s4")), ["s2", "s4", "t2"].map(process));
        assert_eq!(graph.transaction(process("t9")), [process("t9")]);
        graph.wait(process("t7"), 1);
        graph.wait(process("s8"), 0);
        assert_eq!(graph.concerned().into_iter().collect::<Vec<_>>(), ["s1", "t1", "t3"].map(process));
        assert_eq!([Side::Source, Side::Target].map(|s| graph.waits_in_doubt(s)), [true, false]);
    }

    #[test]
    fn in_words() {
        let mut graph = Graph::default();
        graph.join(&["s1", "t1"].map(process));
        graph.join(&["s2", "t2"].map(process));
        graph.wait(process("t1"), 9);
        graph.wait(process("t9"), 2);
        graph.wait(process("s2"), 1);
        let circle = graph.circle().expect("a circle");
        assert_eq!(
            graph.describe(&circle),
            "Process 2 on the source (for process 2 on the target) waits for process 1 on the source;\n\
             process 1 on the target (for process 1 on the source) waits for process 9 on the target;\n\
             process 9 on the target waits for process 2 on the target."
        );
    }

    #[test]
    fn the_youngest_gives_way() {
        let one = |name: &str, began, applies| Candidate { lead: process(name), began, applies };
        let check = |all: &[Candidate], expected: Option<&str>| {
            assert_eq!(victim(all).map(|c| c.lead), expected.map(process), "{all:?}");
        };
        check(&[], None);
        check(&[one("s1", Some(1.0), true), one("t2", Some(2.0), true)], Some("t2"));
        check(&[one("s1", Some(3.0), true), one("t2", Some(2.0), true)], Some("s1"));
        check(&[one("s1", None, true), one("t2", Some(2.0), true)], Some("t2"));
        check(&[one("s1", Some(1.0), true), one("t2", Some(2.0), false)], Some("s1"));
        check(&[one("s1", None, true), one("s2", None, true)], Some("s2"));
    }
}

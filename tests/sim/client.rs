//! One client: transactions through either proxy or past them, and how each of them ended.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use super::{
    ledger::{Effect, Entry, Fate, Ledger},
    support::{
        Rng, frames,
        reply::{Frame, short},
        wire::{DbError, Login, Wire},
    },
    work::{Step, Work},
};

/// Where a client may connect to, and the database.
#[derive(Clone, Debug)]
pub(crate) struct Doors {
    pub(crate) proxies: [u16; 2],
    /// The source itself: a writer that bypasses the proxies.
    pub(crate) source: u16,
    pub(crate) database: String,
}

/// What an exchange brought.
enum Answer {
    /// Rows of the last statement, its tag, and the status of the transaction.
    Done(Vec<Frame>, String, u8),
    /// The server refused; the status of the transaction.
    Refused(u8),
    /// The connection is gone. What is known of the transaction, when it was ending.
    Lost(Fate),
}

pub(crate) struct Client {
    name: String,
    work: Work,
    doors: Doors,
    ledger: Arc<Ledger>,
    wire: Option<Wire>,
}

impl Client {
    pub(crate) fn new(number: usize, rng: Rng, doors: Doors, ledger: Arc<Ledger>) -> Self {
        Self { name: format!("c{number}"), work: Work::new(number, rng), doors, ledger, wire: None }
    }

    /// Works until it is told to stop.
    pub(crate) fn live(mut self, stop: &AtomicBool) {
        while !stop.load(Ordering::Relaxed) {
            if !self.connected() {
                std::thread::sleep(Duration::from_millis(20));
                continue;
            }
            let entry = match self.work.rng.below(10) {
                0..4 => self.autocommit(),
                4 => self.several(),
                _ => self.block(),
            };
            self.ledger.add(&self.name, entry);
            if self.work.rng.chance(2) {
                self.wire = None;
            }
        }
    }

    fn connected(&mut self) -> bool {
        if self.wire.is_some() {
            return true;
        }
        let rng = &mut self.work.rng;
        let port = if rng.chance(8) { self.doors.source } else { rng.pick(&self.doors.proxies) };
        let login = Login::new("alice", "alice-pw", &self.doors.database);
        match Wire::connect(port, &login) {
            Ok(wire) => {
                let pid = wire.key.as_ref().map_or(0, |(pid, _)| *pid);
                self.ledger.note(&self.name, &format!("connected to {port}, pid {pid}"));
                self.wire = Some(wire);
            }
            Err(error) => self.ledger.error(&format!("login {}", error.sqlstate)),
        }
        self.wire.is_some()
    }

    /// One statement, or a batch of extended ones, in a transaction of its own.
    fn autocommit(&mut self) -> Entry {
        let mut steps = self.work.steps(false);
        if self.work.rng.chance(20) {
            steps.extend(self.work.steps(false));
            steps.retain(|s| s.copy.is_none() && !s.pops);
        }
        let bytes = if steps.len() == 1 { self.bytes(&steps[0]) } else { pipelined(&steps) };
        self.whole(&steps, &bytes)
    }

    /// Several statements in one text.
    fn several(&mut self) -> Entry {
        let mut steps: Vec<_> =
            (0..2 + self.work.rng.below(2)).flat_map(|_| self.work.steps(false)).collect();
        steps.retain(|s| s.copy.is_none() && !s.pops);
        let mut text = steps.iter().map(inline).collect::<Vec<_>>().join("; ");
        if self.work.rng.chance(50) {
            text = format!("BEGIN; {text}; COMMIT");
        }
        self.whole(&steps, &frames::query(&text))
    }

    /// Sends what is a transaction in itself.
    fn whole(&mut self, steps: &[Step], bytes: &[u8]) -> Entry {
        let mut effects: Vec<_> = steps.iter().flat_map(|s| s.effects.clone()).collect();
        let pops = steps.iter().any(|s| s.pops);
        if self.hangs_up(bytes) {
            effects.extend(pops.then_some(Effect::PoppedBlindly));
            return Entry { fate: Fate::Unknown, effects, undone: Vec::new() };
        }
        let fate = match self.exchange(bytes) {
            Answer::Done(rows, tag, b'I') => {
                if pops {
                    effects.extend(popped(&rows));
                }
                if tag == "ROLLBACK" { Fate::RolledBack } else { Fate::Committed }
            }
            Answer::Done(_, tag, status) => {
                let status = status as char;
                self.ledger.broken(format!("{}: {tag} leaves status {status} behind", self.name));
                self.wire = None;
                Fate::Unknown
            }
            Answer::Refused(status) => {
                if status != b'I' {
                    self.wire = None; // a text that began a block: it is rolled back with the connection
                }
                Fate::RolledBack
            }
            Answer::Lost(fate) => {
                effects.extend(pops.then_some(Effect::PoppedBlindly));
                fate
            }
        };
        Entry { fate, effects, undone: Vec::new() }
    }

    /// BEGIN, some statements, savepoints, and an end.
    fn block(&mut self) -> Entry {
        let mut entry = Entry { fate: Fate::RolledBack, effects: Vec::new(), undone: Vec::new() };
        let level = match self.work.rng.below(20) {
            0 => " ISOLATION LEVEL REPEATABLE READ",
            1 => " ISOLATION LEVEL SERIALIZABLE",
            _ => "",
        };
        if !self.say(&format!("BEGIN{level}")) {
            return entry;
        }
        for _ in 0..=self.work.rng.below(4) {
            let kept = entry.effects.len();
            let savepoint = self.work.rng.chance(30);
            if savepoint && !self.say("SAVEPOINT s") {
                return entry;
            }
            let fine = self.steps_of_block(&mut entry.effects);
            if self.wire.is_none() {
                return entry;
            }
            if savepoint && (!fine || self.work.rng.chance(40)) {
                if !self.say("ROLLBACK TO s") {
                    return entry;
                }
                entry.undone.extend(entry.effects.drain(kept..));
            } else if !fine {
                break;
            }
        }
        self.end_block(&mut entry);
        entry
    }

    /// False when the transaction has failed, or the connection.
    fn steps_of_block(&mut self, effects: &mut Vec<Effect>) -> bool {
        for step in self.work.steps(true) {
            let bytes = self.bytes(&step);
            effects.extend(step.effects);
            if self.hangs_up(&bytes) {
                return false;
            }
            match self.exchange(&bytes) {
                Answer::Done(rows, _, _) => {
                    if step.pops {
                        effects.extend(popped(&rows));
                    }
                }
                Answer::Refused(_) | Answer::Lost(_) => return false,
            }
        }
        if self.work.rng.chance(10) {
            let idle = Duration::from_millis(self.work.rng.next() % 30);
            std::thread::sleep(idle);
        }
        true
    }

    fn end_block(&mut self, entry: &mut Entry) {
        if self.work.rng.chance(15) {
            self.say("ROLLBACK");
            return;
        }
        let commit = if self.work.rng.chance(50) {
            frames::query("COMMIT")
        } else {
            [frames::extended("COMMIT", &[]), frames::sync()].concat()
        };
        if self.hangs_up(&commit) {
            entry.fate = Fate::Unknown;
            return;
        }
        entry.fate = match self.exchange(&commit) {
            Answer::Done(_, tag, _) if tag == "COMMIT" => Fate::Committed,
            Answer::Done(..) | Answer::Refused(_) => Fate::RolledBack,
            Answer::Lost(fate) => fate,
        };
    }

    /// Now and then a client sends something and is gone.
    fn hangs_up(&mut self, bytes: &[u8]) -> bool {
        if !self.work.rng.chance(2) {
            return false;
        }
        if let Some(mut wire) = self.wire.take() {
            wire.send(bytes);
            if self.work.rng.chance(50) {
                std::thread::sleep(Duration::from_millis(self.work.rng.next() % 8));
            }
        }
        self.ledger.note(&self.name, "hung up");
        true
    }

    /// A statement without rows: did it work?
    fn say(&mut self, sql: &str) -> bool {
        matches!(self.exchange(&frames::query(sql)), Answer::Done(..))
    }

    fn bytes(&mut self, step: &Step) -> Vec<u8> {
        if let Some(lines) = &step.copy {
            return [frames::query(&step.sql), frames::copy_data(lines), frames::copy_done()].concat();
        }
        if self.work.rng.chance(50) {
            frames::query(&inline(step))
        } else {
            pipelined(std::slice::from_ref(step))
        }
    }

    fn exchange(&mut self, bytes: &[u8]) -> Answer {
        let Some(wire) = &mut self.wire else { return Answer::Lost(Fate::Unknown) };
        self.ledger.note(&self.name, &format!("-> {}", bytes.escape_ascii()));
        let began = Instant::now();
        wire.send(bytes);
        let answer = wire.until_ready(1);
        self.ledger.waited(began.elapsed());
        let frames = match answer {
            Ok(frames) => frames,
            Err(error) => return self.lost(&error),
        };
        self.ledger.note(&self.name, &format!("<- {}", short(&frames)));
        let status = frames.last().and_then(|f| f.body.first()).copied().unwrap_or(b'?');
        if let Some(error) = frames.iter().rev().find(|f| f.kind == b'E') {
            let sqlstate = error.sqlstate();
            self.ledger.error(&sqlstate);
            let message = error.fields().remove(&'M').unwrap_or_default();
            // Who bypasses the proxies draws from the source's sequences, whoever leads; those rows are refused anyway.
            let bypasses = wire.port == self.doors.source;
            if sqlstate == "23505" && !bypasses && GIVEN.iter().any(|key| message.contains(key)) {
                self.ledger.broken(format!("{}: a key was given twice: {message}", self.name));
            }
            // Of transaction pooling: the server's connection is lost, ours is not.
            if sqlstate.starts_with("08") || frames.iter().any(|f| f.short().starts_with("E!")) {
                std::thread::sleep(Duration::from_millis(20));
                return self.lost(&DbError { sqlstate, message });
            }
            return Answer::Refused(status);
        }
        let tag = frames.iter().rev().find(|f| f.kind == b'C').map(Frame::short).unwrap_or_default();
        let tag = tag.trim_start_matches("C[").trim_end_matches(']').to_owned();
        Answer::Done(frames.into_iter().filter(|f| f.kind == b'D').collect(), tag, status)
    }

    fn lost(&mut self, error: &DbError) -> Answer {
        self.wire = None;
        let kind = if error.sqlstate.is_empty() {
            error.message.split(' ').next().unwrap_or("")
        } else {
            &error.sqlstate
        };
        self.ledger.error(&format!("lost {kind}"));
        self.ledger.note(&self.name, &format!("lost its connection: {error:?}"));
        // What the proxy says it knows must be true.
        Answer::Lost(match &error.message {
            m if m.contains("the transaction was rolled back") => Fate::RolledBack,
            m if m.contains("after the transaction was committed") => Fate::Committed,
            _ => Fate::Unknown,
        })
    }
}

/// Keys that sequences give.
const GIVEN: [&str; 6] =
    ["t_event_pkey", "t_ident_pkey", "t_queue_pkey", "t_child_pkey", "t_scratch_pkey", "t_audit_pkey"];

/// The statement with its values in it.
fn inline(step: &Step) -> String {
    let values = step.values.iter().enumerate();
    values
        .fold(step.sql.clone(), |sql, (i, value)| sql.replace(&format!("${}", i + 1), &format!("'{value}'")))
}

/// Statements with their values, up to one Sync.
fn pipelined(steps: &[Step]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for step in steps {
        let values: Vec<_> = step.values.iter().map(String::as_str).collect();
        bytes.extend(frames::extended(&step.sql, &values));
    }
    bytes.extend(frames::sync());
    bytes
}

fn popped(rows: &[Frame]) -> impl Iterator<Item = Effect> {
    rows.iter().filter_map(|row| row.columns().into_iter().next().flatten()).map(Effect::Popped)
}

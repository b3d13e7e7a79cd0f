//! Writers of every kind at a lead that moves, and the verdict over what they left.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use crate::support::{
    Rng,
    cluster::Cluster,
    proxy::Proxy,
    seed, wait_for,
    wire::{DbError, Login, Wire},
};

/// What they write, on both sides from the start.
pub(super) const SCHEMA: &str = "
CREATE TABLE t_lines (id bigserial PRIMARY KEY, who int NOT NULL, n int NOT NULL, port int DEFAULT inet_server_port(),
  at timestamptz DEFAULT clock_timestamp());
CREATE TABLE t_sums (who int PRIMARY KEY, n int NOT NULL);
CREATE TABLE t_parents (id int PRIMARY KEY);
CREATE TABLE t_children (id serial PRIMARY KEY, parent int NOT NULL REFERENCES t_parents);
CREATE TABLE t_doors (id int PRIMARY KEY);
INSERT INTO t_sums SELECT w, 0 FROM generate_series(0, 31) w;
INSERT INTO t_doors SELECT generate_series(0, 1);
GRANT ALL ON ALL TABLES IN SCHEMA public TO PUBLIC;
GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO PUBLIC;
";

/// What all writers share.
pub(super) struct World {
    stop: AtomicBool,
    /// Somebody is behind this door: holds the row lock of that name.
    doors: [AtomicBool; 2],
    /// Connections may be lost, and with them the outcome of what was under way.
    rough: bool,
    seed: u64,
}

/// What a writer saw.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub(super) who: u32,
    /// Numbers of lines that were acknowledged, and sums.
    pub(super) lines: Vec<u32>,
    pub(super) sums: u32,
    /// Outcomes that are not known.
    pub(super) unknown: u32,
    /// By statement, SQLSTATE and message.
    pub(super) errors: BTreeMap<String, u32>,
    /// How long transactions took, the ten longest.
    pub(super) longest: Vec<Duration>,
    pub(super) transactions: u32,
}

struct Writer {
    who: u32,
    world: Arc<World>,
    wire: Option<Wire>,
    door: (Login, u16),
    rng: Rng,
    seen: Seen,
    n: u32,
}

impl Writer {
    fn start(proxy: &Proxy, who: u32, world: &Arc<World>) -> thread::JoinHandle<Seen> {
        let mut writer = Self {
            who,
            world: Arc::clone(world),
            wire: None,
            door: (proxy.login("alice"), proxy.port),
            rng: Rng(world.seed ^ u64::from(who)),
            seen: Seen { who, ..Seen::default() },
            n: 0,
        };
        thread::spawn(move || {
            while !writer.world.stop.load(Ordering::Relaxed) {
                writer.once();
            }
            writer.seen
        })
    }

    fn once(&mut self) {
        if self.wire.is_none() {
            self.wire = Wire::connect(self.door.1, &self.door.0).ok();
            if self.wire.is_none() {
                assert!(self.world.rough, "a client cannot log in");
                return thread::sleep(Duration::from_millis(20));
            }
        }
        self.n += 1;
        let began = Instant::now();
        let (who, n) = (self.who, self.n);
        let line = format!("INSERT INTO t_lines (who, n) VALUES ({who}, {n})");
        let sum = format!("UPDATE t_sums SET n = n + 1 WHERE who = {who}");
        let parent = self.rng.below(6);
        match self.rng.below(8) {
            0 => self.acknowledged(&[&line], 1, 0),
            1 => self.acknowledged(&[&sum], 0, 1),
            2 => self.acknowledged(&["BEGIN", "SELECT count(*) FROM t_doors", &line, &sum, "COMMIT"], 1, 1),
            3 => {
                let user = format!("INSERT INTO users VALUES ({}, 'u{who}-{n}')", who * 1_000_000 + n);
                // Another repository, which changes sides with the first.
                self.acknowledged(&["BEGIN", &line, &user, "COMMIT"], 1, 0);
            }
            4 => {
                self.try_to(&[&format!("INSERT INTO t_parents VALUES ({parent}) ON CONFLICT DO NOTHING")]);
            }
            5 => drop(self.run(&["BEGIN", &format!("DELETE FROM t_parents WHERE id = {parent}"), "COMMIT"])),
            6 => {
                let child = format!("INSERT INTO t_children (parent) VALUES ({parent})");
                let none = format!("DELETE FROM t_children WHERE parent = {parent}");
                let text = if self.rng.chance(50) { child } else { none };
                self.try_to(&[&text]);
            }
            _ => self.behind_a_door(),
        }
        self.seen.transactions += 1;
        self.seen.longest.push(began.elapsed());
        if self.seen.longest.len() > 1_000 {
            self.shorten();
        }
    }

    fn shorten(&mut self) {
        self.seen.longest.sort_unstable_by(|a, b| b.cmp(a));
        self.seen.longest.truncate(100);
    }

    /// A row lock as a mutex: whoever has it is alone, whatever side leads.
    fn behind_a_door(&mut self) {
        let door = self.rng.below(2);
        let lock = format!("SELECT id FROM t_doors WHERE id = {door} FOR UPDATE");
        if !self.run(&["BEGIN", &lock]) {
            return;
        }
        assert!(!self.world.doors[door].swap(true, Ordering::SeqCst), "two are behind door {door}");
        thread::sleep(Duration::from_micros(self.rng.next() % 3_000));
        let wrote = self.rng.chance(50);
        let sum = format!("UPDATE t_sums SET n = n + 1 WHERE who = {}", self.who);
        let written = wrote.then(|| self.wire.as_mut().expect("it is there").query(&sum));
        // Let go before the lock is.
        self.world.doors[door].store(false, Ordering::SeqCst);
        if let Some(Err(error)) = written {
            self.failed(&sum, &error);
        } else {
            self.acknowledged(&["COMMIT"], 0, u32::from(wrote));
        }
    }

    fn acknowledged(&mut self, texts: &[&str], lines: u32, sums: u32) {
        let unknown = self.seen.unknown;
        if self.run(texts) {
            if lines > 0 {
                self.seen.lines.push(self.n);
            }
            self.seen.sums += sums;
        } else if self.seen.unknown == unknown && self.world.rough {
            self.seen.unknown += 1;
        }
    }

    /// What it leaves behind is not counted.
    fn try_to(&mut self, texts: &[&str]) {
        self.run(texts);
    }

    /// True when all of it worked.
    fn run(&mut self, texts: &[&str]) -> bool {
        for text in texts {
            let Some(wire) = &mut self.wire else { return false };
            let answer = if self.n.is_multiple_of(2) { wire.query(text) } else { wire.execute(text, &[]) };
            if let Err(error) = answer {
                self.failed(text, &error);
                return false;
            }
        }
        true
    }

    fn failed(&mut self, text: &str, error: &DbError) {
        let lost = error.sqlstate.is_empty() || error.sqlstate.starts_with("08") || error.sqlstate == "57P01";
        if self.world.rough && lost {
            self.wire = None;
            return;
        }
        // A child of a parent that is gone, or the reverse: what one Postgres would have said.
        if error.sqlstate != "23503" {
            let text = text.split(' ').take(3).collect::<Vec<_>>().join(" ");
            let what = format!("{text}: {} {}", error.sqlstate, error.message);
            *self.seen.errors.entry(what).or_default() += 1;
        }
        if let Some(wire) = &mut self.wire {
            let _ = wire.query("ROLLBACK");
        }
    }
}

/// These writers, at one proxy.
pub(super) fn write(
    proxy: &Proxy,
    who: std::ops::Range<u32>,
    rough: bool,
) -> (Arc<World>, Vec<thread::JoinHandle<Seen>>) {
    let world = Arc::new(World {
        stop: AtomicBool::new(false),
        doors: [const { AtomicBool::new(false) }; 2],
        rough,
        seed: seed(&proxy.settings.database),
    });
    let writers = who.map(|who| Writer::start(proxy, who, &world)).collect();
    (world, writers)
}

pub(super) fn end(world: &World, writers: Vec<thread::JoinHandle<Seen>>) -> Vec<Seen> {
    world.stop.store(true, Ordering::Relaxed);
    let seen: Vec<Seen> = writers.into_iter().map(|w| w.join().expect("a writer")).collect();
    for one in &seen {
        assert!(one.errors.is_empty(), "clients heard {:?}", one.errors);
    }
    seen
}

/// Journals get empty; both sides are equal, and hold what was acknowledged and nothing twice.
#[track_caller]
pub(super) fn judge(sides: [&Cluster; 2], name: &str, seen: &[Seen]) {
    let mut sides = sides.map(|c| c.admin(name));
    wait_for("empty journals and nothing in doubt", || {
        sides.iter_mut().all(|side| {
            side.run("SELECT (SELECT count(*) FROM crossfade.journal) + (SELECT count(*) FROM pg_prepared_xacts WHERE database = current_database())")
                .as_deref() == Some("0")
        })
    });
    for table in ["t_lines", "t_sums", "t_parents", "t_children", "users"] {
        let all = format!(
            "SELECT md5(coalesce(string_agg(t::text, ';' ORDER BY t::text), '')), count(*) FROM {table} t"
        );
        let [source, target] = sides.each_mut().map(|side| side.query(&all).expect("rows"));
        assert_eq!(source, target, "{table}");
    }
    for side in &mut sides {
        let orphans =
            side.run("SELECT count(*) FROM t_children WHERE parent NOT IN (SELECT id FROM t_parents)");
        assert_eq!(orphans.as_deref(), Some("0"), "children without a parent");
        let twice = side.query("SELECT who, n FROM t_lines GROUP BY 1, 2 HAVING count(*) > 1").expect("rows");
        assert!(twice.is_empty(), "{twice:?}");
    }
    for seen in seen {
        let who = seen.who;
        let rows = sides[0].query(&format!("SELECT n FROM t_lines WHERE who = {who}")).expect("rows");
        let there: BTreeSet<u32> = rows.iter().filter_map(|row| row[0].as_deref()?.parse().ok()).collect();
        let lost: Vec<_> = seen.lines.iter().filter(|n| !there.contains(n)).collect();
        assert!(lost.is_empty(), "acknowledged lines of {who} that are not there: {lost:?}");
        let extra = there.len() - seen.lines.len();
        assert!(extra <= seen.unknown as usize, "{extra} lines too many, {} unknown", seen.unknown);
        let sum = sides[0].run(&format!("SELECT n FROM t_sums WHERE who = {who}")).expect("a sum");
        let sum: u32 = sum.parse().expect("a number");
        assert!((seen.sums..=seen.sums + seen.unknown).contains(&sum), "{sum}, acknowledged {}", seen.sums);
    }
}

//! Writers that know nothing of the proxy, two repairers at once, a target that dies twice.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use crossfade::Side;

use super::{Bench, block_on};
use crate::support::{
    Rng,
    cluster::{Cluster, majors},
    env_number, seed,
    wire::{Login, Wire},
};

const SCHEMA: &str = "
CREATE TABLE slots (id int PRIMARY KEY, slot int UNIQUE);
CREATE TABLE log (at int, what text);
CREATE TABLE parent (id int PRIMARY KEY, n int);
CREATE TABLE child (id serial PRIMARY KEY, parent int REFERENCES parent ON DELETE CASCADE ON UPDATE CASCADE, t timestamptz DEFAULT clock_timestamp());
";

const TABLES: &[&str] = &["documents", "slots", "log", "parent", "child"];

#[test]
fn writers_and_restarts_end_with_equal_tables() {
    let seed = seed("repair_storm");
    let majors = majors();
    let source = Cluster::start("storm-source", majors[0]);
    let mut target = Cluster::start("storm-target", *majors.last().expect("one"));
    let bench = Bench::between(&source, &target, "repair_storm", SCHEMA);
    let seconds = env_number("CROSSFADE_ROUNDS").unwrap_or(6);
    let (stop, over, written) = (AtomicBool::new(false), AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        for n in 0..4 {
            let (stop, written, port) = (&stop, &written, source.port);
            scope.spawn(move || write(port, Rng(seed ^ (n << 32)), stop, written));
        }
        for _ in 0..2 {
            scope.spawn(|| repair(&bench, &over));
        }
        for _ in 0..2 {
            thread::sleep(Duration::from_secs(seconds) / 3);
            target.kill();
            thread::sleep(Duration::from_millis(300));
            target.restart();
        }
        thread::sleep(Duration::from_secs(seconds) / 3);
        stop.store(true, Ordering::Relaxed);
        crate::support::holds_within(Duration::from_secs(60), || {
            !stop.load(Ordering::Relaxed) || bench.journal_rows() == 0
        });
        over.store(true, Ordering::Relaxed);
    });
    println!("{} transactions", written.load(Ordering::Relaxed));
    assert_eq!(bench.journal_rows(), 0, "{:?}", bench.status.state().journals[0]);
    assert!(written.load(Ordering::Relaxed) > 100);
    for side in Side::BOTH {
        assert!(!bench.rows(side, "documents").is_empty());
    }
    bench.equal(TABLES);
}

fn repair(bench: &Bench, over: &AtomicBool) {
    let mut repairer = bench.repairer(Side::Source).unlocked();
    block_on(async {
        while !over.load(Ordering::Relaxed) {
            let wait = match repairer.round().await {
                Ok(_) => Duration::from_millis(5),
                Err(_) => Duration::from_millis(100),
            };
            tokio::time::sleep(wait).await;
        }
    });
}

fn write(port: u16, mut rng: Rng, stop: &AtomicBool, written: &AtomicU64) {
    let mut wire =
        Wire::connect(port, &Login::new("postgres", "secret", "repair_storm")).expect("the source");
    let end = Instant::now() + Duration::from_secs(120);
    while !stop.load(Ordering::Relaxed) && Instant::now() < end {
        let sql = statement(&mut rng);
        // Deadlocks and duplicates are the writers' own affair.
        if wire.query(&sql).is_err() {
            let _ = wire.query("ROLLBACK");
        }
        written.fetch_add(1, Ordering::Relaxed);
    }
}

fn statement(rng: &mut Rng) -> String {
    let (a, b, n) = (rng.below(60), rng.below(60), rng.below(1_000));
    match rng.below(12) {
        0..2 => format!(
            "INSERT INTO documents VALUES ({a}, 'a{n}', {n}) ON CONFLICT (id) DO UPDATE SET n = documents.n + 1"
        ),
        2 => format!("UPDATE documents SET title = title || {n}, n = n + 1 WHERE id BETWEEN {a} AND {b}"),
        3 => format!("DELETE FROM documents WHERE id = {a}"),
        4 => format!("UPDATE documents SET id = {a} WHERE id = {b}"),
        5 => format!("INSERT INTO slots VALUES ({a}, {n}) ON CONFLICT DO NOTHING"),
        6 => format!(
            "BEGIN; UPDATE slots SET slot = -1 - id WHERE id IN ({a}, {b}); \
             UPDATE slots SET slot = 2000 + id WHERE id = {a}; UPDATE slots SET slot = {n} WHERE id = {b}; COMMIT"
        ),
        7 => format!(
            "BEGIN; INSERT INTO log VALUES ({a}, 'x'); SAVEPOINT s; INSERT INTO log VALUES ({b}, 'gone'); ROLLBACK TO s; COMMIT"
        ),
        8 => format!(
            "INSERT INTO parent VALUES ({a}, {n}) ON CONFLICT DO NOTHING; INSERT INTO child (parent) SELECT id FROM parent ORDER BY random() LIMIT 2"
        ),
        9 => format!("DELETE FROM parent WHERE id = {a}"),
        10 => format!("UPDATE parent SET id = {a} + 100 WHERE id = {b}"),
        _ => format!(
            "BEGIN; DELETE FROM slots WHERE id = {a}; INSERT INTO slots VALUES ({a}, 5000 + {n}); {}",
            if n % 3 == 0 { "ROLLBACK" } else { "COMMIT" }
        ),
    }
}

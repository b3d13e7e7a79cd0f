//! Through the proxy, under load.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use crate::support::{
    PATIENCE,
    cluster::{newest, oldest},
    holds_within, needs_proxy,
    proxy::{Proxy, Settings},
    wait_for,
    wire::{Login, Wire},
};

const SCHEMA: &str = "
CREATE TABLE t_lines (id bigserial PRIMARY KEY, who int NOT NULL, n int NOT NULL);
CREATE TABLE t_sums (who int PRIMARY KEY, n int NOT NULL);
INSERT INTO t_sums SELECT w, 0 FROM generate_series(0, 31) w;
GRANT ALL ON ALL TABLES IN SCHEMA public TO PUBLIC;
GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO PUBLIC;
";

fn settings(name: &str, mode: &str, pooling: &str) -> Settings {
    for cluster in [oldest(), newest()] {
        cluster.database(name);
        cluster.admin(name).run(SCHEMA);
    }
    let mut settings = Settings::new(name);
    settings.tables += ", \"public.t_*\"";
    settings.mirror = format!("mirror = \"{mode}\"");
    "install = true".clone_into(&mut settings.mirroring);
    if pooling == "transaction" { settings.transaction(6) } else { settings }
}

pub(super) fn lead(proxy: &Proxy) -> Option<String> {
    let mut console = proxy.console("bob").ok()?;
    let rows = console.query("SHOW REPOSITORIES").ok()?;
    rows.into_iter().find(|row| row[0].as_deref() == Some("document"))?[7].clone()
}

/// Edits the file and waits until that side leads.
fn move_to(proxy: &mut Proxy, target: bool) -> Duration {
    let began = Instant::now();
    proxy.edit(|s| s.document_writes_target = target);
    let wanted = if target { "target" } else { "source" };
    // While journals grow faster than they are shipped, as on a machine that is short of processors, it waits.
    let moved = holds_within(4 * PATIENCE, || lead(proxy).as_deref() == Some(wanted));
    assert!(moved, "the {wanted} does not lead");
    began.elapsed()
}

/// What a writer saw.
#[derive(Debug, Default)]
struct Seen {
    /// Lines that were acknowledged.
    lines: u32,
    /// Errors of autocommit statements, and of blocks, by SQLSTATE and message.
    lone: BTreeMap<String, u32>,
    blocks: BTreeMap<String, u32>,
    longest: Duration,
}

/// Writes until it is told to stop: lone statements and blocks in turn, simple and extended.
fn write(login: &Login, port: u16, who: u32, stop: &AtomicBool) -> Seen {
    let mut seen = Seen::default();
    let mut client = Wire::connect(port, login).expect("the proxy answers");
    let mut n = 0;
    while !stop.load(Ordering::Relaxed) {
        n += 1;
        let began = Instant::now();
        let insert = format!("INSERT INTO t_lines (who, n) VALUES ({who}, {n})");
        match n % 4 {
            0 => match client.query(&insert) {
                Ok(_) => seen.lines += 1,
                Err(e) => *seen.lone.entry(format!("{} {}", e.sqlstate, e.message)).or_default() += 1,
            },
            1 => {
                let values = [who.to_string(), n.to_string()];
                let values: Vec<&str> = values.iter().map(String::as_str).collect();
                match client.execute("INSERT INTO t_lines (who, n) VALUES ($1, $2)", &values) {
                    Ok(_) => seen.lines += 1,
                    Err(e) => *seen.lone.entry(format!("{} {}", e.sqlstate, e.message)).or_default() += 1,
                }
            }
            _ => {
                let update = format!("UPDATE t_sums SET n = n + 1 WHERE who = {who}");
                // Every other block reads first.
                let read = format!("SELECT n FROM t_sums WHERE who = {who}");
                let texts =
                    ["BEGIN", if n % 4 == 2 { &read } else { "SAVEPOINT a" }, &insert, &update, "COMMIT"];
                let mut failed = None;
                for text in texts {
                    if let Err(e) = client.query(text) {
                        failed = Some(format!("{} {}", e.sqlstate, e.message));
                        let _ = client.query("ROLLBACK");
                        break;
                    }
                }
                match failed {
                    None => seen.lines += 1,
                    Some(why) => *seen.blocks.entry(why).or_default() += 1,
                }
            }
        }
        seen.longest = seen.longest.max(began.elapsed());
    }
    seen
}

/// Moves the lead forth and back five times under eight writers.
fn under_load(mode: &str, pooling: &str) {
    needs_proxy!();
    let name = format!("lead_{mode}_{pooling}");
    let mut proxy = settings(&name, mode, pooling).start();
    let mut first = proxy.client("alice");
    wait_for("what mirroring needs", || first.query("UPDATE t_sums SET n = 0 WHERE who = 31").is_ok());
    assert_eq!(lead(&proxy).as_deref(), Some("source"));
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..8)
        .map(|who| {
            let (login, port, stop) = (proxy.login("alice"), proxy.port, Arc::clone(&stop));
            thread::spawn(move || write(&login, port, who, &stop))
        })
        .collect();
    let took: Vec<_> = (0..10).map(|turn| move_to(&mut proxy, turn % 2 == 0)).collect();
    stop.store(true, Ordering::Relaxed);
    let seen: Vec<Seen> = writers.into_iter().map(|w| w.join().expect("a writer")).collect();
    let lines: u32 = seen.iter().map(|s| s.lines).sum();
    let longest = seen.iter().map(|s| s.longest).max().unwrap_or_default();
    let blocks: u32 = seen.iter().flat_map(|s| s.blocks.values()).sum();
    println!(
        "{name}: {lines} lines, moves took {took:?}, a write at most {longest:?}, {blocks} blocks repeated"
    );
    for s in &seen {
        assert!(s.lone.is_empty(), "a lone statement failed: {:?}", s.lone);
        assert!(s.blocks.keys().all(|why| why.starts_with("40001")), "{:?}", s.blocks);
    }
    equal(&name, lines);
    assert!(proxy.metric("lead_moves_total", &["outcome=\"moved\""]) >= 10.0);
}

/// Journals get empty, nothing is in doubt, and both sides have each acknowledged line once.
#[track_caller]
fn equal(name: &str, lines: u32) {
    let mut sides = [oldest(), newest()].map(|c| c.admin(name));
    wait_for("empty journals and nothing in doubt", || {
        sides.iter_mut().all(|side| {
            side.run("SELECT (SELECT count(*) FROM crossfade.journal) + (SELECT count(*) FROM pg_prepared_xacts WHERE database = current_database())")
                .as_deref() == Some("0")
        })
    });
    let all = "SELECT (SELECT string_agg(t::text, ';' ORDER BY id) FROM t_lines t), (SELECT string_agg(t::text, ';' ORDER BY who) FROM t_sums t)";
    let [source, target] = sides.each_mut().map(|side| side.query(all).expect("rows"));
    assert!(source == target, "the tables differ");
    let counts = sides[0]
        .query("SELECT count(*), count(DISTINCT id), count(DISTINCT (who, n)) FROM t_lines")
        .expect("counts");
    let lines = lines.to_string();
    for count in &counts[0] {
        assert_eq!(
            count.as_deref(),
            Some(&*lines),
            "lines that were acknowledged, ids, and writers' numbers"
        );
    }
    // The side that leads is ahead of every value that was given.
    let ahead = "SELECT last_value >= coalesce((SELECT max(id) FROM t_lines), 0) FROM t_lines_id_seq";
    assert_eq!(sides[0].run(ahead).as_deref(), Some("t"), "the source leads in the end");
}

macro_rules! under_load {
    ($($name:ident $mode:literal $pooling:literal;)*) => {
        $(#[test] fn $name() { under_load($mode, $pooling); })*
    };
}

under_load! {
    async_session "async" "session";
    async_transaction "async" "transaction";
    journaled_session "journaled" "session";
    journaled_transaction "journaled" "transaction";
    atomic_session "atomic" "session";
    atomic_transaction "atomic" "transaction";
}

/// A proxy whose mirrored tables take writes.
fn ready(settings: Settings) -> Proxy {
    let proxy = settings.start();
    let mut first = proxy.client("alice");
    wait_for("what mirroring needs", || first.query("UPDATE t_sums SET n = 0 WHERE who = 31").is_ok());
    proxy
}

#[test]
fn an_open_transaction_delays_the_move_and_stalls_nobody_for_long() {
    needs_proxy!();
    let mut proxy = ready(settings("lead_long", "journaled", "transaction"));
    let mut open = proxy.client("alice");
    for text in ["BEGIN", "UPDATE t_sums SET n = 1 WHERE who = 1"] {
        open.query(text).expect("it writes");
    }
    proxy.edit(|s| s.document_writes_target = true);
    let mut console = proxy.console("bob").expect("may look");
    let mut other = proxy.client("alice");
    let mut longest = Duration::ZERO;
    let mut writes = 0;
    let mut row = Vec::new();
    wait_for("three attempts", || {
        let began = Instant::now();
        other.query("UPDATE t_sums SET n = n + 1 WHERE who = 2").expect("writers wait, they do not fail");
        (longest, writes) = (longest.max(began.elapsed()), writes + 1);
        row = console.query("SHOW REPOSITORIES").expect("rows").swap_remove(1);
        proxy.metric("lead_moves_total", &["outcome=\"waited\""]) >= 3.0
    });
    // The lock is waited for one second; the rest is a slow machine.
    assert!(longest < Duration::from_millis(2_500), "{longest:?}");
    assert!(writes > 5, "{writes} writes between attempts");
    assert_eq!((row[7].as_deref(), row[12].as_deref()), (Some("source"), Some("target")));
    let why = row[13].as_deref().unwrap_or_default();
    assert!(why.contains("transactions on the source: process ids ["), "{why}");
    open.query("COMMIT").expect("it was in nobody's way");
    wait_for("the lead has moved", || lead(&proxy).as_deref() == Some("target"));
    other.query("UPDATE t_sums SET n = 100 WHERE who = 2").expect("written on the target");
    let mut target = newest().admin("lead_long");
    assert_eq!(target.run("SELECT n FROM t_sums WHERE who = 2").as_deref(), Some("100"));
    let refused = oldest().admin("lead_long").query("UPDATE t_sums SET n = 5").expect_err("past the proxy");
    assert_eq!(refused.sqlstate, "55000", "{}", refused.message);
    equal("lead_long", 0);
}

#[test]
fn a_block_that_cannot_move_is_told_to_repeat() {
    needs_proxy!();
    let mut proxy = ready(settings("lead_block", "atomic", "session"));
    let read = "SELECT n FROM t_sums WHERE who = 3";
    let write = "UPDATE t_sums SET n = n + 1 WHERE who = 3";
    // What it has done before the move, and what its first write is told.
    let cases: [(&[&str], Option<&str>); 6] = [
        (&["BEGIN"], None),
        (&["BEGIN", read, "SAVEPOINT a"], None),
        (&["BEGIN ISOLATION LEVEL SERIALIZABLE"], None),
        (&["BEGIN", "SET LOCAL search_path TO public", read], None),
        (&["BEGIN ISOLATION LEVEL REPEATABLE READ", read], Some("40001")),
        (&["BEGIN", "DECLARE c CURSOR FOR SELECT who FROM t_sums"], Some("40001")),
    ];
    let mut blocks: Vec<(Wire, &[&str], Option<&str>)> =
        cases.into_iter().map(|(texts, expected)| (proxy.client("alice"), texts, expected)).collect();
    for turn in 0..2 {
        for (client, texts, _) in &mut blocks {
            for text in *texts {
                client.query(text).expect("before the move");
            }
        }
        move_to(&mut proxy, turn == 0);
        for (client, texts, expected) in &mut blocks {
            let told = client.query(write).err();
            assert_eq!(told.as_ref().map(|e| &*e.sqlstate), *expected, "{texts:?}: {told:?}");
            client.query(if expected.is_some() { "ROLLBACK" } else { "COMMIT" }).expect("it ends");
        }
    }
    let n = newest().admin("lead_block").run("SELECT n FROM t_sums WHERE who = 3");
    assert_eq!(n.as_deref(), Some("8"), "each block that was not told to repeat counted once");
    equal("lead_block", 0);
}

#[test]
fn a_move_that_broke_off_is_finished_while_writers_wait() {
    needs_proxy!();
    let mut proxy = ready(settings("lead_broken", "journaled", "transaction"));
    let mut source = oldest().admin("lead_broken");
    // Nobody finishes it before we say so.
    source.run("SELECT pg_advisory_lock(407139, number) FROM crossfade.repositories WHERE name = 'document'");
    source
        .run("UPDATE crossfade.repositories SET lead = 'target', epoch = epoch + 1 WHERE name = 'document'");
    wait_for("nobody leads", || lead(&proxy).as_deref() == Some("nobody"));
    let mut client = proxy.client("alice");
    let waiting = thread::spawn(move || client.query("UPDATE t_sums SET n = 7 WHERE who = 7").map(drop));
    let mut again = proxy.client("alice");
    assert_eq!(again.run("SELECT n FROM t_sums WHERE who = 7").as_deref(), Some("0"), "reads go on");
    drop(source);
    waiting.join().expect("a client").expect("it was waited for");
    // It goes where it went, and stays: the file has had the source lead before.
    wait_for("the target leads", || lead(&proxy).as_deref() == Some("target"));
    move_to(&mut proxy, true);
    move_to(&mut proxy, false);
    equal("lead_broken", 0);
}

#[test]
fn two_instances_do_not_pull_at_it() {
    needs_proxy!();
    let mut one = ready(settings("lead_two", "journaled", "transaction"));
    let mut other = Settings::new("lead_two").transaction(6);
    (other.tables, other.mirror) = (one.settings.tables.clone(), one.settings.mirror.clone());
    let mut other = ready(other);
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..4)
        .map(|who| {
            let proxy = if who % 2 == 0 { &one } else { &other };
            let (login, port, stop) = (proxy.login("alice"), proxy.port, Arc::clone(&stop));
            thread::spawn(move || write(&login, port, who, &stop))
        })
        .collect();
    move_to(&mut one, true);
    wait_for("the other instance knows", || lead(&other).as_deref() == Some("target"));
    wait_for("it says so", || other.log().contains("another instance has moved the lead"));
    move_to(&mut other, true); // the same edit, later: nothing to be done
    for turn in 0..4 {
        let target = turn % 2 == 1;
        // Both at once.
        for proxy in [&mut one, &mut other] {
            proxy.edit(|s| s.document_writes_target = target);
        }
        let wanted = if target { "target" } else { "source" };
        wait_for("both know", || [&one, &other].iter().all(|p| lead(p).as_deref() == Some(wanted)));
    }
    move_to(&mut other, false);
    stop.store(true, Ordering::Relaxed);
    let seen: Vec<Seen> = writers.into_iter().map(|w| w.join().expect("a writer")).collect();
    for s in &seen {
        assert!(s.lone.is_empty(), "a lone statement failed: {:?}", s.lone);
        assert!(s.blocks.keys().all(|why| why.starts_with("40001")), "{:?}", s.blocks);
    }
    wait_for("both know", || [&one, &other].iter().all(|p| lead(p).as_deref() == Some("source")));
    let moved: f64 =
        [&one, &other].iter().map(|p| p.metric("lead_moves_total", &["outcome=\"moved\""])).sum();
    assert!((moved - 6.0).abs() < 0.5, "each move once: {moved}");
    equal("lead_two", seen.iter().map(|s| s.lines).sum());
}

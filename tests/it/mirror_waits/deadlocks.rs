//! HAZARDS P1 f and h: circles that neither server sees.

use std::time::{Duration, Instant};

use super::{SCHEMA, given_up::standby, outcome, proxy, run_all, wait_for_state, waiting};
use crate::{
    mirror::{check_equal, start_between},
    support::{
        Rng,
        cluster::{Cluster, newest, oldest},
        frames, needs_proxy,
        proxy::{Proxy, Settings},
        seed, wait_for,
        wire::{DbError, Wire},
    },
};

const MODES: [&str; 2] = ["journaled", "atomic"];
/// What is configured as the limit, and what a busy machine may add.
const SOON: Duration = Duration::from_secs(5);

fn deadlocks(proxy: &Proxy) -> f64 {
    proxy.metric("deadlocks_total", &["outcome=\"broken\""])
}

/// HAZARDS P1 h: `a` is led by the source and holds there what `b`'s rows need; `b` is led by the target and holds there
/// what `a`'s rows need.
fn opposite(mut a: Wire, mut b: Wire) -> [(Result<(), DbError>, Duration); 2] {
    run_all(
        &mut a,
        &["BEGIN", "INSERT INTO users (id, name, x) VALUES (11, 'a', 1)", "DELETE FROM users WHERE id = 2"],
    );
    run_all(&mut b, &["BEGIN", "INSERT INTO t_y VALUES (1, 2)", "DELETE FROM t_x WHERE id = 1"]);
    let began = Instant::now();
    a.send(&frames::query("COMMIT"));
    b.send(&frames::query("COMMIT"));
    let ends = [&mut a, &mut b].map(|wire| (outcome(wire), began.elapsed()));
    // Whoever lost can go on.
    for client in [&mut a, &mut b] {
        assert_eq!(client.run("SELECT 1").as_deref(), Some("1"));
    }
    ends
}

#[track_caller]
fn check_youngest_lost(ends: &[(Result<(), DbError>, Duration); 2]) {
    let [(a, _), (b, took)] = ends;
    assert!(a.is_ok(), "the older one goes on: {a:?}");
    let error = b.as_ref().expect_err("the younger one gives way");
    assert_eq!(error.sqlstate, "40P01", "{}", error.message);
    assert!(error.message.contains("deadlock detected"), "{}", error.message);
    assert!(*took < SOON, "{took:?}");
}

#[test]
fn opposite_leads() {
    needs_proxy!();
    for mode in MODES {
        let proxy = proxy("opposite", mode, |_| ());
        let ends = opposite(proxy.client("alice"), proxy.client("bob"));
        check_youngest_lost(&ends);
        check_equal(&proxy);
        let database = &proxy.settings.database;
        for cluster in [oldest(), newest()] {
            let mut admin = cluster.admin(database);
            assert_eq!(
                admin.run("SELECT string_agg(id::text, ' ' ORDER BY id) FROM users").as_deref(),
                Some("1 3 4 5 11")
            );
            assert_eq!(admin.run("SELECT count(*) FROM t_x").as_deref(), Some("5"));
            assert_eq!(admin.run("SELECT count(*) FROM t_y").as_deref(), Some("0"));
        }
        assert!((deadlocks(&proxy) - 1.0).abs() < 0.5, "{mode}: {}", deadlocks(&proxy));
        assert!(proxy.log().contains("a deadlock over both databases"), "it is logged");
    }
}

/// The detail says who waits for whom, in the words of both servers; a lone statement can be the one to give way.
#[test]
fn a_lone_statement_gives_way() {
    needs_proxy!();
    for mode in MODES {
        let proxy = proxy("lone", mode, |_| ());
        let (mut a, mut b) = (proxy.client("alice"), proxy.client("bob"));
        run_all(
            &mut a,
            &[
                "BEGIN",
                "INSERT INTO users (id, name, x) VALUES (12, 'b', 3)",
                "DELETE FROM users WHERE id = 4",
            ],
        );
        let lone = "WITH y AS (INSERT INTO t_y VALUES (1, 4)) DELETE FROM t_x WHERE id = 3";
        b.send(&frames::query(lone));
        wait_for_state(&proxy, "applying", Duration::ZERO);
        let began = Instant::now();
        a.send(&frames::query("COMMIT"));
        let answer = b.until_ready(1).expect("an answer");
        assert!(began.elapsed() < SOON);
        let error = answer.iter().find(|f| f.kind == b'E').expect("an error");
        let text = String::from_utf8_lossy(&error.body).into_owned();
        assert!(text.contains("C40P01"), "{text}");
        assert!(text.contains("on the source (for process") && text.contains("waits for process"), "{text}");
        assert!(text.contains("Repeat the transaction"), "{text}");
        outcome(&mut a).expect("the other one goes on");
        check_equal(&proxy);
    }
}

/// HAZARDS P1 f: the target has a unique index that the source lacks. A circle of three: the index makes C wait for A on
/// the target only.
#[test]
fn an_index_that_the_source_lacks() {
    needs_proxy!();
    for mode in MODES {
        let proxy = proxy("index", mode, |_| ());
        newest().admin(&proxy.settings.database).run("CREATE UNIQUE INDEX ON users (code)");
        let [mut a, mut b, mut c] = ["alice", "bob", "alice"].map(|user| proxy.client(user));
        run_all(
            &mut a,
            &[
                "BEGIN",
                "INSERT INTO users (id, name, code) VALUES (11, 'a', 'k')",
                "UPDATE users SET code = 'z' WHERE id = 2",
            ],
        );
        run_all(&mut b, &["BEGIN", "INSERT INTO t_y VALUES (1, 2)", "DELETE FROM t_x WHERE id = 1"]);
        run_all(&mut c, &["BEGIN", "INSERT INTO users (id, name, code, x) VALUES (12, 'c', 'k', 1)"]);
        // A has its value of the index on the target, and waits there for B.
        a.send(&frames::query("COMMIT"));
        let mut target = newest().admin(&proxy.settings.database);
        wait_for("A waits", || waiting(&mut target));
        let began = Instant::now();
        b.send(&frames::query("COMMIT"));
        c.send(&frames::query("COMMIT"));
        let error = outcome(&mut c).expect_err("the youngest gives way");
        assert_eq!(error.sqlstate, "40P01", "{mode}: {}", error.message);
        assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
        outcome(&mut b).expect("it goes on");
        outcome(&mut a).expect("it goes on");
        check_equal(&proxy);
        assert!((deadlocks(&proxy) - 1.0).abs() < 0.5, "{mode}: {}", deadlocks(&proxy));
    }
}

/// The two clients come through different instances: each sees the other's transaction, and they agree who gives way.
#[test]
fn two_instances() {
    needs_proxy!();
    for mode in MODES {
        let one = proxy("instances", mode, |_| ());
        let other = Settings { ..one.settings.clone() }.start();
        let ends = opposite(one.client("alice"), other.client("bob"));
        check_youngest_lost(&ends);
        check_equal(&one);
        assert!(deadlocks(&one) < 0.5 && (deadlocks(&other) - 1.0).abs() < 0.5, "{mode}");
    }
}

/// Waits that end by themselves are left alone, however long they take.
#[test]
fn a_wait_is_no_deadlock() {
    needs_proxy!();
    for mode in MODES {
        let proxy = proxy("wait", mode, |_| ());
        let database = proxy.settings.database.clone();
        let mut blocker = newest().admin(&database);
        run_all(&mut blocker, &["BEGIN", "SELECT * FROM users WHERE id = 2 FOR UPDATE"]);
        let (mut a, mut b) = (proxy.client("alice"), proxy.client("bob"));
        a.send(&frames::query("UPDATE users SET x = 1 WHERE id = 2"));
        wait_for_state(&proxy, "applying", Duration::ZERO);
        // Behind it on the lead.
        b.send(&frames::query("UPDATE users SET x = 2 WHERE id = 2"));
        wait_for_state(&proxy, "applying", Duration::from_secs(2));
        wait_for_state(&proxy, "armed", Duration::from_secs(1));
        blocker.run("ROLLBACK");
        for client in [&mut a, &mut b] {
            outcome(client).expect("it has waited, and goes on");
        }
        check_equal(&proxy);
        assert!(proxy.metric("deadlocks_total", &[]) < 0.5, "{mode}");
    }
}

/// The follower's COMMIT takes long, and its client has gone on: what that one waits for now has nothing to do with it.
#[test]
fn a_commit_that_nobody_waits_for_is_no_deadlock() {
    needs_proxy!();
    let target = Cluster::start("late", newest().major);
    let proxy = start_between(oldest(), &target, "w_late", SCHEMA, |s| {
        s.mirror = "mirror = \"journaled\"\nack = \"lead\"".to_owned();
        s.mirroring =
            "lock_timeout = \"30s\"\napply_timeout = \"30s\"\ndeadlock_after = \"300ms\"".to_owned();
    });
    let mut admin = target.admin("w_late");
    admin.run("SET synchronous_commit = off");
    let (mut a, mut b) = (proxy.client("alice"), proxy.client("bob"));
    standby(&mut admin, "nobody");
    a.run("UPDATE t_x SET v = 'a' WHERE id = 1");
    run_all(&mut b, &["BEGIN", "UPDATE t_x SET v = 'b' WHERE id IN (1, 2)"]);
    a.send(&frames::query("UPDATE t_x SET v = 'a' WHERE id = 2"));
    let mut source = oldest().admin("w_late");
    wait_for("a waits for b", || waiting(&mut source));
    b.send(&frames::query("COMMIT"));
    wait_for("b waits for what a has left", || waiting(&mut admin));
    wait_for_state(&proxy, "applying", Duration::from_secs(2));
    standby(&mut admin, "");
    for client in [&mut a, &mut b] {
        outcome(client).expect("nobody gives way");
    }
    assert!(proxy.metric("deadlocks_total", &[]) < 0.5, "{}", proxy.log());
    check_equal(&proxy);
}

/// Who holds the row is prepared, and nobody knows yet what becomes of it: recovery is told to look, again and again.
#[test]
fn a_prepared_blocker_kicks_recovery() {
    needs_proxy!();
    let proxy = proxy("doubt", "atomic", |_| ());
    let database = proxy.settings.database.clone();
    let (mut source, mut target) = (oldest().admin(&database), newest().admin(&database));
    source.run("BEGIN");
    let gid = "SELECT 'cf1.' || c.system_identifier || '.' || p.timeline_id || '.' || pg_current_xact_id() || '.test.' \
               || (p.checkpoint_lsn - '0/0')::text FROM pg_control_system() c, pg_control_checkpoint() p";
    let gid = source.run(gid).expect("a name");
    run_all(&mut target, &["BEGIN", "SELECT * FROM users WHERE id = 2 FOR UPDATE"]);
    target.run(&format!("PREPARE TRANSACTION '{gid}'"));
    let mut client = proxy.client("alice");
    client.send(&frames::query("UPDATE users SET x = 1 WHERE id = 2"));
    wait_for("recovery is told", || proxy.metric("in_doubt_waits_total", &["backend=\"target\""]) > 1.5);
    source.run("ROLLBACK");
    outcome(&mut client).expect("it has waited, and goes on");
    check_equal(&proxy);
    assert!(proxy.metric("deadlocks_total", &[]) < 0.5);
}

/// The instance whose client should give way does nothing: after a while one of the others does, in the middle of a
/// statement on its lead.
#[test]
fn another_instance_is_not_waited_for_for_ever() {
    needs_proxy!();
    let one = proxy("late", "journaled", |_| ());
    let slow = one.settings.mirroring.replace("300ms", "60s");
    let other = Settings { mirroring: slow, ..one.settings.clone() }.start();
    let [mut a, mut b] = ["alice", "bob"].map(|user| other.client(user));
    let mut p = one.client("alice");
    run_all(
        &mut a,
        &["BEGIN", "UPDATE users SET x = 2 WHERE id = 3", "UPDATE users SET code = 'z' WHERE id = 2"],
    );
    run_all(&mut b, &["BEGIN", "INSERT INTO t_y VALUES (1, 2)", "DELETE FROM t_x WHERE id = 1"]);
    run_all(&mut p, &["BEGIN", "INSERT INTO users (id, name, x) VALUES (13, 'p', 1)"]);
    p.send(&frames::query("UPDATE users SET x = 4 WHERE id = 3"));
    a.send(&frames::query("COMMIT"));
    b.send(&frames::query("COMMIT"));
    let error = outcome(&mut p).expect_err("it gives way");
    assert_eq!(error.sqlstate, "40P01", "{}", error.message);
    assert!(error.message.contains("across source and target"), "{}", error.message);
    for client in [&mut a, &mut b] {
        outcome(client).expect("it goes on");
    }
    p.run("ROLLBACK");
    p.run("UPDATE users SET x = 5 WHERE id = 3");
    check_equal(&one);
    assert!(one.metric("deadlocks_total", &["outcome=\"elsewhere\""]) > 0.5);
}

/// Many clients of two instances lock rows on both sides in random order. Locks are waited for without end, so whatever
/// circle is not found stops the test; and no error but those of deadlocks and of serialization is heard.
#[test]
fn storm() {
    needs_proxy!();
    let seed = seed("deadlocks::storm");
    for mode in MODES {
        let one = proxy("storm", mode, |_| ());
        let other = Settings { ..one.settings.clone() }.start();
        let heard: Vec<_> = std::thread::scope(|scope| {
            let clients: Vec<_> = (0..8)
                .map(|who| {
                    let client = if who % 2 == 0 { one.client("alice") } else { other.client("bob") };
                    scope.spawn(move || write_at_random(client, Rng(seed + who), who))
                })
                .collect();
            clients.into_iter().map(|c| c.join().expect("a client")).collect()
        });
        let mut counts = std::collections::BTreeMap::<String, usize>::new();
        for word in heard.into_iter().flatten() {
            *counts.entry(word).or_default() += 1;
        }
        println!("{mode}: {counts:?}, broken {} and {}", deadlocks(&one), deadlocks(&other));
        check_equal(&one);
        assert!(
            counts.keys().all(|word| ["committed", "40P01", "40001"].contains(&word.as_str())),
            "{counts:?}"
        );
        assert!(counts.get("committed").is_some_and(|n| *n > 100), "{counts:?}");
        assert!(deadlocks(&one) + deadlocks(&other) > 0.5, "nothing was put to the test");
    }
}

/// Thirty blocks: half of them led by the source, half by the target. Each locks rows of the other half's tables by
/// foreign keys, and changes rows of its own. What each of them came to.
fn write_at_random(mut client: Wire, mut rng: Rng, who: u64) -> Vec<String> {
    let mut heard = Vec::new();
    for turn in 0..30 {
        let mut texts = vec!["BEGIN".to_owned()];
        let source = rng.chance(50);
        for part in 0..=rng.below(3) {
            let (id, row) = (1000 * (who + 1) + turn * 10 + part as u64, 1 + rng.below(4));
            texts.push(match (source, rng.chance(50)) {
                (true, true) => format!("INSERT INTO users (id, name, x) VALUES ({id}, 'n{id}', {row})"),
                (true, false) => format!("UPDATE users SET code = '{id}' WHERE id = {row}"),
                (false, true) => format!("INSERT INTO t_y VALUES ({id}, {row})"),
                (false, false) => format!("UPDATE t_x SET v = '{id}' WHERE id = {row}"),
            });
        }
        texts.push("COMMIT".to_owned());
        let failed = texts.iter().find_map(|text| client.query(text).err());
        if let Some(error) = &failed {
            assert!(!error.sqlstate.is_empty(), "{error:?}");
            client.run("ROLLBACK");
        }
        heard.push(failed.map_or("committed".to_owned(), |e| e.sqlstate));
    }
    heard
}

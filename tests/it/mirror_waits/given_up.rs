//! What reaches a client while statements of crossfade's own wait for it: `timeouts.query`, KILL, its own cancel request.

use std::time::{Duration, Instant};

use super::{SCHEMA, outcome, proxy, run_all, transactions, wait_for_state, waiting};
use crate::{
    mirror::{check_equal, start_between},
    support::{
        cluster::{Cluster, newest, oldest},
        frames, needs_proxy,
        proxy::Proxy,
        wait_for,
        wire::Wire,
    },
};

const MODES: [&str; 2] = ["journaled", "atomic"];

/// Where a lock is held, so that statements of ours wait for it.
#[derive(Clone, Copy, Debug)]
enum At {
    /// The foreign key of `late` is looked at with the write set, on the lead.
    Lead,
    /// The row is put in place there.
    Follower,
}

/// Somebody else holds it.
fn blocker(proxy: &Proxy, at: At) -> Wire {
    let cluster = match at {
        At::Lead => oldest(),
        At::Follower => newest(),
    };
    let mut blocker = cluster.admin(&proxy.settings.database);
    run_all(&mut blocker, &["BEGIN", "SELECT * FROM users WHERE id = 2 FOR UPDATE"]);
    blocker
}

/// Begins what will wait, as a lone statement or as a block; the client of this id.
fn begin(proxy: &Proxy, client: &mut Wire, at: At, block: bool) -> u64 {
    let write = match at {
        At::Lead => "INSERT INTO users (id, name, late) VALUES (20, 'new', 2)",
        At::Follower => "UPDATE users SET x = 1 WHERE id IN (1, 2)",
    };
    let waits = if block {
        run_all(client, &["BEGIN", "SAVEPOINT a", write]);
        "COMMIT"
    } else {
        write
    };
    client.send(&frames::query(waits));
    let cluster = match at {
        At::Lead => oldest(),
        At::Follower => newest(),
    };
    let mut admin = cluster.admin(&proxy.settings.database);
    wait_for("it waits", || waiting(&mut admin));
    let rows = transactions(proxy);
    rows[0][0].as_deref().and_then(|id| id.parse().ok()).expect("its number")
}

/// Nobody waits any more, although the lock is still held, and nothing was written.
#[track_caller]
fn check_nothing_left(proxy: &Proxy) {
    for cluster in [oldest(), newest()] {
        let mut admin = cluster.admin(&proxy.settings.database);
        wait_for("nobody waits", || !waiting(&mut admin));
        let open = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name <> '' \
                    AND xact_start IS NOT NULL AND pid <> pg_backend_pid() AND state LIKE 'idle in transaction%'";
        wait_for("no open transaction", || admin.run(open).as_deref() == Some("0"));
        let written = "SELECT count(*) FROM users WHERE id = 20 OR x IS NOT NULL";
        assert_eq!(admin.run(written).as_deref(), Some("0"));
    }
}

/// Every place and form, in both modes.
fn each(name: &str, timeouts: &str, mut check: impl FnMut(&Proxy, &mut Wire, u64)) {
    for mode in MODES {
        let proxy = proxy(name, mode, |s| timeouts.clone_into(&mut s.timeouts));
        for (at, block) in [At::Lead, At::Follower].into_iter().flat_map(|at| [(at, false), (at, true)]) {
            println!("{mode} {at:?} block={block}");
            let mut client = proxy.client("alice");
            let mut held = blocker(&proxy, at);
            let id = begin(&proxy, &mut client, at, block);
            let began = Instant::now();
            check(&proxy, &mut client, id);
            assert!(began.elapsed() < Duration::from_secs(6), "{:?}", began.elapsed());
            check_nothing_left(&proxy);
            held.run("ROLLBACK");
            check_equal(&proxy);
        }
        assert!(proxy.metric("mirror_follower_failures_total", &[]) < 0.5, "nobody failed");
    }
}

#[test]
fn timeouts_query() {
    needs_proxy!();
    each("query", "query = \"500ms\"", |_, client, _| {
        let error = outcome(client).expect_err("it took too long");
        assert_eq!(error.sqlstate, "57014", "{}", error.message);
        assert_eq!(client.run("SELECT count(*) FROM users").as_deref(), Some("5"));
    });
}

#[test]
fn cancel_requests() {
    needs_proxy!();
    each("cancel", "", |_, client, _| {
        client.cancel();
        let error = outcome(client).expect_err("it was cancelled");
        assert_eq!(error.sqlstate, "57014", "{}", error.message);
        assert_eq!(client.run("SELECT count(*) FROM users").as_deref(), Some("5"));
    });
}

#[test]
fn kill() {
    needs_proxy!();
    each("kill", "", |proxy, client, id| {
        proxy.console("alice").expect("may change").run(&format!("KILL {id}"));
        let error = outcome(client).expect_err("it was ended");
        assert_eq!(error.sqlstate, "57P01", "{}", error.message);
        assert!(client.closes_within(Duration::from_secs(5)));
    });
}

/// A COMMIT on the lead that waits for a standby: it is committed there, whoever gives up, and so it is on the follower.
#[test]
fn a_commit_that_hangs() {
    needs_proxy!();
    let source = Cluster::start("hangs", oldest().major);
    for mode in MODES {
        let proxy = start_between(&source, newest(), &format!("w_hangs_{mode}"), SCHEMA, |s| {
            s.mirror = format!("mirror = {mode:?}");
            "query = \"500ms\"".clone_into(&mut s.timeouts);
        });
        let mut admin = source.admin(&proxy.settings.database);
        admin.run("SET synchronous_commit = off");
        for (n, (block, killed)) in
            [(false, false), (true, false), (false, true), (true, true)].into_iter().enumerate()
        {
            println!("{mode} block={block} killed={killed}");
            let mut client = proxy.client("alice");
            client.run("SELECT 1");
            standby(&mut admin, "nobody");
            let insert = format!("INSERT INTO t_x VALUES ({}, 'x')", 100 + n);
            if block {
                run_all(&mut client, &["BEGIN", &insert]);
            }
            client.send(&frames::query(if block { "COMMIT" } else { &insert }));
            if killed {
                let row = wait_for_state(
                    &proxy,
                    if mode == "atomic" { "prepared" } else { "committing" },
                    Duration::ZERO,
                );
                let id = row[0].as_deref().expect("its number");
                proxy.console("alice").expect("may change").run(&format!("KILL {id}"));
                // It may still hear of what is committed.
                if let Err(error) = outcome(&mut client) {
                    assert_eq!(error.sqlstate, "57P01", "{}", error.message);
                }
                assert!(client.closes_within(Duration::from_secs(5)));
            } else {
                outcome(&mut client).expect("it is committed on the lead, and nobody may say otherwise");
            }
            standby(&mut admin, "");
            check_equal(&proxy);
            let written = format!("SELECT count(*) FROM t_x WHERE id = {}", 100 + n);
            assert_eq!(admin.run(&written).as_deref(), Some("1"), "{mode} {block} {killed}");
        }
    }
}

/// The server waits for a standby of this name at each COMMIT.
pub(super) fn standby(admin: &mut Wire, name: &str) {
    admin.run(&format!("ALTER SYSTEM SET synchronous_standby_names = '{name}'"));
    admin.run("SELECT pg_reload_conf()");
    wait_for("the setting", || admin.run("SHOW synchronous_standby_names").as_deref() == Some(name));
}

/// What the console shows of one on its way.
#[test]
fn show_transactions() {
    needs_proxy!();
    let proxy = proxy("show", "journaled", |s| s.pool_mode = "transaction");
    assert!(transactions(&proxy).is_empty());
    let mut client = proxy.client("alice");
    run_all(&mut client, &["BEGIN", "SELECT * FROM users"]);
    assert!(transactions(&proxy).is_empty(), "it has written nothing");
    client.run("UPDATE users SET x = 1 WHERE id = 2");
    let row = wait_for_state(&proxy, "armed", Duration::ZERO);
    let text = |i: usize| row[i].as_deref().unwrap_or("NULL");
    assert_eq!([text(1), text(2), text(3), text(4), text(7)], ["alice", "user", "source", "armed", "NULL"]);
    let lead = client.run("SELECT pg_backend_pid()");
    assert_eq!(row[6], lead);
    let held = blocker(&proxy, At::Follower);
    client.send(&frames::query("COMMIT"));
    let row = wait_for_state(&proxy, "applying", Duration::ZERO);
    assert_eq!(row[6], lead);
    let follower = "SELECT pid::text FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()";
    let mut admin = newest().admin(&proxy.settings.database);
    wait_for("it waits", || waiting(&mut admin));
    let rows = transactions(&proxy);
    assert_eq!(rows[0][7], admin.run(follower));
    drop(held);
    outcome(&mut client).expect("it commits");
    assert!(transactions(&proxy).is_empty());
    client.run("INSERT INTO t_x VALUES (50, 'x')");
    assert!(transactions(&proxy).is_empty());
    check_equal(&proxy);
}

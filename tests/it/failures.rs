//! Backends, clients and the proxy itself die, hang or are full.

use std::{
    collections::BTreeSet,
    sync::Mutex,
    time::{Duration, Instant},
};

use crate::support::{
    cluster::{Cluster, database, majors, newest, oldest},
    frames, holds_throughout, holds_within, http, needs_proxy,
    proxy::{Proxy, Settings},
    reply::Frame,
    wait_for,
    wire::{Next, Wire},
};

fn start(name: &str, transaction: Option<usize>) -> Proxy {
    let mut settings = Settings::new(name);
    if let Some(size) = transaction {
        settings = settings.transaction(size);
    }
    "server_login_retry = \"100ms\"\nquery_wait = \"5s\"".clone_into(&mut settings.timeouts);
    settings.start()
}

/// Ends the sessions of alice in this database.
fn terminate_alice(name: &str) {
    let sql = format!(
        "SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity WHERE usename = 'alice' AND datname = '{name}'"
    );
    oldest().admin("postgres").run(&sql);
}

/// A backend that dies in a transaction gives one clean error, and then a closed connection or one in step; never a
/// silent new session inside the old transaction.
#[test]
fn backend_dies_in_a_transaction() {
    database("fail_dies");
    for transaction in [None, Some(2)] {
        let proxy = start("fail_dies", transaction);
        for idle in [true, false] {
            let mut client = proxy.client("alice");
            client.run("BEGIN; INSERT INTO users VALUES (1, 'lost')");
            if !idle {
                client.send(&frames::query("SELECT pg_sleep(20)"));
                wait_for("the statement to run", || {
                    let sql = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep(20)%' AND wait_event = 'PgSleep'";
                    oldest().admin("postgres").run(sql).as_deref() == Some("1")
                });
            }
            terminate_alice("fail_dies");
            if idle {
                client.send(&frames::query("SELECT 1"));
            }
            let (mut errors, mut ready) = (BTreeSet::new(), false);
            let closed = loop {
                match client.next(Duration::from_secs(5)) {
                    Next::Frame(frame) if frame.kind == b'E' => {
                        assert!(errors.insert(frame.sqlstate()), "one error, not two");
                    }
                    Next::Frame(frame) if frame.kind == b'Z' => {
                        ready = true;
                        assert_ne!(frame.body, b"T", "the old transaction does not go on");
                        break false;
                    }
                    Next::Frame(_) => {}
                    Next::Eof => break true,
                    Next::Quiet => panic!("silence; pooling {transaction:?}, idle {idle}"),
                }
            };
            assert_eq!(errors.len(), 1, "{errors:?}; pooling {transaction:?}, idle {idle}");
            assert!(errors.iter().all(|e| e.starts_with("08") || e == "57P01"), "{errors:?}");
            if ready && !closed {
                client.run("ROLLBACK");
                assert_eq!(client.run("SELECT count(*) FROM users").as_deref(), Some("0"));
            }
            assert_eq!(proxy.client("alice").run("SELECT count(*) FROM users").as_deref(), Some("0"));
        }
    }
}

/// A backend that restarts is found again; in transaction pooling idle clients do not even notice.
#[test]
fn backend_restarts() {
    needs_proxy!();
    let mut source = Cluster::start("restarting", majors()[0]);
    source.database("fail_restart");
    newest().database("fail_restart");
    let mut settings = Settings::new("fail_restart").backends(&source, newest()).transaction(3);
    settings.timeouts =
        "server_login_retry = \"100ms\"\nquery_wait = \"1s\"\nserver_connect = \"1s\"".to_owned();
    let proxy = settings.start();
    let mut client = proxy.client("alice");
    client.run("SET app.tenant = 'kept'");
    client.send(&[frames::parse("st", "SELECT 'prepared'"), frames::sync()].concat());
    client.until_ready(1).expect("prepared");
    for immediate in [false, true] {
        if immediate {
            source.kill();
        } else {
            source.stop();
        }
        let began = Instant::now();
        let error = client.query("SELECT 1").expect_err("the source is down");
        assert!(error.sqlstate.starts_with("08") || error.sqlstate.starts_with("57"), "{error:?}");
        assert!(began.elapsed() < Duration::from_secs(4), "it took {:?} to say so", began.elapsed());
        assert_eq!(http::get(proxy.http, "/healthz").map(|(status, _)| status), Some(200));
        source.restart();
        wait_for("the source to be found again", || client.query("SELECT 1").is_ok());
        // What the client has set up is set up again.
        assert_eq!(client.run("SHOW app.tenant").as_deref(), Some("kept"));
        client.send(&[frames::bind("", "st", &[]), frames::execute("", 0), frames::sync()].concat());
        let frames = client.until_ready(1).expect("executed");
        assert!(frames.iter().any(|f| f.kind == b'D'), "{frames:?}");
    }
}

/// A target that is dead concerns nobody who does not need it, at start and later.
#[test]
fn target_is_dead() {
    needs_proxy!();
    let mut target = Cluster::start("dying", *majors().last().expect("a major"));
    target.database("fail_target");
    oldest().database("fail_target");
    for transaction in [None, Some(2)] {
        let mut settings = Settings::new("fail_target").backends(oldest(), &target);
        if let Some(size) = transaction {
            settings = settings.transaction(size);
        }
        settings.timeouts =
            "server_login_retry = \"100ms\"\nserver_connect = \"1s\"\nquery_wait = \"2s\"".to_owned();
        let mut proxy = settings.start();
        let mut client = proxy.client("alice");
        client.run("INSERT INTO users VALUES (7, 'x')");
        target.kill();
        let healthy = |client: &mut Wire| {
            assert_eq!(client.run("SELECT name FROM users WHERE id = 7").as_deref(), Some("x"));
            assert_eq!(client.run("SELECT count(*) FROM documents").as_deref(), Some("0"));
            assert_eq!(http::get(proxy.http, "/readyz").map(|(status, _)| status), Some(200));
        };
        assert!(holds_throughout(Duration::from_millis(600), || {
            healthy(&mut client);
            healthy(&mut proxy.client("alice"));
            true
        }));
        client.run("DELETE FROM users");
        // Started while the target is down.
        proxy.kill();
        proxy.launch();
        proxy.client("alice").run("SELECT count(*) FROM users");
        wait_for("readiness", || http::get(proxy.http, "/readyz").is_some_and(|(status, _)| status == 200));
        target.restart();
    }
}

/// A client that vanishes in the middle leaves a clean connection, or none.
#[test]
fn client_dies() {
    needs_proxy!();
    database("fail_client");
    let proxy = start("fail_client", Some(1));
    let copy = [frames::query("COPY users FROM STDIN"), frames::copy_data("1\tx\n")].concat();
    let half = frames::query("INSERT INTO users VALUES (2, 'half')");
    let deaths: [(&str, Vec<u8>); 8] = [
        ("in a transaction", frames::query("BEGIN; INSERT INTO users VALUES (1, 'x')")),
        ("in a failed transaction", frames::query("BEGIN; SELECT 1/0")),
        ("in COPY IN", copy.clone()),
        (
            "in COPY OUT",
            frames::query("COPY (SELECT repeat('x', 1000) FROM generate_series(1, 100000)) TO STDOUT"),
        ),
        ("in a result", frames::query("SELECT repeat('x', 1000) FROM generate_series(1, 100000)")),
        ("before Sync", frames::extended("INSERT INTO users VALUES (3, 'x')", &[])),
        ("in a message", half[..half.len() - 5].to_vec()),
        (
            "while a statement runs",
            frames::query("BEGIN; INSERT INTO users VALUES (4, 'x'); SELECT pg_sleep(1)"),
        ),
    ];
    for (name, bytes) in &deaths {
        let mut client = proxy.client("alice");
        client.send(bytes);
        client.next(Duration::from_millis(50));
        drop(client);
        let mut next = proxy.client("alice");
        assert_eq!(next.run("SELECT count(*) FROM users").as_deref(), Some("0"), "after a death {name}");
        next.send(&[frames::extended("SELECT now() = statement_timestamp()", &[]), frames::sync()].concat());
        let seen = crate::support::reply::short(&next.until_ready(1).expect("in step"));
        assert_eq!(seen, "1 2 T D C[SELECT_1] ZI", "after a death {name}");
        assert_eq!(next.next(Duration::from_millis(5)), Next::Quiet, "after a death {name}");
    }
    // In session pooling the server's session ends with its client.
    let proxy = start("fail_client", None);
    let mut client = proxy.client("alice");
    client.send(&copy);
    client.next(Duration::from_millis(50));
    let pid = client.key.clone().expect("logged in").0;
    drop(client);
    wait_for("the end of the server's session", || {
        let sql = format!("SELECT count(*) FROM pg_stat_activity WHERE pid = {pid} AND query LIKE 'COPY%'");
        oldest().admin("postgres").run(&sql).as_deref() == Some("0")
    });
    assert_eq!(proxy.client("alice").run("SELECT count(*) FROM users").as_deref(), Some("0"));
}

/// SIGTERM lets transactions finish and accepts nobody new; then the process ends, with success.
#[test]
fn sigterm_drains() {
    needs_proxy!();
    database("fail_drain");
    for transaction in [None, Some(2)] {
        let mut proxy = start("fail_drain", transaction);
        let mut busy = proxy.client("alice");
        let mut idle = proxy.client("bob");
        busy.run("BEGIN; INSERT INTO users VALUES (1, 'kept')");
        proxy.signal("TERM");
        wait_for("no new clients", || proxy.try_client("alice").is_err());
        if transaction.is_some() {
            assert!(idle.closes_within(Duration::from_secs(5)), "an idle client is sent away");
        }
        assert!(proxy.ended().is_none(), "a transaction is still open");
        assert_eq!(busy.run("SELECT count(*) FROM users").as_deref(), Some("1"));
        busy.run("COMMIT");
        drop((busy, idle));
        wait_for("the end", || proxy.ended().is_some());
        assert!(proxy.ended().is_some_and(|status| status.success()), "exit status; log:\n{}", proxy.log());
        assert_eq!(oldest().admin("fail_drain").run("SELECT count(*) FROM users").as_deref(), Some("1"));
        oldest().admin("fail_drain").run("DELETE FROM users");
    }
}

/// A second SIGTERM does not wait.
#[test]
fn second_sigterm_stops() {
    needs_proxy!();
    database("fail_stop");
    let mut proxy = start("fail_stop", Some(2));
    let mut busy = proxy.client("alice");
    busy.run("BEGIN");
    proxy.signal("TERM");
    assert!(holds_throughout(Duration::from_millis(300), || proxy.ended().is_none()));
    proxy.signal("TERM");
    assert!(holds_within(Duration::from_secs(3), || proxy.ended().is_some()));
    assert!(busy.closes_within(Duration::from_secs(2)));
}

/// After a crash of the proxy nothing is left on the servers, and it starts again on the same port at once.
#[test]
fn proxy_crashes() {
    needs_proxy!();
    database("fail_crash");
    let mut proxy = start("fail_crash", None);
    let mut client = proxy.client("alice");
    client.run("BEGIN; INSERT INTO users VALUES (1, 'lost')");
    proxy.kill();
    assert!(client.closes_within(Duration::from_secs(2)));
    proxy.launch();
    assert_eq!(proxy.client("alice").run("SELECT count(*) FROM users").as_deref(), Some("0"));
}

/// A full pool serves in the order of arrival.
#[test]
fn full_pool_is_fifo() {
    needs_proxy!();
    database("fail_fifo");
    let mut settings = Settings::new("fail_fifo").transaction(1);
    settings.timeouts = "query_wait = \"30s\"".to_owned();
    let proxy = settings.start();
    let mut holder = proxy.client("alice");
    let waiters: Vec<Wire> = (0..8).map(|_| proxy.client("alice")).collect();
    holder.run("BEGIN");
    let order = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for (i, mut waiter) in (0u32..).zip(waiters) {
            let (order, proxy) = (&order, &proxy);
            waiter.send(&frames::query("SELECT clock_timestamp() - '2020-01-01'"));
            // The next one asks when this one is known to wait.
            wait_for("a waiter more", || proxy.metric("pool_waiters", &["source"]) > f64::from(i));
            // Over threads the order holds to 2 ms.
            std::thread::sleep(Duration::from_millis(5));
            scope.spawn(move || {
                let frames = waiter.until_ready(1).expect("served");
                let at = frames.iter().find(|f| f.kind == b'D').map(Frame::columns);
                order.lock().expect("not poisoned").push((at, i));
            });
        }
        holder.run("COMMIT");
    });
    let mut order = order.into_inner().expect("not poisoned");
    order.sort();
    let order: Vec<u32> = order.into_iter().map(|(_, i)| i).collect();
    assert_eq!(order, (0..8).collect::<Vec<_>>());
}

/// Waiting has an end, and the server's own refusal is passed on at once.
#[test]
fn waiting_has_an_end() {
    needs_proxy!();
    database("fail_wait");
    let mut settings = Settings::new("fail_wait").transaction(1);
    settings.timeouts = "query_wait = \"1s\"".to_owned();
    let proxy = settings.start();
    let (mut holder, mut waiter) = (proxy.client("alice"), proxy.client("alice"));
    holder.run("BEGIN");
    let began = Instant::now();
    let error = waiter.query("SELECT 1").expect_err("nobody lets go");
    assert!(
        (Duration::from_millis(900)..Duration::from_secs(4)).contains(&began.elapsed()),
        "{:?}",
        began.elapsed()
    );
    assert!(error.message.contains("query_wait") && !error.sqlstate.is_empty(), "{error:?}");
    holder.run("COMMIT");
    wait_for("service again", || {
        waiter.query("SELECT 1").is_ok() || {
            waiter = proxy.client("alice");
            false
        }
    });

    // A database that does not exist on the server, a role without the right to connect.
    oldest().admin("fail_wait").run("REVOKE CONNECT ON DATABASE fail_wait FROM PUBLIC");
    let mut settings = Settings::new("fail_wait");
    settings.timeouts = "query_wait = \"20s\"".to_owned();
    let proxy = settings.start();
    let began = Instant::now();
    assert_eq!(proxy.try_client("bob").expect_err("no right to connect").sqlstate, "42501");
    assert!(began.elapsed() < Duration::from_secs(3), "at once, not after {:?}", began.elapsed());
}

/// The timeouts that pgbouncer users know.
#[test]
fn timeouts() {
    needs_proxy!();
    database("fail_timeouts");
    let cases: [(&str, &[&str]); 4] = [
        ("client_idle", &["SELECT 1"]),
        ("idle_transaction", &["BEGIN"]),
        ("transaction", &["BEGIN", "SELECT 1"]),
        ("query", &["SELECT pg_sleep(5)"]),
    ];
    std::thread::scope(|scope| {
        for (key, queries) in cases {
            for transaction in [None, Some(1)] {
                scope.spawn(move || check_timeout(key, queries, transaction));
            }
        }
    });
}

fn check_timeout(key: &str, queries: &[&str], transaction: Option<usize>) {
    let mut settings = Settings::new("fail_timeouts");
    if let Some(size) = transaction {
        settings = settings.transaction(size);
    }
    settings.timeouts = format!("{key} = \"300ms\"");
    let proxy = settings.start();
    let mut client = proxy.client("alice");
    for sql in queries {
        client.send(&frames::query(sql));
    }
    let error = loop {
        match client.next(Duration::from_secs(4)) {
            Next::Frame(frame) if frame.kind == b'E' => break frame.fields(),
            Next::Frame(_) => {}
            end @ (Next::Quiet | Next::Eof) => {
                panic!("{key}: {end:?} instead of an error; pooling {transaction:?}")
            }
        }
    };
    assert!(error.get(&'C').is_some_and(|c| c.len() == 5), "{key}: {error:?}");
    // The server connection is free and clean for the next one.
    let fresh = proxy.client("alice").run("SELECT now() = statement_timestamp()");
    assert_eq!(fresh.as_deref(), Some("t"), "{key}");
}

/// A client that stops reading costs constant memory, and gets all its rows in the end.
#[test]
fn slow_reader() {
    needs_proxy!();
    database("fail_slow");
    let proxy = start("fail_slow", None);
    let mut client = proxy.client("alice");
    client.run("SELECT 1");
    let before = proxy.resident_kib();
    client.send(&frames::query("SELECT repeat('x', 10000) FROM generate_series(1, 4000)"));
    let mut peak = 0;
    holds_throughout(Duration::from_millis(500), || {
        peak = peak.max(proxy.resident_kib());
        true
    });
    let mut rows = 0;
    while let Some(frame) = client.frame(Duration::from_secs(5)) {
        rows += usize::from(frame.kind == b'D');
        if frame.kind == b'Z' {
            break;
        }
    }
    assert_eq!(rows, 4000);
    assert!(peak < before + 4_000, "40 MB for a client that does not read cost {} KiB", peak - before);
}

/// A row whose OIDs are rewritten is held whole: a very long one is refused.
#[test]
fn long_rows_with_oids() {
    needs_proxy!();
    database("fail_long_row");
    for (cluster, more) in [(oldest(), ""), (newest(), "CREATE TYPE a_first AS ENUM ('x');")] {
        cluster.admin("fail_long_row").run(&format!(
            "{more} CREATE TYPE a_mood AS ENUM ('fine'); CREATE TYPE a_pair AS (mood a_mood, note text); \
             INSERT INTO documents VALUES (1, 'x', 7)"
        ));
    }
    let mut settings = Settings::new("fail_long_row");
    settings.document_reads_target = 100;
    let proxy = settings.start();
    let mut client = proxy.client("alice");
    let before = proxy.resident_kib();
    for block in [false, true] {
        for (length, served) in [(1_000, true), (80_000_000, false)] {
            let sql = format!("SELECT ROW('fine'::a_mood, repeat('x', {length}))::a_pair FROM documents");
            if block {
                client.run("BEGIN READ ONLY");
            }
            let bind = frames::bind_raw("", "", &[], &[1]);
            client.send(&[frames::parse("", &sql), bind, frames::execute("", 0), frames::sync()].concat());
            let answer = client.until_ready(1);
            let row = answer.as_ref().is_ok_and(|frames| frames.iter().any(|f| f.kind == b'D'));
            assert_eq!(row, served, "{length} bytes, in a block: {block}");
            if row && block {
                client.run("COMMIT");
            } else if !block {
                client.run("SELECT 1"); // the session goes on
            }
        }
    }
    assert!(proxy.resident_kib() < before + 150_000, "{} KiB", proxy.resident_kib());
}

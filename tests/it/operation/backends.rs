//! A target that dies or hangs, and server connections that grow old.

use std::time::{Duration, Instant};

use crate::support::{
    cluster::{Cluster, majors, newest, oldest},
    frames, http, needs_proxy,
    proxy::{Proxy, Settings},
    wait_for,
    wire::Wire,
};

const READ: &str = "SELECT title FROM documents WHERE id = 1";

/// Source and target of their own with a row that says which it is; all reads on the target.
fn labelled(name: &str, transaction: bool, timeouts: &str) -> (Cluster, Proxy) {
    let target = Cluster::start("mortal", *majors().last().expect("a major"));
    target.database(name);
    oldest().database(name);
    for (cluster, side) in [(oldest(), "source"), (&target, "target")] {
        cluster.admin(name).run(&format!("INSERT INTO documents VALUES (1, '{side}', 0)"));
    }
    let mut settings = Settings::new(name).backends(oldest(), &target);
    if transaction {
        settings = settings.transaction(2);
    }
    settings.document_reads_target = 100;
    timeouts.clone_into(&mut settings.timeouts);
    let proxy = settings.start();
    (target, proxy)
}

/// Reads fall back to the lead while the target is dead, with the reason, and come back by themselves.
fn target_dies(name: &str, transaction: bool) {
    let timeouts = "server_login_retry = \"100ms\"\nserver_connect = \"1s\"";
    let (mut target, proxy) = labelled(name, transaction, timeouts);
    let mut clients: Vec<Wire> = (0..4).map(|_| proxy.client("alice")).collect();
    let mut all = |expected: &str| {
        for client in &mut clients {
            assert_eq!(client.run(READ).as_deref(), Some(expected));
            assert_eq!(client.execute(READ, &[]).map(|r| r[0][0].clone()), Ok(Some(expected.to_owned())));
            client.run("BEGIN");
            assert_eq!(client.run(READ).as_deref(), Some(expected), "in a block");
            client.run("COMMIT");
            client.run("SELECT count(*) FROM users");
        }
    };
    all("target");
    for _ in 0..2 {
        target.kill();
        all("source");
        assert!(proxy.metric("routes_total", &["fallback", "document"]) >= 8.0);
        wait_for("the target to be seen as down", || proxy.metric("backend_up", &["target"]) < 0.5);
        assert_eq!(http::get(proxy.http, "/readyz").map(|(status, _)| status), Some(200));
        all("source");
        target.restart();
        let mut client = proxy.client("alice");
        wait_for("the target to answer again", || client.run(READ).as_deref() == Some("target"));
        wait_for("the target to be seen as up", || proxy.metric("backend_up", &["target"]) > 0.5);
        all("target");
    }
}

#[test]
fn target_dies_session() {
    needs_proxy!();
    target_dies("op_dies_session", false);
}

#[test]
fn target_dies_transaction() {
    needs_proxy!();
    target_dies("op_dies_transaction", true);
}

/// A target that hangs: clients of the source do not notice, reads on it end within the timeouts.
fn target_hangs(name: &str, transaction: bool) {
    let timeouts =
        "query = \"1s\"\ncancel_wait = \"500ms\"\nserver_connect = \"1s\"\nserver_login_retry = \"100ms\"";
    let (target, proxy) = labelled(name, transaction, timeouts);
    let (mut reader, mut writer) = (proxy.client("alice"), proxy.client("alice"));
    assert_eq!(reader.run(READ).as_deref(), Some("target"));
    target.signal("STOP");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let end = Instant::now() + Duration::from_secs(6);
            while Instant::now() < end {
                let began = Instant::now();
                writer.run("SELECT count(*) FROM users");
                proxy.client("bob").run("SELECT count(*) FROM users");
                assert!(began.elapsed() < Duration::from_secs(1), "the source took {:?}", began.elapsed());
            }
        });
        for _ in 0..6 {
            let began = Instant::now();
            match reader.query(READ) {
                Ok(rows) => assert_eq!(rows[0][0].as_deref(), Some("source")),
                Err(error) => assert_eq!(error.sqlstate.len(), 5, "{error:?}"),
            }
            assert!(began.elapsed() < Duration::from_secs(5), "a read took {:?}", began.elapsed());
        }
    });
    // A fresh start does not wait for it long, either.
    assert_eq!(http::get(proxy.http, "/readyz").map(|(status, _)| status), Some(200));
    target.signal("CONT");
    wait_for("the target to answer again", || {
        reader.query(READ).is_ok_and(|rows| rows[0][0].as_deref() == Some("target"))
    });
}

#[test]
fn target_hangs_session() {
    needs_proxy!();
    target_hangs("op_hangs_session", false);
}

#[test]
fn target_hangs_transaction() {
    needs_proxy!();
    target_hangs("op_hangs_transaction", true);
}

/// `server_idle` and `server_lifetime` end connections that nobody uses, politely; so does every other way out.
#[test]
fn server_connections_end_politely() {
    needs_proxy!();
    let source = Cluster::start("polite", majors()[0]);
    source.database("op_polite");
    newest().database("op_polite");
    source.admin("postgres").run("ALTER SYSTEM SET log_line_prefix = '%u '");
    source.admin("postgres").run("SELECT pg_reload_conf()");
    let count = "SELECT count(*) FROM pg_stat_activity WHERE datname = 'op_polite' AND usename = 'alice'";
    for (timeouts, transaction) in [
        ("server_idle = \"300ms\"", true),
        ("server_lifetime = \"500ms\"", true),
        ("server_idle = \"300ms\"\nclient_idle = \"300ms\"", false),
    ] {
        let mut settings = Settings::new("op_polite").backends(&source, newest());
        if transaction {
            settings = settings.transaction(3);
        }
        timeouts.clone_into(&mut settings.timeouts);
        let mut proxy = settings.start();
        let mut client = proxy.client("alice");
        client.run("SELECT 1");
        proxy.client("alice").send(&frames::query("BEGIN; INSERT INTO users VALUES (1, 'x')"));
        if !transaction {
            proxy.client("alice").terminate();
        }
        wait_for(timeouts, || source.admin("postgres").run(count).as_deref() == Some("0"));
        if transaction {
            client.run("SELECT 1");
        }
        proxy.client("alice").run("SELECT 1");
        proxy.signal("TERM");
        wait_for("the end", || proxy.ended().is_some());
        wait_for("all to be closed", || source.admin("postgres").run(count).as_deref() == Some("0"));
    }
    let log = source.log();
    let rude: Vec<_> = log
        .lines()
        .filter(|l| l.starts_with("alice"))
        .filter(|l| l.contains("unexpected EOF") || l.contains("reset by peer"))
        .collect();
    assert!(rude.is_empty(), "{rude:?}");
}

//! What an operator relies on: pausing, killing, limits of users, sockets, overrides, TLS towards backends, timeouts of
//! server connections, statistics, systemd.

mod backends;
mod waiting;

use std::{
    io::{Read, Write},
    os::unix::net::{UnixDatagram, UnixStream},
    time::{Duration, Instant},
};

use crate::support::{
    cluster::{Cluster, base_dir, database, majors, newest, oldest},
    frames, needs_proxy,
    proxy::{Settings, user},
    tls::{authority, write_private},
    wait_for,
    wire::{Login, Next, Rows, Wire},
};

/// The cell of the row whose `key` column has `value`.
fn cell(rows: &Rows, key: (usize, &str), column: usize) -> Option<String> {
    rows.iter().find(|row| row[key.0].as_deref() == Some(key.1))?[column].clone()
}

/// PAUSE lets transactions end, waits for them and holds new ones back, in both kinds of pooling; RESUME lets them go on.
#[test]
fn pause_and_resume() {
    needs_proxy!();
    database("op_pause");
    for transaction in [None, Some(3)] {
        let mut settings = Settings::new("op_pause");
        if let Some(size) = transaction {
            settings = settings.transaction(size);
        }
        settings.document_reads_target = 100;
        let proxy = settings.start();
        let mut console = proxy.console("alice").expect("an admin");
        let (mut inside, mut outside) = (proxy.client("alice"), proxy.client("alice"));
        inside.run("BEGIN; INSERT INTO users VALUES (1, 'x')");
        outside.run("SELECT count(*) FROM documents");
        console.send(&frames::query("PAUSE source"));
        assert_eq!(console.next(Duration::from_millis(200)), Next::Quiet, "it waits for the transaction");
        assert_eq!(outside.run("SELECT count(*) FROM documents").as_deref(), Some("0"), "the target goes on");
        outside.send(&frames::query("SELECT count(*) FROM users"));
        assert_eq!(outside.next(Duration::from_millis(200)), Next::Quiet, "pooling {transaction:?}");
        assert_eq!(inside.run("SELECT count(*) FROM users").as_deref(), Some("1"), "a transaction goes on");
        inside.run("ROLLBACK");
        console.until_ready(1).expect("paused");
        inside.send(&frames::query("BEGIN; SELECT 1; COMMIT"));
        assert_eq!(inside.next(Duration::from_millis(200)), Next::Quiet);
        console.query("PAUSE").expect("who waits is not waited for");
        // Who waits can be told to go.
        let rows = console.query("SHOW CLIENTS").expect("clients");
        let waiting = rows.iter().filter(|r| r.contains(&Some("waiting".to_owned()))).count();
        assert_eq!(waiting, 2, "{rows:?}");
        console.query("RESUME").expect("resumed");
        outside.until_ready(1).expect("served");
        inside.until_ready(1).expect("served");
    }
}

/// A PAUSE that waits ends with a RESUME from elsewhere, and with its own client: then it is undone.
#[test]
fn pause_that_is_given_up() {
    needs_proxy!();
    database("op_pause_end");
    let proxy = Settings::new("op_pause_end").transaction(3).start();
    let (mut console, mut other) = (proxy.console("alice").expect("an admin"), proxy.client("alice"));
    let mut inside = proxy.client("alice");
    let paused = |console: &mut Wire, wanted: &str| {
        wait_for("the pools to be shown so", || {
            let rows = console.query("SHOW POOLS").expect("pools");
            rows.iter().all(|row| row.last() == Some(&Some(wanted.to_owned())))
        });
    };
    inside.run("BEGIN; INSERT INTO users VALUES (1, 'x')");
    let mut waits = proxy.console("alice").expect("an admin");
    waits.send(&frames::query("PAUSE"));
    paused(&mut console, "t");
    console.query("RESUME").expect("resumed");
    let refused = waits.until_ready(1).expect("an answer");
    assert!(refused.iter().any(|f| f.kind == b'E' && f.full().contains("RESUME")), "{refused:?}");
    other.run("SELECT 1");
    waits.send(&frames::query("PAUSE"));
    paused(&mut console, "t");
    drop(waits);
    paused(&mut console, "f");
    other.run("SELECT 1");
    // What another one has paused stays so.
    inside.run("COMMIT");
    console.query("PAUSE").expect("paused");
    inside.send(&frames::query("SELECT 1"));
    proxy.console("alice").expect("an admin").query("PAUSE source").expect("nothing runs");
    paused(&mut console, "t");
    console.query("RESUME").expect("resumed");
    inside.until_ready(1).expect("served");
}

/// Waiters of a full pool are held back as well when their turn comes.
#[test]
fn pause_holds_the_queue() {
    needs_proxy!();
    database("op_pause_queue");
    let proxy = Settings::new("op_pause_queue").transaction(1).start();
    let mut console = proxy.console("alice").expect("an admin");
    let (mut first, mut second) = (proxy.client("alice"), proxy.client("alice"));
    first.run("BEGIN");
    second.send(&frames::query("BEGIN"));
    wait_for("the second client to wait", || {
        let rows = console.query("SHOW CLIENTS").expect("clients");
        rows.iter().any(|r| r.contains(&Some("waiting".to_owned())))
    });
    console.send(&frames::query("PAUSE"));
    assert_eq!(console.next(Duration::from_millis(200)), Next::Quiet, "it waits for the transaction");
    first.run("COMMIT");
    console.until_ready(1).expect("paused");
    assert_eq!(second.next(Duration::from_millis(200)), Next::Quiet, "nothing new is begun");
    console.query("RESUME").expect("resumed");
    second.until_ready(1).expect("served");
}

/// KILL ends a client whatever it does: idle, in a transaction, at work, waiting.
#[test]
fn kill() {
    needs_proxy!();
    database("op_kill");
    let proxy = Settings::new("op_kill").transaction(1).start();
    let mut console = proxy.console("alice").expect("an admin");
    let mut others = Vec::new();
    let mut seen = Vec::new();
    for (what, shown, sql) in [
        ("idle", "idle", ""),
        ("at work", "active", "SELECT pg_sleep(20)"),
        ("in a transaction", "idle in transaction", "BEGIN; INSERT INTO users VALUES (1, 'x')"),
        ("waiting", "waiting", "SELECT 1"),
    ] {
        let mut victim = proxy.client("bob");
        if !sql.is_empty() {
            victim.send(&frames::query(sql));
        }
        // One that came before may be shown as waiting for a moment, until its connection is open.
        let mut id = None;
        wait_for("the client to be shown", || {
            let rows = console.query("SHOW CLIENTS").expect("clients");
            let has = |row: &Vec<_>, word: &str| row.contains(&Some(word.to_owned()));
            let new = |row: &&Vec<_>| has(row, "bob") && has(row, shown) && !seen.contains(&row[0]);
            id = rows.iter().find(new).and_then(|row| row[0].clone());
            id.is_some()
        });
        seen.push(id.clone());
        if what == "in a transaction" {
            // Stays, so that the next one waits; killed at the end.
            others.push((victim, id));
            continue;
        }
        std::thread::sleep(Duration::from_millis(50));
        console.query(&format!("KILL {}", id.expect("an id"))).expect("killed");
        let error = loop {
            match victim.next(Duration::from_secs(3)) {
                Next::Frame(frame) if frame.kind == b'E' => break frame.sqlstate(),
                Next::Frame(_) => {}
                end @ (Next::Quiet | Next::Eof) => panic!("{what}: {end:?}"),
            }
        };
        assert_eq!(error, "57P01", "{what}");
        assert!(victim.closes_within(Duration::from_secs(2)), "{what}");
    }
    for (mut victim, id) in others {
        console.query(&format!("KILL {}", id.expect("an id"))).expect("killed");
        assert!(victim.closes_within(Duration::from_secs(2)));
    }
    assert_eq!(proxy.client("bob").run("SELECT count(*) FROM users").as_deref(), Some("0"), "rolled back");
    assert_eq!(console.query("KILL 999999999").map_err(|e| e.sqlstate.len()), Err(5));
}

/// `pool_mode`, `pool_size` and `max_clients` of one user.
#[test]
fn limits_of_a_user() {
    needs_proxy!();
    database("op_user");
    let mut settings = Settings::new("op_user");
    settings.users = user("postgres", "secret")
        + &user("alice", "alice-pw")
        + &user("bob", "bob-pw")
        + "pool_mode = \"transaction\"\npool_size = 1\nmax_clients = 2\n";
    let proxy = settings.start();
    let (mut first, mut second) = (proxy.client("bob"), proxy.client("bob"));
    assert_eq!(proxy.try_client("bob").expect_err("a third bob").sqlstate, "53300");
    let mut alice = proxy.client("alice");
    first.run("BEGIN");
    second.send(&frames::query("SELECT 1"));
    assert_eq!(second.next(Duration::from_millis(200)), Next::Quiet, "one server connection for bob");
    assert_eq!(alice.run("SELECT pg_backend_pid()"), alice.key.as_ref().map(|k| k.0.to_string()));
    proxy.client("alice").run("SELECT 1");
    first.run("COMMIT");
    second.until_ready(1).expect("served");
    drop(second);
    wait_for("room for bob", || proxy.try_client("bob").is_ok());
}

/// Clients come over IPv6 and a Unix socket; backends are reached over both.
#[test]
fn ipv6_and_unix_sockets() {
    needs_proxy!();
    database("op_sockets");
    let dir = base_dir().join("sockets");
    std::fs::create_dir_all(&dir).expect("writable");
    let mut settings = Settings::new("op_sockets");
    settings.listen = format!("{}\nunix_socket_dir = '{}'", settings.listen, dir.display());
    settings.hosts = [oldest().dir().join("run").display().to_string(), "::1".to_owned()];
    settings.document_reads_target = 100;
    let proxy = settings.start();
    let mut client = proxy.client("alice");
    assert_eq!(client.run("SELECT inet_server_addr() IS NULL").as_deref(), Some("t"), "source: Unix socket");
    client.run("SELECT count(*) FROM documents");
    let sql =
        "SELECT host(client_addr) FROM pg_stat_activity WHERE datname = 'op_sockets' AND usename = 'alice'";
    assert_eq!(newest().admin("postgres").run(sql).as_deref(), Some("::1"), "target: IPv6");
    let startup = proxy.login("alice").startup();
    let challenge = |bytes: &[u8]| bytes.starts_with(b"R") && bytes[8] == 10;
    let mut head = [0; 9];
    let mut unix = UnixStream::connect(dir.join(format!(".s.PGSQL.{}", proxy.port))).expect("it listens");
    unix.write_all(&startup).and_then(|()| unix.read_exact(&mut head)).expect("an answer");
    assert!(challenge(&head), "SCRAM over the Unix socket");
    let mut six = std::net::TcpStream::connect(("::1", proxy.port)).expect("it listens");
    six.write_all(&startup).and_then(|()| six.read_exact(&mut head)).expect("an answer");
    assert!(challenge(&head), "SCRAM over IPv6");
}

/// Users from a file, passwords from files, anything from the environment.
#[test]
fn overrides() {
    needs_proxy!();
    database("op_over");
    let dir = base_dir().join("overrides");
    std::fs::create_dir_all(&dir).expect("writable");
    let (users, secret) = (dir.join("users.toml"), dir.join("secret"));
    let bobs = dir.join("bobs");
    write_private(&bobs, "bob-pw\n");
    write_private(
        &users,
        &(user("alice", "alice-pw")
            + &format!("[[user]]\nname = \"bob\"\npassword_file = '{}'\n", bobs.display())),
    );
    write_private(&secret, "secret\n");
    let mut settings = Settings::new("op_over");
    settings.users = String::new();
    settings.admin = "admin_users = [\"alice\"]".to_owned();
    settings.auth = format!("method = \"scram-sha-256\"\nusers_file = '{}'", users.display());
    settings.backend = format!("password_file = '{}'", secret.display());
    settings.environment = [("CROSSFADE_POOL__SIZE", "7"), ("CROSSFADE_TIMEOUTS__DRAIN", "5s")]
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .to_vec();
    let mut proxy = settings.start();
    proxy.client("bob").run("SELECT 1");
    let mut client = proxy.client("alice");
    client.run("SELECT count(*) FROM users");
    let rows = proxy.console("alice").expect("an admin").query("SHOW CONFIG").expect("rows");
    assert_eq!(cell(&rows, (0, "pool.size"), 1).as_deref(), Some("7"));
    // The file is followed like the configuration itself.
    write_private(&users, &user("alice", "alice-pw"));
    wait_for("bob to be refused", || proxy.try_client("bob").is_err_and(|e| e.sqlstate == "28P01"));
    client.run("SELECT 1");
    assert!(proxy.ended().is_none());
}

/// READY, WATCHDOG while all threads answer, RELOADING, STOPPING.
#[test]
fn systemd_is_told() {
    needs_proxy!();
    database("op_notify");
    let path = base_dir().join("notify.sock");
    let socket = UnixDatagram::bind(&path).expect("bound");
    socket.set_read_timeout(Some(Duration::from_secs(10))).expect("own socket");
    let mut settings = Settings::new("op_notify");
    settings.environment = vec![
        ("NOTIFY_SOCKET".to_owned(), path.display().to_string()),
        ("WATCHDOG_USEC".to_owned(), "200000".to_owned()),
    ];
    let proxy = settings.start();
    let mut seen = Vec::new();
    let mut hear = |what: &str| {
        let end = Instant::now() + Duration::from_secs(10);
        while Instant::now() < end {
            let mut buffer = [0; 512];
            let n = socket.recv(&mut buffer).unwrap_or_else(|e| panic!("{what}: {e}; heard {seen:?}"));
            let text = String::from_utf8_lossy(&buffer[..n]).into_owned();
            seen.push(text.clone());
            if text.contains(what) {
                return;
            }
        }
        panic!("{what} was not heard in {seen:?}");
    };
    hear("READY=1");
    hear("WATCHDOG=1");
    hear("WATCHDOG=1");
    proxy.signal("HUP");
    hear("RELOADING=1");
    hear("READY=1");
    proxy.signal("TERM");
    hear("STOPPING=1");
}

/// SHOW STATS and the counters of traffic and plans move.
#[test]
fn statistics() {
    needs_proxy!();
    database("op_stats");
    for transaction in [false, true] {
        let mut settings = Settings::new("op_stats");
        if transaction {
            settings = settings.transaction(1);
        }
        settings.document_reads_target = 100;
        let proxy = settings.start();
        let mut client = proxy.client("bob");
        for i in 0..20 {
            client.run(&format!("SELECT repeat('x', 1000), {i}, count(*) FROM users"));
            client.run("SELECT count(*) FROM documents");
        }
        client.run("BEGIN");
        client.run("SELECT 1");
        client.run("COMMIT");
        assert!(client.query("SELECT 1/0 FROM users RIGHT JOIN (SELECT 1) x ON true").is_err());
        let mut console = proxy.console("alice").expect("an admin");
        let rows = console.query("SHOW STATS").expect("rows");
        let of = |side: &str| -> Vec<f64> {
            let row = rows.iter().find(|r| r[0].as_deref() == Some("bob") && r[1].as_deref() == Some(side));
            let row = row.unwrap_or_else(|| panic!("no {side} in {rows:?}"));
            row[2..].iter().map(|v| v.as_deref().unwrap_or("0").parse().expect("a number")).collect()
        };
        let (source, target) = (of("source"), of("target"));
        assert_eq!(
            (source[0], source[1], source[2]),
            (22.0, 24.0, 1.0),
            "transactions, queries, errors: {source:?}"
        );
        assert_eq!((target[0], target[1], target[2]), (20.0, 20.0, 0.0), "{target:?}");
        assert!(source[3..5].iter().any(|&b| b > 20_000.0), "bytes: {source:?}");
        assert!(target[3] > 200.0 && target[4] > 200.0, "bytes: {target:?}");
        wait_for("the counters", || {
            proxy.metric("client_sent_bytes_total", &[]) > 20_000.0
                && proxy.metric("backend_received_bytes_total", &["source"]) > 20_000.0
                && proxy.metric("plan_cache_hits_total", &[]) > 30.0
                && proxy.metric("plan_cache_misses_total", &[]) > 1.0
        });
    }
}

/// `verify-ca`, `verify-full` and client certificates towards the backends.
#[test]
fn tls_to_backends() {
    needs_proxy!();
    let source = Cluster::start("tls", majors()[0]);
    source.database("op_tls");
    newest().database("op_tls");
    let hba = source.dir().join("data/pg_hba.conf");
    let rules = std::fs::read_to_string(&hba).expect("readable");
    let only =
        "hostssl all postgres all scram-sha-256\nhostssl all all all scram-sha-256 clientcert=verify-ca\n";
    let ca = source.dir().join("data/ca.crt");
    std::fs::copy(authority().ca(), &ca).expect("copied");
    std::fs::write(&hba, format!("{only}{rules}")).expect("written");
    let mut admin = source.admin("postgres");
    admin.run("ALTER SYSTEM SET ssl_ca_file = 'ca.crt'");
    admin.run("SELECT pg_reload_conf()");
    let (certificate, key) = authority().client("crossfade");
    let stranger = base_dir().join("stranger.crt");
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    std::fs::write(&stranger, made.cert.pem()).expect("written");
    let pair = format!("tls_certificate = '{}'\ntls_key = '{}'\n", certificate.display(), key.display());
    let roots = |path: &std::path::Path| format!("tls_ca = '{}'\n", path.display());
    let good = roots(&authority().ca());
    let cases: [(&str, &str, String, bool); 7] = [
        ("verify-full", "localhost", format!("{good}{pair}"), true),
        ("verify-full", "127.0.0.1", format!("{good}{pair}"), true),
        ("verify-ca", "127.0.0.1", format!("{good}{pair}"), true),
        ("require", "127.0.0.1", pair.clone(), true),
        ("verify-full", "localhost", good.clone(), false),
        ("verify-ca", "localhost", format!("{}{pair}", roots(&stranger)), false),
        ("require", "localhost", String::new(), false),
    ];
    for (mode, host, lines, works) in cases {
        let mut settings = Settings::new("op_tls").backends(&source, newest());
        settings.backend_tls = mode;
        settings.hosts = [host, host].map(str::to_owned);
        settings.backend.clone_from(&lines);
        let proxy = settings.start();
        match proxy.try_client("alice") {
            Ok(mut client) => {
                assert!(works, "{mode} {host}\n{lines}");
                let sql = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
                assert_eq!(client.run(sql).as_deref(), Some("t"));
                client.cancel(); // encrypted, too, and harmless
            }
            Err(error) => assert!(!works && !error.sqlstate.is_empty(), "{mode} {host}: {error:?}\n{lines}"),
        }
    }
}

/// A login whose SCRAM takes too long ends; the clients' own limit is not the servers'.
#[test]
fn login_has_an_end() {
    needs_proxy!();
    database("op_login");
    let mut settings = Settings::new("op_login");
    settings.timeouts = "client_login = \"300ms\"".to_owned();
    let proxy = settings.start();
    let mut wire = Wire::open(proxy.port, crate::support::wire::Cut::Whole).expect("open");
    wire.send(&Login::new("alice", "alice-pw", "op_login").startup());
    assert!(wire.closes_within(Duration::from_secs(3)));
    proxy.client("alice").run("SELECT pg_sleep(0.5)");
}

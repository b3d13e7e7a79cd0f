//! Attacks and defects of other proxies, by their number in the list of pitfalls (section 2).
//!
//! Elsewhere: smuggling, malformed frames and lengths (1, 10, 11) and stuffed TLS requests (9) in `differential`, what
//! leaks between clients (7, 8) in `tenants`, SCRAM-PLUS (20) in `differential::startup`.

mod auth;
mod batches;
mod hostile;

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpStream},
    os::unix::fs::PermissionsExt,
    time::{Duration, Instant},
};

use crate::support::{
    Rng,
    cluster::database,
    fake::{Fake, read_startup},
    frames::{self, V3_0},
    holds_within, needs_proxy,
    proxy::{Settings, user},
    wait_for,
    wire::{Login, Wire, cancel},
};

/// 14: before login a client costs little memory, however much it announces; good clients are served meanwhile.
#[test]
fn half_open_clients_cost_little() {
    needs_proxy!();
    database("sec_half_open");
    let mut settings = Settings::new("sec_half_open");
    settings.limits = "max_logins = 600".to_owned();
    settings.timeouts = "client_login = \"3s\"".to_owned();
    let proxy = settings.start();
    proxy.client("alice").run("SELECT 1");
    let before = proxy.resident_kib();
    let flood: Vec<TcpStream> = (0..500)
        .map(|i: i32| {
            let mut socket = TcpStream::connect(("127.0.0.1", proxy.port)).expect("accepted");
            // A startup packet of 10 000 bytes that stops short, or a cancel request of 2 GB.
            let (length, code) = if i % 2 == 0 { (10_000, V3_0) } else { (i32::MAX, 80_877_102) };
            let _ = socket.write_all(&[length.to_be_bytes(), code.to_be_bytes()].concat());
            let _ = socket.write_all(&[b'x'; 9_000]);
            socket
        })
        .collect();
    proxy.client("alice").run("SELECT 1");
    let grown = proxy.resident_kib().saturating_sub(before);
    assert!(grown < 500 * 64, "500 half-open clients cost {grown} KiB");
    // 15: and they have one deadline.
    std::thread::sleep(Duration::from_millis(100));
    wait_for("all half-open clients to be closed", || flood.iter().all(is_closed));
    proxy.client("alice").run("SELECT 1");
}

/// The other side has closed: a read returns at once, with nothing or an error that is not "would block".
fn is_closed(mut socket: &TcpStream) -> bool {
    let _ = socket.set_nonblocking(true);
    match socket.read(&mut [0; 512]) {
        Ok(0) => true,
        Ok(_) => false,
        Err(error) => error.kind() != std::io::ErrorKind::WouldBlock,
    }
}

/// 15: a byte now and then does not move the deadline, in whatever phase of the login.
#[test]
fn slowloris_has_a_deadline() {
    needs_proxy!();
    database("sec_slow");
    let mut settings = Settings::new("sec_slow").tls("prefer");
    settings.timeouts = "client_login = \"1s\"".to_owned();
    let proxy = settings.start();
    let startup = proxy.login("alice").startup();
    let phases: [(&str, Vec<u8>); 4] = [
        ("startup", Vec::new()),
        ("TLS handshake", frames::ssl_request()),
        ("SCRAM", startup.clone()),
        ("SSLRequest again and again", frames::gssenc_request()),
    ];
    std::thread::scope(|scope| {
        for (phase, head) in &phases {
            let (proxy, startup) = (&proxy, &startup);
            scope.spawn(move || {
                let mut socket = TcpStream::connect(("127.0.0.1", proxy.port)).expect("accepted");
                socket.write_all(head).expect("sent");
                let began = Instant::now();
                let mut drip = startup.iter().cycle();
                let closed = holds_within(Duration::from_secs(4), || {
                    std::thread::sleep(Duration::from_millis(50));
                    let byte = *drip.next().expect("endless");
                    socket.set_nonblocking(false).expect("own socket");
                    socket.write_all(&[byte]).is_err() || is_closed(&socket)
                });
                assert!(closed, "{phase}: still open after {:?}", began.elapsed());
            });
        }
    });
    proxy.client("alice").run("SELECT 1");
}

/// 10: a message above the limit costs the connection, not the memory.
#[test]
fn oversize_message() {
    needs_proxy!();
    database("sec_oversize");
    let mut settings = Settings::new("sec_oversize");
    settings.limits = "max_message_bytes = 1000000".to_owned();
    let proxy = settings.start();
    let mut wire = proxy.client("alice");
    let before = proxy.resident_kib();
    wire.send(&frames::lying(b'Q', 1_500_000_000, &vec![b'x'; 50_000]));
    assert!(wire.closes_within(Duration::from_secs(3)), "a message of 1.5 GB was not refused");
    assert!(proxy.resident_kib() < before + 8_000);
    // Just below the limit it passes.
    let mut wire = proxy.client("alice");
    assert_eq!(wire.run(&format!("SELECT length('{}')", "x".repeat(999_000))), Some("999000".to_owned()));
}

/// 16: guessed keys are never answered and cancel nothing; a key reaches its own client only.
#[test]
fn cancel_keys() {
    needs_proxy!();
    database("sec_cancel");
    for transaction in [false, true] {
        let mut settings = Settings::new("sec_cancel");
        if transaction {
            settings = settings.transaction(2);
        }
        let proxy = settings.start();
        let (mut busy, other) = (proxy.client("alice"), proxy.client("alice"));
        assert_ne!(busy.key, other.key);
        busy.send(&frames::query("SELECT pg_sleep(0.8)"));
        let (pid, key) = busy.key.clone().expect("logged in");
        let mut rng = Rng(16);
        for _ in 0..100 {
            let guess: Vec<u8> = key.iter().map(|_| rng.next().to_be_bytes()[0]).collect();
            assert_eq!(cancel(proxy.port, pid, &guess), 0, "a cancel request was answered");
        }
        other.cancel();
        busy.until_ready(1).expect("nobody cancelled it");
        assert_eq!(busy.run("SELECT 1"), Some("1".to_owned()));
    }
}

/// 15: the limit on clients is an error with a proper SQLSTATE, and room is found again.
#[test]
fn too_many_clients() {
    needs_proxy!();
    database("sec_many");
    let mut settings = Settings::new("sec_many");
    settings.limits = "max_clients = 4".to_owned();
    let proxy = settings.start();
    let mut clients: Vec<Wire> = (0..4).map(|_| proxy.client("alice")).collect();
    assert_eq!(proxy.try_client("alice").expect_err("a fifth").sqlstate, "53300");
    clients.pop();
    wait_for("room", || proxy.try_client("alice").is_ok());
}

/// 17: every command of the console for every role.
#[test]
fn admin_roles() {
    needs_proxy!();
    database("sec_admin");
    let proxy = Settings::new("sec_admin").start();
    let looks = ["REPOSITORIES", "POOLS", "CLIENTS", "SERVERS", "STATS", "CONFIG", "VERSION"]
        .map(|what| format!("SHOW {what}"));
    let changes = ["RELOAD", "PAUSE", "RESUME", "KILL 999999999"].map(str::to_owned);

    let (mut admin, mut stats) =
        (proxy.console("alice").expect("an admin"), proxy.console("bob").expect("a reader"));
    let stranger = proxy.console("postgres").expect_err("neither admin nor reader");
    assert!(matches!(stranger.sqlstate.as_str(), "28000" | "42501" | "3D000"), "{stranger:?}");
    let mut wrong = proxy.login("alice");
    wrong.parameters = vec![("database".to_owned(), "crossfade".to_owned())];
    "wrong".clone_into(&mut wrong.password);
    assert_eq!(Wire::connect(proxy.port, &wrong).expect_err("wrong password").sqlstate, "28P01");

    for command in &looks {
        for (role, wire) in [("admin", &mut admin), ("stats", &mut stats)] {
            let rows = wire.query(command).unwrap_or_else(|e| panic!("{role}: {command}: {e:?}"));
            let extended =
                wire.execute(command, &[]).unwrap_or_else(|e| panic!("{role}, extended: {command}: {e:?}"));
            assert_eq!(rows.len(), extended.len(), "{role}: {command}");
            // 19: nothing shows a secret (CVE-2023-22332).
            let text = format!("{rows:?}{extended:?}");
            assert!(
                !["alice-pw", "bob-pw", "\"secret\""].iter().any(|s| text.contains(s)),
                "{command} shows {text}"
            );
        }
    }
    for command in &changes {
        for error in [stats.query(command), stats.execute(command, &[])].map(Result::err) {
            assert_eq!(error.map(|e| e.sqlstate).as_deref(), Some("42501"), "a reader may not {command}");
        }
    }
    for command in &changes {
        let answer = admin.query(command);
        assert!(answer.as_ref().err().is_none_or(|e| e.sqlstate != "42501"), "{command}: {answer:?}");
    }
    for nonsense in ["SHOW NONSENSE", "DROP TABLE x", "SHOW", "KILL", "KILL x; RELOAD", "\u{1}"] {
        assert!(admin.query(nonsense).is_err(), "{nonsense:?} means nothing");
    }
    assert!(!admin.query("SHOW VERSION").expect("still there").is_empty());
}

/// 18: neither passwords nor literals are logged, nor is anything a user chose a label.
#[test]
fn nothing_secret_is_logged() {
    needs_proxy!();
    database("sec_log");
    let mut settings = Settings::new("sec_log").tls("prefer");
    settings.log = "filter = \"debug\"".to_owned();
    let proxy = settings.start();
    let mut wire =
        Wire::connect(proxy.port, &proxy.login("alice").parameter("application_name", "evil\"} 1\nlabel"))
            .expect("login");
    wire.run("SELECT 'hunter2literal'");
    assert!(wire.query("SELECT hunter2column FROM documents WHERE title = 'hunter2literal'").is_err());
    assert!(wire.query("SELEC 'hunter2literal'").is_err());
    wire.execute("SELECT $1::text", &["hunter2literal"]).expect("executed");
    let mut login = proxy.login("alice");
    "hunter2password".clone_into(&mut login.password);
    Wire::connect(proxy.port, &login).expect_err("wrong password");
    let metrics = proxy.metrics();
    drop(wire);
    let log = proxy.log();
    for secret in ["hunter2literal", "hunter2password", "alice-pw", "password = \"secret\""] {
        assert!(
            !log.contains(secret),
            "the log has {secret}: {:?}",
            log.lines().find(|l| l.contains(secret))
        );
    }
    for text in ["hunter2", "evil\"", "} 1\nlabel"] {
        assert!(!metrics.contains(text), "the metrics have {text:?}");
    }
}

/// 19: a configuration with secrets that everybody may read is worth a warning.
#[test]
fn readable_secrets_are_warned_of() {
    needs_proxy!();
    database("sec_mode");
    let mut proxy = Settings::new("sec_mode").start();
    let warns = |log: &str| {
        log.lines().any(|l| {
            let l = l.to_lowercase();
            l.contains("warn") && (l.contains("everybody") && l.contains("chmod"))
        })
    };
    assert!(!warns(&proxy.log()), "0600 is fine");
    proxy.kill();
    let mode = std::fs::Permissions::from_mode(0o644);
    std::fs::set_permissions(proxy.config_file(), mode).expect("own file");
    proxy.launch();
    wait_for("a warning", || warns(&proxy.log()));
}

/// 9: where TLS is required nothing goes without, on either side.
#[test]
fn tls_cannot_be_stripped() {
    needs_proxy!();
    database("sec_strip");
    let proxy = Settings::new("sec_strip").tls("require").start();
    let plain = proxy.try_client("alice").expect_err("no TLS");
    assert!(plain.sqlstate.starts_with("28") || plain.sqlstate == "08P01", "{plain:?}");
    Wire::connect(proxy.port, &proxy.login("alice").tls(true)).expect("with TLS");

    // A server, or somebody between, that says it has no TLS, and one that says something in plain text.
    for answer in [&b"N"[..], b"E\0\0\0\x20SFATAL\0C28000\0Mpwned, says who?\0\0"] {
        let told = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let tell = std::sync::Arc::clone(&told);
        let fake = Fake::start(move |socket| {
            let mut request = [0; 8];
            socket.read_exact(&mut request)?;
            socket.write_all(answer)?;
            let mut more = [0; 1];
            if request[4..] == 80_877_103i32.to_be_bytes() && socket.read(&mut more)? > 0 {
                tell.store(true, std::sync::atomic::Ordering::Relaxed);
            }
            socket.shutdown(Shutdown::Both)
        });
        let mut settings = Settings::new("sec_strip");
        settings.source = fake.port;
        settings.backend_tls = "require";
        settings.timeouts = "server_connect = \"1s\"\nquery_wait = \"2s\"".to_owned();
        let proxy = settings.start();
        let error = proxy.try_client("alice").expect_err("the source has no TLS");
        assert!(!error.sqlstate.is_empty(), "a clean error: {error:?}");
        assert!(!error.message.contains("pwned"), "plain text of a stranger was shown: {error:?}");
        assert!(!told.load(std::sync::atomic::Ordering::Relaxed), "crossfade went on in plain text");
    }
}

/// 4: startup parameters of a client that has not logged in never reach the connection that looks its password up.
#[test]
fn lookup_is_not_the_clients() {
    needs_proxy!();
    database("sec_lookup");
    let mut admin = crate::support::cluster::oldest().admin("sec_lookup");
    admin.run(
        "CREATE TABLE public.secrets (name text, password text);
         INSERT INTO public.secrets VALUES ('bob', 'bob-pw');
         CREATE SCHEMA evil;
         CREATE TABLE evil.secrets (name text, password text);
         INSERT INTO evil.secrets VALUES ('bob', 'stolen')",
    );
    let mut settings = Settings::new("sec_lookup");
    settings.users = user("postgres", "secret");
    settings.admin = String::new();
    settings.auth =
        "method = \"scram-sha-256\"\nquery = \"SELECT name, password FROM public.secrets WHERE name = $1\""
            .to_owned();
    let proxy = settings.start();
    proxy.client("bob").run("SELECT 1");
    for (name, value) in [("search_path", "evil"), ("options", "-c search_path=evil,public")] {
        let mut login = Login::new("bob", "stolen", "sec_lookup").parameter(name, value);
        assert_eq!(Wire::connect(proxy.port, &login).expect_err("stolen").sqlstate, "28P01", "{name}");
        "bob-pw".clone_into(&mut login.password);
        Wire::connect(proxy.port, &login).expect("its own password");
    }
}

/// A fake that answers nothing at all: a client's login has an end.
#[test]
fn silent_backend() {
    needs_proxy!();
    let fake = Fake::start(|socket| {
        let _ = read_startup(socket)?;
        std::thread::sleep(Duration::from_secs(20));
        Ok(())
    });
    let mut settings = Settings::new("sec_silent");
    settings.source = fake.port;
    settings.backend_tls = "disable";
    settings.timeouts = "server_connect = \"500ms\"\nquery_wait = \"1s\"".to_owned();
    let proxy = settings.start();
    let began = Instant::now();
    let error = proxy.try_client("alice").expect_err("nobody answers");
    assert!(error.sqlstate.starts_with("08") || error.sqlstate.starts_with("57"), "{error:?}");
    assert!(began.elapsed() < Duration::from_secs(6), "{:?}", began.elapsed());
}

//! The first packets of a connection.
//!
//! Versions are crossfade's own affair: it may answer as either server of the migration would. Text of errors is its
//! own too; type, severity and SQLSTATE are not.

use super::{
    Step::{self, Byte, Eof, Login as LogIn, Quiet, Ready, Send, Tls},
    Transcript, is_golden, play,
};
use crate::support::{
    cluster::{Cluster, newest, oldest},
    frames::{V3_0, V3_2, cancel_request, gssenc_request, query, ssl_request, startup, untyped},
    needs_proxy,
    proxy::Settings,
    wire::{Cut, Login, Wire},
};

type Case = (&'static str, Vec<Step>, &'static str);

fn cases() -> Vec<Case> {
    let ask = || vec![Send(query("SELECT 1")), Ready(1)];
    let plain = |code: i32, body: &[u8]| vec![Send(untyped(code, body)), Eof];
    let login = "R10 R11 R12 R0";
    // Leaked: one small string per process, so that the table stays a table of plain text.
    let golden = |text: &str| -> &'static str { text.replace('@', login).leak() };
    vec![
        ("3.0", [vec![LogIn(V3_0, &[])], ask()].concat(), golden("@ K(4) ZI T D C ZI EOF")),
        (
            "3.2",
            [vec![LogIn(V3_2, &[])], ask()].concat(),
            // The length of the key is the server's: crossfade speaks 3.2 in front of any.
            golden("v @ K(4) ZI T D C ZI EOF || @ K ZI T D C ZI EOF"),
        ),
        (
            "3.9999 and an option",
            vec![LogIn(0x0003_270f, &[("_pq_.x", "1")])],
            golden("v @ K(4) ZI EOF || v @ K(32) ZI EOF"),
        ),
        ("3.0 and an option", vec![LogIn(V3_0, &[("_pq_.x", "1")])], golden("v @ K(4) ZI EOF")),
        ("4.0", plain(0x0004_0000, b"user\0alice\0\0"), "E!(0A000) EOF"),
        ("no user", plain(V3_0, b"database\0postgres\0\0"), "E!(28000) EOF"),
        ("no parameters", plain(V3_0, b"\0"), "E!(28000) EOF"),
        ("trailing junk", plain(V3_0, b"user\0alice\0\0junk"), "E!(08P01) EOF"),
        ("a name without a value", plain(V3_0, b"user\0alice\0database\0"), "E!(08P01) EOF"),
        ("no terminator", plain(V3_0, b"user\0alice"), "E!(08P01) EOF"),
        ("more than 10000 bytes", plain(V3_0, &[b'x'; 10_500]), "EOF"),
        ("length 3", vec![Send(vec![0, 0, 0, 3]), Eof], "EOF"),
        ("length 0", vec![Send(vec![0, 0, 0, 0, 0, 0, 0, 0]), Eof], "EOF"),
        ("negative length", vec![Send(vec![0xff, 0xff, 0xff, 0xff]), Eof], "EOF"),
        ("huge length", vec![Send(vec![0x7f, 0xff, 0xff, 0xff, 0, 3, 0, 0]), Eof], "EOF"),
        ("HTTP", vec![Send(b"GET / HTTP/1.1\r\n\r\n".to_vec()), Eof], "EOF"),
        (
            "SSL, then plain",
            vec![Send(ssl_request()), Byte, Tls(false), LogIn(V3_0, &[])],
            golden("S @ K(4) ZI EOF"),
        ),
        (
            "GSS, SSL, login on one socket",
            vec![Send(gssenc_request()), Byte, Send(ssl_request()), Byte, Tls(false), LogIn(V3_0, &[])],
            golden("N S @ K(4) ZI EOF"),
        ),
        ("GSS, then plain", vec![Send(gssenc_request()), Byte, LogIn(V3_0, &[])], golden("N @ K(4) ZI EOF")),
        (
            "bytes stuffed behind SSLRequest",
            vec![Send([ssl_request(), startup(V3_0, &[("user", "alice")])].concat()), Byte, Tls(false), Eof],
            "S E!(08P01) EOF || S NO-TLS EOF",
        ),
        ("direct TLS with ALPN", vec![Tls(true), LogIn(V3_0, &[])], golden("NO-TLS EOF || @ K(4) ZI EOF")),
        ("direct TLS without ALPN", vec![Tls(false), Eof], "NO-TLS EOF || EOF"),
        ("cancel of nobody", vec![Send(cancel_request(1, &[1, 2, 3, 4])), Eof], "EOF"),
        ("cancel with a short key", vec![Send(cancel_request(1, &[])), Eof], "EOF"),
        ("cancel with a long key", vec![Send(cancel_request(1, &[7; 256])), Eof], "EOF"),
        ("goodbye before login", vec![Send(vec![]), Quiet], "EOF"),
    ]
}

/// Who logs in wrongly, and what is answered.
fn refused() -> Vec<(&'static str, Login, &'static str)> {
    let alice = |password: &str, database: &str| Login::new("alice", password, database);
    vec![
        ("wrong password", alice("wrong", "@"), "R10 R11 E!(28P01) EOF"),
        ("empty password", alice("", "@"), "R10 R11 E!(28P01) EOF"),
        ("unknown user", Login::new("nobody", "x", "@"), "R10 R11 E!(28P01) EOF"),
        ("unknown database", alice("alice-pw", "absent_database"), "R10 R11 E!(3D000) EOF"),
        (
            "unknown parameter",
            alice("alice-pw", "@").parameter("no_such_thing", "1"),
            "R10 R11 E!(42704) EOF",
        ),
        ("bad value", alice("alice-pw", "@").parameter("DateStyle", "rubbish"), "R10 R11 E!(22023) EOF"),
    ]
}

/// After a FATAL error the end may come with a reset that a reader sees at once or later: there is one end.
fn shorten(mut seen: Transcript) -> Vec<String> {
    if seen.short.iter().any(|t| t.starts_with("E!")) && !seen.short.iter().any(|t| t.starts_with('v')) {
        seen.short.retain(|t| t != "EOF");
        seen.short.push("EOF".to_owned());
    }
    seen.short
}

fn run(port: u16, login: &Login, steps: &[Step], admin: &mut Wire, cut: Cut) -> Vec<String> {
    let mut wire = Wire::open(port, cut).expect("it listens");
    shorten(play(&mut wire, login, steps, admin, None))
}

fn check_golden(cluster: &Cluster) {
    let mut admin = cluster.admin("postgres");
    let login = Login::new("alice", "alice-pw", "postgres");
    let mut wrong = Vec::new();
    for (name, steps, golden) in cases() {
        let seen = run(cluster.port, &login, &steps, &mut admin, Cut::Whole);
        // Built with GSSAPI, Postgres accepts; crossfade never does.
        let gss = seen.first().is_some_and(|t| t == "G");
        if !gss && !is_golden(golden, cluster.major, &seen) {
            wrong.push(format!("{name}\n  golden {golden}\n  seen   {}", seen.join(" ")));
        }
    }
    for (name, mut login, golden) in refused() {
        aim(&mut login, "postgres");
        let seen = run(cluster.port, &login, &[LogIn(V3_0, &[])], &mut admin, Cut::Whole);
        if !is_golden(golden, cluster.major, &seen) {
            wrong.push(format!("{name}\n  golden {golden}\n  seen   {}", seen.join(" ")));
        }
    }
    assert!(wrong.is_empty(), "Postgres {}:\n{}", cluster.major, wrong.join("\n"));
}

/// Puts the database in the place of `@`.
fn aim(login: &mut Login, database: &str) {
    for (_, value) in &mut login.parameters {
        if value == "@" {
            database.clone_into(value);
        }
    }
}

#[test]
fn startup_golden_oldest() {
    check_golden(oldest());
}

#[test]
fn startup_golden_newest() {
    check_golden(newest());
}

/// Through the proxy, answered as one of the two servers would.
#[test]
fn startup_equal() {
    needs_proxy!();
    crate::support::cluster::database("diff_startup");
    let proxy = Settings::new("diff_startup").tls("prefer").start();
    let mut admin = oldest().admin("diff_startup");
    let login = proxy.login("alice");
    let mut wrong = Vec::new();
    for (name, steps, golden) in cases() {
        for cut in [Cut::Whole, Cut::Bytes, Cut::Random(3)] {
            // Cut in pieces, stuffed bytes are not behind the request in one packet but still too early or not at all.
            if cut != Cut::Whole && name.starts_with("bytes stuffed") {
                continue;
            }
            let seen = run(proxy.port, &login, &steps, &mut admin, cut);
            // Refused before the handshake, in plain words: no client takes them for the server's after TLS.
            let refused = name.starts_with("bytes stuffed") && is_golden("E NO-TLS EOF", 15, &seen);
            if !refused && ![15, 18].into_iter().any(|major| is_golden(golden, major, &seen)) {
                wrong.push(format!("{name} {cut:?}\n  golden {golden}\n  seen   {}", seen.join(" ")));
            }
        }
    }
    for (name, mut login, golden) in refused() {
        aim(&mut login, "diff_startup");
        let seen = run(proxy.port, &login, &[LogIn(V3_0, &[])], &mut admin, Cut::Whole);
        if !is_golden(golden, 15, &seen) {
            wrong.push(format!("{name}\n  golden {golden}\n  seen   {}", seen.join(" ")));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// In session pooling the parameters and the process id are the server's, `options` and unknown parameters reach it.
#[test]
fn parameters_are_the_servers() {
    crate::support::cluster::database("diff_parameters");
    let proxy = Settings::new("diff_parameters").start();
    let variants: [&[(&str, &str)]; 6] = [
        &[],
        &[("client_encoding", "latin1"), ("DateStyle", "german"), ("application_name", "my \u{e4}pp")],
        &[("options", "-c work_mem=9MB -c search_path=\"a\\ b\",public --enable-seqscan=off")],
        &[("options", "-c DateStyle=Postgres\\,DMY"), ("TimeZone", "America/New_York")],
        &[("extra_float_digits", "2"), ("statement_timeout", "5s"), ("app.tenant", "7")],
        &[("intervalstyle", "iso_8601"), ("default_transaction_isolation", "serializable")],
    ];
    let ask = "SELECT name, setting FROM pg_settings WHERE source = 'client' ORDER BY name";
    for parameters in variants {
        let login = parameters.iter().fold(proxy.login("alice"), |login, (k, v)| login.parameter(k, v));
        let mut direct = Wire::connect(oldest().port, &login).expect("Postgres takes them");
        let mut through = Wire::connect(proxy.port, &login).expect("crossfade takes them");
        assert_eq!(through.parameters, direct.parameters, "{parameters:?}");
        assert_eq!(through.query(ask), direct.query(ask), "{parameters:?}");
        let pid = through.run("SELECT pg_backend_pid()");
        assert_eq!(pid, through.key.as_ref().map(|(pid, _)| pid.to_string()), "{parameters:?}");
    }
}

/// `replication=database` reaches the source in session pooling.
#[test]
fn replication_reaches_the_source() {
    crate::support::cluster::database("diff_replication");
    let proxy = Settings::new("diff_replication").start();
    let login = proxy.login("postgres").parameter("replication", "database");
    let mut wire = Wire::connect(proxy.port, &login).expect("a replication connection");
    let rows = wire.query("IDENTIFY_SYSTEM").expect("the walsender answers");
    let direct = oldest().admin("postgres").run("SELECT system_identifier FROM pg_control_system()");
    assert_eq!(rows[0][0], direct);
    assert_eq!(rows[0][3].as_deref(), Some("diff_replication"));
}

/// SCRAM-SHA-256-PLUS: the proof is bound to the certificate the client sees.
#[test]
fn channel_binding() {
    crate::support::cluster::database("diff_plus");
    let proxy = Settings::new("diff_plus").tls("require").start();
    let mut wire = Wire::open(proxy.port, Cut::Whole).expect("it listens");
    wire.send(&ssl_request());
    assert_eq!(wire.byte(), Some(b'S'));
    wire.start_tls(None, false).expect("TLS");
    let login = proxy.login("alice");
    wire.send(&login.startup());
    let (frames, _) = wire.authenticate(&login, true);
    let offered = String::from_utf8_lossy(&frames[0].body[4..]).into_owned();
    assert!(offered.contains("SCRAM-SHA-256-PLUS\0"), "offered {offered:?}");
    assert_eq!(frames.last().map(|f| f.kind), Some(b'Z'));

    // Without TLS it must not be offered.
    if !crate::support::direct() {
        let plain = Settings::new("diff_plus").start();
        let mut wire = Wire::open(plain.port, Cut::Whole).expect("it listens");
        wire.send(&login.startup());
        let (frames, _) = wire.authenticate(&login, false);
        let offered = String::from_utf8_lossy(&frames[0].body[4..]).into_owned();
        assert!(!offered.contains("PLUS"), "offered {offered:?}");
    }
}

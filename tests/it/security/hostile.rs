//! A backend that lies (2, 3): its replies cost their own connection, never the process or another client.

use std::{
    io::Write,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use crate::support::{
    fake::{Fake, done, greeting, read_frame, read_startup},
    frames::{frame, lying, query},
    needs_proxy,
    proxy::{Proxy, Settings},
    reply::Frame,
    wire::Next,
};

fn proxy_to(fake: &Fake) -> Proxy {
    let mut settings = Settings::new("sec_hostile");
    settings.source = fake.port;
    settings.backend_tls = "disable";
    "server_connect = \"2s\"\nquery_wait = \"3s\"\nserver_login_retry = \"50ms\""
        .clone_into(&mut settings.timeouts);
    settings.start()
}

fn parameter(name: &str, value: &str) -> Vec<u8> {
    frame(b'S', format!("{name}\0{value}\0").as_bytes())
}

/// Replies to a query.
fn replies() -> Vec<(&'static str, Vec<u8>)> {
    let ready = || frame(b'Z', b"I");
    let then_ready = |bytes: Vec<u8>| [bytes, ready()].concat();
    vec![
        ("an error without SQLSTATE", then_ready(frame(b'E', b"SERROR\0Mno code\0\0"))),
        ("an error without anything", then_ready(frame(b'E', b""))),
        ("an error without its end", then_ready(frame(b'E', b"SERROR"))),
        ("an error with an empty field", then_ready(frame(b'E', b"S\0C\0M\0\0"))),
        (
            "a fatal error, then more",
            [frame(b'E', b"SFATAL\0VFATAL\0C57P01\0Mx\0\0"), done("SELECT 1")].concat(),
        ),
        ("a description of columns that are not there", then_ready(frame(b'T', b"\xff\xff"))),
        ("an empty description", then_ready(frame(b'T', b""))),
        ("a row with a value beyond its end", then_ready(frame(b'D', b"\0\x01\x7f\xff\xff\xff"))),
        ("a row with a negative value", then_ready(frame(b'D', b"\0\x01\x80\0\0\0"))),
        ("length 3", lying(b'D', 3, b"")),
        ("negative length", lying(b'D', -5, b"")),
        ("a huge length", lying(b'D', i32::MAX, b"xx")),
        ("a huge length of what must be short", lying(b'Z', i32::MAX, b"I")),
        ("a huge error", lying(b'E', i32::MAX, b"SERROR\0")),
        ("an unknown type", then_ready(frame(0xfe, b"x"))),
        ("ready without a state", frame(b'Z', b"")),
        ("ready in an unknown state", frame(b'Z', b"Q")),
        ("ready twice", [done("SELECT 1"), ready()].concat()),
        ("two answers", [done("SELECT 1"), done("SELECT 2")].concat()),
        ("a parameter without an end", then_ready(frame(b'S', b"client_encoding"))),
        ("an empty parameter", then_ready(frame(b'S', b""))),
        ("a long parameter", then_ready(parameter(&"n".repeat(100_000), "v"))),
        (
            "parameters without end",
            then_ready((0..100_000).flat_map(|i| parameter(&format!("p{i}"), "v")).collect()),
        ),
        ("a tag without an end", then_ready(frame(b'C', b"SELECT 1"))),
        ("an empty tag", then_ready(frame(b'C', b""))),
        ("a key in the middle", [frame(b'K', b"\0\0"), done("SELECT 1")].concat()),
        ("authentication in the middle", [frame(b'R', b"\0\0\0\x0a"), done("SELECT 1")].concat()),
        ("a copy nobody asked for", frame(b'G', b"")),
        ("copy out with a count that is not there", then_ready(frame(b'H', b"\0\xff\xff"))),
        ("a notification without a body", then_ready(frame(b'A', b""))),
        ("parameter types that are not there", then_ready(frame(b't', b"\xff\xff"))),
        ("a version in the middle", then_ready(frame(b'v', b"\0"))),
        ("not even a frame", b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec()),
    ]
}

#[test]
fn hostile_replies() {
    needs_proxy!();
    let reply = Arc::new(Mutex::new(Vec::new()));
    let told = Arc::clone(&reply);
    let fake = Fake::start(move |socket| {
        if read_startup(socket)?.0 == 80_877_102 {
            return Ok(());
        }
        socket.write_all(&greeting())?;
        loop {
            match read_frame(socket)? {
                (b'Q', body) if body.starts_with(b"SELECT 'evil'") => {
                    let bytes = told.lock().expect("not poisoned").clone();
                    socket.write_all(&bytes)?;
                }
                (b'Q', _) => socket.write_all(&done("SELECT 0"))?,
                (b'S', _) => socket.write_all(&frame(b'Z', b"I"))?,
                (b'X', _) => return Ok(()),
                _ => {}
            }
        }
    });
    for transaction in [false, true] {
        let mut proxy = if transaction {
            let mut settings = proxy_to(&fake).settings.clone();
            settings = settings.transaction(1);
            settings.start()
        } else {
            proxy_to(&fake)
        };
        let before = proxy.resident_kib();
        for (name, bytes) in replies() {
            *reply.lock().expect("not poisoned") = bytes;
            let mut victim = proxy.try_client("alice").unwrap_or_else(|e| panic!("before {name}: {e:?}"));
            victim.send(&query("SELECT 'evil'"));
            while let Next::Frame(_) = victim.next(Duration::from_millis(60)) {}
            drop(victim);
            // The next one gets its own answer and nothing of the last.
            let mut next = proxy.try_client("alice").unwrap_or_else(|e| panic!("after {name}: {e:?}"));
            next.send(&query("SELECT 'good'"));
            let frames = next.until_ready(1).unwrap_or_else(|e| panic!("after {name}: {e:?}"));
            let tags: Vec<String> = frames.iter().filter(|f| f.kind != b'S').map(Frame::short).collect();
            assert_eq!(tags, ["C[SELECT_0]", "ZI"], "after {name}, transaction pooling {transaction}");
            assert_eq!(next.next(Duration::from_millis(10)), Next::Quiet, "after {name}");
        }
        assert!(proxy.ended().is_none(), "crossfade died; its log:\n{}", proxy.log());
        let grown = proxy.resident_kib().saturating_sub(before);
        assert!(grown < 60_000, "grew by {grown} KiB");
    }
}

/// What a server may say during the login, after the startup message.
fn logins() -> Vec<(&'static str, Vec<u8>)> {
    let auth = |code: i32, rest: &[u8]| frame(b'R', &[&code.to_be_bytes(), rest].concat());
    vec![
        ("an error without SQLSTATE", frame(b'E', b"SFATAL\0Mno code\0\0")),
        ("an error without anything", frame(b'E', b"")),
        ("an unknown authentication", auth(99, b"")),
        ("authentication without a code", frame(b'R', b"\0")),
        ("MD5 without a salt", auth(5, b"\0")),
        ("mechanisms without an end", auth(10, b"SCRAM-SHA-256")),
        ("no mechanism", auth(10, b"\0")),
        ("unknown mechanisms", auth(10, b"ROT13\0\0")),
        ("a final word before the first", auth(12, b"v=AAAA")),
        ("a length beyond reason", lying(b'R', i32::MAX, b"\0\0\0\0")),
        ("a length below reason", lying(b'R', 1, b"")),
        ("ready at once", frame(b'Z', b"I")),
        ("a key of three bytes", [auth(0, b""), frame(b'K', b"\0\0\0"), frame(b'Z', b"I")].concat()),
        ("not even a frame", b"\0\0\0\0\0\0\0\0".to_vec()),
    ]
}

/// What it may answer to SCRAM's first message; `NONCE` is the client's.
const CHALLENGES: [(&str, &str); 9] = [
    ("a bomb of iterations", "r=NONCEserver,s=c2FsdHNhbHQ=,i=2147483647"),
    ("more iterations than a number holds", "r=NONCEserver,s=c2FsdHNhbHQ=,i=99999999999999999999"),
    ("no iterations", "r=NONCEserver,s=c2FsdHNhbHQ=,i=0"),
    ("negative iterations", "r=NONCEserver,s=c2FsdHNhbHQ=,i=-1"),
    ("somebody else's nonce", "r=abcserver,s=c2FsdHNhbHQ=,i=4096"),
    ("a salt that is none", "r=NONCEserver,s=!!!!,i=4096"),
    ("nothing", ""),
    ("an extension that must be understood", "m=x,r=NONCEserver,s=c2FsdHNhbHQ=,i=4096"),
    ("an error", "e=other-error"),
];

/// A client behind a hostile server hears of it within the deadline, cheaply, and crossfade lives.
fn refuse_login(name: &str, fake: &Fake) {
    let mut proxy = proxy_to(fake);
    let (began, cpu) = (Instant::now(), proxy.cpu_seconds());
    let error = proxy.try_client("alice").expect_err(name);
    assert!(!error.sqlstate.is_empty(), "{name}: no clean error but {error:?}");
    assert!(!error.message.contains("alice-pw"));
    assert!(began.elapsed() < Duration::from_secs(6), "{name}: took {:?}", began.elapsed());
    assert!(proxy.cpu_seconds() - cpu < 2.0, "{name}: used {} s of CPU", proxy.cpu_seconds() - cpu);
    assert!(proxy.ended().is_none(), "{name}: crossfade died; its log:\n{}", proxy.log());
}

#[test]
fn hostile_logins() {
    needs_proxy!();
    for (name, reply) in logins() {
        let fake = Fake::start(move |socket| {
            read_startup(socket)?;
            socket.write_all(&reply)?;
            while read_frame(socket).is_ok() {}
            Ok(())
        });
        refuse_login(name, &fake);
    }
}

#[test]
fn hostile_scram() {
    needs_proxy!();
    for (name, challenge) in CHALLENGES {
        let fake = Fake::start(move |socket| {
            read_startup(socket)?;
            socket.write_all(&frame(b'R', b"\0\0\0\x0aSCRAM-SHA-256\0\0"))?;
            let (_, body) = read_frame(socket)?;
            let text = String::from_utf8_lossy(&body).into_owned();
            let nonce = text.rsplit("r=").next().unwrap_or_default().to_owned();
            let answer = challenge.replace("NONCE", &nonce);
            socket.write_all(&frame(b'R', &[&11i32.to_be_bytes()[..], answer.as_bytes()].concat()))?;
            while read_frame(socket).is_ok() {}
            Ok(())
        });
        refuse_login(name, &fake);
    }
}

/// A server that knows no password must prove that it knows the verifier.
#[test]
fn server_without_proof() {
    needs_proxy!();
    let fake = Fake::start(|socket| {
        read_startup(socket)?;
        socket.write_all(&frame(b'R', b"\0\0\0\x0aSCRAM-SHA-256\0\0"))?;
        let (_, body) = read_frame(socket)?;
        let text = String::from_utf8_lossy(&body).into_owned();
        let nonce = text.rsplit("r=").next().unwrap_or_default().to_owned();
        let challenge = format!("r={nonce}x,s=c2FsdHNhbHQ=,i=4096");
        socket.write_all(&frame(b'R', &[&11i32.to_be_bytes()[..], challenge.as_bytes()].concat()))?;
        read_frame(socket)?;
        // Wrong signature, then business as usual.
        let last = format!("v={}", "A".repeat(43) + "=");
        socket.write_all(&frame(b'R', &[&12i32.to_be_bytes()[..], last.as_bytes()].concat()))?;
        socket.write_all(&greeting())?;
        while read_frame(socket).is_ok() {}
        Ok(())
    });
    refuse_login("a wrong server signature", &fake);
    // Skipping the last word altogether is no proof either.
    let fake = Fake::start(|socket| {
        read_startup(socket)?;
        socket.write_all(&frame(b'R', b"\0\0\0\x0aSCRAM-SHA-256\0\0"))?;
        read_frame(socket)?;
        socket.write_all(&greeting())?;
        while read_frame(socket).is_ok() {}
        Ok(())
    });
    refuse_login("authenticated in the middle of SCRAM", &fake);
}

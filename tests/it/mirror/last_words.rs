//! A lead that is stopped right behind its COMMIT: what it said before stays true.

use std::{
    io::{self, Read, Write},
    net::TcpStream,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use super::{SYNCHRONOUS, said};
use crate::support::{
    cluster::{newest, oldest},
    fake::Fake,
    frames::frame,
    needs_proxy,
    proxy::Settings,
    wait_for,
};

/// Between proxy and source; once `armed`, it says FATAL in the same breath as the next COMMIT's answer.
fn stopper(port: u16, armed: Arc<AtomicBool>) -> Fake {
    Fake::start(move |proxy| {
        let server = TcpStream::connect(("127.0.0.1", port))?;
        let (mut from, mut to) = (proxy.try_clone()?, server.try_clone()?);
        std::thread::spawn(move || io::copy(&mut from, &mut to));
        let (mut server, mut buffer) = (server, vec![0; 1 << 16]);
        loop {
            let n = server.read(&mut buffer)?;
            let mut answer = buffer[..n].to_vec();
            let stop = answer.ends_with(b"COMMIT\0Z\0\0\0\x05I") && armed.swap(false, Ordering::Relaxed);
            if stop {
                let why = b"SFATAL\0VFATAL\0C57P01\0Mterminating connection due to administrator command\0\0";
                answer.extend(frame(b'E', why));
            }
            proxy.write_all(&answer)?;
            if n == 0 || stop {
                return Ok(());
            }
        }
    })
}

#[test]
fn a_lead_that_ends_behind_its_commit() {
    needs_proxy!();
    for mode in SYNCHRONOUS {
        let database = format!("m_words_{mode}");
        for cluster in [oldest(), newest()] {
            cluster.database(&database);
            cluster.admin(&database).run("CREATE TABLE t (id int PRIMARY KEY); GRANT ALL ON t TO PUBLIC");
        }
        let armed = Arc::new(AtomicBool::new(false));
        let stopper = stopper(oldest().port, Arc::clone(&armed));
        let mut settings = Settings::new(&database);
        (settings.source, settings.backend_tls) = (stopper.port, "disable");
        settings.tables += ", \"public.t*\"";
        settings.mirror = format!("mirror = {mode:?}");
        let proxy = settings.start();
        for id in [1, 2] {
            let mut client = proxy.client("alice");
            client.run("BEGIN");
            client.run(&format!("INSERT INTO t VALUES ({id})"));
            armed.store(true, Ordering::Relaxed);
            assert_eq!(said(&mut client, "COMMIT"), "C[COMMIT] ZI", "{mode}");
            assert!(!armed.load(Ordering::Relaxed));
        }
        // Not by the journal: the follower's half was not rolled back.
        let ended = |how: &str| {
            let outcome = format!("outcome={how:?}");
            proxy.metric("mirror_transactions_total", &["lead=\"source\"", &outcome])
        };
        wait_for("two transactions", || ended("both") + ended("rolled_back") > 1.5);
        assert!(ended("both") > 1.5, "{mode}: {} were rolled back on the follower", ended("rolled_back"));
        wait_for("both rows on the follower", || {
            newest().admin(&database).run("SELECT count(*) FROM t").as_deref() == Some("2")
        });
        assert_eq!(oldest().admin(&database).run("SELECT count(*) FROM t").as_deref(), Some("2"));
    }
}

//! A connection to a database is lost at each message of a transaction's end, before the server has it and after: both
//! sides have the same rows then, once each, and what was acknowledged is there. The table without a key tells what was
//! applied twice.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, TcpStream},
    sync::{Arc, Mutex},
};

use super::{MODES, check_equal, start};
use crate::support::{
    cluster::{newest, oldest},
    fake::Fake,
    needs_proxy,
    proxy::Proxy,
    wire::{Login, Wire},
};

const SCHEMA: &str = "CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE t_log (v text); \
                      GRANT ALL ON t, t_log TO PUBLIC";

/// What is lost, once: on a connection that has carried `mark`, a piece with `words`.
#[derive(Clone, Debug)]
struct Loss {
    mark: String,
    words: &'static str,
}

/// Between the proxy and a server; the first index is the direction: 0 to the server, 1 back.
#[derive(Debug, Default)]
struct Wires(Mutex<[Option<Loss>; 2]>);

impl Wires {
    /// Passes bytes on, until what is to be lost comes by.
    fn carry(
        &self,
        from: &mut TcpStream,
        to: &mut TcpStream,
        direction: usize,
        marked: &Mutex<bool>,
    ) -> io::Result<()> {
        let mut bytes = vec![0; 64 * 1024];
        loop {
            let n = from.read(&mut bytes)?;
            if n == 0 {
                return Ok(());
            }
            if self.is_lost(&bytes[..n], direction, marked) {
                return Err(io::ErrorKind::ConnectionReset.into());
            }
            to.write_all(&bytes[..n])?;
        }
    }

    fn is_lost(&self, bytes: &[u8], direction: usize, marked: &Mutex<bool>) -> bool {
        let has = |text: &str| bytes.windows(text.len()).any(|w| w == text.as_bytes());
        let (mut losses, mut marked) = (self.0.lock().expect("whole"), marked.lock().expect("whole"));
        *marked |= direction == 0 && losses.iter().flatten().any(|loss| has(&loss.mark));
        let lost = *marked && losses[direction].as_ref().is_some_and(|loss| has(loss.words));
        if lost {
            *losses = [None, None];
        }
        lost
    }
}

/// A way to `port` on which messages are lost.
fn between(port: u16) -> (Fake, Arc<Wires>) {
    let wires = Arc::new(Wires::default());
    let mine = Arc::clone(&wires);
    let fake = Fake::start(move |proxy| {
        let mut server = TcpStream::connect(("127.0.0.1", port))?;
        for socket in [&*proxy, &server] {
            socket.set_nodelay(true)?;
            socket.set_read_timeout(None)?;
        }
        let marked = Arc::new(Mutex::new(false));
        let (mut back_from, mut back_to) = (server.try_clone()?, proxy.try_clone()?);
        let (wires, mark) = (Arc::clone(&mine), Arc::clone(&marked));
        let back = std::thread::spawn(move || {
            let _ = wires.carry(&mut back_from, &mut back_to, 1, &mark);
            let _ = (back_from.shutdown(Shutdown::Both), back_to.shutdown(Shutdown::Both));
        });
        let _ = mine.carry(proxy, &mut server, 0, &marked);
        let _ = (proxy.shutdown(Shutdown::Both), server.shutdown(Shutdown::Both));
        let _ = back.join();
        Ok(())
    });
    (fake, wires)
}

/// Messages of a transaction's end: side, direction, words.
const LOSSES: [(usize, usize, &str); 13] = [
    (0, 0, "crossfade_write_set"),
    (0, 1, "INSERT 0 1\0"),
    (0, 0, "crossfade_commit"),
    (0, 0, "COMMIT\0"),
    (0, 1, "COMMIT\0"),
    (1, 0, "crossfade_begin"),
    (1, 1, "INSERT 0 1\0"),
    (1, 0, "PREPARE TRANSACTION"),
    (1, 1, "PREPARE TRANSACTION\0"),
    (1, 0, "crossfade_commit"),
    (1, 1, "COMMIT\0"),
    (1, 0, "COMMIT PREPARED"),
    (1, 1, "COMMIT PREPARED\0"),
];

/// A transaction whose texts carry `mark`. `true`: the client has heard that it is committed.
fn write(proxy: &Proxy, mark: &str, id: usize, block: bool) -> bool {
    let mut client = proxy.client("alice");
    let texts =
        [format!("INSERT INTO t_log VALUES ('{mark}')"), format!("INSERT INTO t VALUES ({id}, '{mark}')")];
    if !block {
        return client.query(&texts[0]).is_ok();
    }
    let mut all = vec!["BEGIN".to_owned()];
    all.extend(texts);
    all.push("COMMIT".to_owned());
    all.iter().all(|text| client.query(text).is_ok())
}

#[test]
fn whatever_is_lost_each_row_is_there_once() {
    needs_proxy!();
    let ((source, source_wires), (target, target_wires)) = (between(oldest().port), between(newest().port));
    let wires = [source_wires, target_wires];
    for mode in MODES {
        let name = format!("m_lost_{mode}");
        let proxy = start(&name, SCHEMA, |s| {
            (s.source, s.target, s.backend_tls) = (source.port, target.port, "disable");
            s.mirror = format!("mirror = {mode:?}");
            s.mirroring = "retry_after = \"20ms\"\njournal_grace = \"1s\"".to_owned();
        });
        let direct = |port| Wire::connect(port, &Login::new("postgres", "secret", &name)).expect("a server");
        let mut lead = direct(oldest().port);
        let mut lost = Vec::new();
        for (n, &(side, direction, words)) in LOSSES.iter().enumerate() {
            for block in [false, true] {
                let mark = format!("{mode}-{n}-{block}-mark");
                let mut losses = [None, None];
                losses[direction] = Some(Loss { mark: mark.clone(), words });
                losses[1 - direction] = Some(Loss { mark: mark.clone(), words: "\0never\0" });
                *wires[side].0.lock().expect("whole") = losses;
                let acknowledged = write(&proxy, &mark, n * 2 + usize::from(block), block);
                check_equal(&proxy);
                let hit = std::mem::take(&mut *wires[side].0.lock().expect("whole"))[direction].is_none();
                let count = lead.run(&format!("SELECT count(*) FROM t_log WHERE v = '{mark}'"));
                let count = count.and_then(|c| c.parse::<u32>().ok());
                let case =
                    format!("{mode}: {words:?} lost, side {side}, direction {direction}, block {block}");
                assert!(count == Some(1) || (count == Some(0) && !acknowledged), "{case}: {count:?} rows");
                lost.extend(hit.then_some((side, direction, words, block)));
            }
        }
        println!("{mode}: {} lost: {lost:?}", lost.len());
        let least = match mode {
            "atomic" => 18,
            "journaled" => 16,
            _ => 8,
        };
        assert!(lost.len() >= least, "{mode}: only {} were lost: {lost:?}", lost.len());
    }
}

//! Startup packets: bytes -> what the client wants. Pure; answers and limits are those of Postgres' `ProcessStartupPacket`.

use bytes::{Buf, BufMut, BytesMut};

use crate::{error::ClientError, wire::frame};

/// Bytes of a startup packet without its length field (`MAX_STARTUP_PACKET_LENGTH`).
pub const MAX_STARTUP: usize = 10_000;
/// Bytes of a cancel key, the most that protocol 3.2 allows.
const MAX_KEY: usize = 256;
const CANCEL: u32 = 80_877_102;
const SSL: u32 = 80_877_103;
const GSSENC: u32 = 80_877_104;
/// The newest minor version of protocol 3 that we speak.
const NEWEST_MINOR: u32 = 2;

/// The first packet of a connection, or the one after a `N` or `S`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Packet {
    /// `SSLRequest`.
    Tls,
    /// `GSSENCRequest`.
    Gss,
    /// `CancelRequest`.
    Cancel {
        /// As given to the client in `BackendKeyData`.
        process_id: i32,
        /// 1 to 256 bytes.
        key: Vec<u8>,
    },
    /// `StartupMessage`.
    Startup(Parameters),
}

/// A `StartupMessage`, taken apart.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Parameters {
    /// Role name; empty when the client gave none, which is refused after `negotiate` was sent.
    pub user: String,
    /// Database name; the user's when the client gave none.
    pub database: String,
    /// All others but `_pq_.*`, in order.
    pub others: Vec<(String, String)>,
    /// Minor version to go on with: 0 or 2.
    pub minor: u16,
    /// `NegotiateProtocolVersion` to send before anything else, when one is due.
    pub negotiate: Option<Negotiate>,
}

/// The `NegotiateProtocolVersion` that a client must get.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Negotiate {
    minor: u32,
    options: Vec<String>,
}

impl Negotiate {
    /// Appends the message.
    pub fn encode(&self, out: &mut BytesMut) {
        frame::put(out, b'v', |body| {
            body.put_u32(3 << 16 | self.minor);
            body.put_u32(u32::try_from(self.options.len()).expect("they came in one startup packet"));
            for option in &self.options {
                body.put_slice(option.as_bytes());
                body.put_u8(0);
            }
        });
    }
}

/// Why a packet is not served.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Refusal {
    /// The connection is closed without a word, as Postgres does; the reason is for the log.
    Silent(&'static str),
    /// The client is told.
    Told(ClientError),
}

impl From<ClientError> for Refusal {
    fn from(error: ClientError) -> Self {
        Self::Told(error)
    }
}

/// Length of the packet that begins with these four bytes, the length field included.
pub fn length(head: [u8; 4]) -> Result<usize, Refusal> {
    let length = usize::try_from(u32::from_be_bytes(head)).unwrap_or(usize::MAX);
    if (8..=MAX_STARTUP + 4).contains(&length) {
        Ok(length)
    } else {
        Err(Refusal::Silent("invalid length of startup packet"))
    }
}

/// Reads one packet without its length field. `tls_done` and `gss_done`: a second request of the kind is no longer one
/// but an unknown protocol version, as in Postgres.
pub fn parse(mut packet: &[u8], tls_done: bool, gss_done: bool) -> Result<Packet, Refusal> {
    if packet.len() < 4 {
        return Err(Refusal::Silent("invalid length of startup packet"));
    }
    match packet.get_u32() {
        CANCEL => cancel(packet),
        SSL if !tls_done => Ok(Packet::Tls),
        GSSENC if !gss_done => Ok(Packet::Gss),
        version if version >> 16 == 3 => parameters(packet, version & 0xffff).map(Packet::Startup),
        version => {
            let (major, minor) = (version >> 16, version & 0xffff);
            let message = format!(
                "unsupported frontend protocol {major}.{minor}: server supports 3.0 to 3.{NEWEST_MINOR}"
            );
            Err(ClientError::fatal("0A000", message).into())
        }
    }
}

fn cancel(mut packet: &[u8]) -> Result<Packet, Refusal> {
    if packet.len() < 4 {
        return Err(Refusal::Silent("invalid length of cancel request packet"));
    }
    let process_id = packet.get_i32();
    if packet.is_empty() || packet.len() > MAX_KEY {
        return Err(Refusal::Silent("invalid length of cancel key in cancel request packet"));
    }
    Ok(Packet::Cancel { process_id, key: packet.to_vec() })
}

fn parameters(mut rest: &[u8], minor: u32) -> Result<Parameters, Refusal> {
    let mut found = Parameters { minor: if minor >= NEWEST_MINOR { 2 } else { 0 }, ..Parameters::default() };
    let mut options = Vec::new();
    loop {
        let name = take_text(&mut rest).ok_or_else(layout)?;
        if name.is_empty() {
            break;
        }
        let value = take_text(&mut rest).ok_or_else(layout)?;
        match name {
            // Postgres cleans this one itself; every other must be text that we can log, compare and pass on.
            b"application_name" => {
                found.others.push((text(name)?, String::from_utf8_lossy(value).into_owned()));
            }
            b"user" => found.user = text(value)?,
            b"database" => found.database = text(value)?,
            _ if name.starts_with(b"_pq_.") => options.push(text(name)?),
            _ => found.others.push((text(name)?, text(value)?)),
        }
    }
    if !rest.is_empty() {
        return Err(layout());
    }
    if minor > NEWEST_MINOR || !options.is_empty() {
        found.negotiate = Some(Negotiate { minor: minor.min(NEWEST_MINOR), options });
    }
    if found.database.is_empty() {
        found.database.clone_from(&found.user);
    }
    Ok(found)
}

fn take_text<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let end = rest.iter().position(|&b| b == 0)?;
    let text = &rest[..end];
    *rest = &rest[end + 1..];
    Some(text)
}

fn text(bytes: &[u8]) -> Result<String, Refusal> {
    let refuse = |_| {
        ClientError::fatal("22021", "invalid byte sequence for encoding \"UTF8\" in startup packet").into()
    };
    String::from_utf8(bytes.to_vec()).map_err(refuse)
}

fn layout() -> Refusal {
    ClientError::fatal("08P01", "invalid startup packet layout: expected terminator as last byte").into()
}

/// Cuts arbitrary bytes into packets and reads each: the body of the fuzz target, replayed over its corpus by a test.
#[doc(hidden)]
pub fn exercise(mut data: &[u8]) {
    let (mut tls, mut gss) = (false, false);
    while data.len() >= 4 {
        let Ok(length) = length([data[0], data[1], data[2], data[3]]) else { return };
        let Some(packet) = data.get(4..length) else { return };
        data = &data[length..];
        match parse(packet, tls, gss) {
            Ok(Packet::Tls) => assert!(!std::mem::replace(&mut tls, true), "twice"),
            Ok(Packet::Gss) => assert!(!std::mem::replace(&mut gss, true), "twice"),
            Ok(Packet::Cancel { key, .. }) => return assert!((1..=MAX_KEY).contains(&key.len())),
            Ok(Packet::Startup(found)) => {
                assert!(found.user.is_empty() || !found.database.is_empty());
                let size: usize = found.others.iter().map(|(k, v)| k.len() + v.len() + 2).sum();
                assert!(size <= 3 * packet.len(), "longer than it was");
                let mut out = BytesMut::new();
                found.negotiate.iter().for_each(|n| n.encode(&mut out));
                return assert!(out.len() <= packet.len() + 13);
            }
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(version: u32, body: &[u8]) -> Vec<u8> {
        [&version.to_be_bytes(), body].concat()
    }

    #[test]
    fn lengths() {
        for (length_field, ok) in [
            (0, false),
            (3, false),
            (7, false),
            (8, true),
            (10_004, true),
            (10_005, false),
            (0x7fff_ffff, false),
            (0xffff_fff0, false),
        ] {
            assert_eq!(length(u32::to_be_bytes(length_field)).is_ok(), ok, "{length_field}");
        }
    }

    #[test]
    fn startup_messages() {
        let both = &b"user\0u\0database\0d\0options\0-c a=b\0x.y\0\0\0"[..];
        for (version, body, expected) in [
            (0x30000, both, "u d 0 [options=-c a=b][x.y=] -"),
            (0x30000, b"user\0u\0\0", "u u 0  -"),
            (0x30001, b"user\0u\0\0", "u u 0  -"),
            (0x30002, b"user\0u\0\0", "u u 2  -"),
            (0x3270f, b"user\0u\0_pq_.x\x001\0\0", "u u 2  760000001300030002000000015f70715f2e7800"),
            (0x3270f, b"user\0u\0\0", "u u 2  760000000c0003000200000000"),
            (0x30000, b"user\0u\0_pq_.x\x001\0\0", "u u 0  760000001300030000000000015f70715f2e7800"),
            (0x30000, b"user\0u\0application_name\0a\xffb\0\0", "u u 0 [application_name=a\u{fffd}b] -"),
            (0x30000, b"\0", "  0  -"),
            (0x30000, b"user\0\0database\0d\0\0", " d 0  -"),
            (0x30000, b"user\0u\0\0x", "08P01 invalid startup packet layout"),
            (0x30000, b"user\0u\0", "08P01 invalid startup packet layout"),
            (0x30000, b"user\0u", "08P01 invalid startup packet layout"),
            (0x30000, b"user", "08P01 invalid startup packet layout"),
            (0x30000, b"", "08P01 invalid startup packet layout"),
            (0x30000, b"user\0\xff\0\0", "22021 invalid byte sequence"),
            (0x40000, b"user\0u\0\0", "0A000 unsupported frontend protocol 4.0: server supports 3.0 to 3.2"),
            (0x20000, b"", "0A000 unsupported frontend protocol 2.0"),
            (SSL, b"", "0A000 unsupported frontend protocol 1234.5679"),
            (GSSENC, b"", "0A000 unsupported frontend protocol 1234.5680"),
        ] {
            let shown = match parse(&packet(version, body), true, true) {
                Ok(Packet::Startup(p)) => {
                    let others: Vec<String> = p.others.iter().map(|(k, v)| format!("[{k}={v}]")).collect();
                    let others = others.concat();
                    let mut out = BytesMut::new();
                    p.negotiate.iter().for_each(|n| n.encode(&mut out));
                    let hex = crate::frontend::auth::hex(&out);
                    let hex = if hex.is_empty() { "-" } else { &hex };
                    format!("{} {} {} {others} {hex}", p.user, p.database, p.minor)
                }
                Err(Refusal::Told(e)) => format!("{} {}", e.sqlstate, e.message),
                other => format!("{other:?}"),
            };
            assert!(shown.starts_with(expected), "{version:x} {}: {shown}", body.escape_ascii());
        }
    }

    #[test]
    fn requests() {
        assert_eq!(parse(&packet(SSL, b""), false, true), Ok(Packet::Tls));
        assert_eq!(parse(&packet(GSSENC, b""), true, false), Ok(Packet::Gss));
        for (body, ok) in
            [(4, false), (5, true), (8, true), (260, true), (261, false), (3, false), (0, false)]
        {
            let result = parse(&packet(CANCEL, &vec![7; body]), false, false);
            assert_eq!(matches!(result, Ok(Packet::Cancel { .. })), ok, "{body}");
            assert!(ok || matches!(result, Err(Refusal::Silent(_))), "{body}");
        }
    }

    #[test]
    fn the_fuzzers_corpus_replays() {
        let files = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus/startup")).unwrap();
        let inputs: Vec<Vec<u8>> = files.map(|f| std::fs::read(f.unwrap().path()).unwrap()).collect();
        assert!(inputs.len() >= 10);
        for input in &inputs {
            (0..=input.len()).for_each(|cut| exercise(&input[..cut]));
        }
    }
}

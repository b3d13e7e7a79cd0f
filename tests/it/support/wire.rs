//! A raw protocol client: sends bytes, whole or in pieces, and shows what comes back.

use std::{
    collections::BTreeMap,
    io::{self, Read, Write},
    net::TcpStream,
    time::{Duration, Instant},
};

use postgres_protocol::authentication::{
    md5_hash,
    sasl::{ChannelBinding, ScramSha256},
};
use rustls::{ClientConnection, StreamOwned};
use rustls_pki_types::ServerName;
use sha2::{Digest, Sha256};

use super::{
    PATIENCE, Rng,
    frames::{self, V3_0},
    reply::{Frame, short},
    tls,
};

/// How bytes are cut on their way out.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Cut {
    /// One write.
    Whole,
    /// One byte a write.
    Bytes,
    /// Pieces of random length, from a seed.
    Random(u64),
}

/// Only the head of a flight is cut: its tail would cost time and show nothing new.
const CUT_BYTES: usize = 3000;

/// A socket that cuts what is written to it. Under TLS this cuts records.
#[derive(Debug)]
struct Socket {
    tcp: TcpStream,
    cut: Cut,
    rng: Rng,
}

impl Socket {
    fn piece(&mut self, left: usize) -> usize {
        match self.cut {
            Cut::Whole => left,
            Cut::Bytes => 1,
            Cut::Random(_) => left.min(1 + self.rng.below(40)),
        }
    }
}

impl Read for Socket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.tcp.read(buffer)
    }
}

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut done = 0;
        while done < bytes.len().min(CUT_BYTES) {
            let piece = self.piece(bytes.len() - done);
            self.tcp.write_all(&bytes[done..done + piece])?;
            done += piece;
        }
        self.tcp.write_all(&bytes[done..])?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.tcp.flush()
    }
}

#[derive(Debug)]
enum Stream {
    Plain(Socket),
    Tls(Box<StreamOwned<ClientConnection, Socket>>),
    /// While TLS is being started.
    Gone,
}

impl Stream {
    fn socket(&self) -> &Socket {
        match self {
            Stream::Plain(socket) => socket,
            Stream::Tls(tls) => &tls.sock,
            Stream::Gone => unreachable!("only inside start_tls"),
        }
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Plain(socket) => socket.read(buffer),
            Stream::Tls(tls) => tls.read(buffer),
            Stream::Gone => Ok(0),
        }
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Stream::Plain(socket) => socket.write_all(bytes),
            Stream::Tls(tls) => tls.write_all(bytes).and_then(|()| tls.flush()),
            Stream::Gone => Ok(()),
        }
    }
}

/// Who logs in, and how.
#[derive(Clone, Debug)]
pub(crate) struct Login {
    pub(crate) user: String,
    pub(crate) password: String,
    pub(crate) parameters: Vec<(String, String)>,
    pub(crate) version: i32,
    pub(crate) tls: bool,
    /// Show this user's certificate.
    pub(crate) certificate: Option<String>,
    pub(crate) cut: Cut,
}

impl Login {
    /// Plain, protocol 3.0.
    pub(crate) fn new(user: &str, password: &str, database: &str) -> Self {
        Self {
            user: user.to_owned(),
            password: password.to_owned(),
            parameters: vec![("database".to_owned(), database.to_owned())],
            version: V3_0,
            tls: false,
            certificate: None,
            cut: Cut::Whole,
        }
    }

    /// The same with or without TLS.
    pub(crate) fn tls(mut self, tls: bool) -> Self {
        self.tls = tls;
        self
    }

    /// The same with this cutter.
    pub(crate) fn cut(mut self, cut: Cut) -> Self {
        self.cut = cut;
        self
    }

    /// The same with one more startup parameter.
    pub(crate) fn parameter(mut self, name: &str, value: &str) -> Self {
        self.parameters.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The `StartupMessage`.
    pub(crate) fn startup(&self) -> Vec<u8> {
        let mut pairs = vec![("user", self.user.as_str())];
        pairs.extend(self.parameters.iter().map(|(k, v)| (k.as_str(), v.as_str())));
        frames::startup(self.version, &pairs)
    }
}

/// What a read brought.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Next {
    /// A whole frame.
    Frame(Frame),
    /// Nothing within the time.
    Quiet,
    /// The other side closed, orderly or not.
    Eof,
}

/// An error of the server, or the loss of the connection (SQLSTATE empty).
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct DbError {
    pub(crate) sqlstate: String,
    pub(crate) message: String,
}

impl DbError {
    fn lost(what: &str) -> Self {
        Self { sqlstate: String::new(), message: what.to_owned() }
    }

    fn of(frame: &Frame) -> Self {
        Self { sqlstate: frame.sqlstate(), message: frame.fields().remove(&'M').unwrap_or_default() }
    }
}

/// Rows of a query, as text.
pub(crate) type Rows = Vec<Vec<Option<String>>>;

/// One connection.
#[derive(Debug)]
pub(crate) struct Wire {
    stream: Stream,
    inbox: Vec<u8>,
    /// `ParameterStatus` as last heard.
    pub(crate) parameters: BTreeMap<String, String>,
    /// Process id and cancel key.
    pub(crate) key: Option<(u32, Vec<u8>)>,
    pub(crate) port: u16,
}

impl Wire {
    /// A socket on which nothing has been said.
    pub(crate) fn open(port: u16, cut: Cut) -> io::Result<Self> {
        let tcp = TcpStream::connect(("127.0.0.1", port))?;
        tcp.set_nodelay(true)?;
        tcp.set_write_timeout(Some(PATIENCE))?;
        let seed = if let Cut::Random(seed) = cut { seed } else { 0 };
        let stream = Stream::Plain(Socket { tcp, cut, rng: Rng(seed) });
        Ok(Self { stream, inbox: Vec::new(), parameters: BTreeMap::new(), key: None, port })
    }

    /// A logged-in connection.
    pub(crate) fn connect(port: u16, login: &Login) -> Result<Self, DbError> {
        let lost = |e: io::Error| DbError::lost(&e.to_string());
        let mut wire = Self::open(port, login.cut).map_err(lost)?;
        if login.tls {
            wire.send(&frames::ssl_request());
            match wire.byte() {
                Some(b'S') => wire.start_tls(login.certificate.as_deref(), false).map_err(lost)?,
                other => return Err(DbError::lost(&format!("no TLS: {other:?}"))),
            }
        }
        wire.send(&login.startup());
        let (frames, _) = wire.authenticate(login, false);
        match frames.iter().find(|f| f.kind == b'E') {
            Some(error) => Err(DbError::of(error)),
            None if frames.last().is_some_and(|f| f.kind == b'Z') => Ok(wire),
            None => Err(DbError::lost("closed during login")),
        }
    }

    /// Goes over to TLS. `alpn` offers `postgresql`, as direct TLS demands.
    pub(crate) fn start_tls(&mut self, certificate: Option<&str>, alpn: bool) -> io::Result<()> {
        let Stream::Plain(mut socket) = std::mem::replace(&mut self.stream, Stream::Gone) else {
            panic!("TLS already");
        };
        socket.tcp.set_read_timeout(Some(PATIENCE))?;
        let name = ServerName::try_from("localhost").expect("a valid name");
        let config = tls::client_config(certificate, alpn);
        let mut connection = ClientConnection::new(config, name).map_err(io::Error::other)?;
        let shaken = connection.complete_io(&mut socket);
        self.stream = match shaken {
            Ok(_) => Stream::Tls(Box::new(StreamOwned::new(connection, socket))),
            Err(error) => {
                self.stream = Stream::Plain(socket);
                return Err(error);
            }
        };
        Ok(())
    }

    /// Digest of the server's certificate for `tls-server-end-point`, when there is TLS.
    pub(crate) fn binding(&self) -> Option<Vec<u8>> {
        let Stream::Tls(tls) = &self.stream else { return None };
        Some(Sha256::digest(tls.conn.peer_certificates()?.first()?).to_vec())
    }

    /// Answers whatever authentication is asked for, until `ReadyForQuery`, a FATAL error or the end. `plus` prefers
    /// SCRAM-SHA-256-PLUS. Returns the frames and what ended them.
    pub(crate) fn authenticate(&mut self, login: &Login, plus: bool) -> (Vec<Frame>, Next) {
        let mut scram: Option<ScramSha256> = None;
        let mut seen = Vec::new();
        loop {
            let frame = match self.next(PATIENCE) {
                Next::Frame(frame) => frame,
                end @ (Next::Quiet | Next::Eof) => return (seen, end),
            };
            seen.push(frame.clone());
            match frame.kind {
                b'Z' | b'E' => return (seen, Next::Frame(frame)),
                b'R' => self.prove(login, plus, &mut scram, &frame.body),
                _ => {}
            }
        }
    }

    fn prove(&mut self, login: &Login, plus: bool, scram: &mut Option<ScramSha256>, body: &[u8]) {
        let password = |text: &str| frames::frame(b'p', &[text.as_bytes(), b"\0"].concat());
        match i32::from_be_bytes(body[..4].try_into().expect("four bytes")) {
            3 => self.send(&password(&login.password)),
            5 => {
                let salt = body[4..8].try_into().expect("four bytes of salt");
                self.send(&password(&md5_hash(login.user.as_bytes(), login.password.as_bytes(), salt)));
            }
            10 => {
                let binding = self.binding().filter(|_| plus).map(ChannelBinding::tls_server_end_point);
                let name = if binding.is_some() { "SCRAM-SHA-256-PLUS" } else { "SCRAM-SHA-256" };
                let binding = binding.unwrap_or_else(ChannelBinding::unsupported);
                let exchange = ScramSha256::new(login.password.as_bytes(), binding);
                let first = exchange.message();
                let length = i32::try_from(first.len()).expect("short").to_be_bytes();
                self.send(&frames::frame(b'p', &[name.as_bytes(), b"\0", &length, first].concat()));
                *scram = Some(exchange);
            }
            11 => {
                let exchange = scram.as_mut().expect("SASL began");
                exchange.update(&body[4..]).expect("a proper challenge");
                let message = exchange.message().to_vec();
                self.send(&frames::frame(b'p', &message));
            }
            12 => {
                scram.as_mut().expect("SASL began").finish(&body[4..]).expect("the server knows the secret");
            }
            _ => {}
        }
    }

    /// Sends bytes through the cutter. A connection that is gone shows at the next read.
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        let _ = self.try_send(bytes);
    }

    /// Sends bytes through the cutter.
    pub(crate) fn try_send(&mut self, bytes: &[u8]) -> io::Result<()> {
        let cuts_records = matches!(self.stream, Stream::Tls(_)) && self.stream.socket().cut != Cut::Whole;
        let mut rest = bytes;
        while cuts_records && bytes.len() - rest.len() < CUT_BYTES && rest.len() > 60 {
            let (head, tail) = rest.split_at(60);
            self.stream.write_all(head)?;
            rest = tail;
        }
        self.stream.write_all(rest)
    }

    /// Reads more bytes: their number, 0 at the end of the stream, `None` when the time is up.
    fn fill(&mut self, limit: Duration) -> Option<usize> {
        let limit = limit.max(Duration::from_millis(1));
        self.stream.socket().tcp.set_read_timeout(Some(limit)).expect("a positive time");
        let mut buffer = [0; 16 * 1024];
        match self.stream.read(&mut buffer) {
            Ok(n) => {
                self.inbox.extend_from_slice(&buffer[..n]);
                Some(n)
            }
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => None,
            Err(_) => Some(0),
        }
    }

    /// One byte that is no frame: the answer to `SSLRequest` or `GSSENCRequest`. `None`: closed or silent.
    pub(crate) fn byte(&mut self) -> Option<u8> {
        if self.inbox.is_empty() {
            self.fill(PATIENCE);
        }
        (!self.inbox.is_empty()).then(|| self.inbox.remove(0))
    }

    /// The next frame, waiting at most `limit`.
    pub(crate) fn next(&mut self, limit: Duration) -> Next {
        let end = Instant::now() + limit;
        loop {
            if let Some(frame) = self.take() {
                return Next::Frame(frame);
            }
            match self.fill(end.saturating_duration_since(Instant::now())) {
                Some(0) => return Next::Eof,
                None if Instant::now() >= end => return Next::Quiet,
                Some(_) | None => {}
            }
        }
    }

    fn take(&mut self) -> Option<Frame> {
        let length = self.inbox.get(1..5)?;
        let length = u32::from_be_bytes(length.try_into().expect("four bytes")) as usize;
        if self.inbox.len() < length + 1 {
            return None;
        }
        let rest = self.inbox.split_off(length + 1);
        let whole = std::mem::replace(&mut self.inbox, rest);
        let frame = Frame { kind: whole[0], body: whole[5..].to_vec() };
        match frame.kind {
            b'S' => {
                let mut words =
                    frame.body.split(|&b| b == 0).map(|w| String::from_utf8_lossy(w).into_owned());
                self.parameters.insert(words.next().unwrap_or_default(), words.next().unwrap_or_default());
            }
            b'K' => {
                let pid = u32::from_be_bytes(frame.body[..4].try_into().expect("four bytes"));
                self.key = Some((pid, frame.body[4..].to_vec()));
            }
            _ => {}
        }
        Some(frame)
    }

    /// Frames up to the `n`th `ReadyForQuery` or the end.
    pub(crate) fn until_ready(&mut self, n: usize) -> Result<Vec<Frame>, DbError> {
        let mut seen = Vec::new();
        let mut ready = 0;
        while ready < n {
            match self.next(PATIENCE) {
                Next::Frame(frame) => {
                    ready += usize::from(frame.kind == b'Z');
                    seen.push(frame);
                }
                Next::Quiet => return Err(DbError::lost(&format!("silence after {:?}", short(&seen)))),
                Next::Eof => {
                    let last = seen.iter().rev().find(|f| f.kind == b'E').map(DbError::of);
                    return Err(last.unwrap_or_else(|| DbError::lost("connection closed")));
                }
            }
        }
        Ok(seen)
    }

    /// A simple query: the rows of all its statements.
    pub(crate) fn query(&mut self, sql: &str) -> Result<Rows, DbError> {
        self.send(&frames::query(sql));
        Self::rows(&self.until_ready(1)?)
    }

    /// An extended query with text parameters.
    pub(crate) fn execute(&mut self, sql: &str, values: &[&str]) -> Result<Rows, DbError> {
        self.send(&[frames::extended(sql, values), frames::sync()].concat());
        Self::rows(&self.until_ready(1)?)
    }

    pub(crate) fn rows(frames: &[Frame]) -> Result<Rows, DbError> {
        match frames.iter().find(|f| f.kind == b'E') {
            Some(error) => Err(DbError::of(error)),
            None => Ok(frames.iter().filter(|f| f.kind == b'D').map(Frame::columns).collect()),
        }
    }

    /// A simple query that must succeed; the first column of its first row.
    #[track_caller]
    pub(crate) fn run(&mut self, sql: &str) -> Option<String> {
        match self.query(sql) {
            Ok(rows) => rows.into_iter().next().and_then(|row| row.into_iter().next().flatten()),
            Err(error) => panic!("{sql}: {error:?}"),
        }
    }

    /// Sends a `CancelRequest` for this connection, as libpq does, and waits until the server closes that socket.
    pub(crate) fn cancel(&self) {
        let (pid, key) = self.key.as_ref().expect("logged in");
        cancel(self.port, *pid, key);
    }

    /// Says goodbye.
    pub(crate) fn terminate(mut self) {
        self.send(&frames::terminate());
    }

    /// The next frame that is neither notice nor parameter; `None` at the end or when it takes too long.
    pub(crate) fn frame(&mut self, limit: Duration) -> Option<Frame> {
        loop {
            match self.next(limit) {
                Next::Frame(frame) if matches!(frame.kind, b'N' | b'S') => {}
                Next::Frame(frame) => return Some(frame),
                Next::Quiet | Next::Eof => return None,
            }
        }
    }

    /// True once the other side has closed the connection; frames before that are read over.
    pub(crate) fn closes_within(&mut self, limit: Duration) -> bool {
        let end = Instant::now() + limit;
        loop {
            match self.next(end.saturating_duration_since(Instant::now())) {
                Next::Frame(_) => {}
                Next::Quiet => return false,
                Next::Eof => return true,
            }
        }
    }
}

/// Sends a `CancelRequest` and waits for the end of its socket. Returns the bytes that came back; there must be none.
pub(crate) fn cancel(port: u16, pid: u32, key: &[u8]) -> usize {
    let mut wire = Wire::open(port, Cut::Whole).expect("the server listens");
    wire.send(&frames::cancel_request(pid, key));
    while !matches!(wire.fill(PATIENCE), None | Some(0)) {}
    wire.inbox.len()
}

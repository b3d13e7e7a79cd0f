//! One logged-in server connection and what is known about its session.

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    io,
    rc::Rc,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use bytes::BytesMut;

use super::budget::Permit;
use crate::{
    Side,
    session::{prepared::Known, settings::Settings, transaction::Status},
    wire::{
        conn::{Buffers, Conn},
        frame,
        stream::Detached,
    },
};

/// A server connection.
#[derive(Debug)]
pub struct Server {
    /// The socket.
    pub conn: Conn,
    /// Which database.
    pub side: Side,
    /// From BackendKeyData.
    pub process_id: i32,
    /// From BackendKeyData.
    pub key: Rc<[u8]>,
    /// ParameterStatus values as reported last, in the server's order and spelling.
    pub parameters: Vec<(String, String)>,
    /// `search_path` and `default_transaction_isolation` of a new session here.
    pub defaults: Rc<SessionDefaults>,
    /// Prepared statements it knows.
    pub known: Known,
    /// Settings applied beyond those of its start-up message.
    pub settings: Settings,
    /// As of its last ReadyForQuery.
    pub status: Status,
    /// Code whose effects on the session are not known has run: clean before another client gets it.
    pub tainted: bool,
    /// Not for another client, whatever ReadyForQuery says: after a simple Query in an extended batch Postgres 18 says
    /// that it is idle and then fails with XX000.
    pub spent: bool,
    /// The client served last.
    pub last_client: u64,
    /// When it was opened.
    pub opened: Instant,
    /// What the console shows of it.
    pub info: Rc<ServerInfo>,
    /// Cancel requests under way.
    pub gate: Rc<CancelGate>,
    /// How long it may take to answer statements of crossfade's own that wait for no lock.
    pub patience: Duration,
    /// Its clock, in seconds since 1970, less this process's own; only where rows are applied.
    pub clock: f64,
    /// Its last checkpoint as far as known when it was asked for a write set.
    pub checkpoint: u64,
    /// Counted as handed out by its pool for as long as this is here.
    pub lease: Option<Lease>,
    /// Its place in the budget.
    pub permit: Permit,
}

/// Counts a connection that was handed out, until it is dropped.
#[derive(Debug)]
pub struct Lease(Rc<Cell<usize>>);

impl Lease {
    /// One more.
    pub fn new(count: &Rc<Cell<usize>>) -> Self {
        count.set(count.get() + 1);
        Self(Rc::clone(count))
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// A clean connection on its way to a client of another data thread.
#[derive(Debug)]
pub struct Travelling {
    stream: Detached,
    side: Side,
    user: String,
    process_id: i32,
    key: Vec<u8>,
    parameters: Vec<(String, String)>,
    defaults: SessionDefaults,
    known: Known,
    settings: Vec<(String, String)>,
    tainted: bool,
    last_client: u64,
    opened: Instant,
    transactions: u64,
    patience: Duration,
    clock: f64,
    permit: Permit,
}

/// What a session of this user starts with.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct SessionDefaults {
    /// Raw value of `search_path`.
    pub search_path: String,
    /// Raw value of `default_transaction_isolation`.
    pub isolation: String,
}

/// Shown by SHOW SERVERS.
#[derive(Debug)]
pub struct ServerInfo {
    /// Which database.
    pub side: Side,
    /// Role name.
    pub user: Rc<str>,
    /// Process id there.
    pub process_id: i32,
    /// Client it serves, 0 for none.
    pub client: Cell<u64>,
    /// When it was opened.
    pub opened: Instant,
    /// When it last changed hands.
    pub used: Cell<Instant>,
    /// Transactions it has run.
    pub transactions: Cell<u64>,
    /// Is the connection encrypted?
    pub tls: bool,
}

/// Holds a server back while a cancel request for it is under way: one that arrives late would hit the next client.
#[derive(Debug, Default)]
pub struct CancelGate {
    pending: Cell<usize>,
    waiting: RefCell<Option<std::task::Waker>>,
}

impl CancelGate {
    /// A request begins.
    pub fn enter(&self) {
        self.pending.set(self.pending.get() + 1);
    }

    /// A request is over: the backend closed its connection, or the deadline passed.
    pub fn leave(&self) {
        self.pending.set(self.pending.get() - 1);
        if self.pending.get() == 0
            && let Some(waker) = self.waiting.take()
        {
            waker.wake();
        }
    }

    /// Is none under way?
    pub fn is_clear(&self) -> bool {
        self.pending.get() == 0
    }

    /// Waits until none is under way.
    pub async fn clear(&self) {
        poll_fn(|cx| {
            if self.is_clear() {
                return Poll::Ready(());
            }
            *self.waiting.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

/// Why a statement of ours failed.
#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    /// The server refused it: the whole ErrorResponse frame.
    #[error("{}", frame::error_text(.0))]
    Server(Vec<u8>),
    /// The connection broke.
    #[error("connection lost: {0}")]
    Io(#[from] io::Error),
}

/// Rows of text values.
pub type Rows = Vec<Vec<Option<String>>>;

impl Server {
    /// Runs a statement of crossfade's own and reads its answer whole. Nothing of it reaches a client. Not for results
    /// of more than a few rows, nor for what may wait for a lock: after an answer that did not come in time the
    /// connection is of no more use.
    pub async fn query(&mut self, sql: &str, buffers: &Buffers) -> Result<Rows, QueryError> {
        self.known.remove(b""); // as every simple Query does
        frame::put_query(&mut self.conn.output, sql);
        let limit = self.patience;
        match tokio::time::timeout(limit, self.settle_hidden(buffers)).await {
            Ok(answer) => answer,
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "it does not answer").into()),
        }
    }

    /// Sends what is in the output and reads the answer up to ReadyForQuery.
    pub async fn settle_hidden(&mut self, buffers: &Buffers) -> Result<Rows, QueryError> {
        let mut answer = Answer::default();
        poll_fn(|cx| self.poll_answer(cx, buffers, &mut answer)).await?;
        match answer.error {
            Some(error) => Err(QueryError::Server(error)),
            None => Ok(answer.rows),
        }
    }

    fn poll_answer(
        &mut self,
        cx: &mut Context<'_>,
        buffers: &Buffers,
        answer: &mut Answer,
    ) -> Poll<Result<(), QueryError>> {
        ready!(self.conn.poll_flush(cx, buffers))?;
        loop {
            while let Some((tag, length)) = frame::header(&self.conn.input).map_err(io::Error::other)? {
                if self.conn.input.len() < length {
                    break;
                }
                let done = answer.take(tag, &self.conn.input[..length], self.side);
                if tag == b'S' {
                    self.note_parameter(length);
                }
                if let Some(status) = done {
                    self.status = status;
                }
                self.conn.consume(length, buffers);
                if done.is_some() {
                    return Poll::Ready(Ok(()));
                }
            }
            if ready!(self.conn.poll_fill(cx, buffers))? == 0 {
                return Poll::Ready(Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()));
            }
        }
    }

    /// Reads and drops what it still says, to what looks like the ReadyForQuery at its end; whole frames or not.
    pub async fn drain(&mut self, buffers: &Buffers) {
        poll_fn(|cx| {
            loop {
                let ended = matches!(self.conn.input[..], [.., b'Z', 0, 0, 0, 5, b'I' | b'T' | b'E']);
                self.conn.consume(self.conn.input.len(), buffers);
                if ended || !matches!(ready!(self.conn.poll_fill(cx, buffers)), Ok(n) if n > 0) {
                    return Poll::Ready(());
                }
            }
        })
        .await;
    }

    /// Takes over the ParameterStatus frame of `length` bytes at the front of the input.
    pub fn note_parameter(&mut self, length: usize) {
        self.note_parameter_at(0, length);
    }

    /// As above, for a frame that begins at `at`.
    pub fn note_parameter_at(&mut self, at: usize, length: usize) {
        let mut fields = frame::Fields(&self.conn.input[at + frame::HEADER..at + length]);
        let (Ok(name), Ok(value)) = (fields.cstr(), fields.cstr()) else { return };
        let (name, value) = (String::from_utf8_lossy(name), String::from_utf8_lossy(value));
        match self.parameters.iter_mut().find(|(n, _)| *n == name) {
            Some((_, old)) => *old = value.into_owned(),
            None => self.parameters.push((name.into_owned(), value.into_owned())),
        }
    }

    /// Makes the session as new: for another client.
    pub async fn discard(&mut self, buffers: &Buffers) -> Result<(), QueryError> {
        self.query("DISCARD ALL", buffers).await?;
        self.forget();
        Ok(())
    }

    /// Notes that DISCARD ALL was done.
    pub fn forget(&mut self) {
        self.known.clear();
        self.discarded();
    }

    /// The same, but for the names of prepared statements.
    pub fn discarded(&mut self) {
        self.settings = Settings::default();
        self.tainted = false;
    }

    /// Looks at an idle connection: has the server said something, or gone?
    pub fn is_alive(&mut self, cx: &mut Context<'_>, buffers: &Buffers) -> bool {
        loop {
            match self.conn.poll_fill(cx, buffers) {
                Poll::Pending => return self.conn.input.is_empty(),
                Poll::Ready(Ok(n)) if n > 0 => {}
                Poll::Ready(_) => return false,
            }
            // Between queries a server only sends ParameterStatus (a reload of its configuration) and notices.
            while let Ok(Some((tag @ (b'S' | b'N'), length))) = frame::header(&self.conn.input) {
                if self.conn.input.len() < length {
                    return false;
                }
                if tag == b'S' {
                    self.note_parameter(length);
                }
                self.conn.consume(length, buffers);
            }
        }
    }

    /// Gets ready to leave this thread. Only for a clean connection without cancel requests under way.
    pub fn depart(self) -> io::Result<Travelling> {
        debug_assert!(self.is_clean() && self.gate.is_clear(), "something is outstanding");
        Ok(Travelling {
            stream: self.conn.stream.detach()?,
            side: self.side,
            user: self.info.user.to_string(),
            process_id: self.process_id,
            key: self.key.to_vec(),
            parameters: self.parameters,
            defaults: (*self.defaults).clone(),
            known: self.known,
            settings: (*self.settings).clone(),
            tainted: self.tainted,
            last_client: self.last_client,
            opened: self.opened,
            transactions: self.info.transactions.get(),
            patience: self.patience,
            clock: self.clock,
            permit: self.permit,
        })
    }

    /// Says good-bye and closes: the server does not count the session as abandoned.
    pub async fn close(mut self: Box<Self>) {
        if !self.conn.output.is_empty() {
            return; // in the middle of a message there is no good-bye
        }
        self.lease = None;
        put_terminate(&mut self.conn.output);
        let buffers = Buffers::default();
        let good_bye = async {
            poll_fn(|cx| self.conn.poll_flush(cx, &buffers)).await?;
            // A socket closed with bytes unread is reset: what the server still says is read to its end.
            loop {
                self.conn.input.clear();
                if poll_fn(|cx| self.conn.poll_fill(cx, &buffers)).await? == 0 {
                    return io::Result::Ok(());
                }
            }
        };
        let _ = tokio::time::timeout(GOODBYE, good_bye).await;
    }

    /// Is nothing outstanding, so that another client may have it?
    pub fn is_clean(&self) -> bool {
        !self.spent
            && self.status == Status::Idle
            && self.conn.input.is_empty()
            && self.conn.output.is_empty()
    }
}

impl Travelling {
    /// Arrives at the thread that calls this.
    pub fn arrive(self) -> io::Result<Server> {
        let stream = self.stream.attach()?;
        let info = Rc::new(ServerInfo {
            side: self.side,
            user: self.user.into(),
            process_id: self.process_id,
            client: Cell::new(0),
            opened: self.opened,
            used: Cell::new(Instant::now()),
            transactions: Cell::new(self.transactions),
            tls: stream.is_tls(),
        });
        Ok(Server {
            conn: Conn::new(stream, BytesMut::new()),
            side: self.side,
            process_id: self.process_id,
            key: self.key.into(),
            parameters: self.parameters,
            defaults: Rc::new(self.defaults),
            known: self.known,
            settings: Rc::new(self.settings),
            status: Status::Idle,
            tainted: self.tainted,
            last_client: self.last_client,
            opened: self.opened,
            info,
            gate: Rc::default(),
            patience: self.patience,
            clock: self.clock,
            checkpoint: 0,
            lease: None,
            spent: false,
            permit: self.permit,
        })
    }
}

#[derive(Default)]
struct Answer {
    rows: Rows,
    error: Option<Vec<u8>>,
}

impl Answer {
    /// Takes one frame; the status when it was ReadyForQuery.
    fn take(&mut self, tag: u8, frame: &[u8], side: Side) -> Option<Status> {
        let body = &frame[frame::HEADER..];
        match tag {
            b'D' => self.rows.extend(row(body)),
            b'E' => {
                tracing::debug!(%side, error = %frame::error_text(frame), "a statement of crossfade's own failed");
                self.error.get_or_insert_with(|| frame.to_vec());
            }
            b'Z' => return Some(body.first().and_then(|&b| Status::from_byte(b)).unwrap_or(Status::Failed)),
            _ => {}
        }
        None
    }
}

/// The text values of a DataRow; `None` when it is malformed.
fn row(body: &[u8]) -> Option<Vec<Option<String>>> {
    let (count, mut rest) = body.split_first_chunk::<2>()?;
    let mut values = Vec::new();
    for _ in 0..u16::from_be_bytes(*count) {
        let (length, after) = rest.split_first_chunk::<4>()?;
        let length = i32::from_be_bytes(*length);
        let Ok(length) = usize::try_from(length) else {
            values.push(None);
            rest = after;
            continue;
        };
        values.push(Some(String::from_utf8_lossy(after.get(..length)?).into_owned()));
        rest = &after[length..];
    }
    Some(values)
}

/// How long a server may take to read the last message.
const GOODBYE: Duration = Duration::from_secs(1);

/// A Terminate frame.
pub fn put_terminate(out: &mut BytesMut) {
    frame::put(out, b'X', |_| {});
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows() {
        assert_eq!(row(b"\0\x02\0\0\0\x01a\xff\xff\xff\xff"), Some(vec![Some("a".to_owned()), None]));
        assert_eq!(row(b"\0\x02\0\0\0\x05a"), None);
        assert_eq!(row(b""), None);
    }
}

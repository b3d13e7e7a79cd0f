//! One client from login to good-bye.

use std::{
    cell::RefCell,
    collections::HashMap,
    future::poll_fn,
    io,
    rc::Rc,
    task::{Context, Poll},
    time::Instant,
};

use super::{
    plans::{Entry, SearchContext},
    shard::{Current, Shard},
    shared::{Activity, ClientShared, Signal},
    stats::Stats,
};
use crate::{
    Side,
    backend::{pool::Pool, server::Server},
    config::PoolMode,
    error::ClientError,
    session::{
        pipeline::Pipeline,
        prepared::{Naming, Prepared, Registry},
        settings::Settings,
        transaction::{Status, Transaction},
    },
    statement::Pin,
    wire::{
        conn::Conn,
        frame::{self, Frontend, HEADER},
    },
};

/// A statement's text, prepared; executing it does what the entry says.
pub(super) type Statement = Prepared<PlanCell>;

/// What executing a statement does; replaced when the catalog changes.
pub(super) type PlanCell = RefCell<Rc<Entry>>;

/// A logged-in client.
pub(super) struct Client {
    pub(super) conn: Conn,
    pub(super) shared: Rc<ClientShared>,
    pub(super) shard: Rc<Shard>,
    /// By side.
    pub(super) pools: [Rc<Pool>; 2],
    /// What its user did, by side.
    pub(super) stats: [Rc<Stats>; 2],
    /// Connections it holds, by side.
    pub(super) servers: [Option<Box<Server>>; 2],
    /// What it has sent and not had answered.
    pub(super) pipeline: Pipeline,
    /// Its names of prepared statements.
    pub(super) registry: Registry<PlanCell>,
    /// Its portals on the target whose binary rows may hold OIDs.
    pub(super) portals: HashMap<Box<[u8]>, Rc<super::rows::Portal>>,
    /// Its portals whose execution changes names.
    pub(super) naming_portals: Vec<super::tags::NamingPortal>,
    /// Where it holds cursors that outlive their transaction.
    pub(super) held_side: Option<Side>,
    /// The transaction it is in.
    pub(super) txn: Transaction,
    /// Configuration and catalog; kept through a transaction.
    pub(super) current: Rc<Current>,
    /// What its unqualified names mean.
    pub(super) context: Rc<SearchContext>,
    /// Settings it has changed, with their values when `unread` is empty.
    pub(super) settings: Settings,
    /// Names of settings whose present value is to be read from the server that has it.
    pub(super) unread: Vec<String>,
    /// The session's default isolation is READ COMMITTED, as far as known.
    pub(super) read_committed: bool,
    /// When it wrote last, for `routing.sticky`.
    pub(super) wrote_at: Option<Instant>,
    /// Where it wrote last: what `lastval()` means.
    pub(super) wrote_side: Option<Side>,
    /// As whom and with which settings its reads are executed a second time; made at the first of them.
    pub(super) shadowed: RefCell<Option<Box<super::shadow::Made>>>,
    /// Where it changed a setting last.
    pub(super) set_side: Side,
    /// The last unit changed what names mean, inside a block.
    pub(super) context_moved: bool,
    /// What names mean is not what it will be after the block.
    pub(super) context_local: bool,
    /// Its client encoding is UTF-8.
    pub(super) utf8: bool,
    /// It has done DISCARD ALL: what it left on its other server must go as well.
    pub(super) discards: bool,
    /// It has temporary tables.
    pub(super) temporary: bool,
    /// How often its unit was sent to a side that leads no more.
    pub(super) late: u8,
    /// What its transaction has done so far.
    #[cfg(feature = "otlp")]
    pub(super) trace: super::telemetry::Trace,
}

/// Why a client's connection ends.
#[derive(Debug)]
pub(super) enum End {
    /// It said good-bye or closed its socket.
    Gone,
    /// Its socket failed.
    Io(io::Error),
    /// Refused or ended by crossfade: the last words.
    Error(ClientError),
    /// The server's last words were relayed; nothing to add.
    ServerSaid,
}

impl From<ClientError> for End {
    fn from(error: ClientError) -> Self {
        End::Error(error)
    }
}

impl From<frame::Malformed> for End {
    fn from(error: frame::Malformed) -> Self {
        End::Error(ClientError::fatal("08P01", error.0))
    }
}

/// What the client wants done next.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Unit {
    /// A Query or FunctionCall frame of this length.
    Simple { length: usize, function: bool },
    /// Extended messages of this length in all; `complete` when the last is Sync.
    Extended { length: usize, complete: bool },
}

impl Client {
    /// Serves until the connection ends.
    pub(super) async fn run(mut self: Box<Self>) {
        let end = loop {
            let unit = match poll_fn(|cx| self.poll_unit(cx)).await {
                Ok(unit) => unit,
                Err(end) => break end,
            };
            self.shared.activity.set(Activity::Active);
            if let Err(end) = self.serve(unit).await {
                break end;
            }
            self.shared.activity.set(Activity::Idle);
        };
        Box::pin(self.leave(end)).await;
    }

    pub(super) fn id(&self) -> u64 {
        self.shared.id
    }

    /// Does the client keep its server connections between transactions?
    pub(super) fn keeps_servers(&self) -> bool {
        self.shared.mode == PoolMode::Session || self.shared.pinned.get().is_some()
    }

    pub(super) fn naming(&self) -> Naming {
        if self.keeps_servers() { Naming::Client } else { Naming::Content }
    }

    pub(super) fn pin(&self, why: Pin) {
        if self.shared.mode == PoolMode::Transaction && self.shared.pinned.get().is_none() {
            self.shared.pinned.set(Some(why));
            tracing::debug!(
                client = self.id(),
                reason = why.name(),
                "session is pinned to its server connection"
            );
        }
    }

    /// Waits for the next unit; flushes what is still to be written meanwhile.
    fn poll_unit(&mut self, cx: &mut Context<'_>) -> Poll<Result<Unit, End>> {
        let shard = Rc::clone(&self.shard);
        if let Some(end) = self.poll_signal(cx) {
            return Poll::Ready(Err(end));
        }
        loop {
            if let Poll::Ready(Err(e)) = self.conn.poll_flush(cx, &shard.buffers) {
                return Poll::Ready(Err(End::Io(e)));
            }
            match self.next_unit() {
                Ok(Some(unit)) => {
                    // Answers first: a client that does not read must not make crossfade buffer for it.
                    if self.conn.output.len() > MAX_UNSENT {
                        return Poll::Pending;
                    }
                    self.shared.deadline.set(None);
                    return Poll::Ready(Ok(unit));
                }
                Ok(None) => {}
                Err(end) => return Poll::Ready(Err(end)),
            }
            match self.conn.poll_fill(cx, &shard.buffers) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(End::Gone)),
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(e)) => return Poll::Ready(Err(End::Io(e))),
                Poll::Pending => {
                    self.arm_idle_deadline();
                    // An idle server that ends (terminated, restarted) has last words for this client.
                    return match self.poll_idle_servers(cx) {
                        Some(end) => Poll::Ready(Err(end)),
                        None => Poll::Pending,
                    };
                }
            }
        }
    }

    fn poll_signal(&mut self, cx: &Context<'_>) -> Option<End> {
        let signal = self.shared.listen(cx)?;
        let idle = self.txn.status == Status::Idle;
        match signal {
            Signal::Drain if !idle => None,
            Signal::Cancel | Signal::Deadlock | Signal::Query | Signal::Unanswered | Signal::QueryWait => {
                self.shared.clear_signal();
                None
            }
            Signal::Kill
            | Signal::Drain
            | Signal::Stop
            | Signal::ClientIdle
            | Signal::IdleTransaction
            | Signal::Transaction => Some(End::Error(last_words(signal))),
        }
    }

    fn arm_idle_deadline(&self) {
        if self.shared.deadline.get().is_some() {
            return;
        }
        let t = &self.current.config.timeouts;
        let idle = match self.txn.status {
            Status::Idle => t.client_idle.map(|d| (Instant::now() + d, Signal::ClientIdle)),
            Status::Block | Status::Failed => {
                let idle = t.idle_transaction.map(|d| (Instant::now() + d, Signal::IdleTransaction));
                let since = self.shared.transaction_since.get();
                let whole = since.zip(t.transaction).map(|(s, d)| (s + d, Signal::Transaction));
                [idle, whole].into_iter().flatten().min_by_key(|(at, _)| *at)
            }
        };
        self.shared.deadline.set(idle);
    }

    /// What servers say while nothing is outstanding: notices, notifications, ParameterStatus, last words.
    fn poll_idle_servers(&mut self, cx: &mut Context<'_>) -> Option<End> {
        let shard = Rc::clone(&self.shard);
        for side in Side::BOTH {
            let Some(mut server) = self.servers[side.index()].take() else { continue };
            let filled = server.conn.poll_fill(cx, &shard.buffers);
            let end = match filled {
                Poll::Pending => None,
                Poll::Ready(Ok(n)) if n > 0 => self.relay_idle(&mut server),
                Poll::Ready(_) => Some(End::ServerSaid),
            };
            if let Some(end) = end {
                let home = side == Side::Source || self.txn.status != Status::Idle;
                if home {
                    return Some(end);
                }
                continue; // a target session that nothing depends on: opened again when needed
            }
            self.servers[side.index()] = Some(server);
            if matches!(filled, Poll::Ready(_)) {
                cx.waker().wake_by_ref(); // what was relayed must be flushed, and there may be more
            }
        }
        None
    }

    fn relay_idle(&mut self, server: &mut Server) -> Option<End> {
        let shard = Rc::clone(&self.shard);
        loop {
            let (tag, length) = match frame::header(&server.conn.input) {
                Ok(Some(head)) => head,
                Ok(None) => return None,
                Err(_) => return Some(End::ServerSaid),
            };
            if server.conn.input.len() < length {
                return None;
            }
            if tag == b'S' {
                server.note_parameter(length);
            }
            let last = tag == b'E';
            if server.side == Side::Source || last {
                self.conn.output.extend_from_slice(&server.conn.input[..length]);
            }
            server.conn.consume(length, &shard.buffers);
            if last {
                return Some(End::ServerSaid);
            }
        }
    }

    /// The next unit that is wholly in the input, if any. Frames without meaning here are dropped, as Postgres does.
    fn next_unit(&mut self) -> Result<Option<Unit>, End> {
        let shard = Rc::clone(&self.shard);
        let mut at = 0;
        loop {
            let input = &self.conn.input[at..];
            let Some((tag, length)) = frame::header(input).map_err(|_| lost_sync(self.id()))? else {
                return Ok(None);
            };
            if length > MAX_POSTGRES {
                return Err(lost_sync(self.id()));
            }
            if length > self.current.config.limits.max_message_bytes.saturating_add(1) {
                return Err(too_long(length, &self.current));
            }
            let whole = input.len() >= length;
            let message = match Frontend::from_tag(tag) {
                Some(message) => message,
                // What came before it is answered first.
                None if at > 0 => return Ok(Some(Unit::Extended { length: at, complete: false })),
                None => return Err(bad_tag(tag)),
            };
            match message {
                Frontend::Password if at > 0 => {
                    return Ok(Some(Unit::Extended { length: at, complete: false }));
                }
                Frontend::Terminate => return Err(End::Gone),
                Frontend::Password => return Err(bad_tag(tag)),
                Frontend::Query | Frontend::FunctionCall if at == 0 => {
                    let function = message == Frontend::FunctionCall;
                    return Ok(whole.then_some(Unit::Simple { length, function }));
                }
                Frontend::Query | Frontend::FunctionCall => {
                    return Ok(Some(Unit::Extended { length: at, complete: false }));
                }
                _ if !whole => return Ok(None),
                Frontend::Sync => return Ok(Some(Unit::Extended { length: at + length, complete: true })),
                Frontend::Flush if at == 0 => self.conn.consume(length, &shard.buffers),
                Frontend::Flush => return Ok(Some(Unit::Extended { length: at + length, complete: false })),
                // Left over from a COPY that the server ended early: ignored without a word.
                Frontend::CopyData | Frontend::CopyDone | Frontend::CopyFail if at == 0 => {
                    self.conn.consume(length, &shard.buffers);
                }
                Frontend::Bind
                | Frontend::Close
                | Frontend::Describe
                | Frontend::Execute
                | Frontend::Parse
                | Frontend::CopyData
                | Frontend::CopyDone
                | Frontend::CopyFail => {
                    at += length;
                    if at > MAX_BATCH {
                        return Ok(Some(Unit::Extended { length: at, complete: false }));
                    }
                }
            }
        }
    }

    /// Answers an error of crossfade's own to a unit that was not run, and takes the unit from the input.
    pub(super) async fn refuse(&mut self, error: &ClientError, unit: Unit) -> Result<(), End> {
        let shard = Rc::clone(&self.shard);
        if error.fatal {
            return Err(End::Error(error.clone()));
        }
        let (length, complete) = match unit {
            Unit::Simple { length, .. } => (length, true),
            Unit::Extended { length, complete } => (length, complete),
        };
        self.conn.consume(length, &shard.buffers);
        tracing::info!(client = self.id(), sqlstate = error.sqlstate, message = %error.message, "statement refused");
        shard.count_refusal(error.sqlstate);
        if self.txn.status == Status::Block {
            self.fail_block().await?;
        }
        error.encode(self.id(), &mut self.conn.output);
        if !complete {
            self.skip_to_sync().await?;
        }
        frame::put_ready(&mut self.conn.output, self.txn.status.byte());
        Ok(())
    }

    /// An error inside a transaction block fails the block, also when it is ours: whoever commits after it must not
    /// commit half.
    pub(super) async fn fail_block(&mut self) -> Result<(), End> {
        let shard = Rc::clone(&self.shard);
        let Some(server) = self.txn.side.and_then(|side| self.servers[side.index()].as_mut()) else {
            return Ok(());
        };
        // Fails in every block, and does nothing else.
        let _ = server.query("ROLLBACK TO SAVEPOINT \"crossfade refused a statement\"", &shard.buffers).await;
        self.txn.status = server.status;
        Ok(())
    }

    /// After an error in the extended protocol everything up to Sync is ignored.
    async fn skip_to_sync(&mut self) -> Result<(), End> {
        let shard = Rc::clone(&self.shard);
        loop {
            if let Some((tag, length)) = frame::header(&self.conn.input).map_err(|_| lost_sync(self.id()))? {
                if length > self.current.config.limits.max_message_bytes.saturating_add(1) {
                    return Err(too_long(length, &self.current));
                }
                if self.conn.input.len() >= length {
                    self.conn.consume(length, &shard.buffers);
                    match Frontend::from_tag(tag) {
                        Some(Frontend::Sync) => return Ok(()),
                        Some(Frontend::Terminate) => return Err(End::Gone),
                        Some(_) => continue,
                        None => return Err(bad_tag(tag)),
                    }
                }
            }
            let filled = poll_fn(|cx| {
                if let Some(end) = self.poll_signal(cx) {
                    return Poll::Ready(Err(end));
                }
                let _ = self.conn.poll_flush(cx, &shard.buffers);
                self.conn.poll_fill(cx, &shard.buffers).map(|r| r.map_err(End::Io))
            });
            if filled.await? == 0 {
                return Err(End::Gone);
            }
        }
    }
}

/// What a client is told when it is ended from outside.
pub(super) fn last_words(signal: Signal) -> ClientError {
    let fatal = ClientError::fatal;
    match signal {
        Signal::Kill => fatal("57P01", "terminating connection due to KILL on the admin console"),
        Signal::Drain | Signal::Stop => {
            fatal("57P01", "terminating connection because crossfade shuts down").hint("Connect again.")
        }
        Signal::ClientIdle => fatal("57P05", "terminating connection due to timeouts.client_idle"),
        Signal::IdleTransaction => fatal("25P03", "terminating connection due to timeouts.idle_transaction"),
        Signal::Transaction => fatal("25P04", "terminating connection due to timeouts.transaction"),
        Signal::Query | Signal::Unanswered => fatal("57014", "terminating connection due to timeouts.query"),
        Signal::QueryWait => fatal("53300", "no server connection became free within timeouts.query_wait")
            .hint("Raise pool.size, or look at SHOW POOLS for who holds the connections."),
        Signal::Cancel => fatal("57014", "canceling statement due to user request"),
        Signal::Deadlock => fatal("40P01", "deadlock detected, across source and target"),
    }
}

/// A length that no message has: what follows cannot be read. Postgres closes the connection without a word.
pub(super) fn lost_sync(client: u64) -> End {
    tracing::info!(client, "invalid message length");
    End::Gone
}

fn bad_tag(tag: u8) -> End {
    End::Error(ClientError::fatal("08P01", format!("invalid frontend message type {tag}")))
}

fn too_long(length: usize, current: &Current) -> End {
    let limit = current.config.limits.max_message_bytes;
    End::Error(
        ClientError::fatal("08P01", format!("message of {} bytes is longer than {limit}", length - HEADER))
            .hint("Raise limits.max_message_bytes."),
    )
}

/// A batch longer than this is sent on before its Sync was seen.
const MAX_BATCH: usize = 1 << 20;
/// Answers not taken by the client beyond which no further unit is begun.
const MAX_UNSENT: usize = 1 << 20;
/// Postgres' own limit of a message's length, and the tag (`PQ_LARGE_MESSAGE_LIMIT`).
const MAX_POSTGRES: usize = 0x3fff_fffe + 1;

#[cfg(test)]
mod tests {
    use super::*;

    /// Thousands of clients do nothing most of the time: each weighs what its state and its futures weigh.
    #[test]
    fn an_idle_client_is_small() {
        fn future<A, F: Future>(_: impl Fn(A) -> F) -> usize {
            size_of::<F>()
        }
        let task = future(|(shard, stream, peer)| crate::proxy::login::serve(shard, stream, peer));
        let sizes = [task, future(Client::run), size_of::<Client>(), size_of::<ClientShared>()];
        assert!(sizes.iter().sum::<usize>() <= 3 << 10, "{sizes:?} bytes: box what is rare");
    }
}

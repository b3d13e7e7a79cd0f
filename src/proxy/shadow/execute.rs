//! One execution of a read, on either side, in a read-only transaction of its own.

use std::{
    future::poll_fn,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use bytes::BytesMut;

use super::Job;
use crate::{
    Side,
    backend::{
        pool::{Pool, PoolKey, PoolLimits, Refused},
        server::{QueryError, Server},
    },
    compare::{
        digest::{Digest, described},
        record::Recorder,
    },
    proxy::shard::Shard,
    session::{settings, transaction::Status},
    wire::{
        conn::Buffers,
        frame::{self, HEADER},
        oids::{self, Shape},
    },
};

/// Takes an answer.
pub(super) trait Sink {
    /// A whole frame; OIDs are the source's.
    fn frame(&mut self, tag: u8, frame: &[u8]);
}

impl Sink for Digest {
    fn frame(&mut self, _tag: u8, frame: &[u8]) {
        self.feed(frame);
    }
}

impl Sink for Recorder<'_> {
    fn frame(&mut self, tag: u8, frame: &[u8]) {
        self.take(tag, &frame[HEADER..]);
    }
}

/// Why there is no answer to compare.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Lost {
    /// No connection.
    Unreachable,
    /// No answer in time, or no free connection.
    Late,
    /// The session could not be made like the client's.
    Refused,
    /// A larger answer than may be compared.
    Large,
}

impl Lost {
    /// The word used in metrics.
    pub(super) fn name(self) -> &'static str {
        match self {
            Lost::Unreachable => "unreachable",
            Lost::Late => "timeout",
            Lost::Refused => "refused",
            Lost::Large => "large",
        }
    }
}

/// Executes the read on `side`. How long the server took for it.
pub(super) async fn execute(
    shard: &Rc<Shard>,
    job: &Job,
    side: Side,
    sink: &mut impl Sink,
) -> Result<Duration, Lost> {
    let config = &shard.current().config;
    let patience = config.shadow.statement_timeout + GRACE;
    let pool = pool(shard, job, side);
    let taken = tokio::time::timeout(patience, take(shard, &pool));
    let mut server = taken.await.map_err(|_| Lost::Late)?.map_err(|refused| match refused {
        Refused::Server(_) => Lost::Refused,
        Refused::Unreachable(_) | Refused::Timeout | Refused::Cancelled => Lost::Unreachable,
    })?;
    let ran = tokio::time::timeout(patience, run(&mut server, shard, job, sink)).await;
    match ran {
        Ok(Ok(took)) => {
            shard.give_back(&pool, server, Instant::now());
            Ok(took)
        }
        // What it still says is nobody's answer: the connection goes.
        Ok(Err(lost)) => Err(lost),
        Err(_) => Err(Lost::Late),
    }
}

fn pool(shard: &Rc<Shard>, job: &Job, side: Side) -> Rc<Pool> {
    let key = PoolKey {
        side,
        user: job.who.user.as_str().into(),
        database: job.config.backends[side.index()].database.as_str().into(),
        parameters: job.who.parameters.as_slice().into(),
        minor: job.who.minor,
        applies: false,
        shadow: true,
    };
    shard.pool(key, job.who.credentials[side.index()].clone())
}

async fn take(shard: &Rc<Shard>, pool: &Rc<Pool>) -> Result<Box<Server>, Refused> {
    let config = Arc::clone(&shard.current().config);
    let most = config.shadow.connections;
    let limits = PoolLimits { user: most, side: most, retry: config.timeouts.server_login_retry };
    loop {
        if let Some(server) = poll_fn(|cx| Poll::Ready(shard.take_idle(cx, pool))).await {
            return Ok(server);
        }
        make_room(shard, pool, most);
        let mut server = pool.take(limits).await?;
        if poll_fn(|cx| Poll::Ready(server.is_alive(cx, &shard.buffers))).await {
            return Ok(server);
        }
    }
}

/// Clients with other start-up parameters have pools of their own: an idle connection of those makes room.
fn make_room(shard: &Rc<Shard>, pool: &Rc<Pool>, most: usize) {
    let side = pool.key.side;
    if shard.global.shadow_budgets.used(side) < most {
        return;
    }
    let spare = {
        let pools = shard.pools.borrow();
        let mut others = pools.values().filter(|other| other.key.side == side && !Rc::ptr_eq(other, pool));
        others.find_map(|other| other.longest_idle())
    };
    if let Some(server) = spare {
        shard.close(server);
    }
}

async fn run(
    server: &mut Server,
    shard: &Rc<Shard>,
    job: &Job,
    sink: &mut impl Sink,
) -> Result<Duration, Lost> {
    let lost = |error: QueryError| match error {
        QueryError::Io(_) => Lost::Unreachable,
        QueryError::Server(_) => Lost::Refused,
    };
    if *server.settings != *job.settings {
        if let Some(sql) = settings::transition(&server.settings, &job.settings) {
            server.query(&sql, &shard.buffers).await.map_err(lost)?;
        }
        server.settings = Rc::new(job.settings.to_vec());
    }
    send(server, job);
    let sent = Instant::now();
    let most = job.config.shadow.max_result_bytes;
    let mut answer =
        Answer { part: Part::Begin, refused: false, undone: false, took: None, bytes: 0, most, shapes: None };
    poll_fn(|cx| answer.poll(cx, server, job, &shard.buffers, sink)).await?;
    if answer.refused {
        return Err(Lost::Refused);
    }
    Ok(answer.took.unwrap_or_else(Instant::now) - sent)
}

/// The beginning of a transaction, the read, and its end, in one go, to be answered with a single ReadyForQuery: every
/// one costs the server a send and us a wake-up. Were the beginning refused, the session would still be one that only reads.
fn send(server: &mut Server, job: &Job) {
    server.known.remove(b"");
    let out = &mut server.conn.output;
    match &job.bound {
        None => frame::put(out, b'Q', |b| {
            // A comment at the end of the text ends with its line.
            for part in [BEGIN.as_bytes(), b"; ", &job.sql, b"\n; ", ROLLBACK.as_bytes(), &[0]] {
                b.extend_from_slice(part);
            }
        }),
        Some((types, bind)) => {
            let mut types = types.clone();
            if server.side == Side::Target {
                oids::list(&mut types, &job.catalog.type_source_to_target);
            }
            put_command(out, BEGIN);
            frame::put_parse(out, b"", &job.sql, &types);
            frame::put(out, b'B', |b| {
                b.extend_from_slice(&[0, 0]);
                b.extend_from_slice(bind);
            });
            frame::put(out, b'D', |b| b.extend_from_slice(b"P\0"));
            frame::put(out, b'E', |b| b.extend_from_slice(&[0; 5]));
            put_command(out, ROLLBACK);
            frame::put(out, b'S', |_| {});
        }
    }
}

/// A command without parameters, between others of the extended protocol.
fn put_command(out: &mut BytesMut, sql: &str) {
    frame::put_parse(out, b"", sql.as_bytes(), &[0, 0]);
    frame::put(out, b'B', |b| b.extend_from_slice(&[0; 8])); // no names, formats and parameters
    frame::put(out, b'E', |b| b.extend_from_slice(&[0; 5]));
}

/// Whose answer comes now.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Part {
    Begin,
    Read,
    Rollback,
    Over,
}

struct Answer {
    part: Part,
    /// The transaction could not be begun, or not be ended.
    refused: bool,
    /// A failed transaction is rolled back by itself.
    undone: bool,
    took: Option<Instant>,
    bytes: usize,
    most: usize,
    /// Binary values that hold OIDs of the target's.
    shapes: Option<Vec<Option<Shape>>>,
}

impl Answer {
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        server: &mut Server,
        job: &Job,
        buffers: &Buffers,
        sink: &mut impl Sink,
    ) -> Poll<Result<(), Lost>> {
        loop {
            while let Some((tag, length)) =
                frame::header(&server.conn.input).map_err(|_| Lost::Unreachable)?
            {
                if self.bytes + length > self.most {
                    return Poll::Ready(Err(Lost::Large));
                }
                if server.conn.input.len() < length {
                    break;
                }
                self.frame(tag, length, server, job, sink);
                server.conn.consume(length, buffers);
                if self.part == Part::Over {
                    return Poll::Ready(Ok(()));
                }
            }
            if let Poll::Ready(Err(_)) = server.conn.poll_flush(cx, buffers) {
                return Poll::Ready(Err(Lost::Unreachable));
            }
            if ready!(server.conn.poll_fill(cx, buffers)).unwrap_or(0) == 0 {
                return Poll::Ready(Err(Lost::Unreachable));
            }
        }
    }

    fn frame(&mut self, tag: u8, length: usize, server: &mut Server, job: &Job, sink: &mut impl Sink) {
        if tag == b'S' {
            return server.note_parameter(length);
        }
        if tag == b'Z' {
            return self.ready(server);
        }
        match (self.part, tag) {
            (Part::Begin, b'C') => {
                self.part = Part::Read;
                return;
            }
            // A text that cannot be parsed does not come to its beginning.
            (Part::Begin, b'E') if job.bound.is_none() => {}
            (Part::Read, _) => {}
            (part, _) => {
                self.refused |= part == Part::Begin && tag == b'E';
                return;
            }
        }
        if matches!(tag, b'C' | b'E' | b'I') {
            self.took = Some(Instant::now());
            self.part = Part::Rollback;
        }
        let body = &mut server.conn.input[HEADER..length];
        match tag {
            b'T' if server.side == Side::Target => {
                if let Ok(columns) = described(body) {
                    let types: Vec<u32> = columns.iter().map(|c| c.type_oid).collect();
                    let formats: Vec<u16> = columns.iter().map(|c| c.format.cast_unsigned()).collect();
                    self.shapes = job.catalog.nested.columns(&types, &formats);
                }
                oids::row_description(
                    body,
                    &job.catalog.type_target_to_source,
                    &job.catalog.class_target_to_source,
                );
            }
            b'D' => {
                self.bytes += body.len();
                if let Some(shapes) = &self.shapes {
                    job.catalog.nested.data_row(body, shapes);
                }
            }
            _ => {}
        }
        sink.frame(tag, &server.conn.input[..length]);
    }

    fn ready(&mut self, server: &mut Server) {
        server.status = Status::from_byte(server.conn.input[HEADER]).unwrap_or(Status::Failed);
        if server.status == Status::Idle || self.undone {
            self.refused |= server.status != Status::Idle;
            self.part = Part::Over;
        } else {
            frame::put_query(&mut server.conn.output, ROLLBACK);
            self.undone = true;
        }
    }
}

const BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY";
const ROLLBACK: &str = "ROLLBACK";

/// Beyond `statement_timeout`: for a server that does not enforce it.
const GRACE: Duration = Duration::from_secs(1);

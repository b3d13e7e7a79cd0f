//! Rows on their way to the follower: one pipelined batch in a short transaction of its own.

use std::{
    collections::BTreeSet,
    future::poll_fn,
    rc::Rc,
    task::Poll,
    time::{Duration, Instant},
};

use super::{heed::Told, own};
use crate::{
    Side,
    admin::http::BackendState,
    backend::{
        pool::{Pool, PoolKey, PoolLimits, Refused},
        script::{Own, Reply, Script},
        server::{QueryError, Server},
    },
    config::{Config, Mirror},
    frontend::startup::Credentials,
    mirror::{
        batch::{Call, Counts, Order, batch, has_whole_rows},
        write_set::WriteSet,
    },
    proxy::{client::Client, shard::Shard},
    session::transaction::Status,
    wire::{conn::Buffers, frame},
};

/// A follower's transaction that waits for the lead's.
#[derive(Debug)]
pub(super) struct Pending {
    /// Its connection.
    server: Box<Server>,
    /// Name of the prepared transaction; `None`: still open.
    gid: Option<String>,
    /// A row that should have been there was not: the journal keeps the keys.
    pub(super) stale: bool,
    /// What it had before.
    pub(super) counts: Counts,
}

/// Why the follower does not have the rows.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// It failed a moment ago, or is known to be down.
    #[error("the {0} is left alone since it failed")]
    Avoided(Side),
    /// No connection, or no answer in time.
    #[error("the {0} could not be reached: {1}")]
    Unreachable(Side, String),
    /// It refused.
    #[error("the {0} refused: {1}")]
    Refused(Side, String),
    /// What is installed does not fit.
    #[error("{0}")]
    Unfit(#[from] crate::mirror::batch::Unfit),
}

impl Failure {
    /// The word used in metrics.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Failure::Avoided(_) => "avoided",
            Failure::Unreachable(..) => "unreachable",
            Failure::Refused(..) => "refused",
            Failure::Unfit(_) => "unfit",
        }
    }
}

/// What is to be applied.
pub(super) struct Work<'a> {
    pub(super) lead: Side,
    /// Process id of the lead's transaction.
    pub(super) lead_pid: i32,
    pub(super) set: &'a WriteSet,
    /// Name of the prepared transaction, when there is to be one.
    pub(super) gid: Option<String>,
}

impl Client {
    /// Puts the rows in place on the follower, uncommitted or prepared; unless the client is told something before.
    pub(super) async fn apply(&self, work: &Work<'_>) -> Result<Result<Pending, Failure>, Told> {
        let side = work.lead.other();
        let shard = &self.shard;
        let global = &shard.global;
        if global.mirror.is_avoided(side) || global.backend(side) == BackendState::Down {
            return Ok(Err(Failure::Avoided(side)));
        }
        let mirror = self.current.config.mirror;
        let mut taken = None;
        let tried = tokio::time::timeout(mirror.apply_timeout, self.try_apply(work, &mirror, &mut taken));
        let failure = match self.heed(self.until(), tried).await {
            Err(told) => {
                if let Some(server) = taken {
                    self.give_up(server);
                }
                return Err(told);
            }
            Ok(Ok(Ok(pending))) => return Ok(Ok(pending)),
            Ok(Ok(Err(failure))) => failure,
            Ok(Err(_)) => Failure::Unreachable(side, format!("no answer within {:?}", mirror.apply_timeout)),
        };
        if matches!(failure, Failure::Unreachable(..)) {
            global.mirror.avoid(side, mirror.retry_after);
        }
        Ok(Err(failure))
    }

    /// `taken`: the connection that is at work.
    async fn try_apply(
        &self,
        work: &Work<'_>,
        mirror: &Mirror,
        taken: &mut Option<Box<Server>>,
    ) -> Result<Pending, Failure> {
        let side = work.lead.other();
        let pool = self.shard.apply_pool(side, &self.current.config);
        let limits =
            PoolLimits { user: mirror.connections, side: mirror.connections, retry: mirror.retry_after };
        let server = taken.insert(self.applier(&pool, limits).await?);
        self.applied_by(server);
        let installed = self.shard.global.mirror.installed.load_full();
        // Whoever repairs or moves these repositories waits for us: cascades reach others than those armed.
        let of =
            |table: i32| installed.repositories.get(&installed.tables.get(&table)?.meta.repository).copied();
        let fences: BTreeSet<i32> = work.set.changes.iter().filter_map(|c| of(c.table)).collect();
        let mut order = Order::Plain;
        for attempt in 0.. {
            let calls = batch(work.set, |n| installed.tables.get(&n), order)?;
            let answer = self.send_rows(work, (&fences, &calls), server).await;
            let error = match answer {
                Ok(Answer::Applied { prepared, stale, counts }) => {
                    let gid = work.gid.clone().filter(|_| prepared);
                    let server = taken.take().expect("it has just answered");
                    return Ok(Pending { server, gid, stale, counts });
                }
                Ok(Answer::Refused(error)) => error,
                Err(error) => return Err(Failure::Unreachable(side, error.to_string())),
            };
            self.roll_back(server).await.map_err(|e| Failure::Unreachable(side, e.to_string()))?;
            let code = frame::error_field(&error[frame::HEADER..], b'C').unwrap_or_default();
            let again = match code {
                b"23505" | b"23P01" if order == Order::Plain => {
                    order = Order::OutThenIn;
                    true
                }
                b"40P01" | b"40001" => true,
                _ => false,
            };
            if !again || attempt == ATTEMPTS {
                if let Some(server) = taken.take() {
                    self.shard.give_back(&pool, server, std::time::Instant::now());
                }
                return Err(Failure::Refused(side, frame::error_text(&error)));
            }
        }
        unreachable!("the last attempt returns")
    }

    /// A live connection that applies rows, as soon as there is one.
    async fn applier(&self, pool: &Rc<Pool>, limits: PoolLimits) -> Result<Box<Server>, Failure> {
        let side = pool.key.side;
        let refused = |refused| {
            Failure::Unreachable(
                side,
                match refused {
                    Refused::Server(frame) => frame::error_text(&frame),
                    Refused::Unreachable(why) => why.to_string(),
                    Refused::Timeout | Refused::Cancelled => "no connection became free".to_owned(),
                },
            )
        };
        // A pool's own way of waiting would hear the client's signals in our place.
        loop {
            if let Some(server) = poll_fn(|cx| Poll::Ready(self.shard.take_idle(cx, pool))).await {
                return Ok(server);
            }
            let began = Instant::now();
            self.shard.global.resumed(side).await;
            let taken = pool.take(limits).await;
            self.shard.count_wait(&self.shared.user, side, began.elapsed());
            let mut server = taken.map_err(refused)?;
            if self.shard.global.is_paused(side) {
                pool.put(server, began); // while it waited
            } else if poll_fn(|cx| Poll::Ready(server.is_alive(cx, &self.shard.buffers))).await {
                return Ok(server);
            }
        }
    }

    /// Sends one batch, and again what hit no row that should be there.
    async fn send_rows(
        &self,
        work: &Work<'_>,
        (fences, calls): (&BTreeSet<i32>, &[Call<'_>]),
        server: &mut Server,
    ) -> std::io::Result<Answer> {
        let mut script = Script::default();
        script.call(server, own::BEGIN, &[]);
        let lead = work.lead_pid.to_string();
        for number in fences {
            script.call(server, own::FENCE, &[Some(number.to_string().as_bytes()), Some(lead.as_bytes())]);
        }
        let whole = has_whole_rows(work.set);
        if whole {
            let xid = work.set.xid.as_deref().unwrap_or_default();
            script.call(server, own::APPLIED, &[Some(work.lead.name().as_bytes()), Some(xid.as_bytes())]);
        }
        for call in calls {
            put(&mut script, server, call);
        }
        let must_hit = calls.iter().any(|c| c.must_hit);
        let at_once = work.gid.is_some() && !must_hit;
        if at_once {
            self.put_prepare(work, &mut script, server);
        }
        let reply = self.answer(script, server).await?;
        if let Some(error) = reply.error {
            return Ok(Answer::Refused(error));
        }
        let first = 1 + fences.len() + usize::from(whole);
        let mut counts = counted(&reply, first, calls);
        if at_once {
            return Ok(prepared(&reply, false, counts));
        }
        let missed: Vec<_> = calls
            .iter()
            .zip(reply.tags.iter().skip(first))
            .filter(|(call, tag)| call.must_hit && !hit(tag))
            .map(|(call, _)| call)
            .collect();
        let missed = match self.wait_for_rows(missed, server).await? {
            Ok(missed) => missed,
            Err(error) => return Ok(Answer::Refused(error)),
        };
        for call in calls.iter().filter(|call| call.must_hit) {
            counts.hit(call.table, !missed.contains(&call.table));
        }
        let stale = !missed.is_empty();
        if work.gid.is_none() {
            return Ok(Answer::Applied { prepared: false, stale, counts });
        }
        let mut script = Script::default();
        self.put_prepare(work, &mut script, server);
        let reply = self.answer(script, server).await?;
        Ok(match reply.error {
            Some(error) => Answer::Refused(error),
            None => prepared(&reply, stale, counts),
        })
    }

    /// A row that the lead's transaction has seen is not here: the transaction that brings it may be between its two
    /// commits, invisible and not waited for (HAZARDS P3a). Tables of rows that did not come.
    async fn wait_for_rows(
        &self,
        mut missed: Vec<&Call<'_>>,
        server: &mut Server,
    ) -> std::io::Result<Result<BTreeSet<i32>, Vec<u8>>> {
        for wait in WAITS_MS.map(Duration::from_millis) {
            if missed.is_empty() {
                break;
            }
            tokio::time::sleep(wait).await;
            let mut script = Script::default();
            for call in &missed {
                put(&mut script, server, call);
            }
            let reply = self.answer(script, server).await?;
            if let Some(error) = reply.error {
                return Ok(Err(error));
            }
            let mut tags = reply.tags.iter();
            missed.retain(|_| tags.next().is_none_or(|tag| !hit(tag)));
        }
        Ok(Ok(missed.iter().map(|call| call.table).collect()))
    }

    fn put_prepare(&self, work: &Work<'_>, script: &mut Script, server: &mut Server) {
        let Some(gid) = &work.gid else { return };
        let patience = self.current.config.mirror.apply_timeout.as_secs_f64() * 0.9;
        let last = self.shard.global.mirror.clock() + server.clock + patience;
        script.call(server, own::GUARD, &[Some(format!("{last:.6}").as_bytes())]);
        script.once(server, &format!("PREPARE TRANSACTION {}", frame::quote_literal(gid)));
    }

    async fn answer(&self, script: Script, server: &mut Server) -> std::io::Result<Reply> {
        self.shard.count_trip(server.side.other());
        script.run(server, &self.shard.buffers).await
    }

    async fn roll_back(&self, server: &mut Server) -> std::io::Result<()> {
        if server.status == Status::Idle {
            return Ok(());
        }
        let mut script = Script::default();
        script.call(server, own::ROLLBACK, &[]);
        self.answer(script, server).await.map(drop)
    }
}

/// How a batch ended.
enum Answer {
    Applied { prepared: bool, stale: bool, counts: Counts },
    Refused(Vec<u8>),
}

fn prepared(reply: &Reply, stale: bool, counts: Counts) -> Answer {
    // PREPARE TRANSACTION of a failed transaction answers ROLLBACK, and no error.
    match reply.tags.last() {
        Some(tag) if **tag == *b"PREPARE TRANSACTION" => Answer::Applied { prepared: true, stale, counts },
        _ => Answer::Refused(b"E\0\0\0\x28SERROR\0C25P02\0Mit was not prepared\0\0".to_vec()),
    }
}

/// What the rows say that upserts have answered with; `first`: the place of the calls among all statements.
fn counted(reply: &Reply, first: usize, calls: &[Call<'_>]) -> Counts {
    let mut counts = Counts::default();
    let mut rows = reply.rows.iter();
    for (at, tag) in reply.tags.iter().enumerate() {
        let call = at.checked_sub(first).and_then(|at| calls.get(at));
        if call.is_some_and(|call| call.was_there.is_some()) {
            let row = if tag.ends_with(b" 1") { rows.next() } else { None };
            counts.add(&calls[at - first], row.map(|row| &row[..]));
        } else if tag.starts_with(b"SELECT ") {
            rows.next(); // one row each
        }
    }
    counts
}

fn put(script: &mut Script, server: &mut Server, call: &Call<'_>) {
    let parameters: Vec<_> = call.parameters.iter().map(|p| p.as_deref()).collect();
    script.call(server, Own { name: call.name, sql: call.sql }, &parameters);
}

fn hit(tag: &[u8]) -> bool {
    tag != b"DELETE 0"
}

impl Pending {
    /// Does it survive a crash?
    pub(super) fn is_prepared(&self) -> bool {
        self.gid.is_some()
    }

    /// The client goes on while it commits: what that one waits for next is not waited for here, and the two make no
    /// deadlock.
    pub(super) fn leave_client(&self) {
        self.server.info.client.set(0);
    }

    /// Ends the follower's transaction as the lead's ended. `true`: it is known to have ended so.
    pub(super) async fn end(mut self, committed: bool, shard: &Rc<Shard>, limit: Duration) -> bool {
        let side = self.server.side;
        let ended = tokio::time::timeout(limit, self.tell(committed, &shard.buffers)).await;
        let ended = match ended {
            Ok(Ok(ended)) => ended,
            Ok(Err(error)) => {
                tracing::warn!(%side, %error, "a follower's transaction was left behind");
                return false;
            }
            Err(_) => {
                tracing::warn!(%side, "the follower did not answer to the end of a transaction");
                return false;
            }
        };
        let config = std::sync::Arc::clone(&shard.current().config);
        let pool = shard.apply_pool(side, &config);
        shard.give_back(&pool, self.server, std::time::Instant::now());
        ended
    }

    async fn tell(&mut self, committed: bool, buffers: &Buffers) -> std::io::Result<bool> {
        let mut script = Script::default();
        let word = if committed { "COMMIT" } else { "ROLLBACK" };
        match &self.gid {
            Some(gid) => {
                script.once(&mut self.server, &format!("{word} PREPARED {}", frame::quote_literal(gid)));
            }
            None if committed => script.call(&mut self.server, own::COMMIT, &[]),
            None => script.call(&mut self.server, own::ROLLBACK, &[]),
        }
        let reply = script.run(&mut self.server, buffers).await?;
        let tag = reply.tags.last().is_some_and(|tag| tag.starts_with(word.as_bytes()));
        // Not there any more (42704): whoever recovers was quicker, and may have left it to the journal.
        Ok(reply.error.is_none() && tag)
    }
}

impl Shard {
    /// The pool of connections that apply rows on `side`.
    fn apply_pool(self: &Rc<Self>, side: Side, config: &Config) -> Rc<Pool> {
        if let Some(pool) = &self.apply_pools.borrow()[side.index()]
            && *pool.key.user == *config.backends[side.index()].control_user
        {
            return Rc::clone(pool);
        }
        let backend = &config.backends[side.index()];
        let key = PoolKey {
            side,
            user: backend.control_user.as_str().into(),
            database: backend.database.as_str().into(),
            parameters: Rc::new([("application_name".to_owned(), "crossfade apply".to_owned())]),
            minor: 0,
            applies: true,
            shadow: false,
        };
        let pool = self.pool(key, Credentials::Secret(backend.control_secret.clone()));
        self.apply_pools.borrow_mut()[side.index()] = Some(Rc::clone(&pool));
        pool
    }
}

/// Makes a new connection one that applies rows.
pub(in crate::proxy) async fn prepare(
    server: &mut Server,
    mirror: &Mirror,
    clock: f64,
    buffers: &Buffers,
) -> Result<(), Refused> {
    let refused = |e: QueryError| match e {
        QueryError::Server(frame) => Refused::Server(frame.into()),
        QueryError::Io(e) => Refused::Unreachable(e.to_string().into()),
    };
    let sql = format!(
        "SET crossfade.role = 'apply'; SET lock_timeout = {}; SET statement_timeout = 0; SET search_path = pg_catalog; \
         SET client_encoding = 'UTF8'; SET DateStyle = 'ISO, MDY'; SET IntervalStyle = 'postgres'; SET TimeZone = 'UTC'; \
         SET lc_monetary = 'C'; SET xmloption = 'content'; SET row_security = off; SET default_transaction_read_only = off; \
         SET default_transaction_isolation = 'read committed'; \
         SELECT EXTRACT(epoch FROM pg_catalog.clock_timestamp())::pg_catalog.float8",
        mirror.lock_timeout.as_millis()
    );
    let rows = server.query(&sql, buffers).await.map_err(refused)?;
    let theirs = rows.first().and_then(|r| r.first()?.as_ref()?.parse::<f64>().ok());
    server.clock = theirs.ok_or_else(|| Refused::Unreachable("it does not tell its clock".into()))? - clock;
    match server.query("SET session_replication_role = replica", buffers).await {
        // Without the role triggers and foreign keys work there as well: preflight says so.
        Ok(_) => Ok(()),
        Err(QueryError::Server(error))
            if frame::error_field(&error[frame::HEADER..], b'C') == Some(b"42501") =>
        {
            Ok(())
        }
        Err(error) => Err(refused(error)),
    }
}

/// Attempts after the first.
const ATTEMPTS: usize = 4;
/// How long a row that should be there is waited for.
const WAITS_MS: [u64; 8] = [1, 2, 4, 8, 16, 32, 64, 128];

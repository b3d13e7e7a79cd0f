//! While statements of crossfade's own are waited for, the client can still give up, or be ended.

use std::{
    future::poll_fn,
    pin::pin,
    rc::Rc,
    task::Poll,
    time::{Duration, Instant},
};

use super::{Stopped, inflight::InFlight};
use crate::{
    backend::{
        script::{Reply, Script},
        server::{CancelGate, Server},
    },
    error::ClientError,
    proxy::{
        client::{Client, last_words},
        shared::{Running, Signal},
    },
    wire::frame::{self, HEADER},
};

/// What a client was told while it waited.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Told {
    /// It, or `timeouts.query`, wants what runs to be cancelled.
    Cancel(Signal),
    /// It waits in a circle, and is to give way.
    Deadlock,
    /// The server does not even answer to a cancel request.
    Unanswered,
    /// Its connection ends.
    End(Signal),
}

impl Told {
    /// What stops the transaction; `flight` is the one that waited.
    pub(super) fn stops(self, flight: Option<&InFlight>) -> Stopped {
        match self {
            Told::Cancel(Signal::Query) => {
                let text = "canceling statement due to timeouts.query";
                Stopped::Error(ClientError::error("57014", text))
            }
            Told::Cancel(_) => Stopped::Error(ClientError { fatal: false, ..last_words(Signal::Cancel) }),
            Told::Deadlock => Stopped::Error(deadlock(flight.and_then(InFlight::take_deadlock))),
            Told::Unanswered => {
                Stopped::Lost("no answer within timeouts.query, nor to a cancel request".to_owned())
            }
            Told::End(signal) => Stopped::Ended(last_words(signal)),
        }
    }
}

impl Client {
    /// Waits for `work`, unless the client is told something before; told at `last` at the latest.
    pub(super) async fn heed<T>(
        &self,
        last: Option<(Instant, Signal)>,
        work: impl Future<Output = T>,
    ) -> Result<T, Told> {
        self.shared.deadline.set(last);
        let told = poll_fn(|cx| match self.shared.listen(cx).and_then(|signal| self.heard(signal)) {
            Some(told) => Poll::Ready(told),
            None => Poll::Pending,
        });
        let result = tokio::select! {
            biased;
            done = work => Ok(done),
            told = told => Err(told),
        };
        self.shared.deadline.set(None);
        result
    }

    fn heard(&self, signal: Signal) -> Option<Told> {
        let told = match signal {
            Signal::Drain => return None,
            Signal::Kill | Signal::Stop | Signal::Transaction => return Some(Told::End(signal)),
            Signal::Query | Signal::Cancel => Some(Told::Cancel(signal)),
            Signal::Unanswered => Some(Told::Unanswered),
            // One that was meant for an earlier transaction is late.
            Signal::Deadlock => self.shared.in_flight().filter(|f| f.gives_way()).map(|_| Told::Deadlock),
            Signal::ClientIdle | Signal::IdleTransaction | Signal::QueryWait => None,
        };
        self.shared.clear_signal();
        told
    }

    /// When what runs now has run for too long.
    pub(super) fn until(&self) -> Option<(Instant, Signal)> {
        let timeouts = &self.current.config.timeouts;
        let began = self.shared.in_flight().map_or_else(Instant::now, |f| f.unit.get());
        let query = timeouts.query.map(|limit| (began + limit, Signal::Query));
        let since = self.shared.transaction_since.get().zip(timeouts.transaction);
        let whole = since.map(|(since, limit)| (since + limit, Signal::Transaction));
        [query, whole].into_iter().flatten().min_by_key(|(at, _)| *at)
    }

    /// The lead's answer to statements of ours that may wait for locks; their Sync has been written. Who gives up lets the
    /// server cancel them.
    pub(super) async fn heeded(&self, script: Script, lead: &mut Server) -> Result<Reply, Stopped> {
        self.running(lead);
        let gate = Rc::clone(&lead.gate);
        let (mut last, mut told) = (self.until(), None);
        let mut reply = pin!(script.reply(lead, &self.shard.buffers));
        let reply = loop {
            match self.heed(last, reply.as_mut()).await {
                Ok(reply) => break reply,
                // What runs is cancelled by whoever takes the connection back.
                Err(end @ Told::End(_)) => return Err(end.stops(None)),
                Err(Told::Unanswered) => {
                    self.shared.running.take();
                    return Err(Told::Unanswered.stops(None));
                }
                Err(cancel) => {
                    told = Some(cancel);
                    self.cancel_running();
                    let wait = self.current.config.timeouts.cancel_wait;
                    last = Some((Instant::now() + wait, Signal::Unanswered));
                }
            }
        };
        self.shared.running.take();
        let reply = reply?;
        if told.is_some() {
            // A request that comes late would hit the next statement.
            gate.clear().await;
        }
        match told {
            Some(Told::Deadlock) if reply.sqlstate() == Some(b"57014") => {
                Err(Told::Deadlock.stops(self.shared.in_flight().as_deref()))
            }
            _ => Ok(reply),
        }
    }

    /// The lead's answer to a COMMIT of ours. Nobody gives that up: at most the server is asked to wait no longer.
    pub(super) async fn heeded_commit(&self, script: Script, lead: &mut Server) -> std::io::Result<Reply> {
        self.running(lead);
        let gate = Rc::clone(&lead.gate);
        let mut answer = pin!(script.reply(lead, &self.shard.buffers));
        let reply = self.heed(self.until(), answer.as_mut()).await.ok();
        self.committed(reply, answer, &gate).await
    }

    /// The same for a COMMIT of a client that has gone, or is ended: the two sides still have to agree.
    pub(super) async fn last_answer(&self, lead: &mut Server) -> std::io::Result<Reply> {
        self.running(lead);
        let gate = Rc::clone(&lead.gate);
        let mut answer = pin!(lead.reply(&self.shard.buffers));
        let reply = tokio::time::timeout(LAST, answer.as_mut()).await.ok();
        self.committed(reply, answer, &gate).await
    }

    /// The answer that was awaited, or that comes when the server was asked to wait no longer (for a standby).
    async fn committed(
        &self,
        mut reply: Option<std::io::Result<Reply>>,
        answer: impl Future<Output = std::io::Result<Reply>>,
        gate: &CancelGate,
    ) -> std::io::Result<Reply> {
        if reply.is_none() {
            self.cancel_running();
            let wait = self.current.config.timeouts.cancel_wait;
            reply = tokio::time::timeout(wait, answer).await.ok();
            gate.clear().await;
        }
        self.shared.running.take();
        reply.unwrap_or_else(|| Err(std::io::Error::new(std::io::ErrorKind::TimedOut, "no answer to COMMIT")))
    }

    fn cancel_running(&self) {
        if let Some(running) = self.shared.running.borrow().clone() {
            self.shard.send_cancel(running);
        }
    }

    /// A connection whose answer nobody waits for any more: what it runs is cancelled, and rolled back with it.
    pub(super) fn give_up(&self, server: Box<Server>) {
        self.shard.send_cancel(Running {
            side: server.side,
            process_id: server.process_id,
            key: Rc::clone(&server.key),
            gate: Rc::clone(&server.gate),
        });
        // In the middle of a message a server can only be told by the end of the connection.
        if server.conn.output.is_empty() {
            self.shard.close_when_cancelled(server);
        }
    }

    /// The client's own statement was cancelled because it waited in a circle: what the client is told instead.
    pub(in crate::proxy) fn in_place_of_cancel(&self, error: &[u8]) -> Option<bytes::BytesMut> {
        if frame::error_field(&error[HEADER..], b'C') != Some(b"57014") {
            return None;
        }
        let why = self.shared.in_flight()?.take_deadlock()?;
        let mut out = bytes::BytesMut::new();
        deadlock(Some(why)).encode(self.id(), &mut out);
        Some(out)
    }
}

/// As the server's own, with what the server cannot know.
fn deadlock(why: Option<Box<str>>) -> ClientError {
    let error = ClientError::error("40P01", "deadlock detected, across source and target")
        .hint("Rolled back on both sides; the other transactions go on. Repeat the transaction.");
    match why {
        Some(why) => error.detail(why),
        None => error,
    }
}

/// How long the answer to a COMMIT is waited for when the client waits no more.
const LAST: Duration = Duration::from_secs(1);

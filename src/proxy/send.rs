//! One unit on its way to the server, and the statements that must be prepared there first.

use std::{future::poll_fn, io, rc::Rc, time::Instant};

use super::{
    client::{Client, End, Unit},
    extended::{Survey, names_in},
    flight::{Broken, Flight},
    plans::Entry,
    shared::{Running, Signal},
};
use crate::{
    backend::server::{QueryError, Server},
    session::{pipeline::Expect, transaction::Status, words::Moved},
    statement::{Effect, Kind, Pin},
    wire::{
        conn::shift,
        frame::{self, HEADER},
    },
};

impl Client {
    /// Writes the unit to the server. What must be prepared first is awaited.
    pub(super) async fn send(
        &mut self,
        unit: Unit,
        length: usize,
        survey: &mut Survey,
        server: &mut Server,
        flight: &mut Flight,
    ) -> Result<(), SendError> {
        let shard = Rc::clone(&self.shard);
        match unit {
            Unit::Simple { function, .. } => {
                self.pipeline.sent(if function { Expect::Function } else { Expect::Query });
                // One that is malformed is refused before it does anything.
                if !function && frame::query_text(&self.conn.input[HEADER..length]).is_ok() {
                    self.registry.drop_unnamed();
                    server.known.remove(b"");
                }
                if let Some(entry) = &survey.query
                    && entry.plan.statements.iter().any(names_statement)
                {
                    let sent = self.send_named(Rc::clone(entry), length, server, flight);
                    if Box::pin(sent).await? {
                        return Ok(());
                    }
                }
                shift(&mut self.conn.input, length, &mut server.conn.output, &shard.buffers);
                Ok(())
            }
            Unit::Extended { .. } => self.translate(length, survey, server, flight).map_err(SendError::End),
        }
    }

    /// Simple queries that name prepared statements. `true` when the query was rewritten and sent.
    pub(super) async fn send_named(
        &mut self,
        entry: Rc<Entry>,
        length: usize,
        server: &mut Server,
        flight: &mut Flight,
    ) -> Result<bool, SendError> {
        let Ok(text) = frame::query_text(&self.conn.input[HEADER..length]) else { return Ok(false) };
        let text = text.to_vec();
        // EXPLAIN EXECUTE and CREATE TABLE AS EXECUTE name theirs somewhere inside.
        let hidden =
            || names_in(&entry.plan).next().is_some() && crate::session::prepared::name_span(&text).is_none();
        let only = match &entry.plan.statements[..] {
            [only] if !hidden() => only,
            _ => {
                self.make_all_known(server).await?;
                for name in names_in(&entry.plan) {
                    self.make_known(name.as_bytes(), server).await?;
                }
                self.await_tags(&entry.plan, None, flight);
                return Ok(false);
            }
        };
        if let Kind::Prepare { name, .. } = &only.kind {
            self.await_tags(&entry.plan, Some(&text), flight);
            let taken = self.registry.get(name.as_bytes()).is_some();
            let new = match flight.awaited.front() {
                Some(super::flight::Awaited::Prepare { name, statement }) if !taken => {
                    statement.server_name(name, self.naming()).to_vec()
                }
                _ => {
                    self.make_known(name.as_bytes(), server).await?;
                    self.registry.get(name.as_bytes()).map_or(name.clone().into_bytes(), |s| {
                        s.server_name(name.as_bytes(), self.naming()).to_vec()
                    })
                }
            };
            if !taken && server.known.get(&new).is_some() {
                self.make_known(name.as_bytes(), server).await?; // closed on the other side: here as well
            }
            return Ok(self.send_renamed(&text, (name.as_bytes(), &new), length, server, flight));
        }
        let (Kind::Execute { name } | Kind::Deallocate { name: Some(name) }) = &only.kind else {
            self.await_tags(&entry.plan, Some(&text), flight);
            return Ok(false);
        };
        let name = name.clone().into_bytes();
        self.make_known(&name, server).await?;
        self.await_tags(&entry.plan, Some(&text), flight);
        let Some(statement) = self.registry.get(&name) else { return Ok(false) };
        let new = statement.server_name(&name, self.naming()).to_vec();
        Ok(self.send_renamed(&text, (&name, &new), length, server, flight))
    }

    pub(super) fn send_renamed(
        &mut self,
        text: &[u8],
        (old, new): (&[u8], &[u8]),
        length: usize,
        server: &mut Server,
        flight: &mut Flight,
    ) -> bool {
        if old == new {
            return false;
        }
        let Some(span) = crate::session::prepared::name_span(text) else { return false };
        let renamed = crate::session::prepared::renamed(text, &span, new);
        let characters = |bytes: &[u8]| String::from_utf8_lossy(bytes).chars().count();
        let moved = Moved {
            at: characters(&text[..span.start]) + 1,
            old: characters(&text[span]),
            new: characters(new) + 2,
        };
        flight.renamed = Some(Box::new((old.into(), moved)));
        frame::put(&mut server.conn.output, b'Q', |b| {
            b.extend_from_slice(&renamed);
            b.extend_from_slice(&[0]);
        });
        self.conn.consume(length, &self.shard.buffers);
        true
    }

    /// Prepares on the server what the client means by `name`, and waits for it.
    pub(super) async fn make_known(&mut self, name: &[u8], server: &mut Server) -> Result<(), SendError> {
        if self.txn.status == Status::Failed {
            return Ok(()); // refused whatever it is
        }
        let shard = Rc::clone(&self.shard);
        let mut out = bytes::BytesMut::new();
        // The client's own unit is noted already; what is prepared here is answered before it.
        let outer = std::mem::take(&mut self.pipeline);
        self.ensure(name, server, &mut out);
        self.pipeline = outer;
        if out.is_empty() {
            return Ok(());
        }
        frame::put(&mut out, b'S', |_| {});
        server.conn.output.extend_from_slice(&out);
        let settled = server.settle_hidden(&shard.buffers);
        let answer = match self.current.config.timeouts.query {
            Some(limit) => tokio::time::timeout(limit, settled).await.unwrap_or_else(|_| {
                Err(io::Error::new(io::ErrorKind::TimedOut, "no answer within timeouts.query").into())
            }),
            None => settled.await,
        };
        if answer.is_err() {
            server.known.undo(usize::MAX);
        }
        server.known.settle();
        match answer {
            Err(QueryError::Io(e)) => Err(SendError::Broken(Broken::Server(e.to_string()))),
            Err(QueryError::Server(_)) | Ok(_) => Ok(()),
        }
    }

    /// A text of several statements names prepared statements: all of them must be there under their own names.
    pub(super) async fn make_all_known(&mut self, server: &mut Server) -> Result<(), SendError> {
        self.pin(Pin::PrepareInBatch);
        let names: Vec<Vec<u8>> = self.registry.named().map(|(n, _)| n.to_vec()).collect();
        for name in names {
            self.make_known(&name, server).await?;
        }
        Ok(())
    }

    /// Sends a unit and sees it through.
    pub(super) async fn send_and_exchange(
        &mut self,
        unit: Unit,
        length: usize,
        survey: &mut Survey,
        server: &mut Server,
        flight: &mut Flight,
    ) -> Result<(), SendError> {
        if self.current.config.shadow.any && !flight.aside {
            flight.tap = self.tap(survey, unit, length, server);
        }
        self.send(unit, length, survey, server, flight).await?;
        self.exchange(server, flight).await.map_err(SendError::Broken)?;
        if let Some(tap) = flight.tap.take() {
            self.hand_over(*tap, flight, Instant::now());
        }
        Ok(())
    }

    pub(super) async fn exchange(&mut self, server: &mut Server, flight: &mut Flight) -> Result<(), Broken> {
        self.running(server);
        let timeouts = &self.current.config.timeouts;
        let query = timeouts.query.map(|limit| (Instant::now() + limit, Signal::Query));
        let since = self.shared.transaction_since.get();
        let whole =
            since.zip(timeouts.transaction).map(|(since, limit)| (since + limit, Signal::Transaction));
        let first = [query, whole].into_iter().flatten().min_by_key(|(at, _)| *at);
        self.shared.deadline.set(first);
        let result = poll_fn(|cx| self.poll_exchange(cx, server, flight)).await;
        self.shared.running.take();
        self.shared.deadline.set(None);
        result
    }

    /// The client ends: what the server runs for it is to be cancelled. Behind the unit, in a block of ours, nothing runs
    /// but what is marked already.
    pub(super) fn still_runs(&self, server: &Server, flight: &Flight) {
        if !flight.mirrored.wrapped || !self.pipeline.is_idle() {
            self.running(server);
        }
    }

    /// What a cancel request would cancel from now on.
    pub(super) fn running(&self, server: &Server) {
        *self.shared.running.borrow_mut() = Some(Running {
            side: server.side,
            process_id: server.process_id,
            key: Rc::clone(&server.key),
            gate: Rc::clone(&server.gate),
        });
    }
}

/// Why a unit could not be sent, or its exchange did not come to its end.
pub(super) enum SendError {
    End(End),
    Broken(Broken),
}

pub(super) fn names_statement(statement: &crate::statement::Statement) -> bool {
    let discards = || statement.effects.contains(&Effect::DiscardAll);
    let names =
        matches!(statement.kind, Kind::Prepare { .. } | Kind::Execute { .. } | Kind::Deallocate { .. });
    names || statement.kind == Kind::Session && discards()
}

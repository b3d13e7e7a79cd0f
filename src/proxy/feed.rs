//! What a client sends while an exchange goes on: COPY data and later messages of an open batch.

use std::rc::Rc;

use super::{
    client::{Client, End, lost_sync},
    extended::Survey,
    flight::Flight,
    mirror::no_further,
};
use crate::{
    Side,
    backend::server::Server,
    error::ClientError,
    session::pipeline::Expect,
    statement::{Kind, Statement},
    wire::{
        conn::shift,
        frame::{self, Frontend, HEADER},
    },
};

impl Client {
    /// Sends on what the client said meanwhile.
    pub(super) fn feed(&mut self, server: &mut Server, flight: &mut Flight) -> Result<(), End> {
        let shard = Rc::clone(&self.shard);
        loop {
            if flight.feeding > 0 {
                let n = flight.feeding.min(self.conn.input.len());
                shift(&mut self.conn.input, n, &mut server.conn.output, &shard.buffers);
                flight.feeding -= n;
                if flight.feeding > 0 {
                    return Ok(());
                }
            }
            if !self.pipeline.is_open() && !self.pipeline.copies_in() {
                return Ok(());
            }
            let Some((tag, length)) = frame::header(&self.conn.input).map_err(|_| lost_sync(self.id()))?
            else {
                return Ok(());
            };
            let Some(message) = Frontend::from_tag(tag) else {
                // The server refuses it in its own words, behind its other answers.
                frame::put(&mut server.conn.output, tag, |_| {});
                flight.deaf = true;
                return Ok(());
            };
            let copying = self.pipeline.copies_in();
            match message {
                Frontend::Terminate => return Err(End::Gone),
                Frontend::CopyData => {
                    flight.feeding = length;
                    continue;
                }
                _ if self.conn.input.len() < length => {
                    if length > self.current.config.limits.max_message_bytes {
                        return Err(End::Error(ClientError::fatal("08P01", "message is too long")));
                    }
                    return Ok(());
                }
                Frontend::CopyDone | Frontend::CopyFail => self.pipeline.copy_ended(),
                // A COPY reads and ignores Sync and Flush; anything else is the server's to refuse.
                _ if copying => {}
                Frontend::Sync => self.pipeline.sent(Expect::Sync),
                _ if self.pipeline.skips() => {} // and so does the server
                Frontend::Query | Frontend::FunctionCall
                    if self.txn.captured != 0 || flight.mirrored.wrapped =>
                {
                    return Err(no_further().into());
                }
                Frontend::Query => self.query_in_batch(length, server, flight)?,
                Frontend::FunctionCall => self.pipeline.sent(Expect::Function),
                Frontend::Flush | Frontend::Password => {}
                Frontend::Bind
                | Frontend::Close
                | Frontend::Describe
                | Frontend::Execute
                | Frontend::Parse => {
                    self.continue_batch(length, server, flight)?;
                    continue;
                }
            }
            shift(&mut self.conn.input, length, &mut server.conn.output, &shard.buffers);
        }
    }

    /// One message more of an open batch: it stays where the batch is.
    fn continue_batch(&mut self, length: usize, server: &mut Server, flight: &mut Flight) -> Result<(), End> {
        let mut survey = self.survey(length, flight.unsure)?;
        self.note_later(&survey, server.side, flight)?;
        if let Err(error) = self.inject(&survey, server, flight) {
            return Err(ClientError { fatal: true, ..error }.into());
        }
        self.translate(length, &mut survey, server, flight)
    }

    /// What a later message executes must run where the batch runs, and is remembered to its end: once, if it is a read
    /// or a write like any before.
    fn note_later(&mut self, survey: &Survey, side: Side, flight: &mut Flight) -> Result<(), End> {
        if let Some(error) = &survey.excess {
            return Err(ClientError { fatal: true, ..ClientError::clone(error) }.into());
        }
        self.stay_on(side, survey)?;
        for entry in &survey.executed {
            let plain = |s: &Statement| matches!(s.kind, Kind::Read | Kind::LockingRead | Kind::Write);
            if flight.seen.insert(Rc::as_ptr(entry)) || !entry.plan.statements.iter().all(plain) {
                flight.later.push(Rc::clone(entry));
            }
        }
        let limit = self.current.config.limits.max_batch_statements;
        if flight.later.len() <= limit {
            return Ok(());
        }
        Err(ClientError::fatal("54000", format!("more than {limit} statements in one batch without a Sync"))
            .hint("Send a Sync now and then, or raise limits.max_batch_statements.")
            .into())
    }

    /// A simple Query behind extended messages without a Sync. The frame itself is the caller's to send.
    fn query_in_batch(&mut self, length: usize, server: &mut Server, flight: &mut Flight) -> Result<(), End> {
        let survey = self.survey_simple(length, false, flight.unsure);
        self.note_later(&survey, server.side, flight)?;
        if let Ok(text) = frame::query_text(&self.conn.input[HEADER..length]) {
            let entry = self.shard.plan(text, &self.meant(flight.unsure), &self.current);
            let text = text.to_vec();
            let mut out = bytes::BytesMut::new();
            self.pin_names(&entry.plan, server, &mut out);
            server.conn.output.extend_from_slice(&out);
            self.await_tags(&entry.plan, Some(&text), flight);
            self.registry.set(b"", None);
            server.known.set(b"", None);
        } else {
            self.registry.touch(b"");
            server.known.touch(b"");
        }
        self.pipeline.sent(Expect::QueryInBatch);
        server.spent = true;
        Ok(())
    }
}

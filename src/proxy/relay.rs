//! One exchange: what was sent to a server, its answers to the client, and the client's COPY data and
//! later messages of an open batch to the server. Rows are passed on without being read.

use std::{
    io,
    rc::Rc,
    task::{Context, Poll},
    time::Instant,
};

use super::{
    client::{Client, End, last_words},
    flight::{Awaited, Broken, Flight},
    shared::Signal,
};
use crate::{
    Side,
    backend::server::Server,
    catalog::Catalog,
    config::PoolMode,
    session::{
        pipeline::{Expect, Reaction},
        transaction::Status,
        words,
    },
    wire::{
        conn::shift,
        frame::{self, Backend, HEADER},
        oids::{self},
    },
};

impl Client {
    /// Drives the exchange until nothing is outstanding.
    pub(super) fn poll_exchange(
        &mut self,
        cx: &mut Context<'_>,
        server: &mut Server,
        flight: &mut Flight,
    ) -> Poll<Result<(), Broken>> {
        let shard = Rc::clone(&self.shard);
        let buffers = &shard.buffers;
        if let Some(signal) = self.shared.listen(cx) {
            self.interrupted(signal)?;
        }
        self.own_answers(server, 0, flight);
        loop {
            let mut write_error = None;
            if let Poll::Ready(Err(e)) = server.conn.poll_flush(cx, buffers) {
                // The server may have said why before it closed.
                server.conn.output.clear();
                write_error = Some(e);
            }
            if let Poll::Ready(Err(e)) = self.conn.poll_flush(cx, buffers) {
                return Poll::Ready(Err(Broken::Client(End::Io(e))));
            }
            let mut progress = false;
            // Only what the client takes is read: a slow reader holds back the server, not our memory.
            if self.conn.output.is_empty() {
                match server.conn.poll_fill(cx, buffers) {
                    Poll::Ready(Ok(0)) => return Poll::Ready(Err(server_ended(None))),
                    Poll::Ready(Err(e)) => return Poll::Ready(Err(server_ended(Some(&e)))),
                    Poll::Ready(Ok(_)) => {
                        self.scan(server, flight)?;
                        progress = true;
                    }
                    // A reset makes the socket readable, but who waits for it may not have been told yet: what it said
                    // before is read first.
                    Poll::Pending if write_error.as_ref().is_some_and(|e| !is_reset(e)) => {
                        return Poll::Ready(Err(server_ended(write_error.as_ref())));
                    }
                    Poll::Pending => {}
                }
                if progress && self.is_over(server, flight) {
                    return Poll::Ready(Ok(()));
                }
            }
            progress |= self.poll_client(cx, server, flight)?;
            let unsent = self.conn.output.len();
            self.own_answers(server, 0, flight); // the server may have nothing to say to what came
            progress |= self.conn.output.len() > unsent;
            if self.is_over(server, flight) {
                return Poll::Ready(Ok(()));
            }
            if !progress {
                return Poll::Pending;
            }
        }
    }

    /// Nothing is outstanding, and the server is not in the middle of a message: CopyData of which half was sent when
    /// the COPY failed must be sent to its end.
    fn is_over(&self, server: &Server, flight: &Flight) -> bool {
        self.pipeline.is_idle() && flight.feeding == 0 && server.conn.output.is_empty()
    }

    fn interrupted(&mut self, signal: Signal) -> Result<(), Broken> {
        match signal {
            Signal::Drain
            | Signal::Cancel
            | Signal::ClientIdle
            | Signal::IdleTransaction
            | Signal::QueryWait => {
                if signal != Signal::Drain {
                    self.shared.clear_signal();
                }
                Ok(())
            }
            Signal::Deadlock => {
                self.shared.clear_signal();
                let gives_way = self.shared.in_flight().is_some_and(|f| f.gives_way());
                if let Some(running) = self.shared.running.borrow().clone().filter(|_| gives_way) {
                    self.shard.send_cancel(running);
                }
                Ok(())
            }
            Signal::Query => {
                self.shared.clear_signal();
                if let Some(running) = self.shared.running.borrow().clone() {
                    self.shard.send_cancel(running);
                }
                let last = Instant::now() + self.current.config.timeouts.cancel_wait;
                self.shared.deadline.set(Some((last, Signal::Unanswered)));
                Ok(())
            }
            Signal::Unanswered => {
                self.shared.clear_signal();
                Err(Broken::Server("no answer within timeouts.query, nor to a cancel request".to_owned()))
            }
            Signal::Kill | Signal::Stop | Signal::Transaction => {
                Err(Broken::Client(End::Error(last_words(signal))))
            }
        }
    }

    /// Reads from the client: messages of an open batch and COPY data are sent on, anything else waits; its end is noticed.
    fn poll_client(
        &mut self,
        cx: &mut Context<'_>,
        server: &mut Server,
        flight: &mut Flight,
    ) -> Result<bool, Broken> {
        let shard = Rc::clone(&self.shard);
        let wanted =
            !flight.deaf && (self.pipeline.is_open() || self.pipeline.copies_in() || flight.feeding > 0);
        if wanted && !server.conn.output.is_empty() {
            return Ok(false); // the server does not take what it was sent: no more for now
        }
        if wanted && self.is_far_ahead(server, flight) {
            return Ok(!server.conn.output.is_empty()); // it has much to answer
        }
        if wanted && !self.conn.input.is_empty() {
            self.feed(server, flight).map_err(Broken::Client)?;
            if !server.conn.output.is_empty() {
                return Ok(true);
            }
        }
        if !wanted && self.conn.input.len() >= MAX_AHEAD {
            return Ok(false);
        }
        match self.conn.poll_fill(cx, &shard.buffers) {
            Poll::Ready(Ok(0)) => Err(Broken::Client(End::Gone)),
            Poll::Ready(Ok(_)) => Ok(true),
            Poll::Ready(Err(e)) => Err(Broken::Client(End::Io(e))),
            Poll::Pending => Ok(false),
        }
    }

    /// Passes on what the server said, frame by frame; rows and COPY data by their headers alone.
    fn scan(&mut self, server: &mut Server, flight: &mut Flight) -> Result<(), Broken> {
        let shard = Rc::clone(&self.shard);
        let mut at = 0;
        if flight.mirrored.before.is_some() && !self.hidden_answer(server, flight) {
            return Ok(());
        }
        loop {
            if flight.mirrored.after.is_some() && self.pipeline.is_idle() {
                break; // what follows is not the client's
            }
            let input = &server.conn.input;
            if flight.passing > 0 {
                let n = flight.passing.min(input.len() - at);
                if let Some(tap) = &mut flight.tap {
                    tap.feed(&input[at..at + n]);
                }
                flight.passing -= n;
                at += n;
                if flight.passing > 0 {
                    break;
                }
                continue;
            }
            let protocol = |what: &str| Broken::Server(format!("it broke the protocol: {what}"));
            let Some((tag, length)) = frame::header(&input[at..]).map_err(|e| protocol(e.0))? else { break };
            let message = Backend::from_tag(tag).ok_or_else(|| protocol(&format!("message type {tag}")))?;
            let rewritten = tag == b'D' && self.rewrites_rows(flight);
            if !flight.mirrored.held.is_empty()
                && !matches!(message, Backend::Ready | Backend::Notice | Backend::ParameterStatus)
            {
                // That tag was not the last one.
                shift(&mut server.conn.input, at, &mut self.conn.output, &shard.buffers);
                at = 0;
                self.conn.output.extend_from_slice(&flight.mirrored.held.split());
            }
            let input = &server.conn.input;
            if message == Backend::Relayed && !rewritten {
                flight.passing = length;
                continue;
            }
            if length > MAX_CONTROL && rewritten {
                let what =
                    "a row of more than 64 MiB with values of types that the source knows by other OIDs";
                return Err(Broken::Server(what.to_owned()));
            }
            if length > MAX_CONTROL {
                return Err(protocol("a control message of more than 64 MiB"));
            }
            if input.len() - at < length {
                break;
            }
            if rewritten {
                self.rewrite_row(&mut server.conn.input[at + HEADER..at + length], flight);
                if let Some(tap) = &mut flight.tap {
                    tap.feed(&server.conn.input[at..at + length]);
                }
                at += length;
                continue;
            }
            self.follow_target(message, server.side, at..at + length, server, flight);
            self.look(message, at..at + length, server, flight)?;
            let error = (message == Backend::Error).then(|| &server.conn.input[at..at + length]);
            let renamed = error.and_then(|error| match self.in_place_of_cancel(error) {
                None => self.in_client_words(error, flight),
                deadlock => deadlock,
            });
            let mut lost = Vec::new();
            let reaction = self.pipeline.answered(message, &mut lost);
            if let (Some(tap), Reaction::Forward) = (&mut flight.tap, &reaction) {
                tap.feed(&server.conn.input[at..at + length]);
            }
            match (reaction, renamed) {
                (Reaction::Forward, None) if !flight.mirrored.mute && !flight.mirrored.holds(message) => {
                    at += length;
                }
                (reaction, renamed) => {
                    flight.answered |= at > 0;
                    shift(&mut server.conn.input, at, &mut self.conn.output, &shard.buffers);
                    at = 0;
                    if reaction == Reaction::Forward && flight.mirrored.keeps(message) {
                        flight.mirrored.held.extend_from_slice(&server.conn.input[..length]);
                    }
                    server.conn.consume(length, &shard.buffers);
                    if let (Reaction::Forward, Some(renamed), false) =
                        (reaction, renamed, flight.mirrored.mute)
                    {
                        flight.answered = true;
                        self.conn.output.extend_from_slice(&renamed);
                    }
                }
            }
            if !lost.is_empty() {
                self.undo(&lost, server);
                flight.forget(&lost);
            }
            at = self.own_answers(server, at, flight);
        }
        flight.answered |= at > 0;
        shift(&mut server.conn.input, at, &mut self.conn.output, &shard.buffers);
        Ok(())
    }

    /// Takes the answer to what stands before the client's unit; `false` until it is whole.
    fn hidden_answer(&mut self, server: &mut Server, flight: &mut Flight) -> bool {
        while let Some(before) = &mut flight.mirrored.before {
            let reply = &mut before.1;
            let Ok(Some((tag, length))) = frame::header(&server.conn.input) else { return false };
            if server.conn.input.len() < length {
                return false;
            }
            let done = reply.take(tag, &server.conn.input[..length]);
            if tag == b'S' {
                server.note_parameter(length);
            }
            server.conn.consume(length, &self.shard.buffers);
            if let Some(status) = done {
                server.status = status;
                flight.mirrored.mute = reply.error.is_some();
                if let Some((script, reply)) = flight.mirrored.before.take().map(|b| *b) {
                    script.answered(server, &reply);
                    flight.mirrored.refused = reply.error;
                }
            }
        }
        true
    }

    /// Looks at a whole frame at `range` of the server's input before it is passed on.
    fn look(
        &mut self,
        message: Backend,
        range: std::ops::Range<usize>,
        server: &mut Server,
        flight: &mut Flight,
    ) -> Result<(), Broken> {
        let side = server.side;
        let body = &mut server.conn.input[range.start + HEADER..range.end];
        match message {
            Backend::Ready => {
                let status = body.first().and_then(|&b| Status::from_byte(b));
                let status =
                    status.ok_or_else(|| Broken::Server("an unknown transaction status".to_owned()))?;
                server.status = status;
                if flight.mirrored.wrapped {
                    // The block is ours.
                } else if flight.aside {
                    let failed = flight.sqlstate.is_some();
                    self.txn.status = if failed { Status::Failed } else { Status::Block };
                    body[0] = self.txn.status.byte();
                } else {
                    self.txn.status = status;
                }
            }
            Backend::Error => {
                flight.awaited.clear(); // what was to come is skipped
                if self.pipeline.is_idle() {
                    return Ok(()); // last words behind a whole answer: what was answered stays true
                }
                flight.sqlstate = frame::error_field(body, b'C').and_then(|c| c.try_into().ok());
                let severity = frame::error_field(body, b'V').or_else(|| frame::error_field(body, b'S'));
                flight.fatal = severity.is_some_and(|s| s == b"FATAL" || s == b"PANIC");
                // "cached plan must not change result type", in whatever language.
                if frame::error_field(body, b'R') == Some(b"RevalidateCachedQuery") {
                    self.registry.named().for_each(|(_, statement)| self.shard.disown(statement));
                }
                if flight.fatal && flight.retryable && !flight.answered {
                    return Err(Broken::Server(frame::error_text(&server.conn.input[range])));
                }
            }
            Backend::CommandComplete => {
                flight.rolled_back = body == b"ROLLBACK\0";
                if !flight.awaited.is_empty() {
                    let tag = body.to_vec();
                    self.carried_out(&tag, server, flight);
                }
            }
            Backend::ParameterStatus => {
                let frame = range.start;
                server.note_parameter_at(frame, range.len());
            }
            Backend::RowDescription if side == Side::Target => {
                let Catalog { type_target_to_source, class_target_to_source, .. } = &*self.current.catalog;
                oids::row_description(body, type_target_to_source, class_target_to_source);
            }
            Backend::ParameterDescription if side == Side::Target => {
                oids::list(body, &self.current.catalog.type_target_to_source);
            }
            Backend::RowDescription
            | Backend::ParameterDescription
            | Backend::BindComplete
            | Backend::CloseComplete
            | Backend::CopyInResponse
            | Backend::Relayed
            | Backend::EmptyQuery
            | Backend::NoData
            | Backend::Notice
            | Backend::ParseComplete
            | Backend::PortalSuspended => {}
        }
        if message == Backend::PortalSuspended {
            self.txn.fixed = true;
        }
        Ok(())
    }

    /// An error that speaks of a name or a text that is not the client's, made to speak of the client's.
    fn in_client_words(&self, error: &[u8], flight: &Flight) -> Option<bytes::BytesMut> {
        // A session that is pinned by now may have sent it when it was not.
        if self.shared.mode == PoolMode::Session && flight.renamed.is_none() {
            return None;
        }
        let name_of = |number| {
            if let Some((name, _)) = flight.renamed.as_deref() {
                return Some(name.to_vec());
            }
            let parse = self.pipeline.next() == Some(Expect::Parse);
            let refused = || self.registry.pending_name(self.pipeline.changes_outstanding().0);
            let name = if parse { refused() } else { self.registry.name_of(number) };
            name.map(<[u8]>::to_vec)
        };
        words::in_client_words(error, name_of, flight.renamed.as_deref().map(|(_, moved)| *moved))
    }

    /// An SQL-level PREPARE, DEALLOCATE or DISCARD was carried out.
    fn carried_out(&mut self, tag: &[u8], server: &mut Server, flight: &mut Flight) {
        let due = match flight.awaited.front() {
            Some(Awaited::Prepare { .. }) => tag == b"PREPARE\0",
            Some(Awaited::Deallocate { .. }) => tag == b"DEALLOCATE\0",
            Some(Awaited::DeallocateAll) => tag == b"DEALLOCATE ALL\0",
            Some(Awaited::DiscardAll) => tag == b"DISCARD ALL\0",
            None => false,
        };
        if !due {
            return;
        }
        let naming = self.naming();
        // What the client has sent behind it is noted already, and may still fail.
        let (pending, on_server) = self.pipeline.changes_outstanding();
        match flight.awaited.pop_front() {
            Some(Awaited::Prepare { name, statement }) => {
                let name_there = statement.server_name(&name, naming);
                server.known.set_before(on_server, name_there, Some(statement.number));
                self.registry.set_before(pending, &name, Some(statement));
            }
            Some(Awaited::Deallocate { name }) => {
                if let Some(statement) = self.registry.get(&name) {
                    server.known.set_before(on_server, statement.server_name(&name, naming), None);
                }
                self.registry.set_before(pending, &name, None);
            }
            Some(Awaited::DeallocateAll) => {
                self.registry.clear_before(pending);
                server.known.clear_before(on_server);
            }
            Some(Awaited::DiscardAll) => {
                self.registry.clear_before(pending);
                server.known.clear_before(on_server);
                server.discarded();
                self.discarded();
            }
            None => {}
        }
    }

    /// Answers of our own whose turn has come; what stands before them (`at` bytes) goes first. The rest of `at`.
    fn own_answers(&mut self, server: &mut Server, mut at: usize, flight: &mut Flight) -> usize {
        while let Some(answer) = self.pipeline.own_answer() {
            flight.answered = true;
            shift(&mut server.conn.input, at, &mut self.conn.output, &self.shard.buffers);
            at = 0;
            self.conn.output.extend_from_slice(answer);
        }
        at
    }

    /// The server skips these: names are again what they were.
    fn undo(&mut self, lost: &[Expect], server: &mut Server) {
        let client = lost.iter().filter(|e| e.changes_client()).count();
        let on_server = lost.iter().filter(|e| e.changes_server()).count();
        // A Parse of the unnamed statement destroys the one before it, also when it fails.
        let failed = lost.first().copied();
        let unnamed = failed == Some(Expect::Parse) && self.registry.pending_name(client) == Some(b"");
        let parse = matches!(failed, Some(Expect::Parse | Expect::HiddenParse));
        let unnamed_there = parse && server.known.pending_name(on_server) == Some(b"");
        self.registry.undo(client);
        server.known.undo(on_server);
        if unnamed {
            self.registry.drop_unnamed();
        }
        if unnamed_there {
            server.known.remove(b"");
        }
    }
}

fn is_reset(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe)
}

fn server_ended(error: Option<&io::Error>) -> Broken {
    Broken::Server(error.map_or_else(|| "it closed the connection".to_owned(), ToString::to_string))
}

/// What a client may send ahead of its turn before it is no longer read.
const MAX_AHEAD: usize = 64 << 10;
/// Bound of a message that is looked at as a whole.
const MAX_CONTROL: usize = 64 << 20;

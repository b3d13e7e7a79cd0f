//! The extended protocol: what a batch does ([`Client::survey`]) and how it is sent ([`Client::translate`]).

use std::{cell::RefCell, collections::VecDeque, rc::Rc};

use bytes::BytesMut;

use super::{
    client::{Client, End, Statement},
    flight::Flight,
    plans::{self, Entry, SearchContext},
};
use crate::{
    Side,
    backend::server::Server,
    error::ClientError,
    session::{
        pipeline::Expect,
        prepared::{self, Naming, Prepared},
        transaction::Status,
    },
    statement::{self, Kind, Pin, Plan},
    wire::{
        conn::{append, shift},
        frame::{self, Fields, Frontend, HEADER, Malformed},
        oids,
    },
};

/// What a unit does, found before anything of it is sent.
#[derive(Debug, Default)]
pub(super) struct Survey {
    /// Statements of its Parse messages, in order.
    pub(super) parsed: VecDeque<Rc<Statement>>,
    /// What it executes (Bind, Query).
    pub(super) executed: Vec<Rc<Entry>>,
    /// What it only prepares or describes.
    pub(super) named: Vec<Rc<Entry>>,
    /// It binds a portal with a name, or fetches from one in parts: the transaction cannot move away from it.
    pub(super) portal: bool,
    /// Something of it is executed, not only bound.
    pub(super) runs: bool,
    /// It executes the unnamed portal of an earlier batch.
    pub(super) older_portal: bool,
    /// It would make the client hold more than it may.
    pub(super) excess: Option<Box<ClientError>>,
    /// Text of the one statement it executes, when it has no parameters.
    pub(super) text: Option<String>,
    /// What the text of a simple query is, as it was found: EXECUTE has not been resolved.
    pub(super) query: Option<Rc<Entry>>,
}

/// What becomes of one client message.
enum Translation {
    /// Sent as it is.
    Keep,
    /// Sent as what was written to the scratch buffer (which may hold messages of ours as well); empty: not sent.
    Replace,
}

impl Client {
    /// Reads `length` bytes of whole extended messages. `unsure`: what came before may have changed what names mean.
    pub(super) fn survey(&mut self, length: usize, unsure: bool) -> Result<Survey, End> {
        let mut survey = Survey::default();
        let input = std::mem::take(&mut self.conn.input);
        let result = self.survey_frames(&input[..length], &mut survey, unsure);
        self.conn.input = input;
        result.map(|()| survey)
    }

    /// What names mean; `unsure` in the rest of a batch that may have changed it, read anew when the batch is over.
    pub(super) fn meant(&self, unsure: bool) -> Rc<SearchContext> {
        if !unsure {
            return Rc::clone(&self.context);
        }
        self.shard.context(None, self.context.standard_conforming_strings, self.context.ascii_safe)
    }

    fn survey_frames(&mut self, mut frames: &[u8], survey: &mut Survey, mut unsure: bool) -> Result<(), End> {
        let mut names: Vec<(&[u8], Rc<Statement>)> = Vec::new();
        let mut bound = false;
        while let Some((tag, length)) = frame::header(frames)? {
            let (this, rest) = frames.split_at(length);
            frames = rest;
            let mut fields = Fields(&this[HEADER..]);
            let context = self.meant(unsure);
            let find = |name: &[u8], names: &[(&[u8], Rc<Statement>)]| {
                let new = names.iter().rev().find(|(n, _)| *n == name).map(|(_, s)| Rc::clone(s));
                new.or_else(|| self.registry.get(name).cloned())
            };
            match Frontend::from_tag(tag) {
                Some(Frontend::Parse) => {
                    let Ok([name, sql, types]) = parse_fields(fields) else { continue };
                    survey.excess = survey.excess.take().or_else(|| self.too_many_names(name, names.len()));
                    let statement = self.prepare(name, (sql, types), &context);
                    survey.named.push(self.plan_of(&statement, &context));
                    survey.parsed.push_back(Rc::clone(&statement));
                    names.push((name, statement));
                }
                Some(Frontend::Bind) => {
                    let (Ok(portal), Ok(name)) = (fields.cstr(), fields.cstr()) else { continue };
                    survey.portal |= !portal.is_empty();
                    bound |= portal.is_empty();
                    if let Some(statement) = find(name, &names) {
                        let first = survey.executed.is_empty();
                        survey.text = (first && fields.0.starts_with(&[0, 0, 0, 0]))
                            .then(|| String::from_utf8_lossy(&statement.sql).into_owned());
                        let entry = self.resolve(&self.plan_of(&statement, &context), &context);
                        unsure |= entry.plan.statements.iter().any(statement::Statement::moves_search_path);
                        survey.excess = survey.excess.take().or_else(|| self.too_many_prepared(&entry.plan));
                        survey.executed.push(entry);
                    }
                }
                Some(Frontend::Execute) => {
                    let Ok(name) = fields.cstr() else { continue };
                    survey.runs = true;
                    survey.portal |= fields.0 != [0; 4];
                    survey.older_portal |= name.is_empty() && !bound;
                }
                Some(Frontend::Describe) => {
                    let (Ok(b'S'), Ok(name)) = (fields.byte(), fields.cstr()) else { continue };
                    survey.named.extend(find(name, &names).map(|s| self.plan_of(&s, &context)));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// What an SQL-level EXECUTE does is what the statement it names does.
    pub(super) fn resolve(&self, entry: &Rc<Entry>, context: &SearchContext) -> Rc<Entry> {
        if let [only] = &entry.plan.statements[..]
            && let Kind::Execute { name } = &only.kind
            && let Some(statement) = self.registry.get(name.as_bytes())
        {
            let named = self.plan_of(statement, context);
            return match &named.plan.statements[..] {
                [inner] if matches!(inner.kind, Kind::Execute { .. }) => Rc::clone(entry),
                _ if only.writes.is_empty() && only.effects.is_empty() && only.functions.is_empty() => named,
                // CREATE TABLE AS EXECUTE, or arguments that do something: both.
                inner => {
                    let statements = [&entry.plan.statements, inner].concat();
                    Entry::new(Plan { statements, ..entry.plan.clone() }, entry.catalog, entry.context)
                }
            };
        }
        Rc::clone(entry)
    }

    /// What executing a statement does, by the catalog and the search path of now.
    fn plan_of(&self, statement: &Statement, context: &SearchContext) -> Rc<Entry> {
        let now = (self.current.catalog.generation, context.number);
        plans::refreshed(&statement.plan, now, || {
            let entry = self.shard.plan(&statement.sql, context, &self.current);
            if statement.name_span.is_some() { entry.prepared() } else { entry }
        })
    }

    /// The statement that a Parse makes.
    fn prepare(&self, name: &[u8], (sql, types): (&[u8], &[u8]), context: &SearchContext) -> Rc<Statement> {
        let plan = self.shard.plan(sql, context, &self.current);
        if self.naming() == Naming::Content && !name.is_empty() {
            return self.shard.intern(sql, types, plan);
        }
        Rc::new(Prepared::new(self.shard.next_statement(), sql, types, RefCell::new(plan)))
    }

    /// The statement that an SQL-level PREPARE makes. `text` is the whole of it.
    pub(super) fn prepare_sql(
        &self,
        text: &[u8],
        inner: &crate::statement::Statement,
    ) -> Option<Rc<Statement>> {
        let span = prepared::name_span(text)?;
        let plan = Plan { statements: vec![inner.clone()], literal_dependent: true, fingerprint: 0 };
        let plan = RefCell::new(Entry::new(plan, u64::MAX, 0));
        let statement = Prepared::new(self.shard.next_statement(), text, b"", plan);
        Some(Rc::new(Prepared { name_span: Some(span), ..statement }))
    }

    /// Moves the first `length` bytes of the input, whole extended messages, to the server.
    pub(super) fn translate(
        &mut self,
        mut length: usize,
        survey: &mut Survey,
        server: &mut Server,
        flight: &mut Flight,
    ) -> Result<(), End> {
        let shard = Rc::clone(&self.shard);
        let mut at = 0;
        let mut scratch = shard.scratch.take();
        while at < length {
            let Some((tag, size)) = frame::header(&self.conn.input[at..])? else { break };
            let input = std::mem::take(&mut self.conn.input);
            let body = &input[at + HEADER..at + size];
            let translation = self.translate_one((tag, body), survey, server, &mut scratch, flight);
            self.conn.input = input;
            match translation {
                Translation::Keep => at += size,
                Translation::Replace => {
                    shift(&mut self.conn.input, at, &mut server.conn.output, &shard.buffers);
                    append(&scratch, &mut server.conn.output, &shard.buffers);
                    scratch.clear();
                    self.conn.consume(size, &shard.buffers);
                    length -= at + size;
                    at = 0;
                }
            }
        }
        shift(&mut self.conn.input, at, &mut server.conn.output, &shard.buffers);
        if scratch.capacity() <= KEPT_SCRATCH {
            shard.scratch.replace(scratch);
        }
        let statements = survey.executed.iter().flat_map(|e| &e.plan.statements);
        flight.unsure |= statements.into_iter().any(statement::Statement::moves_search_path);
        Ok(())
    }

    fn translate_one(
        &mut self,
        (tag, body): (u8, &[u8]),
        survey: &mut Survey,
        server: &mut Server,
        out: &mut BytesMut,
        flight: &mut Flight,
    ) -> Translation {
        let mut fields = Fields(body);
        if self.pipeline.skips() && tag != b'S' {
            return Translation::Keep; // the server reads it and does nothing
        }
        // What cannot be read is sent as it is: the server refuses it in its own words.
        match Frontend::from_tag(tag) {
            Some(Frontend::Parse) => {
                if let Ok([name, sql, types]) = parse_fields(fields)
                    && let Some(statement) = survey.parsed.pop_front()
                {
                    return self.send_parse(name, (sql, types), statement, server, out);
                }
                self.keep(Expect::Malformed)
            }
            Some(Frontend::Bind) => {
                let renamed = match (fields.cstr(), fields.cstr()) {
                    (Ok(portal), Ok(name)) => {
                        let renamed = self.ensure(name, server, out);
                        self.note_naming_portal(portal, name);
                        if server.side == Side::Target {
                            self.note_portal(portal, name, fields.0, out, flight);
                        }
                        renamed.map(|new| (portal, new))
                    }
                    _ => None,
                };
                self.pipeline.sent(Expect::Bind);
                let Some((portal, statement)) = renamed else { return finish(out, tag, body) };
                frame::put(out, b'B', |b| {
                    for text in [portal, &statement.content_name] {
                        b.extend_from_slice(text);
                        b.extend_from_slice(&[0]);
                    }
                    b.extend_from_slice(fields.0);
                });
                Translation::Replace
            }
            Some(Frontend::Describe) => {
                let (kind, name) = (fields.byte(), fields.cstr());
                let renamed = match (kind, name) {
                    (Ok(b'S'), Ok(name)) => self.ensure(name, server, out),
                    _ => None,
                };
                if server.side == Side::Target && !self.pipeline.skips() {
                    let statement = match (kind, name) {
                        (Ok(b'S'), Ok(name)) => self.registry.get(name).cloned(),
                        (Ok(b'P'), Ok(name)) => self.portals.get(name).map(|p| Rc::clone(&p.statement)),
                        _ => None,
                    };
                    flight.described.push_back(statement);
                }
                self.pipeline.sent(Expect::Describe);
                let Some(statement) = renamed else { return finish(out, tag, body) };
                frame::put(out, b'D', |b| {
                    b.extend_from_slice(b"S");
                    b.extend_from_slice(&statement.content_name);
                    b.extend_from_slice(&[0]);
                });
                Translation::Replace
            }
            Some(Frontend::Close) => match (fields.byte(), fields.cstr()) {
                (Ok(b'S'), Ok(name)) => self.send_close(name, server),
                _ => self.keep(Expect::ClosePortal),
            },
            Some(Frontend::Execute) => {
                self.await_portal(body, flight);
                if server.side == Side::Target {
                    let portal = fields.cstr().ok().and_then(|name| self.portals.get(name).cloned());
                    flight.rows.push_back(portal);
                }
                self.keep(Expect::Execute)
            }
            Some(Frontend::Sync) => self.keep(Expect::Sync),
            Some(Frontend::CopyDone | Frontend::CopyFail) => {
                self.pipeline.copy_ended();
                Translation::Keep
            }
            _ => Translation::Keep,
        }
    }

    fn keep(&mut self, expect: Expect) -> Translation {
        self.pipeline.sent(expect);
        Translation::Keep
    }

    fn send_parse(
        &mut self,
        name: &[u8],
        (sql, types): (&[u8], &[u8]),
        statement: Rc<Statement>,
        server: &mut Server,
        out: &mut BytesMut,
    ) -> Translation {
        if self.naming() == Naming::Content && names_in(&statement.plan.borrow().plan).next().is_some() {
            self.pin(Pin::PrepareInBatch);
        }
        let naming = self.naming();
        // What EXECUTE returns is settled by its Parse.
        for inner in names_in(&statement.plan.borrow().plan).filter(|inner| inner.as_bytes() != name) {
            self.ensure_one(inner.as_bytes(), server, out);
        }
        let map = &self.current.catalog.type_source_to_target;
        let mapped = server.side == Side::Target && types.len() > 2 && !map.is_empty();
        let taken = !name.is_empty() && self.registry.get(name).is_some();
        // A name that is taken is refused by the server, in its own words: it is in use there, or is made so.
        let theirs = if taken { self.ensure(name, server, out) } else { Some(Rc::clone(&statement)) };
        let on_server = match &theirs {
            Some(theirs) if taken => &theirs.content_name,
            Some(new) => new.server_name(name, naming),
            None => name,
        };
        if !taken && naming == Naming::Content && server.known.get(on_server) == Some(statement.number) {
            self.registry.set(name, Some(statement));
            if self.txn.status == Status::Failed {
                // Only the server knows whether a failed transaction takes it: asked under no name.
                server.known.set(b"", Some(prepared::NOBODYS));
                self.pipeline.sent(Expect::Parse);
                frame::put_parse(out, b"", sql, types);
                return Translation::Replace;
            }
            self.pipeline.sent(Expect::OwnParseComplete);
            return Translation::Replace;
        }
        if taken {
            server.known.touch(on_server);
            self.registry.touch(name);
        } else {
            if !name.is_empty() {
                self.forget_name(on_server, server, out);
            }
            self.make_room(server, out);
            server.known.set(on_server, Some(statement.number));
            self.registry.set(name, Some(statement));
        }
        self.pipeline.sent(Expect::Parse);
        if out.is_empty() && on_server == name && !mapped {
            return Translation::Keep;
        }
        let mut types = types.to_vec();
        if mapped {
            oids::list(&mut types, &self.current.catalog.type_source_to_target);
        }
        frame::put_parse(out, on_server, sql, &types);
        Translation::Replace
    }

    fn send_close(&mut self, name: &[u8], server: &mut Server) -> Translation {
        let known = self.registry.get(name).is_some();
        self.registry.set(name, None);
        if self.naming() == Naming::Content && !name.is_empty() && known {
            self.pipeline.sent(Expect::OwnCloseComplete);
            return Translation::Replace; // others may use it: it stays on the server
        }
        server.known.set(name, None);
        self.keep(Expect::Close)
    }

    /// Makes sure that the server knows what the client means by `name`; messages for that are written to `out`.
    /// The statement, when it has another name there: that of its content.
    pub(super) fn ensure(
        &mut self,
        name: &[u8],
        server: &mut Server,
        out: &mut BytesMut,
    ) -> Option<Rc<Statement>> {
        let inner = self.registry.get(name).and_then(|statement| {
            names_in(&statement.plan.borrow().plan).next().map(|inner| inner.as_bytes().to_vec())
        });
        if let Some(inner) = inner.filter(|inner| inner != name) {
            self.ensure_one(&inner, server, out); // the text of a Parse is EXECUTE
        }
        self.ensure_one(name, server, out)
    }

    fn ensure_one(&mut self, name: &[u8], server: &mut Server, out: &mut BytesMut) -> Option<Rc<Statement>> {
        let Some(statement) = self.registry.get(name).map(Rc::clone) else {
            // What the server knows by this name is another client's, or was closed on the other side.
            self.forget_name(name, server, out);
            return None;
        };
        let on_server = statement.server_name(name, self.naming());
        match server.known.get(on_server) {
            Some(number) if number == statement.number => {}
            // Pinned in this transaction: nothing can be prepared any more, but the name of before still holds.
            _ if self.txn.status == Status::Failed
                && !name.is_empty()
                && server.known.get(&statement.content_name) == Some(statement.number) =>
            {
                return Some(statement);
            }
            other => {
                if other.is_some() && !on_server.is_empty() {
                    self.forget_name(on_server, server, out);
                }
                self.make_room(server, out);
                self.put_statement(&statement, on_server, server, out);
            }
        }
        if on_server == name { None } else { Some(statement) }
    }

    fn forget_name(&mut self, on_server: &[u8], server: &mut Server, out: &mut BytesMut) {
        if server.known.get(on_server).is_some() {
            frame::put_close_statement(out, on_server);
            server.known.set(on_server, None);
            self.pipeline.sent(Expect::HiddenClose);
        }
    }

    fn put_statement(&mut self, statement: &Statement, name: &[u8], server: &mut Server, out: &mut BytesMut) {
        let map = &self.current.catalog.type_source_to_target;
        if server.side == Side::Target && statement.types.len() > 2 && !map.is_empty() {
            let mut types = statement.types.clone();
            oids::list(&mut types, map);
            server.known.set(name, Some(statement.number));
            self.pipeline.sent(Expect::HiddenParse);
            frame::put_parse(out, name, &statement.sql, &types);
        } else {
            statement.put(name, out, &mut server.known, &mut self.pipeline);
        }
    }

    /// SQL-level PREPARE, EXECUTE and DEALLOCATE whose text cannot be changed: from here on the session keeps its server
    /// connection, and what they name is prepared there under the client's name.
    pub(super) fn pin_names(&mut self, plan: &Plan, server: &mut Server, out: &mut BytesMut) {
        for name in names_in(plan) {
            self.pin(Pin::PrepareInBatch);
            self.ensure(name.as_bytes(), server, out);
        }
    }

    fn make_room(&mut self, server: &mut Server, out: &mut BytesMut) {
        if self.naming() == Naming::Client {
            return; // the application's own names: its own affair
        }
        if let Some(name) = server.known.surplus(self.current.config.pool.max_prepared_statements) {
            frame::put_close_statement(out, &name);
            server.known.set(&name, None);
            self.pipeline.sent(Expect::HiddenClose);
        }
    }
}

/// Names of prepared statements in SQL.
#[expect(clippy::wildcard_enum_match_arm, reason = "the other kinds name none")]
pub(super) fn names_in(plan: &Plan) -> impl Iterator<Item = &str> {
    plan.statements.iter().filter_map(|statement| match &statement.kind {
        Kind::Prepare { name, .. } | Kind::Execute { name } | Kind::Deallocate { name: Some(name) } => {
            Some(&**name)
        }
        _ => None,
    })
}

fn finish(out: &mut BytesMut, tag: u8, body: &[u8]) -> Translation {
    if out.is_empty() {
        return Translation::Keep;
    }
    frame::put(out, tag, |b| b.extend_from_slice(body));
    Translation::Replace
}

/// Name, text and raw types of a Parse body.
fn parse_fields(mut fields: Fields<'_>) -> Result<[&[u8]; 3], Malformed> {
    let (name, sql) = (fields.cstr()?, fields.cstr()?);
    let whole = |(count, oids): (&[u8; 2], &[u8])| oids.len() == 4 * usize::from(u16::from_be_bytes(*count));
    if !fields.0.split_first_chunk().is_some_and(whole) {
        return Err(Malformed("invalid message format"));
    }
    Ok([name, sql, fields.0])
}

/// A scratch buffer that a long statement has grown beyond this is not kept.
const KEPT_SCRATCH: usize = 64 << 10;

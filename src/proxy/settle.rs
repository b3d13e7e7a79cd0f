//! What a unit leaves behind: effects, the state of the block, the connection.

use std::time::{Duration, Instant};

use super::{
    checkout::CONTEXT,
    client::{Client, End},
    extended::Survey,
    flight::Flight,
    transact::Choice,
};
use crate::{
    Side,
    backend::server::Server,
    error::ClientError,
    route::{Footprint, Work},
    session::{
        settings,
        transaction::{Status, Transaction},
    },
    statement::{Control, Effect, Isolation, Kind, Pin},
    wire::frame,
};

impl Client {
    /// The unit is over: what it leaves behind is noted, and the server is given back when nothing holds it.
    pub(super) async fn finish(
        &mut self,
        mut server: Box<Server>,
        flight: &Flight,
        survey: &Survey,
        footprint: Option<&Footprint>,
        now: Instant,
    ) -> Result<(), End> {
        self.registry.settle();
        server.known.settle();
        self.late = 0;
        if footprint.is_some_and(Footprint::is_write) {
            self.wrote_at = Some(now);
            self.wrote_side = Some(server.side);
        }
        self.note_effects(survey, &mut server);
        if self.txn.status == Status::Idle {
            if self.txn.side.is_some() || footprint.is_some() {
                self.shard.count_transaction(server.side, flight.sqlstate.is_none() && !flight.rolled_back);
                #[cfg(feature = "otlp")]
                self.trace_end(server.side, flight, now);
            }
            self.txn.ended();
            self.portals.clear();
            self.naming_portals.clear();
            self.shared.transaction_since.set(None);
            self.shared.side.set(None);
            self.shared.landed();
        } else {
            self.note_block(survey, footprint, server.side, now);
        }
        self.shared.status.set(self.txn.status);
        let idle = self.txn.status == Status::Idle;
        let readable = self.txn.status != Status::Failed;
        let read = if readable && !idle && self.context_moved {
            Box::pin(self.read_context(&mut server)).await
        } else if idle && !self.unread.is_empty() && self.settings_are_asked_for() {
            Box::pin(self.read_settings(&mut server)).await
        } else {
            if idle && self.context_local {
                self.refresh_context(&server);
            }
            Ok(())
        };
        self.context_moved = false;
        self.context_local &= !idle;
        if idle && std::mem::take(&mut self.discards) {
            Box::pin(self.discard_held(server.side.other())).await?;
        }
        if let Err(e) = read {
            return Err(End::Error(ClientError::fatal("08006", format!("lost the {}: {e}", server.side))));
        }
        if idle && !self.keeps_servers() {
            self.shard.give_back(&self.pools[server.side.index()], server, now);
        } else {
            let side = server.side;
            self.servers[side.index()] = Some(server);
        }
        Ok(())
    }

    /// Who has the same settings elsewhere must know their values.
    fn settings_are_asked_for(&self) -> bool {
        !self.keeps_servers() || self.names_moved() || self.current.config.shadow.any
    }

    /// The catalog was looked at from within a block that is elsewhere: the block goes on, or has failed.
    pub(super) async fn return_from_aside(
        &mut self,
        mut server: Box<Server>,
        flight: &Flight,
    ) -> Result<(), End> {
        self.registry.settle();
        server.known.settle();
        if flight.sqlstate.is_some() {
            self.fail_block().await?;
        }
        let side = server.side;
        if self.keeps_servers() {
            self.servers[side.index()] = Some(server);
        } else {
            self.shard.give_back(&self.pools[side.index()], server, Instant::now());
        }
        Ok(())
    }

    pub(super) fn note_effects(&mut self, survey: &Survey, server: &mut Server) {
        for entry in &survey.executed {
            for statement in &entry.plan.statements {
                server.tainted |= matches!(statement.kind, Kind::Code | Kind::Unknown(_))
                    || !statement.functions.is_empty()
                    || statement.runs_code;
                if matches!(statement.kind, Kind::Declare { hold: true, .. }) {
                    self.held_side = Some(server.side);
                }
                if statement.kind == Kind::Code && self.routes() {
                    // Code may have changed what names mean; where they would be routed by, it is looked up.
                    self.note_effect(&Effect::Setting("search_path".to_owned()), server.side);
                }
                for effect in &statement.effects {
                    self.note_effect(effect, server.side);
                }
            }
        }
    }

    pub(super) fn note_effect(&mut self, effect: &Effect, side: Side) {
        match effect {
            Effect::Setting(name) | Effect::LocalSetting { name, .. } => {
                let local = matches!(effect, Effect::LocalSetting { .. });
                if CONTEXT.contains(&name.as_str()) && self.txn.status != Status::Idle {
                    self.context_moved = true;
                    self.context_local = true;
                }
                if !local {
                    self.set_side = side;
                    if !self.unread.contains(name) {
                        self.unread.push(name.clone());
                    }
                }
            }
            Effect::ResetAll => {
                self.set_side = side;
                self.context_moved = self.txn.status != Status::Idle;
                self.context_local |= self.context_moved;
                let names: Vec<String> = self.settings.iter().map(|(n, _)| n.clone()).collect();
                self.unread.extend(names);
                self.unread.extend(["search_path".to_owned(), "role".to_owned()]);
                self.unread.sort();
                self.unread.dedup();
            }
            Effect::Pin(why) => {
                self.temporary |= *why == Pin::TempTable;
                self.pin(*why);
            }
            Effect::DiscardAll | Effect::DiscardSome => {}
        }
    }

    /// Is anything but the source in use?
    fn routes(&self) -> bool {
        let target = |share: crate::route::policy::Share| share.basis_points() > 0;
        self.current.config.policy.repositories.iter().any(|r| target(r.reads) || target(r.writes))
    }

    /// DISCARD ALL was carried out.
    pub(super) fn discarded(&mut self) {
        self.settings = settings::Settings::default();
        self.unread = vec!["search_path".to_owned()];
        self.temporary = false;
        self.wrote_side = None;
        self.held_side = None;
        self.discards = true;
        self.shared.pinned.set(None);
    }

    /// The block goes on: what must be repeated if it moves, and what it has done.
    pub(super) fn note_block(
        &mut self,
        survey: &Survey,
        footprint: Option<&Footprint>,
        side: Side,
        now: Instant,
    ) {
        if self.shared.transaction_since.get().is_none() {
            self.shared.transaction_since.set(Some(now));
        }
        self.txn.side = Some(side);
        self.shared.side.set(Some(side));
        self.txn.fixed |= survey.portal;
        if self.txn.status == Status::Failed {
            return;
        }
        if survey.runs && self.renew_block(survey, now) {
            return;
        }
        // What was only prepared or described has read nothing.
        if let Some(footprint) = footprint.filter(|_| !survey.executed.is_empty()) {
            self.txn.work = self.txn.work.max(footprint.work());
            self.txn.read |= footprint.reads;
            self.txn.fixed |= footprint.opens_cursor;
        }
        if !survey.runs {
            self.txn.fixed |= !survey.executed.is_empty(); // bound, and not executed so far
            return;
        }
        let statements = || survey.executed.iter().flat_map(|e| &e.plan.statements);
        // BEGIN and reads in one batch, as pgjdbc sends them, can be repeated; other batches cannot.
        let several = statements().nth(1).is_some();
        let begins = |k: &Kind| matches!(k, Kind::Transaction(Control::Begin { .. }));
        let opening = statements().next().is_some_and(|s| begins(&s.kind))
            && statements().skip(1).all(|s| s.kind == Kind::Read);
        self.txn.fixed |= several && !opening;
        for statement in statements() {
            match &statement.kind {
                Kind::Transaction(Control::Begin { read_only, isolation }) => {
                    self.txn.read_only = *read_only;
                    self.txn.isolation = *isolation;
                    if several {
                        self.txn.prologue.push(begin(*read_only, *isolation));
                    } else {
                        self.note_prologue(survey);
                    }
                }
                Kind::Transaction(Control::Commit { .. } | Control::Rollback { .. }) => {
                    self.context_moved |= self.context_local;
                    let prologue = self.txn.prologue.first().cloned();
                    self.txn.prologue.clear();
                    self.txn.prologue.extend(prologue);
                    self.txn.captured = 0;
                    self.txn.armed = 0;
                    self.shared.landed();
                    self.txn.fixed = true; // AND CHAIN
                }
                Kind::Transaction(_) => {
                    self.txn.armed = 0;
                    self.context_moved |= self.context_local; // ROLLBACK TO undoes settings as well
                    self.note_prologue(survey);
                }
                Kind::Local => {
                    statement.effects.iter().for_each(|effect| self.note_mode(effect));
                    self.note_prologue(survey);
                }
                // Settings are repeated when the block moves; of the rest nothing is known.
                Kind::Session if only_settings(statement) => self.note_prologue(survey),
                Kind::Session | Kind::Utility | Kind::Unknown(_) => self.txn.work = Work::Written,
                Kind::Empty
                | Kind::Read
                | Kind::Fetch
                | Kind::Close { .. }
                | Kind::CopyOut
                | Kind::CopyIn
                | Kind::Declare { .. }
                | Kind::LockingRead
                | Kind::Write
                | Kind::Code
                | Kind::Prepare { .. }
                | Kind::Execute { .. }
                | Kind::Deallocate { .. }
                | Kind::Ddl
                | Kind::Lock => {}
            }
        }
    }

    /// AND CHAIN, or a text that ends with `COMMIT; BEGIN`: the block is a new one that has done nothing, and is as free
    /// to choose its side as any.
    fn renew_block(&mut self, survey: &Survey, now: Instant) -> bool {
        let all: Vec<_> = survey.executed.iter().flat_map(|e| &e.plan.statements).map(|s| &s.kind).collect();
        let modes = |name: &String| name.starts_with("default_transaction_");
        let (read_only, isolation) = match all[..] {
            [Kind::Transaction(Control::Commit { chain: true } | Control::Rollback { chain: true })]
                if !self.unread.iter().any(modes) =>
            {
                (self.txn.read_only, self.txn.isolation)
            }
            [
                ..,
                Kind::Transaction(Control::Commit { chain: false } | Control::Rollback { chain: false }),
                Kind::Transaction(Control::Begin { read_only, isolation }),
            ] if survey.query.is_some() => (*read_only, *isolation),
            _ => return false,
        };
        self.context_moved |= self.context_local;
        self.shared.landed();
        self.current = self.shard.current();
        self.txn = Transaction {
            status: self.txn.status,
            side: self.txn.side,
            ticket: self.shard.ticket(),
            isolation,
            read_only,
            prologue: vec![begin(read_only, isolation)],
            ..Transaction::default()
        };
        self.shared.transaction_since.set(Some(now));
        true
    }

    pub(super) fn note_mode(&mut self, effect: &Effect) {
        let Effect::LocalSetting { name, value } = effect else { return };
        match (name.as_str(), value.as_deref()) {
            ("transaction_isolation", Some("read committed" | "read uncommitted")) => {
                self.txn.isolation = Some(Isolation::ReadCommitted);
            }
            ("transaction_isolation", _) => self.txn.isolation = Some(Isolation::Serializable),
            ("transaction_read_only", Some("on")) => self.txn.read_only = Some(true),
            ("transaction_read_only", _) => self.txn.read_only = Some(false),
            _ => {}
        }
    }

    pub(super) fn note_prologue(&mut self, survey: &Survey) {
        self.txn.note(survey.text.as_deref());
    }

    /// The server is gone in the middle of a unit.
    pub(super) fn server_lost(&mut self, choice: &Choice, why: &str, flight: &Flight) -> Result<(), End> {
        let block = self.txn.side.is_some();
        let held = self.keeps_servers() && choice.side == Side::Source;
        if flight.fatal {
            return Err(End::ServerSaid);
        }
        let writes = choice.footprint.as_deref().is_none_or(|f| !f.only_reads());
        let sqlstate = if writes { "08007" } else { "08006" };
        let mut error = ClientError::error(sqlstate, format!("lost the {} connection: {why}", choice.side));
        if writes {
            error = error.hint("Whether the statement took effect is not known: look before you repeat it.");
        }
        if block || held {
            return Err(End::Error(ClientError { fatal: true, ..error }));
        }
        self.txn.ended();
        self.txn.status = Status::Idle;
        self.shared.status.set(Status::Idle);
        self.shared.landed();
        error.encode(self.id(), &mut self.conn.output);
        frame::put_ready(&mut self.conn.output, b'I');
        Ok(())
    }

    pub(super) fn observe(
        &mut self,
        choice: &Choice,
        flight: &Flight,
        (now, took): (Instant, Duration),
        [client, server]: [[u64; 2]; 2],
    ) {
        #[cfg(feature = "otlp")]
        self.trace_unit(choice.footprint.as_deref(), now.checked_sub(took).unwrap_or(now));
        let stats = &self.stats[choice.side.index()];
        stats.query(took, flight.sqlstate.is_some(), server);
        self.shard.count_bytes(client, choice.side, server);
        if self.txn.status == Status::Idle {
            stats.transaction(self.shared.transaction_since.get().map_or(took, |since| now - since));
        }
        if let Some(footprint) = &choice.footprint {
            self.shard.count_query(footprint, choice.side, took, flight.sqlstate.as_ref());
        }
    }
}

/// A BEGIN like one that stood among other statements.
fn begin(read_only: Option<bool>, isolation: Option<Isolation>) -> String {
    let level = match isolation {
        None => "",
        Some(Isolation::ReadCommitted) => " ISOLATION LEVEL READ COMMITTED",
        Some(Isolation::RepeatableRead) => " ISOLATION LEVEL REPEATABLE READ",
        Some(Isolation::Serializable) => " ISOLATION LEVEL SERIALIZABLE",
    };
    let access = match read_only {
        None => "",
        Some(true) => " READ ONLY",
        Some(false) => " READ WRITE",
    };
    format!("BEGIN{level}{access}")
}

/// Does it leave nothing but settings behind?
pub(super) fn only_settings(statement: &crate::statement::Statement) -> bool {
    let setting = |e: &Effect| matches!(e, Effect::Setting(_) | Effect::LocalSetting { .. });
    !statement.effects.is_empty() && statement.effects.iter().all(setting)
}

//! What a unit needs around it because it writes to mirrored repositories, or ends a transaction that did.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::own;

use crate::{
    Side,
    backend::{
        script::{self, Own},
        server::Server,
    },
    catalog::RelationKind,
    error::ClientError,
    proxy::{
        client::{Client, Unit},
        extended::Survey,
        flight::{Flight, Hold},
        mirror::state::Installed,
        settle::only_settings,
    },
    route::{
        Footprint, Work,
        policy::{Ddl, Mode, Policy, Repository},
    },
    session::{pipeline::Expect, transaction::Status},
    statement::{Control, Effect, Isolation, Kind, Statement, Table},
    wire::frame,
};

/// What has to be done around a unit.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(in crate::proxy) enum Duty {
    /// Nothing.
    #[default]
    Nothing,
    /// It runs in a block of ours, which ends with it: an autocommit write to these repositories.
    Wrap(u64),
    /// Capture into the transaction is switched on first: the block's first write to these repositories.
    Arm(u64),
    /// What the block has written goes to the follower before its COMMIT.
    Commit,
    /// The block ends where it cannot be intercepted: what was captured goes to the journal first.
    Spill,
}

impl Client {
    /// The duty of a unit that runs with `footprint`, or why it is refused.
    pub(in crate::proxy) fn duty(
        &self,
        survey: &Survey,
        footprint: Option<&Footprint>,
        unit: Unit,
    ) -> Result<Duty, ClientError> {
        let Some(footprint) = footprint.filter(|_| !survey.executed.is_empty()) else {
            return Ok(Duty::Nothing);
        };
        let policy = &self.current.config.policy;
        let ours = |e: &Effect| match e {
            Effect::Setting(name) | Effect::LocalSetting { name, .. } => name.starts_with("crossfade."),
            Effect::ResetAll | Effect::Pin(_) | Effect::DiscardAll | Effect::DiscardSome => false,
        };
        if survey.executed.iter().flat_map(|e| &e.plan.statements).any(|s| s.effects.iter().any(ours)) {
            return Err(ClientError::error(
                "42501",
                "settings that begin with crossfade. are crossfade's own",
            ));
        }
        if footprint.writes != 0 {
            self.check_mirrored(policy, footprint, survey)?;
        }
        let mirrored = policy.in_mode(footprint.writes, Mode::is_mirrored);
        if mirrored == 0 && self.txn.captured == 0 {
            return Ok(Duty::Nothing);
        }
        let statements = || survey.executed.iter().flat_map(|e| &e.plan.statements);
        let complete = !matches!(unit, Unit::Extended { complete: false, .. });
        Ok(match self.txn.status {
            Status::Failed => Duty::Nothing,
            Status::Idle if mirrored == 0 => Duty::Nothing,
            Status::Idle => {
                let wraps = statements().all(fits_in_a_block) && statements().any(changes);
                if wraps { Duty::Wrap(mirrored) } else { Duty::Nothing }
            }
            Status::Block => {
                let mut all = statements();
                let lone = matches!(
                    all.next().map(|s| &s.kind),
                    Some(Kind::Transaction(Control::Commit { chain: false }))
                ) && all.next().is_none();
                if self.txn.captured != 0 && lone && complete {
                    Duty::Commit
                } else if self.txn.captured != 0 && statements().any(ends_the_block) {
                    Duty::Spill
                } else if mirrored & !self.txn.armed != 0
                    && !statements().any(ends_the_block)
                    && statements().any(holds)
                {
                    Duty::Arm(mirrored | self.txn.armed)
                } else {
                    Duty::Nothing
                }
            }
        })
    }

    /// A table of the repository that is written and was not there when what mirroring needs was installed.
    fn uncaptured(&self, repository: &Repository, installed: &Installed, survey: &Survey) -> Option<Table> {
        let relations = &self.current.catalog.relations;
        let captured = |table: &Table| {
            let mut at = Some(table);
            std::iter::from_fn(|| {
                let this = at.take()?;
                at = relations.get(this).and_then(|r| r.parent.as_ref());
                Some(this)
            })
            .any(|t| installed.names.contains(t))
        };
        let is_table = |t: &Table| relations.get(t).is_some_and(|r| r.kind == RelationKind::Table);
        let statements = survey.executed.iter().flat_map(|e| &e.plan.statements);
        let written = statements.filter(|s| s.kind != Kind::LockingRead).flat_map(|s| &s.writes);
        let mut new = written.filter(|t| !captured(t) && is_table(t));
        new.find(|t| repository.tables.iter().any(|p| p.matches(t))).cloned()
    }

    /// Repositories that it reads and of which the follower is not known to be current. A block that keeps a snapshot
    /// stays where it has read.
    pub(in crate::proxy) fn stale(&self, footprint: &Footprint) -> u64 {
        let keeps =
            !matches!(self.txn.isolation, None | Some(Isolation::ReadCommitted)) || !self.read_committed;
        if footprint.reads == 0 || keeps && self.txn.work >= Work::Read {
            return 0;
        }
        let policy = &self.current.config.policy;
        let status = &self.shard.global.mirrored.status;
        let mut stale = 0;
        for (index, r) in policy.of(footprint.reads) {
            let lead = r.writes.draw(0);
            let follows = r.mirror.mode.is_mirrored() && r.reads.allows(lead.other());
            if follows && (r.mirror.mode == Mode::Async || !status.is_clean(&r.name, lead, Instant::now())) {
                stale |= 1 << index;
            }
        }
        stale
    }

    /// Rows of these repositories are left to the journal: the follower is not current until they are shipped.
    pub(in crate::proxy) fn soil(&self, lead: Side, repositories: u64) {
        for (_, r) in self.current.config.policy.of(repositories) {
            self.shard.global.mirrored.status.soil(&r.name, lead, Instant::now());
        }
    }

    /// A repository that became mirrored just now: what that needs is waited for, so that no write is refused which
    /// a moment later would not be.
    pub(in crate::proxy) async fn until_known(&self, footprint: Option<&Footprint>) {
        let Some(footprint) = footprint.filter(|f| f.writes != 0) else { return };
        let state = &self.shard.global.mirror;
        let policy = &self.current.config.policy;
        let unknown = || {
            let installed = state.installed.load();
            let written = policy.of(footprint.writes);
            let mut mirrored = written.filter(|(_, r)| r.mirror.mode.is_mirrored()).peekable();
            mirrored.peek().is_some()
                && (Side::BOTH.into_iter().any(|s| state.tokens[s.index()].load().is_none())
                    || mirrored.any(|(_, r)| !installed.repositories.contains_key(&r.name)))
        };
        while unknown() && self.current.since.elapsed() < LEARNED {
            state.refresh(&self.shard.global.mirrored.tables);
            tokio::time::sleep(LOOK).await;
        }
    }

    /// What a unit without a duty may leave to the journal, of the repositories whose reads may go to the follower. What
    /// a block writes while it is armed goes with its COMMIT; what is only prepared writes nothing.
    pub(in crate::proxy) fn leaves_to_journal(&self, survey: &Survey, footprint: Option<&Footprint>) -> u64 {
        let runs = !survey.executed.is_empty() && self.txn.armed == 0;
        let Some(footprint) = footprint.filter(|f| runs && f.is_write()) else { return 0 };
        let all = if footprint.writes_unknown { u64::MAX } else { footprint.writes };
        self.current.config.policy.in_mode(all, Mode::is_synchronous)
    }

    /// A message of an open batch is about to execute something: what must come before it is written to `out`.
    pub(in crate::proxy) fn inject(
        &mut self,
        survey: &Survey,
        server: &mut Server,
        flight: &mut Flight,
    ) -> Result<(), ClientError> {
        let statements = || survey.executed.iter().flat_map(|e| &e.plan.statements);
        if survey.executed.is_empty() || self.pipeline.skips() {
            return Ok(());
        }
        if statements().any(ends_the_block) {
            if flight.mirrored.wrapped {
                return Err(no_further());
            }
            if self.txn.captured != 0 {
                self.txn.captured = 0;
                self.txn.armed = 0;
                self.put_hidden(own::SPILL, &[], server);
            }
            return Ok(());
        }
        let Some(footprint) = self.footprint(survey) else { return Ok(()) };
        let policy = Arc::clone(&self.current.config.policy);
        if footprint.writes != 0 {
            self.check_mirrored(&policy, &footprint, survey)?;
        }
        let mirrored = policy.in_mode(footprint.writes, Mode::is_mirrored);
        let block = self.txn.status == Status::Block;
        let concerns = if block { holds } else { changes };
        if mirrored == 0 || !statements().any(concerns) {
            return Ok(());
        }
        if !block && !flight.mirrored.wrapped {
            if self.txn.status != Status::Idle || !statements().all(fits_in_a_block) {
                return Ok(());
            }
            self.put_hidden(own::BEGIN, &[], server);
            flight.mirrored.wrapped = true;
            flight.mirrored.hold = Hold::Ready;
        }
        let armed = if block { self.txn.armed } else { flight.mirrored.repositories };
        if mirrored & !armed == 0 {
            return Ok(());
        }
        let all = mirrored | armed;
        if block {
            self.txn.armed = all;
            self.txn.captured |= all;
        } else {
            flight.mirrored.repositories = all;
        }
        self.take_off(server, all);
        let numbers = self.numbers_of(all);
        let side = server.side.name();
        self.put_hidden(own::ARM, &[numbers.as_bytes(), side.as_bytes()], server);
        Ok(())
    }

    /// Writes a statement of ours into an open batch; its answer is swallowed.
    fn put_hidden(&mut self, own: Own<'_>, parameters: &[&[u8]], server: &mut Server) {
        let name = own.name.as_bytes();
        if server.known.get(name).is_none() {
            server.known.set(name, Some(script::NUMBER));
            self.pipeline.sent(Expect::HiddenParse);
            frame::put_parse(&mut server.conn.output, name, own.sql.as_bytes(), &[0, 0]);
        }
        let parameters: Vec<_> = parameters.iter().map(|p| Some(*p)).collect();
        // The client's portals stay as they are, and none of ours is taken for one.
        script::close(&mut server.conn.output);
        server.known.touch(name);
        self.pipeline.sent(Expect::HiddenClose);
        script::put_bind(&mut server.conn.output, script::PORTAL, own.name, &parameters, script::TEXT);
        self.pipeline.sent(Expect::HiddenBind);
        script::put_execute(&mut server.conn.output, script::PORTAL);
        server.known.touch(name);
        self.pipeline.sent(Expect::HiddenExecute);
    }

    /// Is the client's encoding that of the connections to the follower?
    pub(super) fn speaks_utf8(&self) -> bool {
        self.context.ascii_safe && self.utf8
    }

    /// Refuses writes to what is not installed, and DDL.
    fn check_mirrored(
        &self,
        policy: &Policy,
        footprint: &Footprint,
        survey: &Survey,
    ) -> Result<(), ClientError> {
        let written = policy.of(footprint.writes).map(|(_, r)| r);
        for repository in written.filter(|r| r.mirror.mode.is_mirrored()) {
            let name = &repository.name;
            let installed = self.shard.global.mirror.installed.load();
            if !installed.repositories.contains_key(name) {
                return Err(ClientError::error(
                    "55000",
                    format!("the repository {name:?} is mirrored, and what that needs is not installed"),
                )
                .hint("Run crossfade mirror install, or set mirror.install = true."));
            }
            if let Some(table) = self.uncaptured(repository, &installed, survey) {
                return Err(ClientError::error(
                    "55000",
                    format!(
                        "{}.{} belongs to the mirrored repository {name:?}, and its changes are not captured",
                        table.schema, table.name
                    ),
                )
                .hint("Run crossfade mirror install, or set mirror.install = true."));
            }
            let ddl = || survey.executed.iter().flat_map(|e| &e.plan.statements).any(|s| s.kind == Kind::Ddl);
            if repository.mirror.ddl == Ddl::Refuse && ddl() {
                return Err(ClientError::error(
                    "0A000",
                    format!("definitions of the mirrored repository {name:?} cannot be changed"),
                )
                .hint("Change both databases yourself, then run crossfade mirror install; or set ddl = \"lead\"."));
            }
        }
        Ok(())
    }
}

/// Does it write, or lock what others must not have meanwhile? In a block its locks outlast it: the lead must not move before
/// the block ends, or somebody else would get them on the other side.
fn holds(statement: &Statement) -> bool {
    !statement.functions.is_empty() || !statement.writes.is_empty() || statement.kind == Kind::LockingRead
}

/// May it write rows? A row lock alone leaves nothing to ship.
fn changes(statement: &Statement) -> bool {
    !statement.functions.is_empty()
        || !statement.writes.is_empty() && !matches!(statement.kind, Kind::LockingRead | Kind::Lock)
}

/// Does it do the same inside a block as outside of one?
fn fits_in_a_block(statement: &Statement) -> bool {
    match &statement.kind {
        Kind::Empty
        | Kind::Read
        | Kind::LockingRead
        | Kind::Write
        | Kind::CopyIn
        | Kind::CopyOut
        | Kind::Execute { .. } => true,
        Kind::Session => only_settings(statement),
        Kind::Transaction(_)
        | Kind::Local
        | Kind::Prepare { .. }
        | Kind::Deallocate { .. }
        | Kind::Declare { .. }
        | Kind::Fetch
        | Kind::Close { .. }
        | Kind::Code
        | Kind::Ddl
        | Kind::Lock
        | Kind::Utility
        | Kind::Unknown(_) => false,
    }
}

/// Does it end the block in a way that keeps what the block wrote?
fn ends_the_block(statement: &Statement) -> bool {
    matches!(statement.kind, Kind::Transaction(Control::Commit { .. } | Control::Prepare))
}

/// How long after an edit of the configuration that is waited for.
const LEARNED: Duration = Duration::from_secs(3);
const LOOK: Duration = Duration::from_millis(10);

/// What comes now in an open batch would end a block of ours before its rows are shipped.
pub(in crate::proxy) fn no_further() -> ClientError {
    ClientError::fatal("0A000", "a batch that writes mirrored tables cannot go on here")
        .hint("Send a Sync before what ends a transaction, and before a simple Query.")
}

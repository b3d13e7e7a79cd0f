//! One unit: where it runs, on which connection, and what it leaves behind.

use std::{rc::Rc, time::Instant};

use super::{
    checkout::UNREACHABLE,
    client::{Client, End, Unit, last_words},
    extended::Survey,
    flight::{Broken, Flight},
    mirror::{Duty, Late},
    plans::Entry,
    send::SendError,
    settle::only_settings,
    shard::Shard,
    shared::Signal,
};
use crate::{
    Side,
    admin::http::BackendState,
    backend::pool::Refused,
    error::ClientError,
    route::{self, Block, Decision, Footprint, Reason, TransactionState, Work},
    session::transaction::Status,
    statement::{Isolation, Kind, Pin, Plan},
    wire::frame::{self, HEADER},
};

/// Where a unit goes.
pub(super) struct Choice {
    pub(super) side: Side,
    pub(super) reason: Reason,
    pub(super) footprint: Option<Rc<Footprint>>,
    /// The side that answers when the chosen one cannot: for reads outside a block.
    pub(super) fallback: Option<Side>,
    /// A look at the source's catalog from within a block on the target: outside of that block.
    pub(super) aside: bool,
}

impl Choice {
    fn new(side: Side, reason: Reason, footprint: Option<Rc<Footprint>>) -> Self {
        Self { side, reason, footprint, fallback: None, aside: false }
    }

    /// The lead answers instead.
    fn fall_to(&mut self, lead: Side, shard: &Shard) {
        self.side = lead;
        self.reason = Reason::Fallback;
        if let Some(footprint) = &self.footprint {
            shard.count_route(footprint, lead, Reason::Fallback);
        }
    }
}

impl Client {
    /// Runs one unit to its ReadyForQuery.
    pub(super) async fn serve(&mut self, unit: Unit) -> Result<(), End> {
        if self.txn.status == Status::Idle {
            self.current = self.shard.current();
            self.txn.ticket = self.shard.ticket();
        }
        let survey = match unit {
            Unit::Simple { length, function } => self.survey_simple(length, function, false),
            // Behind `Parse ... Query` without a Sync, Postgres 18 is in a transaction that this Sync ends.
            Unit::Extended { length: 5, complete: true }
                if self.conn.input[0] == b'S' && self.txn.status == Status::Idle =>
            {
                self.conn.consume(5, &self.shard.buffers);
                frame::put_ready(&mut self.conn.output, self.txn.status.byte());
                return Ok(());
            }
            Unit::Extended { length, .. } => self.survey(length, false)?,
        };
        match self.choose(&survey, unit) {
            Ok((mut choice, moves)) => {
                if moves && let Err(error) = Box::pin(self.move_to(choice.side)).await {
                    let Some(lead) = choice.fallback.take().filter(|_| error.sqlstate == UNREACHABLE) else {
                        return Box::pin(self.refuse(&error, unit)).await;
                    };
                    choice.fall_to(lead, &self.shard);
                }
                self.run_on(choice, unit, survey).await
            }
            Err(error) => Box::pin(self.refuse(&error, unit)).await,
        }
    }

    pub(super) fn survey_simple(&mut self, length: usize, function: bool, unsure: bool) -> Survey {
        let mut survey = Survey { runs: true, ..Survey::default() };
        if function {
            let context = self.meant(unsure);
            survey.executed.push(Entry::new(
                Plan::function_call(),
                self.current.catalog.generation,
                context.number,
            ));
        } else if let Ok(text) = frame::query_text(&self.conn.input[HEADER..length]) {
            let context = self.meant(unsure);
            let entry = self.shard.plan(text, &context, &self.current);
            if is_prologue(&entry) {
                survey.text = Some(String::from_utf8_lossy(text).into_owned());
            }
            survey.excess = self.too_many_prepared(&entry.plan);
            survey.executed.push(self.resolve(&entry, &context));
            survey.query = Some(entry);
        }
        survey
    }

    /// Chooses the side; `true` when the transaction block must move there first.
    fn choose(&mut self, survey: &Survey, unit: Unit) -> Result<(Choice, bool), ClientError> {
        if let Some(excess) = &survey.excess {
            return Err(ClientError::clone(excess));
        }
        let block = self.txn.status != Status::Idle;
        let stay = self.txn.side.filter(|_| block).unwrap_or(Side::Source);
        let Some(footprint) = self.footprint(survey) else {
            let side = if block { stay } else { self.held_side.unwrap_or(stay) };
            return Ok((Choice::new(side, Reason::Home, None), false));
        };
        if self.txn.side == Some(Side::Target) && self.txn.status == Status::Block && reads_catalog(survey) {
            let aside = Choice { aside: true, ..Choice::new(Side::Source, Reason::Home, Some(footprint)) };
            return Ok((aside, false));
        }
        if let Some(side) = self.held_side.filter(|_| !block)
            && survey
                .executed
                .iter()
                .flat_map(|e| &e.plan.statements)
                .all(|s| matches!(s.kind, Kind::Fetch | Kind::Close { .. }))
            && !survey.executed.is_empty()
        {
            return Ok((Choice::new(side, Reason::Home, Some(footprint)), false));
        }
        let policy = &self.current.config.policy;
        let complete = !matches!(unit, Unit::Extended { complete: false, .. });
        let copies = self.copies_nested_oids(survey);
        let mut state = TransactionState {
            stale: self.stale(&footprint),
            holds: survey.portal || footprint.opens_cursor || !complete || copies,
            ..self.state(complete && !copies)
        };
        if let Some(block) = &mut state.block {
            block.pinned |= survey.older_portal;
        }
        let (side, reason, moves) = match route::decide(&footprint, policy, &state, self.txn.ticket) {
            Decision::Run(side, reason) => (side, reason, false),
            Decision::Move(side, reason) => (side, reason, self.txn.side.is_some_and(|now| now != side)),
            Decision::Refuse(refusal) => return Err(ClientError::from(&refusal)),
        };
        let mut fallback = None;
        if (!block || moves) && complete && footprint.only_reads() {
            let lead = route::lead(&footprint, policy, self.txn.ticket);
            // A block that would move may as well stay, if that is where the lead is.
            fallback = lead.filter(|&lead| lead != side && (!moves || self.txn.side == Some(lead)));
        }
        let is_down = |side| self.shard.global.backend(side) == BackendState::Down;
        let mut choice = Choice { fallback, ..Choice::new(side, reason, Some(footprint)) };
        if let Some(lead) = fallback
            && is_down(side)
            && !is_down(lead)
        {
            choice.fallback = None;
            choice.fall_to(lead, &self.shard);
            return Ok((choice, false));
        }
        if let Some(footprint) = &choice.footprint {
            self.shard.count_route(footprint, side, reason);
        }
        Ok((choice, moves))
    }

    pub(super) fn footprint(&self, survey: &Survey) -> Option<Rc<Footprint>> {
        let (policy, catalog) = (&self.current.config.policy, &self.current.catalog);
        let entries = if survey.executed.is_empty() { &survey.named } else { &survey.executed };
        let (first, rest) = entries.split_first()?;
        let mut footprint = first.footprint(policy, catalog);
        for entry in rest {
            footprint = Rc::new(footprint.merged(&entry.footprint(policy, catalog)));
        }
        Some(footprint)
    }

    /// Does it COPY values with OIDs in them? In binary they are not mapped on the way, so the lead answers.
    fn copies_nested_oids(&self, survey: &Survey) -> bool {
        let relations = &self.current.catalog.relations;
        let nested = |s: &crate::statement::Statement| {
            s.kind == Kind::CopyOut && s.reads.iter().any(|t| relations.get(t).is_some_and(|r| r.nested_oids))
        };
        survey.executed.iter().flat_map(|e| &e.plan.statements).any(nested)
    }

    fn state(&self, complete: bool) -> TransactionState {
        let sticky = self.current.config.policy.sticky;
        let recent = !sticky.is_zero() && self.wrote_at.is_some_and(|at| at.elapsed() < sticky);
        let default = (!self.read_committed).then_some(Isolation::Serializable);
        let block = Block {
            side: self.txn.side,
            work: if self.txn.status == Status::Failed { Work::Failed } else { self.txn.work },
            read: self.txn.read,
            isolation: self.txn.isolation.or(default),
            read_only: self.txn.read_only,
            pinned: self.txn.fixed,
        };
        TransactionState {
            block: (self.txn.status != Status::Idle).then_some(block),
            // What is not known to its end may still write: it begins where it could.
            sticky: recent || !complete,
            temporary: self.shared.pinned.get() == Some(Pin::TempTable) || self.temporary,
            last_write: self.wrote_side,
            holds: false,
            stale: 0,
        }
    }

    /// A message of an open batch must run where the batch runs.
    pub(super) fn stay_on(&mut self, side: Side, survey: &Survey) -> Result<(), End> {
        let Some(footprint) = self.footprint(survey) else { return Ok(()) };
        let mut state = self.state(false);
        let block = state.block.unwrap_or_default();
        let work = block.work.max(Work::Read);
        state.block = Some(Block { side: Some(side), pinned: true, work, ..block });
        match route::decide(&footprint, &self.current.config.policy, &state, self.txn.ticket) {
            Decision::Run(to, _) if to == side => Ok(()),
            Decision::Run(..) | Decision::Move(..) => Err(ClientError::fatal(
                "0A000",
                format!("a pipeline that was begun on the {side} cannot continue on the {}", side.other()),
            )
            .hint("Send a Sync before statements of another repository.")
            .into()),
            Decision::Refuse(refusal) => {
                Err(ClientError { fatal: true, ..ClientError::from(&refusal) }.into())
            }
        }
    }

    async fn run_on(&mut self, mut choice: Choice, unit: Unit, mut survey: Survey) -> Result<(), End> {
        let (Unit::Simple { length, .. } | Unit::Extended { length, .. }) = unit;
        self.until_known(choice.footprint.as_deref()).await;
        let duty = match self.duty(&survey, choice.footprint.as_deref(), unit) {
            Ok(duty) => duty,
            Err(error) => return Box::pin(self.refuse(&error, unit)).await,
        };
        let keep = choice.fallback.is_some() || matches!(duty, Duty::Wrap(_) | Duty::Arm(_));
        let mut kept = keep.then(|| self.conn.input[..length].to_vec());
        loop {
            let began = Instant::now();
            let mut flight =
                Flight { retryable: choice.fallback.is_some(), aside: choice.aside, ..Flight::default() };
            let mut server = match self.checkout(choice.side).await {
                Ok(server) => server,
                Err(refused) if self.fall_back(&mut choice, &refused) => continue,
                Err(refused) => return Box::pin(self.not_served(choice.side, refused, unit)).await,
            };
            if duty == Duty::Commit {
                return Box::pin(self.run_commit(choice, unit, survey, server)).await;
            }
            let left = if duty == Duty::Nothing {
                self.leaves_to_journal(&survey, choice.footprint.as_deref())
            } else {
                0
            };
            let broken = if duty == Duty::Nothing {
                self.send_and_exchange(unit, length, &mut survey, &mut server, &mut flight).await
            } else {
                let work = (duty, unit, length);
                Box::pin(self.run_mirrored(work, &mut survey, &mut server, &mut flight)).await
            };
            let broken = match broken {
                // Capture was switched on in the middle of the batch.
                Ok(())
                    if flight.mirrored.wrapped && !matches!(duty, Duty::Wrap(_)) && !flight.mirrored.late =>
                {
                    let repositories = flight.mirrored.repositories;
                    let unwrapped = Box::pin(self.unwrap(&mut server, &mut flight, repositories)).await;
                    unwrapped.err()
                }
                Ok(()) => None,
                Err(SendError::End(end)) => return Err(end),
                Err(SendError::Broken(broken)) => Some(broken),
            };
            match broken {
                None if flight.mirrored.late => {
                    let late = Late::new(duty, unit, kept.take());
                    return Box::pin(self.run_again(late, server)).await;
                }
                None => {
                    if left != 0 {
                        self.soil(choice.side, left);
                    }
                    if !flight.later.is_empty() {
                        survey.executed.append(&mut flight.later);
                        survey.text = None;
                        survey.runs = true;
                        choice.footprint = self.footprint(&survey);
                    }
                    let now = Instant::now();
                    let traffic =
                        [&mut self.conn, &mut server.conn].map(|conn| std::mem::take(&mut conn.traffic));
                    self.observe(&choice, &flight, (now, now - began), traffic);
                    if self.txn.status == Status::Idle {
                        server.info.transactions.set(server.info.transactions.get() + 1);
                    }
                    if choice.aside {
                        return Box::pin(self.return_from_aside(server, &flight)).await;
                    }
                    return self.finish(server, &flight, &survey, choice.footprint.as_deref(), now).await;
                }
                Some(Broken::Client(end)) => {
                    self.still_runs(&server, &flight);
                    self.servers[choice.side.index()] = Some(server);
                    return Err(end);
                }
                Some(Broken::Server(why)) => {
                    drop(server);
                    self.pipeline.reset();
                    self.registry.undo(usize::MAX);
                    self.shard.lost_server(choice.side, &why);
                    let refused = Refused::Unreachable(why.as_str().into());
                    if let Some(kept) = kept.as_ref().filter(|_| !flight.answered)
                        && self.fall_back(&mut choice, &refused)
                    {
                        let rest = std::mem::take(&mut self.conn.input);
                        self.conn.input.extend_from_slice(kept);
                        self.conn.input.extend_from_slice(&rest);
                        survey = match unit {
                            Unit::Simple { length, function } => self.survey_simple(length, function, false),
                            Unit::Extended { length, .. } => self.survey(length, false)?,
                        };
                        continue;
                    }
                    return self.server_lost(&choice, &why, &flight);
                }
            }
        }
    }

    /// A read whose side does not answer is answered by the lead.
    fn fall_back(&mut self, choice: &mut Choice, refused: &Refused) -> bool {
        if matches!(refused, Refused::Cancelled | Refused::Timeout) {
            return false;
        }
        let Some(side) = choice.fallback.take() else { return false };
        choice.fall_to(side, &self.shard);
        true
    }

    pub(super) async fn not_served(&mut self, side: Side, refused: Refused, unit: Unit) -> Result<(), End> {
        let error = match refused {
            Refused::Server(frame) => {
                if self.servers.iter().all(Option::is_none) && self.keeps_servers() {
                    self.conn.output.extend_from_slice(&frame);
                    return Err(End::ServerSaid);
                }
                let what = if self.keeps_servers() && self.servers[side.index()].is_some() {
                    "session's settings"
                } else {
                    "connection"
                };
                ClientError::error("08006", format!("the {side} refused the {what}"))
                    .detail(frame::error_text(&frame))
            }
            Refused::Unreachable(why) => {
                ClientError::error("08006", format!("could not open a {side} connection: {why}"))
                    .hint(format!("Is the {side} running? crossfade connects again by itself."))
            }
            Refused::Timeout => ClientError { fatal: false, ..last_words(Signal::QueryWait) },
            Refused::Cancelled => match self.ended_by_signal() {
                Some(end) => return Err(end),
                None => ClientError::error("57014", "canceling statement due to user request"),
            },
        };
        self.refuse(&error, unit).await
    }

    fn ended_by_signal(&self) -> Option<End> {
        let signal = self.shared.told()?;
        if signal == Signal::Cancel {
            self.shared.clear_signal();
            return None;
        }
        Some(End::Error(last_words(signal)))
    }
}

/// Does it read the catalog and nothing else, so that the answer is about OIDs that the client knows the source's of?
fn reads_catalog(survey: &Survey) -> bool {
    let entries = if survey.executed.is_empty() { &survey.named } else { &survey.executed };
    let catalog = |s: &crate::statement::Statement| {
        let tables = s.reads.is_empty() && s.writes.is_empty() && s.functions.is_empty();
        s.kind == Kind::Read
            && s.introspects
            && tables
            && !s.hazards.contains(crate::statement::Hazards::SESSION)
    };
    !entries.is_empty() && entries.iter().flat_map(|e| &e.plan.statements).all(catalog)
}

/// Must the text be kept, to be repeated where the transaction moves to?
fn is_prologue(entry: &Rc<Entry>) -> bool {
    let repeated = |s: &crate::statement::Statement| {
        matches!(s.kind, Kind::Transaction(_) | Kind::Local) || s.kind == Kind::Session && only_settings(s)
    };
    matches!(&entry.plan.statements[..], [only] if repeated(only))
}

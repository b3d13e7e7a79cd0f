//! On the data thread: is this read executed a second time, and what did the client get?

use std::{rc::Rc, sync::Arc, time::Instant};

use super::{Bound, Job, Who};
use crate::{
    Side,
    admin::http::BackendState,
    backend::server::Server,
    compare::digest::Digest,
    config::Config,
    proxy::{
        client::{Client, Unit},
        extended::{Survey, names_in},
        flight::Flight,
    },
    route::{Work, policy::Share},
    session::settings::Settings,
    shadow::eligible::{self, Around, Skip},
    statement::{Hazards, Isolation, Statement},
    wire::frame::{self, Fields, Frontend, HEADER},
};

/// Follows one answer.
#[derive(Debug)]
pub(in crate::proxy) struct Tap {
    digest: Digest,
    job: Box<Job>,
    most: u64,
    began: Instant,
    /// The answer is too large: it is not followed any more.
    large: bool,
}

/// What second executions of a client's reads have in common.
#[derive(Default)]
pub(in crate::proxy) struct Made {
    who: Option<Arc<Who>>,
    pinned: Option<Pinned>,
}

/// Settings of second executions, and what they were made of.
struct Pinned {
    config: Arc<Config>,
    of_client: Settings,
    reported: [Option<String>; PINNED.len()],
    settings: Arc<Vec<(String, String)>>,
}

impl std::fmt::Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Job").field("fingerprint", &self.fingerprint).finish_non_exhaustive()
    }
}

impl Tap {
    /// The next bytes of the answer, as the client gets them.
    pub(in crate::proxy) fn feed(&mut self, bytes: &[u8]) {
        if !self.large {
            self.digest.feed(bytes);
            self.large = self.digest.bytes() > self.most;
        }
    }
}

impl Client {
    /// What follows the answer to this unit, if it is a read that is to be executed a second time.
    pub(in crate::proxy) fn tap(
        &mut self,
        survey: &Survey,
        unit: Unit,
        length: usize,
        server: &Server,
    ) -> Option<Box<Tap>> {
        let footprint = self.footprint(survey)?;
        let shadow = &self.current.config.shadow;
        let concerned = footprint.reads | footprint.writes;
        let shares = shadow.repositories.iter().enumerate().filter(|(index, _)| concerned >> index & 1 == 1);
        let (repository, of) = shares.clone().find(|(_, r)| r.share != Share::NONE)?;
        let share = shares.skip_while(|(index, _)| *index == 0).map(|(_, r)| r.share);
        let share = share.min_by_key(|share| share.basis_points()).unwrap_or(of.share);
        let name = &self.current.config.policy.repositories[repository].name;
        let state = &self.shard.global.shadow;
        let statement = match self.shadowed(survey, unit, concerned) {
            Ok(statement) => statement,
            Err(Some(skip)) => {
                state.skipped(name, skip);
                return None;
            }
            Err(None) => return None,
        };
        let sampled = eligible::sampled(share, self.shard.ticket());
        state.eligible(name, sampled);
        if !sampled {
            return None;
        }
        let other = server.side.other();
        if self.shard.global.is_paused(other) || self.shard.global.backend(other) == BackendState::Down {
            state.dropped("down");
            return None;
        }
        let Some((sql, bound)) = self.message(survey, unit, length) else {
            state.skipped(name, Skip::Large);
            return None;
        };
        let fingerprint = survey.executed.first().map_or(0, |entry| entry.plan.fingerprint);
        let job = self.job(statement, (repository, footprint.reads, fingerprint), (sql, bound), server);
        Some(Box::new(Tap {
            digest: Digest::new(state.seed),
            job: Box::new(job),
            most: shadow.max_result_bytes as u64,
            began: Instant::now(),
            large: false,
        }))
    }

    /// The statement, if it may be executed twice.
    fn shadowed<'a>(
        &self,
        survey: &'a Survey,
        unit: Unit,
        concerned: u64,
    ) -> Result<&'a Statement, Option<Skip>> {
        let entry = match survey.executed.as_slice() {
            [only] => only,
            [] => return Err(None),
            [first, ..] => {
                eligible::statement(&first.plan)?;
                return Err(Some(Skip::Several));
            }
        };
        let statement = eligible::statement(&entry.plan)?;
        if concerned & 1 == 1 {
            return Err(Some(Skip::OneSided));
        }
        if survey.query.as_ref().is_some_and(|query| names_in(&query.plan).next().is_some()) {
            return Err(Some(Skip::Session)); // EXECUTE
        }
        let complete = !matches!(unit, Unit::Extended { complete: false, .. });
        let default = (!self.read_committed).then_some(Isolation::Serializable);
        let own_state =
            !self.unread.is_empty() || self.temporary || self.context_local || self.txn.prologue.len() > 1;
        eligible::around(&Around {
            wrote: self.txn.work >= Work::Written,
            isolation: self.txn.isolation.or(default),
            own_state,
            in_parts: survey.portal || survey.older_portal || !complete || !survey.runs,
            executions: 1,
        })?;
        Ok(statement)
    }

    /// The text, and of the extended protocol the types and values of its parameters. `None` when they are too large.
    fn message(&self, survey: &Survey, unit: Unit, length: usize) -> Option<(Vec<u8>, Bound)> {
        if length > MAX_MESSAGE {
            return None;
        }
        let mut frames = &self.conn.input[..length];
        if let Unit::Simple { .. } = unit {
            return Some((frame::query_text(&frames[HEADER..]).ok()?.to_vec(), None));
        }
        let mut parsed = survey.parsed.iter();
        let mut new = Vec::new();
        while let Ok(Some((tag, size))) = frame::header(frames) {
            let (this, rest) = frames.split_at(size);
            frames = rest;
            let mut fields = Fields(&this[HEADER..]);
            match Frontend::from_tag(tag) {
                Some(Frontend::Parse) => new.push((fields.cstr().ok()?, parsed.next()?)),
                Some(Frontend::Bind) => {
                    let (_portal, name) = (fields.cstr().ok()?, fields.cstr().ok()?);
                    let found = new.iter().rev().find(|(n, _)| *n == name).map(|(_, statement)| *statement);
                    let statement = found.or_else(|| self.registry.get(name))?;
                    if statement.sql.len() > MAX_MESSAGE || statement.name_span.is_some() {
                        return None;
                    }
                    let types =
                        if statement.types.is_empty() { vec![0, 0] } else { statement.types.to_vec() };
                    return Some((statement.sql.to_vec(), Some((types, fields.0.to_vec()))));
                }
                _ => {}
            }
        }
        None
    }

    fn job(
        &self,
        statement: &Statement,
        (repository, reads, fingerprint): (usize, u64, u64),
        (sql, bound): (Vec<u8>, Bound),
        server: &Server,
    ) -> Job {
        let mut tables = statement.reads.iter();
        let table = tables.next().filter(|_| tables.next().is_none());
        let relation = table.and_then(|table| self.current.catalog.relations.get(table));
        Job {
            config: Arc::clone(&self.current.config),
            catalog: Arc::clone(&self.current.catalog),
            repository,
            reads,
            fingerprint,
            sql,
            bound,
            answering: server.side,
            who: self.shadowed_as(),
            settings: self.pinned_settings(server),
            application: self.application(),
            total_order: statement.total_order,
            determinate: !statement.hazards.contains(Hazards::INDETERMINATE),
            key: relation.map_or_else(Vec::new, |relation| relation.key.clone()),
            summary: crate::compare::digest::Summary::default(),
            took: std::time::Duration::ZERO,
            queued: Instant::now(),
        }
    }

    fn shadowed_as(&self) -> Arc<Who> {
        let mut made = self.shadowed.borrow_mut();
        let known = &mut made.get_or_insert_default().who;
        if let Some(who) = known.as_ref().filter(|who| Arc::ptr_eq(&who.config, &self.current.config)) {
            return Arc::clone(who);
        }
        let pool = &self.pools[0].key;
        let who = Arc::new(Who {
            config: Arc::clone(&self.current.config),
            user: pool.user.to_string(),
            parameters: parameters(&pool.parameters),
            minor: pool.minor,
            credentials: Side::BOTH.map(|side| self.pools[side.index()].credentials.borrow().clone()),
        });
        *known = Some(Arc::clone(&who));
        who
    }

    /// As the client calls itself now. In transaction pooling servers do not know its first name: RESET leaves none there.
    fn application(&self) -> String {
        let set = self.settings.iter().find(|(name, value)| name == "application_name" && !value.is_empty());
        set.map_or(&self.shared.application_name, |(_, value)| value).clone()
    }

    /// Sorted by name, as settings are. The same as for the read before as long as nothing of it has changed.
    fn pinned_settings(&self, server: &Server) -> Arc<Vec<(String, String)>> {
        let reported = PINNED.map(|name| {
            let found = server.parameters.iter().find(|(n, _)| n.eq_ignore_ascii_case(name));
            found.map(|(_, value)| value.as_str())
        });
        let mut made = self.shadowed.borrow_mut();
        let known = &mut made.get_or_insert_default().pinned;
        let same = |pinned: &&Pinned| {
            Arc::ptr_eq(&pinned.config, &self.current.config)
                && Rc::ptr_eq(&pinned.of_client, &self.settings)
                && pinned.reported.iter().map(Option::as_deref).eq(reported)
        };
        if let Some(pinned) = known.as_ref().filter(same) {
            return Arc::clone(&pinned.settings);
        }
        let mut settings: Vec<(String, String)> = self.settings.to_vec();
        settings.retain(|(name, _)| !OWN.contains(&name.as_str()));
        for (name, value) in PINNED.into_iter().zip(reported) {
            if let Some(value) = value.filter(|_| !settings.iter().any(|(n, _)| n == name)) {
                settings.push((name.to_owned(), value.to_owned()));
            }
        }
        let timeout = self.current.config.shadow.statement_timeout.as_millis().to_string();
        settings.push(("statement_timeout".to_owned(), timeout));
        settings.sort();
        let settings = Arc::new(settings);
        *known = Some(Pinned {
            config: Arc::clone(&self.current.config),
            of_client: Rc::clone(&self.settings),
            reported: reported.map(|value| value.map(str::to_owned)),
            settings: Arc::clone(&settings),
        });
        settings
    }

    /// The answer is over, and the client has it: the read is executed a second time.
    pub(in crate::proxy) fn hand_over(&self, tap: Tap, flight: &Flight, now: Instant) {
        let state = &self.shard.global.shadow;
        let Tap { digest, mut job, began, large, .. } = tap;
        job.summary = digest.finish();
        job.took = now - began;
        job.queued = now;
        if large {
            state.dropped("large");
        } else if let Some(unfit) = job.summary.unfit() {
            state.dropped(unfit.name());
        } else if !flight.later.is_empty() || job.summary.commands > 1 {
            state.dropped("batch");
        } else if job.summary.sqlstate.is_some_and(by_chance) {
            state.dropped("failed");
        } else {
            state.hand_over(job);
        }
    }
}

/// The client's start-up parameters under a name of our own (a pool for every application would be too many), in
/// sessions that only read.
fn parameters(of_client: &[(String, String)]) -> Vec<(String, String)> {
    let own = [("application_name", "crossfade shadow"), ("default_transaction_read_only", "on")];
    let others = of_client.iter().filter(|(name, _)| own.iter().all(|(n, _)| n != name)).cloned();
    others.chain(own.map(|(name, value)| (name.to_owned(), value.to_owned()))).collect()
}

/// Does an error of this SQLSTATE say something about the moment rather than about the data?
pub(super) fn by_chance(sqlstate: [u8; 5]) -> bool {
    matches!(&sqlstate[..2], b"08" | b"40" | b"53" | b"57" | b"58" | b"XX") || &sqlstate == b"25006"
}

/// Settings that a second execution has of its own.
const OWN: [&str; 3] = ["application_name", "default_transaction_read_only", "statement_timeout"];
/// Settings that shape output and that servers report.
const PINNED: [&str; 3] = ["timezone", "datestyle", "intervalstyle"];
/// Bytes of a unit that is kept.
const MAX_MESSAGE: usize = 64 << 10;

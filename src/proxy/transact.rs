//! One unit: where it runs, on which connection, and what it leaves behind.

use std::{
    future::poll_fn,
    io,
    rc::Rc,
    task::{Poll, ready},
    time::{Duration, Instant},
};

use super::{
    client::{Client, End, Unit, last_words},
    extended::Survey,
    plans::Entry,
    relay::{Broken, Flight},
    shard::Shard,
    shared::{Activity, Running, Signal},
};
use crate::{
    Side,
    admin::http::BackendState,
    backend::{
        pool::Refused,
        server::{QueryError, Server, SessionDefaults},
    },
    error::ClientError,
    route::{self, Block, Decision, Footprint, Reason, TransactionState, Work},
    session::{pipeline::Expect, settings, transaction::Status, words::Moved},
    statement::{Control, Effect, Isolation, Kind, Pin},
    wire::{
        conn::{Conn, shift},
        frame::{self, HEADER},
    },
};

/// Where a unit goes.
struct Choice {
    side: Side,
    reason: Reason,
    footprint: Option<Rc<Footprint>>,
    /// The side that answers when the chosen one cannot: for reads outside a block.
    fallback: Option<Side>,
    /// A look at the source's catalog from within a block on the target: outside of that block.
    aside: bool,
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
            Unit::Simple { length, function } => self.survey_simple(length, function),
            // Behind `Parse ... Query` without a Sync, Postgres 18 is in a transaction that this Sync ends.
            Unit::Extended { length: 5, complete: true }
                if self.conn.input[0] == b'S' && self.txn.status == Status::Idle =>
            {
                self.conn.consume(5, &self.shard.buffers);
                frame::put_ready(&mut self.conn.output, self.txn.status.byte());
                return Ok(());
            }
            Unit::Extended { length, .. } => self.survey(length)?,
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

    pub(super) fn survey_simple(&mut self, length: usize, function: bool) -> Survey {
        let mut survey = Survey::default();
        let text = frame::query_text(&self.conn.input[HEADER..length]);
        if !function && let Ok(text) = text {
            let entry = self.shard.plan(text, &self.context, &self.current);
            if is_prologue(&entry) {
                survey.text = Some(String::from_utf8_lossy(text).into_owned());
            }
            survey.executed.push(self.resolve(&entry));
            survey.query = Some(entry);
        }
        survey
    }

    /// Chooses the side; `true` when the transaction block must move there first.
    fn choose(&mut self, survey: &Survey, unit: Unit) -> Result<(Choice, bool), ClientError> {
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
        let state = TransactionState {
            holds: survey.portal || footprint.opens_cursor || !complete,
            ..self.state(complete)
        };
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

    fn footprint(&self, survey: &Survey) -> Option<Rc<Footprint>> {
        let (policy, catalog) = (&self.current.config.policy, &self.current.catalog);
        let entries = if survey.executed.is_empty() { &survey.named } else { &survey.executed };
        let (first, rest) = entries.split_first()?;
        let mut footprint = first.footprint(policy, catalog);
        for entry in rest {
            footprint = Rc::new(footprint.merged(&entry.footprint(policy, catalog)));
        }
        Some(footprint)
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
        let (length, kept) = match unit {
            Unit::Simple { length, .. } | Unit::Extended { length, .. } => {
                (length, choice.fallback.map(|_| self.conn.input[..length].to_vec()))
            }
        };
        loop {
            let began = Instant::now();
            let mut flight =
                Flight { retryable: choice.fallback.is_some(), aside: choice.aside, ..Flight::default() };
            let mut server = match self.checkout(choice.side).await {
                Ok(server) => server,
                Err(refused) if self.fall_back(&mut choice, &refused) => continue,
                Err(refused) => return Box::pin(self.not_served(choice.side, refused, unit)).await,
            };
            let broken = match self.send(unit, length, &mut survey, &mut server, &mut flight).await {
                Ok(()) => self.exchange(&mut server, &mut flight).await.err(),
                Err(SendError::End(end)) => return Err(end),
                Err(SendError::Server(why)) => Some(Broken::Server(why)),
            };
            match broken {
                None => {
                    if !flight.later.is_empty() {
                        survey.executed.append(&mut flight.later);
                        survey.text = None;
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
                    self.running(&server);
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
                            Unit::Simple { length, function } => self.survey_simple(length, function),
                            Unit::Extended { length, .. } => self.survey(length)?,
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

    async fn not_served(&mut self, side: Side, refused: Refused, unit: Unit) -> Result<(), End> {
        let error = match refused {
            Refused::Server(frame) => {
                if self.servers.iter().all(Option::is_none) && self.keeps_servers() {
                    self.conn.output.extend_from_slice(&frame);
                    return Err(End::ServerSaid);
                }
                ClientError::error("08006", format!("the {side} refused the connection"))
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

    /// The connection that runs this client's statements on `side`, with the client's settings.
    async fn checkout(&mut self, side: Side) -> Result<Box<Server>, Refused> {
        let held = self.servers[side.index()].is_some();
        if held && self.txn.status == Status::Idle && self.shard.global.is_paused(side) {
            Box::pin(self.until_resumed(side)).await?;
        }
        let found = match self.servers[side.index()].take() {
            Some(server) => Some(server),
            None => poll_fn(|cx| Poll::Ready(self.shard.take_idle(cx, &self.pools[side.index()]))).await,
        };
        // Boxed, as all that is rare: the future of a client that waits for its next statement stays small.
        let Some(mut server) = found else { return Box::pin(self.prepare_server(side, None)).await };
        if self.adopt(&mut server) {
            return Ok(server);
        }
        Box::pin(self.prepare_server(side, Some(server))).await
    }

    /// Holds a session back while the side of its next transaction is paused.
    async fn until_resumed(&mut self, side: Side) -> Result<(), Refused> {
        let shard = Rc::clone(&self.shard);
        self.shared.activity.set(Activity::Waiting);
        let wait = self.current.config.timeouts.query_wait;
        let resumed = shard.until_resumed(side, wait, &self.shared);
        let resumed = unless_gone(resumed, &mut self.conn, &shard).await;
        self.shared.activity.set(Activity::Active);
        resumed
    }

    /// Takes over a connection on which nothing has to be done first; `false` when something has.
    fn adopt(&self, server: &mut Server) -> bool {
        let stranger = server.last_client != self.id();
        let same = || {
            if !self.unread.is_empty() {
                return server.side == self.set_side; // where they were set; elsewhere they must be read first
            }
            Rc::ptr_eq(&server.settings, &self.settings) || server.settings == self.settings
        };
        if stranger && server.tainted || server.status == Status::Idle && !same() {
            return false;
        }
        server.last_client = self.id();
        server.info.client.set(self.id());
        true
    }

    async fn prepare_server(
        &mut self,
        side: Side,
        found: Option<Box<Server>>,
    ) -> Result<Box<Server>, Refused> {
        let shard = Rc::clone(&self.shard);
        let mut server = if let Some(server) = found {
            server
        } else {
            self.shared.activity.set(Activity::Waiting);
            let limits = Shard::pool_limits(&self.shared.user, &self.current.config);
            let wait = self.current.config.timeouts.query_wait;
            let taken = shard.checkout(&self.pools[side.index()], limits, wait, &self.shared);
            let server = unless_gone(taken, &mut self.conn, &shard).await;
            self.shared.activity.set(Activity::Active);
            server?
        };
        let io = |e: QueryError| Refused::Unreachable(e.to_string().into());
        if server.last_client != self.id() {
            server.last_client = self.id();
            if server.tainted {
                server.discard(&shard.buffers).await.map_err(io)?;
            }
        }
        server.info.client.set(self.id());
        let unread = !self.unread.is_empty() && server.side != self.set_side;
        if server.status == Status::Idle && (unread || !Rc::ptr_eq(&server.settings, &self.settings)) {
            self.apply_settings(&mut server).await.map_err(|e| match e {
                QueryError::Server(frame) => Refused::Server(frame.into()),
                QueryError::Io(_) => io(e),
            })?;
        }
        Ok(server)
    }

    /// Gives the session on `server` this client's settings.
    async fn apply_settings(&mut self, server: &mut Server) -> Result<(), QueryError> {
        let shard = Rc::clone(&self.shard);
        if !self.unread.is_empty() {
            if server.side == self.set_side {
                return Ok(()); // where they were set
            }
            if let Some(mut origin) = self.servers[self.set_side.index()].take() {
                let read = self.read_settings(&mut origin).await;
                self.servers[self.set_side.index()] = Some(origin);
                read?;
            }
        }
        if let Some(sql) = settings::transition(&server.settings, &self.settings) {
            server.query(&sql, &shard.buffers).await?;
        }
        server.settings = Rc::clone(&self.settings);
        Ok(())
    }

    /// Reads the values of the settings that were changed from the server that has them.
    async fn read_settings(&mut self, server: &mut Server) -> Result<(), QueryError> {
        let mut names = std::mem::take(&mut self.unread);
        for (name, _) in self.settings.iter() {
            if !names.contains(name) {
                names.push(name.clone());
            }
        }
        names.sort();
        let rows = server.query(&settings::readback(&names), &self.shard.buffers).await?;
        let values = rows.into_iter().next().unwrap_or_default();
        let pairs = names.into_iter().zip(values).filter_map(|(n, v)| v.map(|v| (n, v)));
        self.settings = Rc::new(pairs.collect());
        server.settings = Rc::clone(&self.settings);
        self.refresh_context(server);
        Ok(())
    }

    /// What unqualified names mean now.
    pub(super) fn refresh_context(&mut self, server: &Server) {
        self.set_context(&server.parameters, &server.defaults);
    }

    /// As above, from what a session reports and starts with.
    pub(super) fn set_context(&mut self, parameters: &[(String, String)], defaults: &SessionDefaults) {
        let get = |name: &str| self.settings.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
        let path = get("search_path").unwrap_or(&defaults.search_path);
        let strings = get("standard_conforming_strings") != Some("off")
            && !parameters.iter().any(|(n, v)| n == "standard_conforming_strings" && v == "off");
        let user = match get("role").filter(|r| *r != "none") {
            Some(role) => role,
            None => get("session_authorization").unwrap_or(&self.shared.user),
        };
        let reported = parameters.iter().find(|(n, _)| n == "client_encoding").map(|(_, v)| v.as_str());
        let encoding = get("client_encoding").or(reported).unwrap_or_default().to_ascii_uppercase();
        let ascii_safe = !UNSAFE_ENCODINGS.contains(&encoding.as_str());
        self.context = self.shard.context(settings::search_path(path, user), strings, ascii_safe);
        let isolation = get("default_transaction_isolation").unwrap_or(&defaults.isolation);
        self.read_committed = matches!(isolation, "read committed" | "read uncommitted");
    }

    /// Writes the unit to the server. What must be prepared first is awaited.
    async fn send(
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
                if !function {
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
    async fn send_named(
        &mut self,
        entry: Rc<Entry>,
        length: usize,
        server: &mut Server,
        flight: &mut Flight,
    ) -> Result<bool, SendError> {
        let Ok(text) = frame::query_text(&self.conn.input[HEADER..length]) else { return Ok(false) };
        let text = text.to_vec();
        let [only] = &entry.plan.statements[..] else {
            self.make_all_known(server).await?;
            for name in super::extended::names_in(&entry.plan) {
                self.make_known(name.as_bytes(), server).await?;
            }
            self.await_tags(&entry.plan, None, flight);
            return Ok(false);
        };
        if let Kind::Prepare { name, .. } = &only.kind {
            self.await_tags(&entry.plan, Some(&text), flight);
            let taken = self.registry.get(name.as_bytes()).is_some();
            let new = match flight.awaited.front() {
                Some(super::relay::Awaited::Prepare { name, statement }) if !taken => {
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

    fn send_renamed(
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
        flight.renamed = Some((old.into(), moved));
        frame::put(&mut server.conn.output, b'Q', |b| {
            b.extend_from_slice(&renamed);
            b.extend_from_slice(&[0]);
        });
        self.conn.consume(length, &self.shard.buffers);
        true
    }

    /// Prepares on the server what the client means by `name`, and waits for it.
    async fn make_known(&mut self, name: &[u8], server: &mut Server) -> Result<(), SendError> {
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
            Err(QueryError::Io(e)) => Err(SendError::Server(e.to_string())),
            Err(QueryError::Server(_)) | Ok(_) => Ok(()),
        }
    }

    /// A text of several statements names prepared statements: all of them must be there under their own names.
    async fn make_all_known(&mut self, server: &mut Server) -> Result<(), SendError> {
        self.pin(Pin::PrepareInBatch);
        let names: Vec<Vec<u8>> = self.registry.named().map(|(n, _)| n.to_vec()).collect();
        for name in names {
            self.make_known(&name, server).await?;
        }
        Ok(())
    }

    async fn exchange(&mut self, server: &mut Server, flight: &mut Flight) -> Result<(), Broken> {
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

    /// What a cancel request would cancel from now on.
    fn running(&self, server: &Server) {
        *self.shared.running.borrow_mut() = Some(Running {
            side: server.side,
            process_id: server.process_id,
            key: Rc::clone(&server.key),
            gate: Rc::clone(&server.gate),
        });
    }

    /// What SET has changed in the block so far, with its values there.
    async fn settings_of_block(&mut self) -> Result<Vec<(String, String)>, QueryError> {
        let here = self.txn.side.filter(|&side| side == self.set_side && !self.unread.is_empty());
        let Some(server) = here.and_then(|side| self.servers[side.index()].as_mut()) else {
            return Ok(Vec::new());
        };
        let mut names = self.unread.clone();
        names.sort();
        let rows = server.query(&settings::readback(&names), &self.shard.buffers).await?;
        let values = rows.into_iter().next().unwrap_or_default();
        Ok(names.into_iter().zip(values).filter_map(|(n, v)| v.map(|v| (n, v))).collect())
    }

    /// Takes the transaction block to `side`: its prologue is repeated there, then it is rolled back where it was.
    async fn move_to(&mut self, side: Side) -> Result<(), ClientError> {
        let shard = Rc::clone(&self.shard);
        let failed = |what: String| {
            ClientError::error(UNREACHABLE, format!("the transaction could not move to the {side}: {what}")).hint(
                "Roll back and try again; routing.transactions = \"lead\" keeps transactions on the lead.",
            )
        };
        let refused = |r: Refused| match r {
            Refused::Server(frame) => failed(frame::error_text(&frame)),
            Refused::Unreachable(why) => failed(why.to_string()),
            Refused::Timeout => failed("no server connection became free in time".to_owned()),
            Refused::Cancelled => ClientError::error("57014", "canceling statement due to user request"),
        };
        let taken_along = match self.settings_of_block().await {
            Ok(settings) => settings,
            Err(e) => return Err(failed(e.to_string())),
        };
        let mut server = self.checkout(side).await.map_err(refused)?;
        let mut prologue = self.txn.prologue.join(";\n");
        if let Some(set) = settings::transition(&[], &taken_along) {
            prologue = format!("{prologue};\n{set}");
            self.set_side = side;
        }
        let replayed = server.query(&prologue, &shard.buffers).await;
        if let Err(e) = replayed {
            shard.close(server);
            return Err(failed(e.to_string()));
        }
        self.servers[side.index()] = Some(server);
        if let Some(mut old) = self.servers[side.other().index()].take() {
            match old.query("ROLLBACK", &shard.buffers).await {
                Ok(_) if self.keeps_servers() => self.servers[side.other().index()] = Some(old),
                Ok(_) => shard.give_back(&self.pools[side.other().index()], old, Instant::now()),
                Err(e) => {
                    shard.lost_server(side.other(), &e.to_string());
                    if self.keeps_servers() && side == Side::Target {
                        return Err(ClientError::fatal("08006", "the source session was lost"));
                    }
                }
            }
        }
        self.txn.side = Some(side);
        self.shared.side.set(Some(side));
        Ok(())
    }

    /// The unit is over: what it leaves behind is noted, and the server is given back when nothing holds it.
    async fn finish(
        &mut self,
        mut server: Box<Server>,
        flight: &Flight,
        survey: &Survey,
        footprint: Option<&Footprint>,
        now: Instant,
    ) -> Result<(), End> {
        self.registry.settle();
        server.known.settle();
        if footprint.is_some_and(Footprint::is_write) {
            self.wrote_at = Some(now);
            self.wrote_side = Some(server.side);
        }
        self.note_effects(survey, &mut server);
        if self.txn.status == Status::Idle {
            if self.txn.side.is_some() || footprint.is_some() {
                self.shard.count_transaction(server.side, flight.sqlstate.is_none() && !flight.rolled_back);
            }
            self.txn.ended();
            self.portals.clear();
            self.shared.transaction_since.set(None);
            self.shared.side.set(None);
        } else {
            self.note_block(survey, footprint, server.side, now);
        }
        self.shared.status.set(self.txn.status);
        let idle = self.txn.status == Status::Idle;
        let readable = self.txn.status != Status::Failed;
        let read = if readable && !idle && self.context_moved {
            Box::pin(self.read_context(&mut server)).await
        } else if idle && !self.unread.is_empty() && (!self.keeps_servers() || self.names_moved()) {
            Box::pin(self.read_settings(&mut server)).await
        } else {
            if idle && self.context_local {
                self.refresh_context(&server);
            }
            Ok(())
        };
        self.context_moved = false;
        self.context_local &= !idle;
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

    /// The catalog was looked at from within a block that is elsewhere: the block goes on, or has failed.
    async fn return_from_aside(&mut self, mut server: Box<Server>, flight: &Flight) -> Result<(), End> {
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

    /// Does a changed setting change what names mean?
    fn names_moved(&self) -> bool {
        self.unread.iter().any(|n| CONTEXT.contains(&n.as_str()) || n == "default_transaction_isolation")
    }

    /// Reads what unqualified names mean inside the block; settings are read at its end.
    async fn read_context(&mut self, server: &mut Server) -> Result<(), QueryError> {
        let names = CONTEXT.map(str::to_owned);
        let rows = server.query(&settings::readback(&names), &self.shard.buffers).await?;
        let values = rows.into_iter().next().unwrap_or_default();
        let pairs = names.into_iter().zip(values).filter_map(|(n, v)| v.map(|v| (n, v)));
        let outside = std::mem::replace(&mut self.settings, Rc::new(pairs.collect()));
        self.refresh_context(server);
        self.settings = outside;
        Ok(())
    }

    fn note_effects(&mut self, survey: &Survey, server: &mut Server) {
        for entry in &survey.executed {
            for statement in &entry.plan.statements {
                server.tainted |= matches!(statement.kind, Kind::Code | Kind::Unknown(_))
                    || !statement.functions.is_empty();
                if matches!(statement.kind, Kind::Declare { hold: true, .. }) {
                    self.held_side = Some(server.side);
                }
                for effect in &statement.effects {
                    self.note_effect(effect, server.side);
                }
            }
        }
    }

    fn note_effect(&mut self, effect: &Effect, side: Side) {
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

    /// DISCARD ALL was carried out.
    pub(super) fn discarded(&mut self) {
        self.settings = settings::Settings::default();
        self.unread = vec!["search_path".to_owned()];
        self.temporary = false;
        self.wrote_side = None;
        self.shared.pinned.set(None);
    }

    /// The block goes on: what must be repeated if it moves, and what it has done.
    fn note_block(&mut self, survey: &Survey, footprint: Option<&Footprint>, side: Side, now: Instant) {
        if self.shared.transaction_since.get().is_none() {
            self.shared.transaction_since.set(Some(now));
        }
        self.txn.side = Some(side);
        self.shared.side.set(Some(side));
        self.txn.fixed |= survey.portal;
        if self.txn.status == Status::Failed {
            return;
        }
        // What was only prepared or described has read nothing.
        if let Some(footprint) = footprint.filter(|_| !survey.executed.is_empty()) {
            self.txn.work = self.txn.work.max(footprint.work());
            self.txn.read |= footprint.reads;
            self.txn.fixed |= footprint.opens_cursor;
        }
        let statements = || survey.executed.iter().flat_map(|e| &e.plan.statements);
        self.txn.fixed |= statements().nth(1).is_some();
        for statement in statements() {
            match &statement.kind {
                Kind::Transaction(Control::Begin { read_only, isolation }) => {
                    self.txn.read_only = *read_only;
                    self.txn.isolation = *isolation;
                    self.note_prologue(survey);
                }
                Kind::Transaction(Control::Commit { .. } | Control::Rollback { .. }) => {
                    let prologue = self.txn.prologue.first().cloned();
                    self.txn.prologue.clear();
                    self.txn.prologue.extend(prologue);
                    self.txn.fixed = true; // AND CHAIN
                }
                Kind::Transaction(_) => self.note_prologue(survey),
                Kind::Local => {
                    statement.effects.iter().for_each(|effect| self.note_mode(effect));
                    self.note_prologue(survey);
                }
                // Settings are taken along when the block moves; of the rest nothing is known.
                Kind::Session if only_settings(statement) => {}
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

    fn note_mode(&mut self, effect: &Effect) {
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

    fn note_prologue(&mut self, survey: &Survey) {
        match &survey.text {
            Some(text) => self.txn.prologue.push(text.trim_end().trim_end_matches(';').to_owned()),
            None => self.txn.fixed = true,
        }
    }

    /// The server is gone in the middle of a unit.
    fn server_lost(&mut self, choice: &Choice, why: &str, flight: &Flight) -> Result<(), End> {
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
        error.encode(self.id(), &mut self.conn.output);
        frame::put_ready(&mut self.conn.output, b'I');
        Ok(())
    }

    fn observe(
        &self,
        choice: &Choice,
        flight: &Flight,
        (now, took): (Instant, Duration),
        [client, server]: [[u64; 2]; 2],
    ) {
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

/// `work`, unless the client closes its socket first: what nobody waits for any more is not begun.
async fn unless_gone<T>(
    work: impl Future<Output = Result<T, Refused>>,
    conn: &mut Conn,
    shard: &Shard,
) -> Result<T, Refused> {
    let gone = poll_fn(|cx| {
        while conn.input.len() < MAX_AHEAD {
            match ready!(conn.poll_fill(cx, &shard.buffers)) {
                Ok(n) if n > 0 => {}
                Ok(_) | Err(_) => return Poll::Ready(()),
            }
        }
        Poll::Pending
    });
    tokio::select! {
        biased;
        done = work => done,
        () = gone => Err(Refused::Cancelled),
    }
}

/// SQLSTATE of a connection that cannot be had.
const UNREACHABLE: &str = "08006";
/// What a client may send ahead while it waits before it is no longer read.
const MAX_AHEAD: usize = 64 << 10;

/// Why a unit could not be sent.
enum SendError {
    End(End),
    Server(String),
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

/// Does it leave nothing but settings behind?
fn only_settings(statement: &crate::statement::Statement) -> bool {
    let setting = |e: &Effect| matches!(e, Effect::Setting(_) | Effect::LocalSetting { .. });
    !statement.effects.is_empty() && statement.effects.iter().all(setting)
}

/// Settings that change how a text is read and what names mean.
const CONTEXT: [&str; 5] =
    ["search_path", "standard_conforming_strings", "client_encoding", "role", "session_authorization"];

/// Client encodings in which the second byte of a letter may be ASCII (manual, 24.3: not allowed as a server encoding).
const UNSAFE_ENCODINGS: [&str; 7] = ["BIG5", "GB18030", "GBK", "JOHAB", "SJIS", "SHIFT_JIS_2004", "UHC"];

/// Must the text be kept, to be repeated where the transaction moves to?
fn is_prologue(entry: &Rc<Entry>) -> bool {
    matches!(&entry.plan.statements[..], [only] if matches!(only.kind, Kind::Transaction(_) | Kind::Local))
}

fn names_statement(statement: &crate::statement::Statement) -> bool {
    let discards = || statement.effects.contains(&Effect::DiscardAll);
    let names =
        matches!(statement.kind, Kind::Prepare { .. } | Kind::Execute { .. } | Kind::Deallocate { .. });
    names || statement.kind == Kind::Session && discards()
}

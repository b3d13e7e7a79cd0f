//! What the console and the metrics read from the data threads, and ask of them.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use super::{
    global::Global,
    shared::{Activity, Signal},
    stats::{Totals, approximate},
};
use crate::{
    Side,
    admin::{
        act::Action,
        console::Operator,
        console_rows::{
            ClientRow, ConfigRow, InDoubtRow, JournalRow, PoolRow, RepositoryRow, ServerRow, ShadowRow,
            StatsRow, TransactionRow,
        },
        snapshot::{Divergence, QueryRow},
    },
    config::reload::Why,
    mirror::lead::InForce,
    report::metrics as names,
    route::policy::{Mode, Repository},
    session::transaction::Status,
};

/// The console's way to the proxy.
pub(super) struct Console {
    pub(super) global: Arc<Global>,
}

impl Operator for Console {
    async fn repositories(&self) -> Vec<RepositoryRow> {
        let config = self.global.live.get();
        let percent = |share: crate::route::policy::Share| f64::from(share.basis_points()) / 100.0;
        let mut counts = BTreeMap::<String, crate::report::hot::Totals>::new();
        let all = self.global.on_every_shard(|shard| shard.hot.borrow().totals()).await;
        for (name, totals) in all.into_iter().flatten() {
            counts.entry(name).or_default().add(&totals);
        }
        config
            .policy
            .repositories
            .iter()
            .map(|r| {
                let counts = counts.get(&r.name).copied().unwrap_or_default();
                let (lead, wanted) = leads_now(&self.global.mirrored.leads, r, config.mirror.slice);
                RepositoryRow {
                    name: r.name.clone(),
                    tables: r.tables.iter().map(|t| format!("{}.{}", t.schema, t.name)).collect(),
                    reads_target_percent: percent(r.reads),
                    writes_target_percent: percent(r.writes),
                    mirror: r.mirror.mode.name().to_owned(),
                    lead,
                    queries: counts.queries,
                    errors: counts.errors,
                    lead_wanted: wanted,
                    lead_waits_for: self.global.mirrored.leads.waits(&r.name),
                }
            })
            .collect()
    }

    async fn pools(&self) -> Vec<PoolRow> {
        let config = self.global.live.get();
        let paused = Side::BOTH.map(|side| self.global.is_paused(side));
        let rows = self.global.on_every_shard(move |shard| {
            let pools = shard.pools.borrow();
            let rows = pools.values().map(|pool| {
                let counts = pool.counts();
                let user = config.auth.users.get(&*pool.key.user);
                PoolRow {
                    user: pool.key.user.to_string(),
                    mode: user.and_then(|u| u.pool_mode).unwrap_or(config.pool.mode),
                    backend: pool.key.side,
                    active: (counts.active + counts.opening) as u64,
                    idle: counts.idle as u64,
                    waiting: counts.waiting as u64,
                    max_wait_ms: counts.longest_wait.as_secs_f64() * 1e3,
                    size: user.and_then(|u| u.pool_size).unwrap_or(config.pool.size) as u64,
                    paused: paused[pool.key.side.index()],
                }
            });
            rows.collect::<Vec<_>>()
        });
        let mut merged: Vec<PoolRow> = Vec::new();
        for row in rows.await.into_iter().flatten() {
            match merged.iter_mut().find(|m| m.user == row.user && m.backend == row.backend) {
                Some(m) => {
                    m.active += row.active;
                    m.idle += row.idle;
                    m.waiting += row.waiting;
                    m.max_wait_ms = m.max_wait_ms.max(row.max_wait_ms);
                }
                None => merged.push(row),
            }
        }
        merged.sort_by(|a, b| (&a.user, a.backend).cmp(&(&b.user, b.backend)));
        merged
    }

    async fn clients(&self) -> Vec<ClientRow> {
        let rows = self.global.on_every_shard(|shard| {
            let clients = shard.clients.borrow();
            let rows = clients.values().map(|c| ClientRow {
                id: c.id,
                user: c.user.to_string(),
                peer: c.peer.to_string(),
                application_name: c.application_name.clone(),
                state: match (c.activity.get(), c.status.get()) {
                    (Activity::Waiting, _) => "waiting",
                    (Activity::Active, _) => "active",
                    (Activity::Idle, Status::Idle) => "idle",
                    (Activity::Idle, Status::Block) => "idle in transaction",
                    (Activity::Idle, Status::Failed) => "idle in transaction (aborted)",
                }
                .to_owned(),
                side: c.side.get().or_else(|| c.running.borrow().as_ref().map(|r| r.side)),
                transaction_age_ms: c.transaction_since.get().map(|t| t.elapsed().as_secs_f64() * 1e3),
                pinned: c.pinned.get().map(|p| p.name().to_owned()),
                process_id: c.process_id.get(),
                tls: c.tls,
                pool_mode: Some(c.mode),
            });
            rows.collect::<Vec<_>>()
        });
        let mut rows: Vec<_> = rows.await.into_iter().flatten().collect();
        rows.sort_by_key(|r| r.id);
        rows
    }

    async fn servers(&self) -> Vec<ServerRow> {
        let rows = self.global.on_every_shard(|shard| {
            let infos: Vec<_> = shard.servers.borrow().iter().filter_map(std::rc::Weak::upgrade).collect();
            let rows = infos.iter().map(|s| ServerRow {
                backend: s.side,
                process_id: s.process_id,
                user: s.user.to_string(),
                state: if s.client.get() == 0 { "idle" } else { "active" }.to_owned(),
                client: Some(s.client.get()).filter(|&c| c != 0),
                age_seconds: s.opened.elapsed().as_secs_f64(),
                idle_seconds: s.used.get().elapsed().as_secs_f64(),
                transactions: s.transactions.get(),
                tls: s.tls,
            });
            rows.collect::<Vec<_>>()
        });
        let mut rows: Vec<_> = rows.await.into_iter().flatten().collect();
        rows.sort_by_key(|r| (r.backend, r.process_id));
        rows
    }

    async fn stats(&self) -> Vec<StatsRow> {
        let all = self.global.on_every_shard(|shard| {
            let stats = shard.stats.borrow();
            stats
                .iter()
                .map(|((user, side), stats)| (user.to_string(), *side, stats.totals()))
                .collect::<Vec<_>>()
        });
        let mut merged = BTreeMap::<(String, Side), Totals>::new();
        for (user, side, totals) in all.await.into_iter().flatten() {
            merged.entry((user, side)).or_default().add(&totals);
        }
        let rows = merged.into_iter().map(|((user, backend), t)| StatsRow {
            user,
            backend,
            transactions: t.transactions,
            queries: t.queries,
            errors: t.errors,
            received_bytes: t.sent_bytes,
            sent_bytes: t.received_bytes,
            transaction_ms_avg: t.transaction_ms_avg(),
            query_ms_avg: t.query_ms_avg(),
            wait_ms_avg: t.wait_ms_avg(),
        });
        rows.collect()
    }

    async fn config(&self) -> Vec<ConfigRow> {
        let rows = self.global.live.get().rows().into_iter();
        rows.map(|(key, value, hot)| ConfigRow { key, value, hot }).collect()
    }

    async fn journal(&self) -> Vec<JournalRow> {
        super::mirror::journal_rows(&self.global.mirrored)
    }

    async fn shadow(&self) -> Vec<ShadowRow> {
        super::shadow::shadow_rows(&self.global)
    }

    async fn queries(&self) -> Vec<QueryRow> {
        super::shadow::query_rows(&self.global)
    }

    async fn divergences(&self) -> Vec<Divergence> {
        super::shadow::divergence_rows(&self.global)
    }

    async fn in_doubt(&self) -> Vec<InDoubtRow> {
        super::mirror::in_doubt_rows(&self.global.mirrored)
    }

    async fn transactions(&self) -> Vec<TransactionRow> {
        super::mirror::transaction_rows(&self.global).await
    }

    async fn reload(&self) -> Result<String, Vec<String>> {
        let live = Arc::clone(&self.global.live);
        let reloaded = tokio::task::spawn_blocking(move || live.reload(Why::Admin)).await;
        match reloaded.map_err(|e| vec![e.to_string()])? {
            Ok(done) => Ok(format!("configuration {} is in force", done.config.hash)),
            Err(mistakes) => Err(mistakes.iter().map(ToString::to_string).collect()),
        }
    }

    async fn pause(&self, side: Option<Side>) -> Result<(), String> {
        let wanted: Vec<Side> =
            Side::BOTH.into_iter().filter(|s| side.is_none_or(|only| only == *s)).collect();
        let mut undo = Unpause { global: &self.global, sides: Vec::new() };
        for &side in &wanted {
            if !self.global.is_paused(side) {
                undo.sides.push(side);
                self.global.pause(side, true);
            }
        }
        loop {
            let sides = wanted.clone();
            let busy = self.global.on_every_shard(move |shard| {
                shard.clients.borrow().values().any(|c| sides.iter().any(|&side| c.occupies(side)))
            });
            let busy = busy.await.contains(&true);
            if wanted.iter().any(|&side| !self.global.is_paused(side)) {
                return Err("it was ended by RESUME before all transactions had ended".to_owned());
            }
            if !busy {
                undo.sides.clear();
                return Ok(());
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    async fn resume(&self, side: Option<Side>) -> Result<(), String> {
        for side in Side::BOTH.into_iter().filter(|s| side.is_none_or(|only| only == *s)) {
            self.global.pause(side, false);
        }
        Ok(())
    }

    async fn kill(&self, client: u64) -> bool {
        let found = self.global.on_every_shard(move |shard| match shard.clients.borrow().get(&client) {
            Some(shared) => {
                shared.tell(Signal::Kill);
                true
            }
            None => false,
        });
        found.await.contains(&true)
    }
}

/// What the page asks for.
pub(super) async fn act(global: Arc<Global>, action: Action) -> Result<String, String> {
    let console = Console { global: Arc::clone(&global) };
    let named = |side: Option<Side>| side.map_or("both backends", Side::name);
    match action {
        Action::Nothing {} => Ok(String::new()),
        Action::Reload {} => console.reload().await.map_err(|mistakes| {
            format!("refused, the old configuration stays in force:\n{}", mistakes.join("\n"))
        }),
        Action::Pause { side } => {
            let side = side.only();
            match tokio::time::timeout(PATIENCE, console.pause(side)).await {
                Ok(done) => done.map(|()| format!("paused: {}", named(side))),
                Err(_) => Err(format!(
                    "transactions on {} did not end within {} s: nothing is paused; SHOW CLIENTS on the console says whose they are",
                    named(side),
                    PATIENCE.as_secs()
                )),
            }
        }
        Action::Resume { side } => {
            console.resume(side.only()).await?;
            Ok(format!("resumed: {}", named(side.only())))
        }
        Action::Forget { repository } => {
            let config = global.live.get();
            if !config.policy.repositories.iter().any(|known| known.name == repository) {
                return Err(format!("there is no repository {repository:?}"));
            }
            global.shadow.forget(&repository);
            // Else a restart would find it again.
            let _ = tokio::task::spawn_blocking(move || global.shadow.save(&config)).await;
            Ok(format!("forgotten: what shadow reads had found about {repository}"))
        }
    }
}

/// For transactions that a PAUSE by HTTP waits for; its connection ends not long after.
const PATIENCE: Duration = Duration::from_secs(20);

/// A PAUSE that nobody waits for any more is undone.
struct Unpause<'a> {
    global: &'a Global,
    sides: Vec<Side>,
}

impl Drop for Unpause<'_> {
    fn drop(&mut self) {
        for &side in &self.sides {
            self.global.pause(side, false);
        }
    }
}

/// How long a PAUSE waits before it looks again for transactions.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Sets the gauges that mirror the state of this moment.
pub(super) async fn collect(global: Arc<Global>) {
    let console = Console { global: Arc::clone(&global) };
    let metrics = &global.metrics;
    let mut states = BTreeMap::from([("login", 0.0), ("idle", 0.0), ("active", 0.0), ("waiting", 0.0)]);
    let mut pinned = BTreeMap::new();
    let clients = global.on_every_shard(move |shard| {
        let clients = shard.clients.borrow();
        clients.values().map(|c| (c.activity.get(), c.pinned.get())).collect::<Vec<_>>()
    });
    for (activity, pin) in clients.await.into_iter().flatten() {
        let state = match activity {
            Activity::Idle => "idle",
            Activity::Active => "active",
            Activity::Waiting => "waiting",
        };
        *states.entry(state).or_insert(0.0) += 1.0;
        if let Some(pin) = pin {
            *pinned.entry(pin.name()).or_insert(0.0) += 1.0;
        }
    }
    states.insert("login", approximate(global.frontend.limits.logins() as u64));
    metrics.replace(&names::CLIENT_CONNECTIONS, states.into_iter().map(|(s, n)| (vec![s.into()], n)));
    metrics.replace(&names::PINNED_SESSIONS, pinned.into_iter().map(|(p, n)| (vec![p.into()], n)));
    let pools = console.pools().await;
    let mut connections = Vec::new();
    let mut waiters = Vec::new();
    let mut saturation = Vec::new();
    for side in Side::BOTH {
        let mine = || pools.iter().filter(move |p| p.backend == side);
        connections.push((vec![side.into(), "active".into()], mine().map(|p| approximate(p.active)).sum()));
        connections.push((vec![side.into(), "idle".into()], mine().map(|p| approximate(p.idle)).sum()));
        waiters.push((vec![side.into()], mine().map(|p| approximate(p.waiting)).sum()));
        let fullest = mine().map(|p| approximate(p.active) / approximate(p.size.max(1))).fold(0.0, f64::max);
        saturation.push((vec![side.into()], fullest));
        let up = global.backend(side) == crate::admin::http::BackendState::Up;
        metrics.gauge(&names::BACKEND_UP, &[side.into()], f64::from(u8::from(up)));
    }
    metrics.replace(&names::POOL_CONNECTIONS, connections);
    metrics.replace(&names::POOL_WAITERS, waiters);
    metrics.replace(&names::POOL_SATURATION, saturation);
    let (entries, bytes) = global.plan_sizes.total();
    metrics.gauge(&names::PLAN_CACHE_ENTRIES, &[], approximate(entries as u64));
    metrics.gauge(&names::PLAN_CACHE_BYTES, &[], approximate(bytes as u64));
    let counters = &global.frontend.counters;
    let read = |n: &std::sync::atomic::AtomicU64| n.load(std::sync::atomic::Ordering::Relaxed);
    for (outcome, n) in [
        ("ok", read(&counters.logins)),
        ("refused", read(&counters.refusals)),
        ("wrong_password", read(&counters.failures)),
        ("timeout", read(&counters.timeouts)),
    ] {
        metrics.set(&names::LOGINS, &[outcome.into()], n);
    }
    metrics.set(&names::TLS_STUFFING_REFUSED, &[], read(&counters.stuffed));
    super::mirror::collect(&global);
    super::shadow::collect(&global);
}

/// Who leads a repository, and who is to lead it when that is somebody else.
fn leads_now(
    leads: &super::mirror::Leads,
    repository: &Repository,
    slice: Duration,
) -> (String, Option<String>) {
    let turn = repository.slices(slice).zip(leads.clock()).map(|(slices, clock)| slices.at(clock).lead);
    let wanted = turn.unwrap_or_else(|| repository.writes.draw(0));
    let lead = match leads.in_force(&repository.name) {
        _ if repository.mirror.mode == Mode::Off => wanted.name(),
        InForce::Side(lead) => lead.name(),
        InForce::Unknown => wanted.name(),
        InForce::Nobody => "nobody",
        InForce::Both => "both",
    };
    (lead.to_owned(), (lead != wanted.name()).then(|| wanted.name().to_owned()))
}

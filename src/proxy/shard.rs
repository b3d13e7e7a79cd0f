//! One data thread: its clients, pools, plans and buffers. Nothing here is shared with other threads.

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    rc::{Rc, Weak},
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::BytesMut;
use hashbrown::HashMap;

use super::{
    client::Statement,
    count::{handles, names},
    global::Global,
    host::{Closing, PoolHost, patiently},
    mirror,
    plans::{Entry, PlanLimits, Plans, SearchContext},
    shared::ClientShared,
    stats::Stats,
};
use crate::{
    Side,
    backend::{
        budget::Permit,
        login,
        pool::{Pool, PoolKey, PoolLimits, Refused},
        server::{CancelGate, QueryError, Server, ServerInfo, SessionDefaults},
    },
    catalog::Catalog,
    config::Config,
    frontend::startup::Credentials,
    report::hot::HotHandles,
    session::prepared::Prepared,
    wire::conn::{Buffers, Conn},
};

/// Configuration and catalog as this thread sees them now.
#[derive(Debug)]
pub(super) struct Current {
    pub(super) config: Arc<Config>,
    pub(super) catalog: Arc<Catalog>,
    version: u64,
    /// When it was taken over.
    pub(super) since: Instant,
}

/// A data thread.
pub(super) struct Shard {
    pub(super) index: usize,
    pub(super) global: Arc<Global>,
    pub(super) buffers: Buffers,
    pub(super) plans: RefCell<Plans>,
    pub(super) pools: RefCell<HashMap<PoolKey, Rc<Pool>>>,
    pub(super) clients: RefCell<HashMap<u64, Rc<ClientShared>>>,
    pub(super) servers: RefCell<Vec<Weak<ServerInfo>>>,
    pub(super) hot: RefCell<HotHandles>,
    pub(super) closing: Cell<usize>,
    pub(super) stats: RefCell<StatsByUser>,
    /// Messages that take the place of a client's while they are written.
    pub(super) scratch: Cell<BytesMut>,
    pub(super) apply_pools: RefCell<[Option<Rc<Pool>>; 2]>,
    interned: RefCell<Interned>,
    pub(super) current: RefCell<Rc<Current>>,
    statements: Cell<u64>,
    chance: Cell<u64>,
}

/// Totals of each user on each side.
type StatsByUser = HashMap<(Rc<str>, Side), Rc<Stats>>;

/// Statements by text and raw parameter types.
type Interned = HashMap<(Box<[u8]>, Box<[u8]>), Weak<Statement>>;

impl Shard {
    pub(super) fn new(index: usize, global: Arc<Global>) -> Rc<Self> {
        let current = Rc::new(global.current());
        let mut seed = [0; 8];
        getrandom::fill(&mut seed).expect("the system has randomness");
        Rc::new(Self {
            index,
            hot: RefCell::new(handles(&global, &current.config)),
            global,
            buffers: Buffers::default(),
            plans: RefCell::default(),
            pools: RefCell::default(),
            clients: RefCell::default(),
            servers: RefCell::default(),
            closing: Cell::new(0),
            stats: RefCell::default(),
            scratch: Cell::default(),
            apply_pools: RefCell::default(),
            interned: RefCell::default(),
            current: RefCell::new(current),
            statements: Cell::new(0),
            chance: Cell::new(u64::from_le_bytes(seed) | 1),
        })
    }

    /// Configuration and catalog in force.
    pub(super) fn current(self: &Rc<Self>) -> Rc<Current> {
        if self.current.borrow().version != self.global.version.load(Ordering::Acquire) {
            let new = Rc::new(self.global.current());
            let old = self.current.replace(Rc::clone(&new));
            if old.config.policy.generation != new.config.policy.generation {
                self.hot.replace_with(|old| old.renewed(names(&new.config)));
            }
            if old.config.backends != new.config.backends || old.config.mirror != new.config.mirror {
                self.drop_idle();
            }
        }
        Rc::clone(&self.current.borrow())
    }

    /// A draw below 10 000 (xorshift64*: weights need evenness, not secrecy).
    pub(super) fn ticket(&self) -> u16 {
        let mut x = self.chance.get();
        x ^= x >> 12;
        x ^= x << 25;
        x ^= x >> 27;
        self.chance.set(x);
        let high = x.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32;
        u16::try_from((high * 10_000) >> 32).expect("below 10 000")
    }

    /// A number that no statement of any thread has: server connections change threads, and bring what they know.
    pub(super) fn next_statement(&self) -> u64 {
        self.statements.set(self.statements.get() + 1);
        let threads = self.global.shards().len().max(1) as u64;
        self.statements.get() * threads + self.index as u64
    }

    pub(super) fn plan(&self, sql: &[u8], context: &SearchContext, current: &Current) -> Rc<Entry> {
        let limits = &current.config.limits;
        let limits =
            PlanLimits { cache_bytes: limits.plan_cache_bytes, statement_bytes: limits.max_statement_bytes };
        self.plans.borrow_mut().get(sql, context, &current.catalog, limits)
    }

    pub(super) fn context(
        &self,
        search_path: Option<Vec<String>>,
        standard_strings: bool,
        ascii_safe: bool,
    ) -> Rc<SearchContext> {
        self.plans.borrow_mut().context(search_path, standard_strings, ascii_safe)
    }

    /// The one statement with this content: clients of this thread share it.
    pub(super) fn intern(&self, sql: &[u8], types: &[u8], plan: Rc<Entry>) -> Rc<Statement> {
        let mut interned = self.interned.borrow_mut();
        let key = (sql.into(), types.into());
        if let Some(found) = interned.get(&key).and_then(Weak::upgrade) {
            return found;
        }
        if interned.len() >= MAX_INTERNED {
            interned.retain(|_, statement| statement.strong_count() > 0);
        }
        let statement = Rc::new(Prepared::new(self.next_statement(), sql, types, RefCell::new(plan)));
        interned.insert(key, Rc::downgrade(&statement));
        statement
    }

    /// The table behind a statement has changed: servers that know it refuse it for good, so who prepares the same
    /// text again gets a statement of a new number.
    pub(super) fn disown(&self, statement: &Statement) {
        let key = (statement.sql.clone(), statement.types.clone());
        self.interned.borrow_mut().remove(&key);
    }

    /// The pool of connections with these properties.
    pub(super) fn pool(self: &Rc<Self>, key: PoolKey, credentials: Credentials) -> Rc<Pool> {
        if let Some(pool) = self.pools.borrow().get(&key) {
            pool.credentials.replace(credentials);
            return Rc::clone(pool);
        }
        // Who applies rows does not wait for room that clients take, nor they for that.
        let budgets = match (key.applies, key.shadow) {
            (true, _) => &self.global.apply_budgets,
            (_, true) => &self.global.shadow_budgets,
            (false, false) => &self.global.budgets,
        };
        let share = budgets.share(key.side, &key.user);
        let host = Rc::new(PoolHost(Rc::downgrade(self)));
        let pool = Pool::new(key.clone(), credentials, share, host);
        self.pools.borrow_mut().insert(key, Rc::clone(&pool));
        pool
    }

    pub(super) fn pool_limits(user: &str, config: &Config) -> PoolLimits {
        let size = config.auth.users.get(user).and_then(|u| u.pool_size).unwrap_or(config.pool.size);
        PoolLimits {
            user: size,
            side: config.pool.max_server_connections,
            retry: config.timeouts.server_login_retry,
        }
    }

    /// Opens a server connection.
    pub(super) async fn open(self: Rc<Self>, pool: Rc<Pool>, permit: Permit) -> Result<Server, Refused> {
        let config = Arc::clone(&self.current().config);
        let key = &pool.key;
        let side = key.side;
        let unreachable = |why: String| Refused::Unreachable(why.into());
        let tls = self.global.backend_tls(side);
        if !self.current().catalog.covers(side) {
            // Types and relations have other OIDs there, and nobody knows which.
            return Err(unreachable("its catalog has not been read yet".to_owned()));
        }
        let backend = &config.backends[side.index()];
        let own = || config.auth.users.get(&*key.user).and_then(|u| u.backend[side.index()].clone());
        let (user, credentials) = if key.applies {
            (backend.control_user.clone(), Credentials::Secret(backend.control_secret.clone()))
        } else if let Some((user, secret)) = own() {
            (user, Credentials::Secret(secret))
        } else {
            (key.user.to_string(), pool.credentials.borrow().clone())
        };
        let who = login::Who { user: &user, credentials: &credentials, database: &backend.database };
        let opened = login::connect(backend, &tls, &who, &key.parameters, key.minor, &config.timeouts).await;
        let opened = match opened {
            Ok(opened) => opened,
            Err(error) => {
                tracing::warn!(%side, user = %key.user, %error, "could not open a server connection");
                return Err(match error {
                    login::LoginError::Server(frame) => Refused::Server(frame.into()),
                    login::LoginError::Io(_)
                    | login::LoginError::Timeout
                    | login::LoginError::Tls(_)
                    | login::LoginError::Protocol(_)
                    | login::LoginError::Refused(_) => unreachable(error.to_string()),
                });
            }
        };
        let now = Instant::now();
        let info = Rc::new(ServerInfo {
            side,
            user: Rc::clone(&key.user),
            process_id: opened.process_id,
            client: Cell::new(0),
            opened: now,
            used: Cell::new(now),
            transactions: Cell::new(0),
            tls: opened.stream.is_tls(),
        });
        self.servers.borrow_mut().push(Rc::downgrade(&info));
        let mut server = Server {
            conn: Conn::new(opened.stream, opened.rest.as_slice().into()),
            side,
            process_id: opened.process_id,
            key: opened.key.into(),
            parameters: opened.parameter_status,
            defaults: Rc::default(),
            known: crate::session::prepared::Known::default(),
            settings: crate::session::settings::Settings::default(),
            status: crate::session::transaction::Status::Idle,
            tainted: false,
            spent: false,
            last_client: 0,
            opened: now,
            info,
            gate: Rc::default(),
            patience: config.timeouts.server_connect,
            clock: 0.0,
            checkpoint: 0,
            lease: None,
            permit,
        };
        let rows = server.query(DEFAULTS, &self.buffers).await.map_err(|e| match e {
            QueryError::Server(frame) => Refused::Server(frame.into()),
            QueryError::Io(e) => unreachable(e.to_string()),
        })?;
        if let Some([Some(search_path), Some(isolation)]) = rows.first().map(Vec::as_slice) {
            server.defaults =
                Rc::new(SessionDefaults { search_path: search_path.clone(), isolation: isolation.clone() });
        }
        if key.applies {
            mirror::prepare(&mut server, &config.mirror, self.global.mirror.clock(), &self.buffers).await?;
        }
        pool.learn(&server);
        Ok(server)
    }

    /// A live connection that is idle, if there is one and nobody waits for it.
    pub(super) fn take_idle(&self, cx: &mut Context<'_>, pool: &Rc<Pool>) -> Option<Box<Server>> {
        if self.global.is_paused(pool.key.side) {
            return None;
        }
        loop {
            let mut server = pool.try_take()?;
            if server.is_alive(cx, &self.buffers) {
                return Some(server);
            }
        }
    }

    /// A live connection from the pool, within `wait`.
    pub(super) async fn checkout(
        &self,
        pool: &Rc<Pool>,
        limits: PoolLimits,
        wait: Option<Duration>,
        client: &ClientShared,
    ) -> Result<Box<Server>, Refused> {
        let side = pool.key.side;
        loop {
            if let Some(server) = poll_fn(|cx| Poll::Ready(self.take_idle(cx, pool))).await {
                return Ok(server);
            }
            let began = Instant::now();
            let take = async {
                self.global.resumed(side).await;
                pool.take(limits).await
            };
            let taken = patiently(take, wait.map(|d| began + d), client).await;
            self.count_wait(&client.user, side, began.elapsed());
            let mut server = taken?;
            if self.global.is_paused(side) {
                pool.put(server, began); // while it waited
            } else if poll_fn(|cx| Poll::Ready(server.is_alive(cx, &self.buffers))).await {
                return Ok(server);
            }
        }
    }

    /// Waits while `side` is paused.
    pub(super) async fn until_resumed(
        &self,
        side: Side,
        wait: Option<Duration>,
        client: &ClientShared,
    ) -> Result<(), Refused> {
        let resumed = async {
            self.global.resumed(side).await;
            Ok(())
        };
        patiently(resumed, wait.map(|d| Instant::now() + d), client).await
    }

    /// A connection whose client needs it no longer: to the next client, or closed.
    pub(super) fn give_back(self: &Rc<Self>, pool: &Rc<Pool>, server: Box<Server>, now: Instant) {
        let lifetime = self.current.borrow().config.timeouts.server_lifetime;
        let old = lifetime.is_some_and(|d| now - server.opened >= d) && pool.counts().waiting == 0;
        if !server.is_clean() || old || self.is_draining() {
            return self.close(server);
        }
        if server.gate.is_clear() {
            return pool.put(server, now);
        }
        let pool = Rc::clone(pool);
        tokio::task::spawn_local(async move {
            let gate: Rc<CancelGate> = Rc::clone(&server.gate);
            gate.clear().await;
            pool.put(server, Instant::now());
        });
    }

    /// Closes a connection politely.
    pub(super) fn close(self: &Rc<Self>, mut server: Box<Server>) {
        let closing = Closing::new(self);
        server.lease = None;
        tokio::task::spawn_local(async move {
            server.close().await;
            drop(closing);
        });
    }

    /// Closes a connection that was asked to cancel what it runs, once it has.
    pub(super) fn close_when_cancelled(self: &Rc<Self>, mut server: Box<Server>) {
        let shard = Closing::new(self);
        server.lease = None;
        tokio::task::spawn_local(async move {
            let ended = async {
                server.gate.clear().await;
                server.drain(&shard.0.buffers).await;
            };
            let _ = tokio::time::timeout(CANCELLED, ended).await;
            shard.0.close(server);
        });
    }

    /// Connections that are being closed.
    pub(super) fn closing(&self) -> usize {
        self.closing.get()
    }

    pub(super) fn is_draining(&self) -> bool {
        self.global.draining.load(Ordering::Relaxed)
    }

    /// Idle connections of this user are offered to those who wait on other threads. Where the backend's budget is used
    /// up by others, the one unused for longest makes room.
    pub(super) fn offer(self: &Rc<Self>, side: Side, user: &str, make_room: bool) {
        let pools: Vec<_> = self.pools.borrow().values().filter(|p| p.key.side == side).cloned().collect();
        for pool in pools.iter().filter(|p| *p.key.user == *user) {
            pool.offer();
        }
        let limit = self.current().config.pool.max_server_connections;
        if make_room && self.global.budgets.used(side) >= limit {
            let spare = pools.iter().find_map(|p| p.longest_idle());
            if let Some(server) = spare {
                self.close(server);
            }
        }
    }

    /// Closes what is not in use.
    pub(super) fn drop_idle(self: &Rc<Self>) {
        let pools: Vec<_> = self.pools.borrow().values().cloned().collect();
        for server in pools.iter().flat_map(|p| p.clear()) {
            self.close(server);
        }
    }

    /// Deadlines of clients, and idle connections that should go.
    pub(super) async fn sweep(self: Rc<Self>) {
        let mut ticks = tokio::time::interval(SWEEP);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut count = 0_u32;
        loop {
            ticks.tick().await;
            let now = Instant::now();
            self.clients.borrow().values().for_each(|client| client.check_deadline(now));
            self.pools.borrow().values().for_each(|pool| pool.look_again());
            count = count.wrapping_add(1);
            if count.is_multiple_of(SWEEPS_PER_LOOK) {
                let current = self.current();
                self.sweep_pools(&current.config).await;
            }
        }
    }

    async fn sweep_pools(self: &Rc<Self>, config: &Config) {
        let pools: Vec<_> = self.pools.borrow().values().cloned().collect();
        let t = &config.timeouts;
        for pool in &pools {
            let closing = poll_fn(|cx| {
                let keep = config.pool.min_size;
                Poll::Ready(pool.sweep(cx, &self.buffers, t.server_idle, t.server_lifetime, keep))
            });
            for server in closing.await {
                self.close(server);
            }
        }
        self.servers.borrow_mut().retain(|s| s.strong_count() > 0);
        // Pools of parameters that nobody uses any more.
        self.pools.borrow_mut().retain(|_, pool| {
            let counts = pool.counts();
            pool.key.applies
                || Rc::strong_count(pool) > 2
                || counts.idle + counts.active + counts.opening + counts.waiting > 0
        });
        let mut plans = self.plans.borrow_mut();
        let [hits, misses] = plans.take_lookups();
        let hot = self.hot.borrow();
        hot.plan_cache_hits.increment(hits);
        hot.plan_cache_misses.increment(misses);
        self.global.plan_sizes.store(self.index, plans.size());
    }
}

impl Current {
    pub(super) fn new(config: Arc<Config>, catalog: Arc<Catalog>, version: u64) -> Self {
        Self { config, catalog, version, since: Instant::now() }
    }
}

/// What a new session starts with, as far as statements are read by it.
const DEFAULTS: &str = "SELECT pg_catalog.current_setting('search_path'), \
     pg_catalog.current_setting('default_transaction_isolation')";
const MAX_INTERNED: usize = 20_000;
/// How long a server that was asked to cancel is waited for before its connection is closed.
const CANCELLED: Duration = Duration::from_secs(1);
const SWEEP: Duration = Duration::from_millis(100);
const SWEEPS_PER_LOOK: u32 = 10;

//! What runs beside the clients in every instance: who looks at the journals, who ships them, who resolves what is in
//! doubt. Each has connections of its own, so that none waits for another.

use std::{sync::Arc, time::Duration};

use tokio::task::JoinHandle;

use super::keeper;
use crate::{
    Side,
    backend::control::Manager,
    config::Config,
    mirror::{
        recovery::{Identity, Recoverer},
        repair::{self, Repairer, Round},
        session::Session,
        watch::Watcher,
    },
    proxy::{global::Global, health::Controls},
    route::policy::Mode,
};

/// Starts all of it; the tasks end when they are aborted.
pub(in crate::proxy) fn start(global: &Arc<Global>, controls: &Arc<Controls>) -> Vec<JoinHandle<()>> {
    global.mirror.ask_with(keeper::outcomes(Arc::clone(controls)));
    let mut tasks = vec![tokio::spawn(keeper::clean(Arc::clone(global), Arc::clone(controls)))];
    for side in Side::BOTH {
        tasks.push(tokio::spawn(watch(Arc::clone(global), side)));
        tasks.push(tokio::spawn(learn(Arc::clone(global), side)));
        tasks.push(tokio::spawn(repair(Arc::clone(global), side)));
        tasks.push(tokio::spawn(recover(Arc::clone(global), side)));
    }
    tasks
}

/// Waits a while for the first look at both sides: clients that come at once need not be refused.
pub(in crate::proxy) async fn ready(global: &Global) {
    let state = &global.mirror;
    let known = |side: Side| {
        state.identity[side.index()].load().is_some() && state.tokens[side.index()].load().is_some()
    };
    let unknown = || !Side::BOTH.into_iter().all(known) || state.installed.load().repositories.is_empty();
    let all = async {
        while mirrors(&global.live.get()) && unknown() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    if tokio::time::timeout(READY, all).await.is_err() {
        tracing::warn!(
            "mirrored repositories: not all is known of both sides yet; is crossfade mirror install done?"
        );
    }
}

/// What such a task goes by, until the configuration is another.
struct Basis {
    config: Arc<Config>,
    managers: [Manager; 2],
}

impl Basis {
    /// Waits until something is mirrored.
    async fn of(global: &Global) -> Self {
        loop {
            let config = global.live.get();
            if mirrors(&config)
                && let Some(managers) = managers(&config)
            {
                return Self { config, managers };
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    fn holds(&self, global: &Global) -> bool {
        let now = global.live.get();
        now.backends == self.config.backends && now.mirror == self.config.mirror && mirrors(&now)
    }

    fn patience(&self) -> Duration {
        self.config.mirror.apply_timeout
    }
}

fn mirrors(config: &Config) -> bool {
    config.policy.repositories.iter().any(|r| r.mirror.mode != Mode::Off)
}

fn managers(config: &Config) -> Option<[Manager; 2]> {
    let made = Side::BOTH.map(|side| {
        let made = Manager::new(&config.backends[side.index()], config.timeouts.server_connect);
        made.inspect_err(|error| tracing::error!(%side, %error, "no connections for mirroring")).ok()
    });
    let [Some(source), Some(target)] = made else { return None };
    Some([source, target])
}

/// What is installed, and whether the journal of `side` holds what keeps reads from the other one.
async fn watch(global: Arc<Global>, side: Side) {
    loop {
        let basis = Basis::of(&global).await;
        let state = &global.mirror;
        let mut watcher = Watcher::new(
            side,
            basis.managers[side.index()].clone(),
            (basis.patience(), basis.config.mirror.journal_grace),
            Arc::clone(&state.tables),
            Arc::clone(&state.status),
        );
        while basis.holds(&global) {
            let wait = match watcher.round().await {
                Ok(()) => WATCH,
                Err(error) => {
                    tracing::debug!(%side, %error, "the journal could not be looked at");
                    AFTER_ERROR
                }
            };
            state.refresh();
            tokio::time::sleep(wait).await;
        }
    }
}

/// Who the server is, and the token for its write sets.
async fn learn(global: Arc<Global>, side: Side) {
    let mut session = None;
    loop {
        let basis = Basis::of(&global).await;
        if session.is_none() {
            session = Session::look(&basis.managers[side.index()], side, basis.patience()).await.ok();
        }
        let Some(open) = &session else {
            tokio::time::sleep(AFTER_ERROR).await;
            continue;
        };
        let state = &global.mirror;
        let learned = async {
            let identity = Identity::load(open).await?;
            let rows = open.rows(TOKEN, &[]).await?;
            let token = rows.first().and_then(|row| row.try_get::<_, Option<String>>(0).ok().flatten());
            Ok::<_, crate::mirror::session::Error>((identity, token))
        };
        match learned.await {
            Ok((identity, token)) => {
                state.identity[side.index()].store(identity.map(Arc::new));
                state.tokens[side.index()].store(token.map(Arc::new));
                tokio::time::sleep(LEARN).await;
            }
            Err(error) => {
                tracing::debug!(%side, %error, "a side could not be asked who it is");
                session = None;
                tokio::time::sleep(AFTER_ERROR).await;
            }
        }
    }
}

/// Ships the journal of `side` to the other one.
async fn repair(global: Arc<Global>, side: Side) {
    loop {
        let basis = Basis::of(&global).await;
        let mirror = basis.config.mirror;
        let settings = repair::Settings {
            grace: mirror.journal_grace,
            lock_timeout: mirror.lock_timeout,
            patience: basis.patience(),
        };
        let (tables, status) = (Arc::clone(&global.mirror.tables), Arc::clone(&global.mirror.status));
        let mut repairer = Repairer::new(side, basis.managers.clone(), settings, tables, status);
        while basis.holds(&global) {
            let wait = match repairer.round().await {
                Ok(Round::Worked(_, gone)) if gone > 0 => Duration::ZERO,
                Ok(Round::Worked(..)) => BUSY,
                Ok(Round::Idle | Round::Elsewhere) => IDLE,
                Err(error) => {
                    global.mirror.status.failed(side, &error);
                    tracing::debug!(%side, %error, "the repairer begins anew");
                    AFTER_ERROR
                }
            };
            tokio::time::sleep(wait).await;
        }
    }
}

/// Resolves prepared transactions on `side`.
async fn recover(global: Arc<Global>, side: Side) {
    loop {
        let basis = Basis::of(&global).await;
        let status = Arc::clone(&global.mirror.status);
        let mut recoverer = Recoverer::new(side, basis.managers.clone(), basis.patience(), status);
        while basis.holds(&global) {
            let wait = match recoverer.round().await {
                Ok(_) => RECOVER,
                Err(error) => {
                    tracing::debug!(%side, %error, "the recoverer begins anew");
                    AFTER_ERROR
                }
            };
            // Instances that began together need not look together.
            let jitter = Duration::from_millis(u64::from(global.mirror.instance % 20));
            tokio::time::sleep(wait + jitter).await;
        }
    }
}

const TOKEN: &str = "SELECT (SELECT value FROM crossfade.meta WHERE key OPERATOR(pg_catalog.=) 'token')";
const READY: Duration = Duration::from_secs(3);
const LOOK: Duration = Duration::from_millis(100);
const WATCH: Duration = Duration::from_millis(50);
const LEARN: Duration = Duration::from_secs(1);
const BUSY: Duration = Duration::from_millis(20);
const IDLE: Duration = Duration::from_millis(100);
const RECOVER: Duration = Duration::from_millis(100);
const AFTER_ERROR: Duration = Duration::from_millis(200);

//! What the clients' way must know of the servers: who they are, what is installed, and the token for write sets.

use std::{sync::Arc, time::Duration};

use tokio::task::JoinHandle;

use super::{keeper, upkeep};
use crate::{
    Side,
    backend::control::{self, Manager},
    config::Config,
    mirror::{
        recovery::{Identity, last_checkpoint},
        session::Session,
    },
    proxy::{global::Global, health::Controls},
};

/// Starts what only the clients' way needs; the tasks end when they are aborted.
pub(in crate::proxy) fn learn(global: &Arc<Global>, controls: &Arc<Controls>) -> Vec<JoinHandle<()>> {
    global.mirror.ask_with(keeper::outcomes(Arc::clone(controls)));
    let clean = tokio::spawn(keeper::clean(Arc::clone(global), Arc::clone(controls)));
    let who = Side::BOTH.map(|side| tokio::spawn(look(Arc::clone(global), side)));
    let upkeep = tokio::spawn(upkeep::keep(Arc::clone(global)));
    [clean, upkeep].into_iter().chain(who).collect()
}

/// Waits a while for the first look at both sides: clients that come at once need not be refused.
pub(in crate::proxy) async fn ready(global: &Global) {
    let state = &global.mirror;
    let known = |side: Side| {
        state.identity[side.index()].load().is_some() && state.tokens[side.index()].load().is_some()
    };
    let unknown = || !Side::BOTH.into_iter().all(known) || state.installed.load().repositories.is_empty();
    let all = async {
        while global.live.get().policy.mirrors() && unknown() {
            state.refresh(&global.mirrored.tables);
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
            if config.policy.mirrors() {
                match managers(&config) {
                    Ok(managers) => return Self { config, managers },
                    Err(error) => tracing::error!(%error, "no connections for mirroring"),
                }
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    fn patience(&self) -> Duration {
        self.config.mirror.apply_timeout
    }
}

/// Where connections for mirroring come from, by [`Side::index`].
pub(super) fn managers(config: &Config) -> Result<[Manager; 2], control::Error> {
    let manager = |side: Side| Manager::new(&config.backends[side.index()], config.timeouts.server_connect);
    Ok([manager(Side::Source)?, manager(Side::Target)?])
}

/// Who the server is, and the token for its write sets.
async fn look(global: Arc<Global>, side: Side) {
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
            let checkpoint = last_checkpoint(open).await?;
            Ok::<_, crate::mirror::session::Error>((identity, token, checkpoint))
        };
        match learned.await {
            Ok((identity, token, checkpoint)) => {
                state.set_checkpoint(side, checkpoint.unwrap_or_default());
                state.identity[side.index()].store(identity.map(Arc::new));
                state.tokens[side.index()].store(token.map(Arc::new));
                state.refresh(&global.mirrored.tables);
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

const TOKEN: &str = "SELECT (SELECT value FROM crossfade.meta WHERE key OPERATOR(pg_catalog.=) 'token')";
const READY: Duration = Duration::from_secs(3);
const LOOK: Duration = Duration::from_millis(100);
const LEARN: Duration = Duration::from_secs(1);
const AFTER_ERROR: Duration = Duration::from_millis(200);

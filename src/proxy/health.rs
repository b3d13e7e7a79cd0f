//! Are the backends there, what do their catalogs say, and are our own threads alive?

use std::{sync::Arc, time::Duration};

use super::global::Global;
use crate::{
    Side,
    admin::{
        http::BackendState,
        notify::{self, State},
    },
    backend::control,
    catalog::{self, Catalog},
    config::{Config, reload::Live},
    frontend,
};

/// Control connections, made anew when a backend's table changes.
#[derive(Default)]
pub(super) struct Controls(std::sync::Mutex<[Option<control::Pool>; 2]>);

impl Controls {
    pub(super) fn set(&self, config: &Config) {
        let pools = Side::BOTH.map(|side| {
            let made = control::pool(&config.backends[side.index()], config.timeouts.server_connect);
            made.inspect_err(|error| tracing::error!(%side, %error, "no control connections")).ok()
        });
        *self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = pools;
    }

    pub(super) fn close(&self) {
        *self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = [None, None];
    }

    pub(super) fn get(&self, side: Side) -> Option<control::Pool> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)[side.index()].clone()
    }
}

/// `auth.query`, run on the source by the main thread.
pub(super) fn user_lookup(live: Arc<Live>, controls: Arc<Controls>) -> frontend::Lookup {
    // Control connections belong to the runtime that made them.
    let main = tokio::runtime::Handle::current();
    Arc::new(move |user: String| {
        let (live, controls, main) = (Arc::clone(&live), Arc::clone(&controls), main.clone());
        Box::pin(async move {
            let Some(query) = live.get().auth.query.clone() else { return Ok(None) };
            let look = async move {
                let pool = controls.get(Side::Source).ok_or("no control connection")?;
                let client = control::get(&pool).await.map_err(|e| e.to_string())?;
                let row = client.query_opt(&query, &[&user]).await.map_err(|e| control::describe(&e))?;
                let secret: Option<String> = match row {
                    Some(row) => row.try_get(1).map_err(|e| e.to_string())?,
                    None => None,
                };
                Ok(secret.map(frontend::auth::parse_secret))
            };
            main.spawn(look).await.map_err(|e| e.to_string())?
        })
    })
}

/// Reads both catalogs and publishes them. The fingerprints, or `None` when that failed.
pub(super) async fn load_catalog(
    global: &Global,
    controls: &Controls,
    why: Option<&str>,
) -> [Option<i64>; 2] {
    let (Some(source), Some(target)) = (controls.get(Side::Source), controls.get(Side::Target)) else {
        return [None, None];
    };
    let generation = global.catalog.load().generation + 1;
    match Box::pin(catalog::load::load([&source, &target], generation)).await {
        Ok(loaded) => {
            for side in Side::BOTH {
                let state =
                    if loaded.failed[side.index()].is_none() { BackendState::Up } else { BackendState::Down };
                global.set_backend(side, state);
                if let Some(error) = &loaded.failed[side.index()] {
                    tracing::warn!(%side, %error, "the catalog could not be read");
                }
            }
            let relations = loaded.catalog.relations.len();
            tracing::info!(generation, relations, reason = why.unwrap_or("start"), "catalog loaded");
            let old = global.catalog.load();
            let known = !old.covers(Side::Target) || loaded.catalog.covers(Side::Target);
            if known {
                publish(global, loaded.catalog);
            }
            loaded.fingerprints
        }
        Err(error) => {
            tracing::warn!(%error, "no catalog could be read");
            for side in Side::BOTH {
                global.set_backend(side, BackendState::Down);
            }
            [None, None]
        }
    }
}

fn publish(global: &Global, catalog: Catalog) {
    global.catalog.store(Arc::new(catalog));
    global.changed();
}

/// Health checks, and the catalog read again when it changed.
pub(super) async fn watch_backends(
    global: Arc<Global>,
    controls: Arc<Controls>,
    mut known: [Option<i64>; 2],
) {
    let mut ticks = tokio::time::interval(HEALTH);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let look = |side: Side| {
            let pool = controls.get(side);
            async move {
                let pool = pool?;
                tokio::time::timeout(HEALTH_TIMEOUT, catalog::load::fingerprint(&pool)).await.ok()?.ok()
            }
        };
        let (source, target) = tokio::join!(look(Side::Source), look(Side::Target));
        let now = [source, target];
        for side in Side::BOTH {
            let state = if now[side.index()].is_some() { BackendState::Up } else { BackendState::Down };
            if global.backend(side) != state {
                tracing::warn!(%side, state = ?state, "backend changed its state");
            }
            global.set_backend(side, state);
        }
        // A side that is down keeps what was known of it: its weights fall to the other side by themselves.
        let changed = (0..2).any(|i| now[i].is_some() && now[i] != known[i]);
        if changed {
            let loaded = Box::pin(load_catalog(&global, &controls, Some("changed"))).await;
            if loaded.iter().any(Option::is_some) {
                known = loaded;
            }
        }
    }
}

/// Alive is: every data thread answers.
pub(super) async fn watchdog(global: Arc<Global>, interval: Duration) {
    let mut ticks = tokio::time::interval(interval);
    loop {
        ticks.tick().await;
        let answers = tokio::time::timeout(interval, global.on_every_shard(|_| ())).await;
        if answers.is_ok_and(|a| a.len() == global.shards().len()) {
            let _ = notify::notify(State::Watchdog);
        } else {
            tracing::error!("a data thread does not answer");
        }
    }
}

const HEALTH: Duration = Duration::from_secs(2);

const HEALTH_TIMEOUT: Duration = Duration::from_secs(5);

//! Beside the clients, on the main thread: what became of a transaction whose connection died, and journal rows that
//! are done.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::state::Outcomes;
use crate::{
    Side,
    backend::control,
    mirror::recovery::LAST_CHECKPOINT,
    proxy::{global::Global, health::Controls},
};

/// How outcomes are asked for: from any thread, over control connections of the main one.
pub(in crate::proxy) fn outcomes(controls: Arc<Controls>) -> Outcomes {
    let main = tokio::runtime::Handle::current();
    Box::new(move |side, xid, epoch| {
        let (controls, main) = (Arc::clone(&controls), main.clone());
        Box::pin(async move { main.spawn(outcome(controls, (side, xid, epoch))).await.ok().flatten() })
    })
}

/// Asks until the server says; a server that is restarting is waited for.
async fn outcome(controls: Arc<Controls>, (side, xid, epoch): (Side, String, u64)) -> Option<bool> {
    let end = tokio::time::Instant::now() + PATIENCE;
    loop {
        match status(&controls, side, &xid).await {
            Ok((Some(word), checkpoint)) if word == "committed" => {
                // After a crash it may be another transaction that was given the same number.
                return (checkpoint == Some(epoch)).then_some(true);
            }
            Ok((Some(word), _)) if word == "aborted" => return Some(false),
            // In progress: its backend has not noticed yet.
            Ok((Some(_), _)) => {}
            Ok((None, _)) => return None,
            // A number of the future: all that it wrote was lost in a crash.
            Err((Some("22023"), _)) => return Some(false),
            Err((_, why)) => {
                tracing::debug!(%side, why, "the outcome of a transaction could not be asked for");
            }
        }
        if tokio::time::Instant::now() >= end {
            return None;
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// The word for the transaction, and the position of the last checkpoint.
type Told = (Option<String>, Option<u64>);

async fn status(controls: &Controls, side: Side, xid: &str) -> Result<Told, (Option<&'static str>, String)> {
    let pool = controls.get(side).ok_or((None, "no control connection".to_owned()))?;
    let client = control::get(&pool).await.map_err(|e| (None, e.to_string()))?;
    let ask =
        format!("SELECT pg_catalog.pg_xact_status($1::pg_catalog.text::pg_catalog.xid8), {LAST_CHECKPOINT}");
    let failed = |e: tokio_postgres::Error| {
        let future = e.code() == Some(&tokio_postgres::error::SqlState::INVALID_PARAMETER_VALUE);
        (future.then_some("22023"), control::describe(&e))
    };
    let row = client.query_one(&ask, &[&xid]).await.map_err(failed)?;
    let checkpoint: Option<String> = row.try_get(1).map_err(failed)?;
    Ok((row.try_get(0).map_err(failed)?, checkpoint.and_then(|c| c.parse().ok())))
}

/// Deletes journal rows whose transactions are on both sides.
pub(in crate::proxy) async fn clean(global: Arc<Global>, controls: Arc<Controls>) {
    let mut ticks = tokio::time::interval(CLEAN);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut dead = [0, 0];
    loop {
        ticks.tick().await;
        for lead in Side::BOTH {
            age(&global, &controls, lead).await;
            let ids = global.mirror.take_done(lead);
            if ids.is_empty() {
                continue;
            }
            dead[lead.index()] += ids.len();
            if dead[lead.index()] >= VACUUM {
                dead[lead.index()] = 0;
                tokio::spawn(vacuum(Arc::clone(&controls), lead));
            }
            if let Err(why) = delete(&controls, lead, &ids).await {
                tracing::debug!(side = %lead, why, "journal rows could not be deleted yet");
                global.mirror.put_back(lead, ids);
                tokio::time::sleep(AGAIN).await;
            }
        }
    }
}

/// Makes rows whose follower's end is not known look as old as the repairer takes them. They stay rows of a transaction
/// that was shipped: their whole rows may be there.
async fn age(global: &Global, controls: &Controls, lead: Side) {
    let ids = global.mirror.take_late(lead);
    if ids.is_empty() {
        return;
    }
    // Until then nobody reads from the follower.
    let config = global.live.get();
    let soil = || {
        for r in config.policy.repositories.iter().filter(|r| r.mirror.mode.is_synchronous()) {
            global.mirrored.status.soil(&r.name, lead, Instant::now());
        }
    };
    soil();
    let sql = "UPDATE crossfade.journal SET at = at OPERATOR(pg_catalog.-) pg_catalog.make_interval(secs => $2) \
               WHERE id OPERATOR(pg_catalog.=) ANY ($1::pg_catalog.int8[])";
    let grace = config.mirror.journal_grace.as_secs_f64();
    let done = async {
        let pool = controls.get(lead).ok_or("no control connection")?;
        let client = control::get(&pool).await.map_err(|e| e.to_string())?;
        client.execute(sql, &[&ids, &grace]).await.map_err(|e| control::describe(&e))
    };
    if let Err(why) = done.await {
        tracing::debug!(side = %lead, why, "journal rows could not be handed to the repairer yet");
        for id in ids {
            global.mirror.late(lead, id);
        }
    }
    soil();
}

/// Autovacuum comes once a minute at best. A journal that turns over thousands of rows a second would be read through its
/// dead rows by every look until then.
async fn vacuum(controls: Arc<Controls>, lead: Side) {
    let done = async {
        let pool = controls.get(lead).ok_or("no control connection")?;
        let client = control::get(&pool).await.map_err(|e| e.to_string())?;
        let sql = "VACUUM (SKIP_LOCKED, TRUNCATE off) crossfade.journal";
        client.batch_execute(sql).await.map_err(|e| control::describe(&e))
    };
    if let Err(why) = done.await {
        tracing::debug!(side = %lead, why, "the journal could not be vacuumed");
    }
}

async fn delete(controls: &Controls, lead: Side, ids: &[i64]) -> Result<(), String> {
    let pool = controls.get(lead).ok_or("no control connection")?;
    let client = control::get(&pool).await.map_err(|e| e.to_string())?;
    let sql = "DELETE FROM crossfade.journal WHERE id OPERATOR(pg_catalog.=) ANY ($1::pg_catalog.int8[])";
    client.execute(sql, &[&ids]).await.map(drop).map_err(|e| control::describe(&e))
}

const CLEAN: Duration = Duration::from_millis(50);
/// Rows deleted after which dead ones are cleared away.
const VACUUM: usize = 5_000;
const AGAIN: Duration = Duration::from_millis(100);
/// How long an outcome is asked for: a server that crashed may be replaying its log.
const PATIENCE: Duration = Duration::from_secs(30);

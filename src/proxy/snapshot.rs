//! State and evidence at this moment, for the admin HTTP.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use super::{global::Global, operator::Console, stats::unix_now};
use crate::{
    Side,
    admin::{
        console::{self, Operator},
        console_rows::RepositoryRow,
        snapshot::{
            Divergence, Figures, InDoubt, Journal, MOST_DIVERGENCES, MOST_QUERIES, Pair, QueryRow,
            Repository, Snapshot,
        },
    },
    report::{
        divergence::{Book, Query, Stats},
        history::History,
    },
};

/// The last hour, shared by who writes it and who shows it.
pub(super) type Hour = Arc<Mutex<History>>;

/// Ends a step of the last hour now and then. Never returns.
pub(super) async fn keep(global: Arc<Global>, hour: Hour) {
    loop {
        global.shadow.look(|book| hour.lock().unwrap_or_else(PoisonError::into_inner).step(book, unix_now()));
        tokio::time::sleep(STEP).await;
    }
}

/// Looks.
pub(super) async fn take(global: Arc<Global>, hour: Hour) -> Snapshot {
    let console = Console { global: Arc::clone(&global) };
    let rows = console.repositories().await;
    let journals = Journal::of(&console.journal().await);
    let in_doubt = console.in_doubt().await;
    let config = global.live.get();
    let backend = |side| Some(global.backend(side));
    let mut snapshot = Snapshot {
        version: console::VERSION.to_owned(),
        now: unix_now(),
        config: config.hash.clone(),
        draining: global.draining.load(std::sync::atomic::Ordering::Relaxed),
        actions: config.admin.token.is_some(),
        paused: Pair { source: global.is_paused(Side::Source), target: global.is_paused(Side::Target) },
        backends: Pair { source: backend(Side::Source), target: backend(Side::Target) },
        journals,
        in_doubt: InDoubt {
            transactions: in_doubt.len() as u64,
            stuck: in_doubt.iter().filter(|row| row.stuck).count() as u64,
        },
        queue: global.shadow.pending() as u64,
        dropped: global.shadow.drops(),
        ..Snapshot::default()
    };
    snapshot.repositories = rows.into_iter().map(|row| repository(row, &global, &hour)).collect();
    global.shadow.look(|book| {
        for repository in &mut snapshot.repositories {
            figures(repository, book);
        }
        queries(&mut snapshot, book);
    });
    snapshot
}

fn repository(row: RepositoryRow, global: &Global, hour: &Hour) -> Repository {
    let config = global.live.get();
    let index = config.policy.repositories.iter().position(|r| r.name == row.name);
    let shadowed = index.and_then(|index| config.shadow.repositories.get(index));
    let pair = |[source, target]: [u64; 2]| Pair { source, target };
    Repository {
        coverage: global.shadow.coverage(&row.name),
        history: hour.lock().unwrap_or_else(PoisonError::into_inner).of(&row.name),
        shadow: shadowed.map_or(0.0, |s| s.share.fraction()),
        tables: row.tables,
        reads_target: row.reads_target_percent / 100.0,
        writes_target: row.writes_target_percent / 100.0,
        mirror: row.mirror,
        lead: row.lead,
        lead_wanted: row.lead_wanted,
        lead_waits_for: row.lead_waits_for,
        queries: pair(row.queries),
        errors: pair(row.errors),
        name: row.name,
        ..Repository::default()
    }
}

fn figures(repository: &mut Repository, book: &Book) {
    let Some(found) = book.repositories.get(&repository.name) else { return };
    let of = |(name, stats): (&String, &Stats)| (name.clone(), Figures::of(stats, false));
    repository.stats = Figures::of(&found.all, true);
    repository.writes = found.writes;
    repository.applications = found.applications.iter().map(of).collect();
}

/// The top of what is to be looked at.
fn queries(snapshot: &mut Snapshot, book: &Book) {
    let mut divergent: Vec<_> =
        book.queries().map(|(n, f, q)| (q.stats.count("divergence"), n, f, q)).collect();
    divergent.retain(|(count, ..)| *count > 0);
    divergent.sort_by_key(|(count, ..)| std::cmp::Reverse(*count));
    let row = |name: &str, fingerprint: u64, query: &Query| QueryRow::of(name, fingerprint, query);
    snapshot.divergent =
        divergent.iter().take(MOST_QUERIES).map(|&(_, name, f, query)| row(name, f, query)).collect();

    let median = |query: &Query| query.stats.delta.quantile(0.5).filter(|slower| *slower > 0.0);
    let mut slower: Vec<_> = book.queries().filter_map(|(n, f, q)| Some((median(q)?, n, f, q))).collect();
    slower.sort_by(|a, b| b.0.total_cmp(&a.0));
    snapshot.slower =
        slower.iter().take(MOST_QUERIES).map(|&(_, name, f, query)| row(name, f, query)).collect();

    let newest = book.newest(MOST_DIVERGENCES).into_iter();
    snapshot.divergences = newest.map(|(name, f, query, s)| Divergence::of(name, f, query, s)).collect();
}

/// Of the last hour.
const STEP: Duration = Duration::from_secs(10);

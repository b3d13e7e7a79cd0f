//! Triggers on the tables: created and dropped with short waits for locks, many times.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use tokio_postgres::{Client, error::SqlState};

use super::{Error, label, with_partitions};
use crate::{
    Side,
    mirror::{
        capture::{Captured, TRIGGERS, qualified},
        shape::{Shape, Trigger},
    },
    statement::Table,
    wire::frame::quote_ident,
};

/// The first wait for a lock. While it waits, all others wait behind it, so it is short; it grows to [`LONGEST`].
const SHORTEST: Duration = Duration::from_millis(50);
const LONGEST: Duration = Duration::from_secs(1);

/// Statements that bring the triggers of a table up to date; none when they are.
fn statements(captured: &Captured, shape: &Shape) -> Vec<String> {
    let mut sql = Vec::new();
    for on in with_partitions(captured, shape) {
        let root = *on == captured.table();
        for (suffix, _) in TRIGGERS.into_iter().filter(|(suffix, _)| root || *suffix == 't') {
            let name = format!("crossfade_{suffix}");
            let found = shape.tables.get(on).and_then(|table| table.trigger(&name));
            let table = qualified(&on.schema, &on.name);
            if !found.is_some_and(|found| is_right(found, captured, suffix)) {
                if found.is_some() {
                    sql.push(format!("DROP TRIGGER {name} ON {table}"));
                }
                sql.push(captured.trigger(suffix, on));
            }
        }
    }
    for (on, name) in not_always(captured, shape, &sql) {
        sql.push(format!("ALTER TABLE {} ENABLE ALWAYS TRIGGER {name}", qualified(&on.schema, &on.name)));
    }
    sql
}

fn is_right(found: &Trigger, captured: &Captured, suffix: char) -> bool {
    found.function.schema == "crossfade"
        && found.function.name == format!("c{}_{suffix}", captured.number)
        && !found.definition.contains(" WHEN (")
}

/// Triggers, also the ones that partitions have from their root, that a session in replica role would not fire.
fn not_always(captured: &Captured, shape: &Shape, made: &[String]) -> Vec<(Table, String)> {
    let mut list = Vec::new();
    for on in with_partitions(captured, shape) {
        for (suffix, _) in TRIGGERS {
            let name = format!("crossfade_{suffix}");
            let found = shape.tables.get(on).and_then(|table| table.trigger(&name));
            if !made.is_empty() || found.is_none_or(|found| found.enabled != 'A') {
                list.push((on.clone(), name));
            }
        }
    }
    list
}

/// What is not as it should be, in words.
pub(super) fn missing(captured: &Captured, shape: &Shape) -> Vec<String> {
    let mut list = Vec::new();
    for on in with_partitions(captured, shape) {
        for (suffix, _) in TRIGGERS {
            let name = format!("crossfade_{suffix}");
            let found = shape.tables.get(on).and_then(|table| table.trigger(&name));
            let what = match found {
                None => "has no trigger",
                Some(found) if !is_right(found, captured, suffix) => "has an outdated trigger",
                Some(found) if found.enabled != 'A' => "does not always fire the trigger",
                Some(_) => continue,
            };
            list.push(format!("{} {what} {name}", label(on)));
        }
    }
    list
}

/// Creates what is missing, one transaction a table. Returns what was done.
pub(super) async fn install(
    side: Side,
    client: &mut Client,
    captured: &Captured,
    shape: &Shape,
    patience: Duration,
) -> Result<Vec<String>, Error> {
    let sql = statements(captured, shape);
    if sql.is_empty() {
        return Ok(Vec::new());
    }
    let tables: Vec<Table> = with_partitions(captured, shape).into_iter().cloned().collect();
    locked(Work { side, tables: &tables, sql: &sql, patience }, client).await?;
    Ok(vec![format!("{side}: triggers on {}", label(&captured.table()))])
}

/// Drops the triggers that call functions with these numbers, or `all` of crossfade's.
pub(super) async fn remove(
    side: Side,
    client: &mut Client,
    shape: &Shape,
    numbers: &BTreeSet<i32>,
    all: bool,
    patience: Duration,
) -> Result<Vec<String>, Error> {
    let mut done = Vec::new();
    let ours = |trigger: &&Trigger| {
        let number = trigger.function.name.strip_prefix('c').and_then(|n| n.split('_').next()?.parse().ok());
        trigger.function.schema == "crossfade" && (all || number.is_some_and(|n| numbers.contains(&n)))
    };
    for (table, found) in &shape.tables {
        let partition = found.root.is_some();
        let drop = |t: &Trigger| {
            // Those that a partition has from its root go with them.
            let own = !partition || t.name == "crossfade_t";
            own.then(|| {
                format!(
                    "DROP TRIGGER IF EXISTS {} ON {}",
                    quote_ident(&t.name),
                    qualified(&table.schema, &table.name)
                )
            })
        };
        let sql: Vec<String> = found.triggers.iter().filter(ours).filter_map(drop).collect();
        if sql.is_empty() {
            continue;
        }
        let mut tables = vec![table.clone()];
        tables.extend(shape.partitions(table).map(|(name, _)| name.clone()));
        locked(Work { side, tables: &tables, sql: &sql, patience }, client).await?;
        done.push(format!("{side}: triggers off {}", label(table)));
    }
    Ok(done)
}

/// Statements that need locks on tables.
struct Work<'a> {
    side: Side,
    tables: &'a [Table],
    sql: &'a [String],
    patience: Duration,
}

/// Runs them in a transaction that gives up soon when it must wait, again and again until `patience` is over.
async fn locked(work: Work<'_>, client: &mut Client) -> Result<(), Error> {
    let Work { side, tables, sql, patience } = work;
    let began = Instant::now();
    let mut wait = SHORTEST;
    loop {
        let result = attempt(client, sql, wait).await;
        let Err(error) = result else { return Ok(()) };
        let again = [SqlState::LOCK_NOT_AVAILABLE, SqlState::T_R_DEADLOCK_DETECTED];
        if !error.code().is_some_and(|code| again.contains(code)) {
            return Err(Error::query(side, format!("change the triggers of {}", label(&tables[0])))(error));
        }
        if began.elapsed() >= patience {
            let blockers = blockers(client, tables).await;
            let table = label(&tables[0]);
            return Err(Error::Busy { side, table, waited: patience, blockers });
        }
        // The others, who queued behind us, go first.
        tokio::time::sleep(wait.max(Duration::from_millis(100))).await;
        wait = (wait * 2).min(LONGEST);
    }
}

async fn attempt(client: &mut Client, sql: &[String], wait: Duration) -> Result<(), tokio_postgres::Error> {
    let transaction = client.transaction().await?;
    transaction.batch_execute(&format!("SET LOCAL lock_timeout = {}", wait.as_millis())).await?;
    for one in sql {
        transaction.batch_execute(one).await?;
    }
    transaction.commit().await
}

/// Who holds a lock that is in the way, in words. Row locks of writers count: ours conflicts with them.
async fn blockers(client: &Client, tables: &[Table]) -> String {
    let names: Vec<String> = tables.iter().map(|t| qualified(&t.schema, &t.name)).collect();
    let sql = "
SELECT DISTINCT CASE WHEN a.pid IS NULL THEN 'a prepared transaction'
       ELSE pg_catalog.format('process %s (user %s, %s, in its transaction for %s s%s)', a.pid, a.usename, a.state,
         pg_catalog.floor(extract(epoch FROM pg_catalog.clock_timestamp() - a.xact_start)),
         CASE WHEN a.application_name <> '' THEN ', ' || a.application_name ELSE '' END) END
FROM pg_catalog.pg_locks l LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid
WHERE l.granted AND l.database = (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database())
  AND l.relation IN (SELECT pg_catalog.to_regclass(n)::oid FROM pg_catalog.unnest($1::text[]) n)
  AND l.pid IS DISTINCT FROM pg_catalog.pg_backend_pid()
  AND l.mode IN ('RowExclusiveLock', 'ShareUpdateExclusiveLock', 'ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')";
    match client.query(sql, &[&names]).await {
        Ok(rows) if !rows.is_empty() => {
            rows.iter().map(|row| row.get::<_, String>(0)).collect::<Vec<_>>().join(", ")
        }
        Ok(_) | Err(_) => "somebody who has let go of it since".to_owned(),
    }
}

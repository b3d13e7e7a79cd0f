//! The control tables of both sides: read, compared, written.

use sha2::{Digest, Sha256};
use tokio_postgres::Client;

use super::Error;
use crate::{
    Side,
    mirror::{
        plan::{Registry, RepositoryRow, TableRow},
        schema,
    },
    statement::Table,
};

/// Waits for other installers, and makes the schema and its tables where they are not.
pub(super) async fn prepare(side: Side, client: &Client) -> Result<(), Error> {
    let lock =
        format!("SELECT pg_catalog.pg_advisory_lock({}, {})", schema::LOCK_CLASS, schema::INSTALL_LOCK);
    client.batch_execute(&lock).await.map_err(Error::query(side, "wait for another installation"))?;
    if let Some(row) =
        client.query_opt(schema::LOOK, &[]).await.map_err(Error::query(side, "look for the schema"))?
    {
        if !row.get::<_, bool>(0) {
            return Err(Error::Owned { side, owner: row.get(1) });
        }
        if row.get::<_, bool>(2) {
            let sql = "SELECT m.value::int FROM crossfade.meta m WHERE m.key = 'version'";
            let found = client.query_opt(sql, &[]).await.map_err(Error::query(side, "read the version"))?;
            let found = found.map_or(0, |row| row.get(0));
            if found > schema::VERSION {
                return Err(Error::Newer { side, found });
            }
        }
    }
    let sql = format!("BEGIN; SET LOCAL client_min_messages = warning; {} COMMIT", schema::TABLES);
    let made = client.batch_execute(&sql).await;
    if made.is_err() {
        let _ = client.batch_execute("ROLLBACK").await;
    }
    made.map_err(Error::query(side, "make the schema crossfade"))
}

/// Has each side the control tables?
pub(super) async fn exists(clients: &[Client; 2]) -> Result<[bool; 2], Error> {
    let mut there = [false; 2];
    for side in Side::BOTH {
        let found = clients[side.index()].query_opt(schema::LOOK, &[]).await;
        let found = found.map_err(Error::query(side, "look for the schema"))?;
        there[side.index()] = found.is_some_and(|row| row.get(2));
    }
    Ok(there)
}

/// What one side says.
pub(super) async fn read_one(side: Side, client: &Client) -> Result<Registry, Error> {
    let doing = "read crossfade's tables";
    let tables = "SELECT number, schema_name, table_name, repository, key_columns, columns, column_types FROM crossfade.tables";
    let repositories = "SELECT name, number, lead, epoch FROM crossfade.repositories";
    let next = "SELECT key, value::int FROM crossfade.meta WHERE key IN ('next_table', 'next_repository')";
    let mut registry = Registry { next_table: 1, next_repository: 1, ..Registry::default() };
    for row in client.query(tables, &[]).await.map_err(Error::query(side, doing))? {
        let table = Table { schema: row.get(1), name: row.get(2) };
        let one = TableRow {
            number: row.get(0),
            repository: row.get(3),
            key_columns: row.get(4),
            columns: row.get(5),
            column_types: row.get(6),
        };
        registry.tables.insert(table, one);
    }
    for row in client.query(repositories, &[]).await.map_err(Error::query(side, doing))? {
        let lead = if row.get::<_, &str>(2) == "target" { Side::Target } else { Side::Source };
        let one = RepositoryRow { number: row.get(1), lead, epoch: row.get(3) };
        registry.repositories.insert(row.get(0), one);
    }
    for row in client.query(next, &[]).await.map_err(Error::query(side, doing))? {
        if row.get::<_, &str>(0) == "next_table" {
            registry.next_table = row.get(1);
        } else {
            registry.next_repository = row.get(1);
        }
    }
    Ok(registry)
}

/// What both say; an installation that broke off may have left one behind, never in contradiction.
pub(super) async fn read(clients: &[Client; 2]) -> Result<Registry, Error> {
    let mut all = read_one(Side::Source, &clients[0]).await?;
    let target = read_one(Side::Target, &clients[1]).await?;
    merge(&mut all, target)?;
    Ok(all)
}

fn merge(all: &mut Registry, other: Registry) -> Result<(), Error> {
    for (table, row) in other.tables {
        let taken = all.tables.iter().find(|(t, r)| (**t == table) != (r.number == row.number));
        if taken.is_some() {
            return Err(Error::Numbers { what: super::label(&table) });
        }
        all.tables.entry(table).or_insert(row);
    }
    for (name, row) in other.repositories {
        let taken = all.repositories.iter().find(|(n, r)| (**n == name) != (r.number == row.number));
        if taken.is_some() {
            return Err(Error::Numbers { what: format!("repository {name}") });
        }
        all.repositories.entry(name).or_insert(row);
    }
    all.next_table = all.next_table.max(other.next_table);
    all.next_repository = all.next_repository.max(other.next_repository);
    Ok(())
}

/// The secret that opens `crossfade.collect`, the same on both sides; made when there is none.
pub(super) async fn token(clients: &[Client; 2]) -> Result<String, Error> {
    let select = "SELECT value FROM crossfade.meta WHERE key = 'token'";
    let mut token = None;
    for side in Side::BOTH {
        let row = clients[side.index()].query_opt(select, &[]).await;
        let row = row.map_err(Error::query(side, "read the token"))?;
        token = token.or_else(|| row.map(|row| row.get::<_, String>(0)));
    }
    let token = token.unwrap_or_else(|| {
        let mut bytes = [0; 24];
        getrandom::fill(&mut bytes).expect("the system has randomness");
        bytes.iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
    });
    Ok(token)
}

/// Writes numbers and functions in one transaction, when they differ. Tells whether it did.
pub(super) async fn write(
    side: Side,
    client: &mut Client,
    registry: &Registry,
    token: &str,
    functions: &str,
) -> Result<bool, Error> {
    if is_current(side, client, registry, functions).await? {
        return Ok(false);
    }
    let doing = || Error::query(side, "write crossfade's tables and functions");
    let transaction = client.transaction().await.map_err(doing())?;
    let sql = "INSERT INTO crossfade.repositories (name, number, lead, epoch) VALUES ($1, $2, $3, $4) ON CONFLICT (name) DO NOTHING";
    for (name, row) in &registry.repositories {
        let lead = row.lead.name();
        transaction.execute(sql, &[name, &row.number, &lead, &row.epoch]).await.map_err(doing())?;
    }
    let numbers: Vec<i32> = registry.tables.values().map(|row| row.number).collect();
    let gone = "DELETE FROM crossfade.tables WHERE number <> ALL ($1)";
    transaction.execute(gone, &[&numbers]).await.map_err(doing())?;
    let sql = "INSERT INTO crossfade.tables (number, schema_name, table_name, repository, key_columns, columns, column_types)
      VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (number) DO UPDATE SET repository = EXCLUDED.repository,
        key_columns = EXCLUDED.key_columns, columns = EXCLUDED.columns, column_types = EXCLUDED.column_types";
    for (table, row) in &registry.tables {
        let TableRow { number, repository, key_columns, columns, column_types } = row;
        let values: [&(dyn tokio_postgres::types::ToSql + Sync); 7] =
            [number, &table.schema, &table.name, repository, key_columns, columns, column_types];
        transaction.execute(sql, &values).await.map_err(doing())?;
    }
    transaction.batch_execute(functions).await.map_err(doing())?;
    // Without statistics the few rows that every transaction looks at would be looked up by index, for twice the price.
    transaction.batch_execute("ANALYZE crossfade.repositories").await.map_err(doing())?;
    let meta =
        "INSERT INTO crossfade.meta VALUES ($1, $2) ON CONFLICT (key) DO UPDATE SET value = EXCLUDED.value";
    for (key, value) in [
        ("next_table", registry.next_table.to_string()),
        ("next_repository", registry.next_repository.to_string()),
        ("token", token.to_owned()),
        ("functions", digest(functions)),
    ] {
        transaction.execute(meta, &[&key, &value]).await.map_err(doing())?;
    }
    transaction.commit().await.map_err(doing())?;
    Ok(true)
}

/// Has this side these numbers and functions?
pub(super) async fn is_current(
    side: Side,
    client: &Client,
    registry: &Registry,
    functions: &str,
) -> Result<bool, Error> {
    let found = read_one(side, client).await?;
    let same_repositories = registry
        .repositories
        .iter()
        .all(|(name, row)| found.repositories.get(name).is_some_and(|f| f.number == row.number));
    let doing = || Error::query(side, "look for functions");
    let sql = "SELECT value FROM crossfade.meta WHERE key = 'functions'";
    let hash = client.query_opt(sql, &[]).await.map_err(doing())?.map(|row| row.get::<_, String>(0));
    let sql = "SELECT count(*) FROM pg_catalog.pg_proc p WHERE p.pronamespace = 'crossfade'::pg_catalog.regnamespace";
    let there: i64 = client.query_one(sql, &[]).await.map_err(doing())?.get(0);
    let needed = functions.matches("CREATE OR REPLACE FUNCTION crossfade.").count();
    Ok(same_repositories
        && found.tables == registry.tables
        && hash == Some(digest(functions))
        && usize::try_from(there).is_ok_and(|there| there >= needed))
}

fn digest(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
}

/// Journal rows that the repairer has not shipped yet.
pub(super) async fn pending(side: Side, client: &Client) -> Result<i64, Error> {
    let row = client.query_one("SELECT count(*) FROM crossfade.journal", &[]).await;
    Ok(row.map_err(Error::query(side, "read the journal"))?.get(0))
}

/// Removes a repository's rows and functions; its triggers are gone.
pub(super) async fn forget(
    side: Side,
    client: &mut Client,
    repository: &str,
    numbers: &std::collections::BTreeSet<i32>,
) -> Result<(), Error> {
    let doing = || Error::query(side, format!("forget repository {repository}"));
    let transaction = client.transaction().await.map_err(doing())?;
    for (sql, name) in [
        ("DELETE FROM crossfade.tables WHERE repository = $1", repository),
        ("DELETE FROM crossfade.repositories WHERE name = $1", repository),
        // What is left is generated anew by the next installation.
        ("DELETE FROM crossfade.meta WHERE key = $1", "functions"),
    ] {
        transaction.execute(sql, &[&name]).await.map_err(doing())?;
    }
    for number in numbers {
        for (suffix, _) in crate::mirror::capture::TRIGGERS {
            let sql = format!("DROP FUNCTION IF EXISTS crossfade.c{number}_{suffix}()");
            transaction.batch_execute(&sql).await.map_err(doing())?;
        }
    }
    transaction.commit().await.map_err(doing())
}

//! tokio-postgres: prepared statements, types it looks up by OID, pipelining, portals, savepoints, COPY both ways.

use std::time::{Duration, SystemTime};

use futures_util::future::try_join_all;
use futures_util::{SinkExt, StreamExt, TryStreamExt};
use postgres_types::{FromSql, ToSql};
use serde_json::{Value, json};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Config, NoTls, Row};

use crate::common::{Result, Run, env};

#[derive(Clone, Debug, FromSql, PartialEq, ToSql)]
#[postgres(name = "doc_kind", rename_all = "snake_case")]
enum Kind {
    Draft,
    Report,
    Letter,
    Memo,
    Contract,
    Minutes,
    Invoice,
}

#[derive(Clone, Debug, FromSql, PartialEq, ToSql)]
#[postgres(name = "doc_state", rename_all = "snake_case")]
enum State {
    Open,
    Closed,
    Archived,
}

#[derive(Clone, Debug, FromSql, PartialEq, ToSql)]
#[postgres(name = "account_role", rename_all = "snake_case")]
enum Role {
    Reader,
    Editor,
    Admin,
}

#[derive(Clone, Debug, FromSql, PartialEq, ToSql)]
#[postgres(name = "doc_size")]
struct Size {
    width: Option<i32>,
    height: Option<i32>,
    state: Option<State>,
}

const KINDS: [Kind; 7] =
    [Kind::Draft, Kind::Report, Kind::Letter, Kind::Memo, Kind::Contract, Kind::Minutes, Kind::Invoice];
const COLUMNS: &str = "SELECT id, owner_id, title, kind, kinds, state, size, ARRAY[lower(pages), upper(pages)] AS pages, price::text AS price,
    ratio, meta, digest, uid::text AS uid, day::text AS day, created_at, note, current_setting('cluster_name') AS who FROM documents";
const INSERT: &str = "INSERT INTO organization_scratch (run, n) VALUES ($1, $2)";

const CHECKS: [&str; 8] = [
    "whole rows",
    "user types as parameters",
    "pipelined",
    "reads then writes",
    "portal while writing",
    "copy",
    "errors",
    "simple",
];

pub async fn drive(run: &mut Run) {
    let mut client = None;
    while let Some(check) = run.next_check(&CHECKS) {
        let connected = match client.take() {
            Some(client) => Ok(client),
            None => connect().await,
        };
        let outcome = match connected {
            Ok(mut connected) => {
                let limit = Duration::from_secs(15);
                let outcome = tokio::time::timeout(limit, call(check, &mut connected, run))
                    .await
                    .unwrap_or(Err("hung for 15 s".into()));
                client = outcome.is_ok().then_some(connected);
                outcome
            }
            Err(error) => Err(error),
        };
        if let Err(error) = outcome {
            run.failed(check, error.as_ref());
        }
    }
}

async fn connect() -> Result<Client> {
    let (client, connection) = Config::new()
        .host(env("CF_HOST"))
        .port(env("CF_PORT").parse()?)
        .dbname(env("CF_DATABASE"))
        .user(env("CF_USER"))
        .password(env("CF_PASSWORD"))
        .connect(NoTls)
        .await?;
    tokio::spawn(connection);
    Ok(client)
}

async fn call(check: &str, client: &mut Client, run: &mut Run) -> Result<()> {
    match check {
        "whole rows" => whole_rows(client, run).await,
        "user types as parameters" => user_types_as_parameters(client, run).await,
        "pipelined" => pipelined(client, run).await,
        "reads then writes" => reads_then_writes(client, run).await,
        "portal while writing" => portal_while_writing(client, run).await,
        "copy" => copy(client, run).await,
        "errors" => errors(client, run).await,
        _ => simple(client, run).await,
    }
}

/// Checks a row of [`COLUMNS`]; returns who answered.
fn document(run: &mut Run, row: &Row) -> Result<String> {
    let hex: String = row.try_get::<_, Vec<u8>>("digest")?.iter().map(|b| format!("{b:02x}")).collect();
    let created: SystemTime = row.try_get("created_at")?;
    let size: Size = row.try_get("size")?;
    let kinds: Option<Vec<Kind>> = row.try_get("kinds")?;
    let got = json!({
        "id": row.try_get::<_, i64>("id")?, "owner_id": row.try_get::<_, i32>("owner_id")?, "title": row.try_get::<_, String>("title")?,
        "kind": label(row.try_get::<_, Kind>("kind")?), "kinds": kinds.map(|k| k.into_iter().map(label).collect::<Vec<_>>()),
        "state": label(row.try_get::<_, State>("state")?), "size": (size.width, size.height, size.state.map(label)),
        "pages": row.try_get::<_, Vec<i32>>("pages")?, "price": row.try_get::<_, String>("price")?, "ratio": row.try_get::<_, f64>("ratio")?,
        "meta": row.try_get::<_, Value>("meta")?, "digest": hex, "uid": row.try_get::<_, String>("uid")?, "day": row.try_get::<_, String>("day")?,
        "created_at": u64::try_from(created.duration_since(SystemTime::UNIX_EPOCH)?.as_millis())?, "note": row.try_get::<_, Option<String>>("note")?,
    });
    let who: String = row.try_get("who")?;
    run.document(got, &who)?;
    Ok(who)
}

fn label(value: impl std::fmt::Debug) -> String {
    format!("{value:?}").to_lowercase()
}

async fn whole_rows(client: &Client, run: &mut Run) -> Result<()> {
    let statement = client.prepare(&format!("{COLUMNS} WHERE id = $1")).await?;
    for _ in 0..10 {
        let row = client.query_one(&statement, &[&run.anyone()]).await?;
        document(run, &row)?;
    }
    for row in client.query(&format!("{COLUMNS} WHERE id BETWEEN $1 AND $1 + 20"), &[&run.anyone()]).await? {
        document(run, &row)?;
    }
    for row in
        client.query("SELECT id, role, name FROM users WHERE role = $1 ORDER BY id", &[&Role::Editor]).await?
    {
        let expected = run.expected["users"][usize::try_from(row.get::<_, i32>(0) - 1)?].clone();
        let got = json!([label(row.get::<_, Role>(1)), row.get::<_, String>(2)]);
        run.equal(got, json!([expected["role"], expected["name"]]), "user")?;
    }
    Ok(())
}

async fn user_types_as_parameters(client: &Client, run: &mut Run) -> Result<()> {
    let kind = KINDS[run.dice(7)].clone();
    let rows = client.query(&format!("{COLUMNS} WHERE kind = $1 ORDER BY id"), &[&kind]).await?;
    let expected = run.keys(|d| d["kind"] == label(&kind));
    run.equal(rows.iter().map(|r| r.get(0)).collect(), expected, "by enum")?;
    document(run, &rows[0])?;
    let kinds = vec![Kind::Memo, kind];
    let rows = client.query(&format!("{COLUMNS} WHERE kind = ANY ($1) ORDER BY id"), &[&kinds]).await?;
    let expected = run.keys(|d| kinds.iter().any(|k| d["kind"] == label(k)));
    run.equal(rows.iter().map(|r| r.get(0)).collect(), expected, "by array of enum")?;
    let id = run.anyone();
    let size: Size =
        client.query_one("SELECT size FROM documents WHERE id = $1", &[&id]).await?.try_get(0)?;
    let row = client.query_one(&format!("{COLUMNS} WHERE size = $1::doc_size"), &[&size]).await?;
    run.equal(row.get(0), id, "by composite")?;
    document(run, &row).map(drop)
}

async fn pipelined(client: &Client, run: &mut Run) -> Result<()> {
    let statement = client.prepare(&format!("{COLUMNS} WHERE id = $1")).await?;
    let ids: Vec<i64> = (0..20).map(|_| run.anyone()).collect();
    let rows = try_join_all(ids.iter().map(async |id| client.query_one(&statement, &[id]).await)).await?;
    for (row, id) in rows.iter().zip(ids) {
        run.equal(row.get(0), id, "order in a pipeline")?;
        document(run, row)?;
    }
    Ok(())
}

async fn reads_then_writes(client: &mut Client, run: &mut Run) -> Result<()> {
    let one = client.prepare(&format!("{COLUMNS} WHERE id = $1")).await?;
    let (kept, lost) = (run.next(), run.next());
    let mut transaction = client.transaction().await?;
    let row = transaction.query_one(&one, &[&run.anyone()]).await?;
    let first = document(run, &row)?;
    let row = transaction.query_one(&one, &[&run.anyone()]).await?;
    let second = document(run, &row)?;
    run.equal(second, first, "side within a transaction")?;
    let savepoint = transaction.transaction().await?;
    savepoint.execute(INSERT, &[&run.name, &lost]).await?;
    savepoint.rollback().await?;
    let size = Size { width: Some(1), height: None, state: Some(State::Archived) };
    let kinds = vec![Kind::Memo, Kind::Draft];
    let row = transaction
        .query_one("INSERT INTO organization_scratch (run, n, kind, kinds, role, size, payload) VALUES ($1, $2, $3, $4, $5, $6, $7) RETURNING kind, kinds, role, size, payload",
            &[&run.name, &kept, &Kind::Letter, &kinds, &Role::Admin, &size, &json!({"a": [1, null]})])
        .await?;
    run.equal(
        (row.get(0), row.get(1), row.get(2), row.get(3)),
        (Kind::Letter, kinds, Role::Admin, size),
        "RETURNING",
    )?;
    run.equal(row.get(4), json!({"a": [1, null]}), "RETURNING")?;
    let row = transaction.query_one(&one, &[&run.anyone()]).await?;
    let after = document(run, &row)?;
    run.equal(after.as_str(), "source", "side after the write")?;
    transaction.commit().await?;
    let rows = client
        .query(
            "SELECT n FROM organization_scratch WHERE run = $1 AND n = ANY ($2)",
            &[&run.name, &vec![kept, lost]],
        )
        .await?;
    run.equal(rows.iter().map(|r| r.get(0)).collect(), vec![kept], "after a rolled back savepoint")?;
    // Dropped without an end: the driver sends ROLLBACK behind the caller's back.
    let transaction = client.transaction().await?;
    transaction.execute("DELETE FROM organization_scratch WHERE run = $1", &[&run.name]).await?;
    drop(transaction);
    let count: i64 = client
        .query_one("SELECT count(*) FROM organization_scratch WHERE run = $1 AND n = $2", &[&run.name, &kept])
        .await?
        .get(0);
    run.equal(count, 1, "after a dropped transaction")
}

async fn portal_while_writing(client: &mut Client, run: &mut Run) -> Result<()> {
    let transaction = client.transaction().await?;
    let portal = transaction.bind(&format!("{COLUMNS} ORDER BY id"), &[]).await?;
    let mut seen = Vec::new();
    loop {
        let rows = transaction.query_portal(&portal, 60).await?;
        if rows.is_empty() {
            break;
        }
        for row in &rows {
            document(run, row)?;
            seen.push(row.get::<_, i64>(0));
        }
        let n = run.next();
        transaction.execute(INSERT, &[&run.name, &n]).await?;
    }
    transaction.commit().await?;
    let expected = run.keys(|_| true);
    run.equal(seen, expected, "rows of a portal")
}

async fn copy(client: &Client, run: &mut Run) -> Result<()> {
    let out = client.copy_out("COPY (SELECT id, kind FROM documents ORDER BY id) TO STDOUT").await?;
    let bytes: Vec<u8> = out
        .try_fold(Vec::new(), async |mut all, chunk| {
            all.extend_from_slice(&chunk);
            Ok(all)
        })
        .await?;
    let all = run.expected["documents"].as_array().ok_or("documents")?;
    let expected: String =
        all.iter().map(|d| format!("{}\t{}\n", d["id"], d["kind"].as_str().unwrap_or_default())).collect();
    run.equal(String::from_utf8(bytes)?, expected, "COPY TO")?;
    let numbers: Vec<i32> = (0..300).map(|_| run.next()).collect();
    let sink = client
        .copy_in::<_, std::collections::VecDeque<u8>>("COPY organization_scratch (run, n, kind) FROM STDIN")
        .await?;
    futures_util::pin_mut!(sink);
    for n in &numbers {
        sink.feed(format!("{}\t{n}\tmemo\n", run.name).into_bytes().into()).await?;
    }
    let count = sink.finish().await?;
    run.equal(count, 300, "tag of COPY FROM")?;
    let count: i64 = client
        .query_one(
            "SELECT count(*) FROM organization_scratch WHERE run = $1 AND n = ANY ($2) AND kind = 'memo'",
            &[&run.name, &numbers],
        )
        .await?
        .get(0);
    run.equal(count, 300, "copied rows")
}

async fn errors(client: &Client, run: &mut Run) -> Result<()> {
    for (sql, code) in [
        ("SELECT nothing FROM documents", SqlState::UNDEFINED_COLUMN),
        ("SELECT 1 / (id - 7) FROM documents WHERE id = 7", SqlState::DIVISION_BY_ZERO),
    ] {
        let error = client.query(sql, &[]).await.err().ok_or("no error")?;
        run.equal(error.code(), Some(&code), sql)?;
    }
    // A pipeline in which the middle statement fails: each has a Sync of its own, so the others hold.
    let (a, b) = (run.next(), run.next());
    let insert = client.prepare(INSERT).await?;
    let outcomes = futures_util::future::join_all(
        [a, a, b].iter().map(async |n| client.execute(&insert, &[&run.name, n]).await),
    )
    .await;
    run.equal(
        outcomes.iter().map(|o| o.as_ref().err().and_then(|e| e.code()).cloned()).collect(),
        vec![None, Some(SqlState::UNIQUE_VIOLATION), None],
        "pipelined inserts",
    )?;
    let row = client.query_one(&format!("{COLUMNS} WHERE id = $1"), &[&run.anyone()]).await?;
    document(run, &row).map(drop)
}

async fn simple(client: &Client, run: &mut Run) -> Result<()> {
    let n = run.next();
    client.batch_execute(&format!("BEGIN; INSERT INTO organization_scratch (run, n) VALUES ('{0}', {n}); COMMIT; BEGIN; DELETE FROM organization_scratch WHERE run = '{0}' AND n = {n}; ROLLBACK", run.name)).await?;
    let stream = client
        .simple_query_raw(&format!(
            "SELECT n FROM organization_scratch WHERE run = '{}' AND n = {n}",
            run.name
        ))
        .await?;
    let messages: Vec<_> = stream.collect().await;
    let rows =
        messages.iter().filter(|m| matches!(m, Ok(tokio_postgres::SimpleQueryMessage::Row(_)))).count();
    run.equal(rows, 1, "two transactions in one query")
}

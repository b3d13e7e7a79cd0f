//! sqlx: its pool and statement cache, types declared by name, transactions, COPY both ways.

use std::error::Error;
use std::time::Duration;

use futures_util::TryStreamExt;
use serde_json::{Value, json};
use sqlx::encode::IsNull;
use sqlx::postgres::types::{PgRange, PgRecordDecoder, PgRecordEncoder};
use sqlx::postgres::{
    PgArgumentBuffer, PgConnectOptions, PgHasArrayType, PgPool, PgPoolOptions, PgRow, PgSslMode, PgTypeInfo,
    PgValueRef,
};
use sqlx::{Connection, Decode, Encode, Postgres, Row, Type};

use crate::common::{Result, Run, env};

type Boxed = Box<dyn Error + Send + Sync>;

/// Declares a text-like enum as sqlx's derive would.
macro_rules! postgres_enum {
    ($rust:ident, $name:literal) => {
        #[derive(Clone, Debug, PartialEq)]
        struct $rust(String);
        impl Type<Postgres> for $rust {
            fn type_info() -> PgTypeInfo {
                PgTypeInfo::with_name($name)
            }
        }
        impl PgHasArrayType for $rust {
            fn array_type_info() -> PgTypeInfo {
                PgTypeInfo::array_of($name)
            }
        }
        impl<'r> Decode<'r, Postgres> for $rust {
            fn decode(value: PgValueRef<'r>) -> std::result::Result<Self, Boxed> {
                Ok(Self(value.as_str()?.to_owned()))
            }
        }
        impl Encode<'_, Postgres> for $rust {
            fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> std::result::Result<IsNull, Boxed> {
                buffer.extend_from_slice(self.0.as_bytes());
                Ok(IsNull::No)
            }
        }
    };
}

postgres_enum!(Kind, "doc_kind");
postgres_enum!(State, "doc_state");
postgres_enum!(Role, "account_role");

#[derive(Clone, Debug, PartialEq)]
struct Size(Option<i32>, Option<i32>, Option<State>);

impl Type<Postgres> for Size {
    fn type_info() -> PgTypeInfo {
        PgTypeInfo::with_name("doc_size")
    }
}

impl<'r> Decode<'r, Postgres> for Size {
    fn decode(value: PgValueRef<'r>) -> std::result::Result<Self, Boxed> {
        let mut fields = PgRecordDecoder::new(value)?;
        Ok(Self(fields.try_decode()?, fields.try_decode()?, fields.try_decode()?))
    }
}

impl Encode<'_, Postgres> for Size {
    fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> std::result::Result<IsNull, Boxed> {
        let mut fields = PgRecordEncoder::new(buffer);
        fields.encode(self.0)?;
        fields.encode(self.1)?;
        fields.encode(self.2.clone())?;
        fields.finish();
        Ok(IsNull::No)
    }
}

/// `page_range`, a range type of the application.
#[derive(Clone, Debug, PartialEq)]
struct Pages(PgRange<i32>);

impl Type<Postgres> for Pages {
    fn type_info() -> PgTypeInfo {
        PgTypeInfo::with_name("page_range")
    }
}

impl<'r> Decode<'r, Postgres> for Pages {
    fn decode(value: PgValueRef<'r>) -> std::result::Result<Self, Boxed> {
        PgRange::decode(value).map(Self)
    }
}

const KINDS: [&str; 7] = ["draft", "report", "letter", "memo", "contract", "minutes", "invoice"];
const COLUMNS: &str = "SELECT id, owner_id, title, kind, kinds, state, size, pages, price::text AS price, ratio, meta::text AS meta, digest,
    uid::text AS uid, day::text AS day, (extract(epoch FROM created_at) * 1000)::bigint AS created_at, note, current_setting('cluster_name') AS who FROM documents";
const INSERT: &str = "INSERT INTO organization_scratch (run, n) VALUES ($1, $2)";

const CHECKS: [&str; 6] =
    ["whole rows", "user types as parameters", "reads then writes", "stream", "copy", "errors"];

pub async fn drive(run: &mut Run) {
    let options = PgConnectOptions::new_without_pgpass()
        .host(&env("CF_HOST"))
        .port(env("CF_PORT").parse().expect("a port"))
        .database(&env("CF_DATABASE"))
        .username(&env("CF_USER"))
        .password(&env("CF_PASSWORD"))
        .ssl_mode(PgSslMode::Prefer);
    let pool = match PgPoolOptions::new().max_connections(3).connect_with(options).await {
        Ok(pool) => pool,
        Err(error) => return run.failed("connect", &error),
    };
    while let Some(check) = run.next_check(&CHECKS) {
        let limit = Duration::from_secs(15);
        if let Err(error) =
            tokio::time::timeout(limit, call(check, &pool, run)).await.unwrap_or(Err("hung for 15 s".into()))
        {
            run.failed(check, error.as_ref());
        }
    }
    pool.close().await;
}

async fn call(check: &str, pool: &PgPool, run: &mut Run) -> Result<()> {
    match check {
        "whole rows" => whole_rows(pool, run).await,
        "user types as parameters" => user_types_as_parameters(pool, run).await,
        "reads then writes" => reads_then_writes(pool, run).await,
        "stream" => stream(pool, run).await,
        "copy" => copy(pool, run).await,
        _ => errors(pool, run).await,
    }
}

/// Checks a row of [`COLUMNS`]; returns who answered.
fn document(run: &mut Run, row: &PgRow) -> Result<String> {
    let hex: String = row.try_get::<Vec<u8>, _>("digest")?.iter().map(|b| format!("{b:02x}")).collect();
    let kinds: Option<Vec<Kind>> = row.try_get("kinds")?;
    let size: Size = row.try_get("size")?;
    let pages: Pages = row.try_get("pages")?;
    let bound = |bound| match bound {
        std::ops::Bound::Included(n) | std::ops::Bound::Excluded(n) => Some(n),
        std::ops::Bound::Unbounded => None,
    };
    let got = json!({
        "id": row.try_get::<i64, _>("id")?, "owner_id": row.try_get::<i32, _>("owner_id")?, "title": row.try_get::<String, _>("title")?,
        "kind": row.try_get::<Kind, _>("kind")?.0, "kinds": kinds.map(|k| k.into_iter().map(|k| k.0).collect::<Vec<_>>()),
        "state": row.try_get::<State, _>("state")?.0, "size": (size.0, size.1, size.2.map(|s| s.0)), "pages": (bound(pages.0.start), bound(pages.0.end)),
        "price": row.try_get::<String, _>("price")?, "ratio": row.try_get::<f64, _>("ratio")?,
        "meta": serde_json::from_str::<Value>(row.try_get("meta")?)?, "digest": hex, "uid": row.try_get::<String, _>("uid")?,
        "day": row.try_get::<String, _>("day")?, "created_at": row.try_get::<i64, _>("created_at")?, "note": row.try_get::<Option<String>, _>("note")?,
    });
    let who: String = row.try_get("who")?;
    run.document(got, &who)?;
    Ok(who)
}

async fn whole_rows(pool: &PgPool, run: &mut Run) -> Result<()> {
    for _ in 0..10 {
        let row = sqlx::query(&format!("{COLUMNS} WHERE id = $1")).bind(run.anyone()).fetch_one(pool).await?;
        document(run, &row)?;
    }
    for row in sqlx::query("SELECT id, role, name FROM users WHERE role = $1")
        .bind(Role("editor".into()))
        .fetch_all(pool)
        .await?
    {
        let expected = run.expected["users"][usize::try_from(row.get::<i32, _>(0) - 1)?].clone();
        run.equal(
            json!([row.get::<Role, _>(1).0, row.get::<String, _>(2)]),
            json!([expected["role"], expected["name"]]),
            "user",
        )?;
    }
    Ok(())
}

async fn user_types_as_parameters(pool: &PgPool, run: &mut Run) -> Result<()> {
    let kinds = [Kind(KINDS[run.dice(7)].into()), Kind(KINDS[run.dice(7)].into())];
    let rows = sqlx::query(&format!("{COLUMNS} WHERE kind = ANY ($1) OR kind = $2 ORDER BY id"))
        .bind(kinds.to_vec())
        .bind(&kinds[0])
        .fetch_all(pool)
        .await?;
    let expected = run.keys(|d| kinds.iter().any(|k| d["kind"] == k.0.as_str()));
    run.equal(rows.iter().map(|r| r.get(0)).collect(), expected, "by array of enum")?;
    document(run, &rows[0])?;
    let id = run.anyone();
    let size: Size =
        sqlx::query("SELECT size FROM documents WHERE id = $1").bind(id).fetch_one(pool).await?.try_get(0)?;
    let row = sqlx::query(&format!("{COLUMNS} WHERE size = $1")).bind(size).fetch_one(pool).await?;
    run.equal(row.get(0), id, "by composite")?;
    document(run, &row).map(drop)
}

async fn reads_then_writes(pool: &PgPool, run: &mut Run) -> Result<()> {
    let one = format!("{COLUMNS} WHERE id = $1");
    let (kept, lost) = (run.next(), run.next());
    let mut transaction = pool.begin().await?;
    let row = sqlx::query(&one).bind(run.anyone()).fetch_one(&mut *transaction).await?;
    let first = document(run, &row)?;
    let row = sqlx::query(&one).bind(run.anyone()).fetch_one(&mut *transaction).await?;
    let second = document(run, &row)?;
    run.equal(second, first, "side within a transaction")?;
    let mut savepoint = transaction.begin().await?;
    sqlx::query(INSERT).bind(&run.name).bind(lost).execute(&mut *savepoint).await?;
    savepoint.rollback().await?;
    let row = sqlx::query("INSERT INTO organization_scratch (run, n, kind, kinds, size) VALUES ($1, $2, $3, $4, $5) RETURNING kind, kinds, size")
        .bind(&run.name).bind(kept).bind(Kind("letter".into())).bind(vec![Kind("memo".into())]).bind(Size(Some(1), None, Some(State("open".into()))))
        .fetch_one(&mut *transaction).await?;
    let expected =
        (Kind("letter".into()), vec![Kind("memo".into())], Size(Some(1), None, Some(State("open".into()))));
    run.equal((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?), expected, "RETURNING")?;
    let row = sqlx::query(&one).bind(run.anyone()).fetch_one(&mut *transaction).await?;
    let after = document(run, &row)?;
    run.equal(after.as_str(), "source", "side after the write")?;
    transaction.commit().await?;
    let mut transaction = pool.begin().await?;
    sqlx::query("DELETE FROM organization_scratch WHERE run = $1")
        .bind(&run.name)
        .execute(&mut *transaction)
        .await?;
    drop(transaction); // rolled back by the pool
    let rows: Vec<i32> =
        sqlx::query_scalar("SELECT n FROM organization_scratch WHERE run = $1 AND n = ANY ($2)")
            .bind(&run.name)
            .bind(vec![kept, lost])
            .fetch_all(pool)
            .await?;
    run.equal(rows, vec![kept], "after a rolled back savepoint and a dropped transaction")
}

async fn stream(pool: &PgPool, run: &mut Run) -> Result<()> {
    let sql = format!("{COLUMNS} ORDER BY id");
    let mut rows = sqlx::query(&sql).fetch(pool);
    let mut seen = Vec::new();
    while let Some(row) = rows.try_next().await? {
        document(run, &row)?;
        seen.push(row.get::<i64, _>(0));
    }
    let expected = run.keys(|_| true);
    run.equal(seen, expected, "streamed rows")
}

async fn copy(pool: &PgPool, run: &mut Run) -> Result<()> {
    let mut connection = pool.acquire().await?;
    let out = connection.copy_out_raw("COPY (SELECT id, kind FROM documents ORDER BY id) TO STDOUT").await?;
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
    let numbers: Vec<i32> = (0..200).map(|_| run.next()).collect();
    let text: String = numbers.iter().map(|n| format!("{}\t{n}\tmemo\n", run.name)).collect();
    let mut sink = connection.copy_in_raw("COPY organization_scratch (run, n, kind) FROM STDIN").await?;
    sink.send(text.as_bytes()).await?;
    let count = sink.finish().await?;
    run.equal(count, 200, "tag of COPY FROM")?;
    let count: i64 =
        sqlx::query_scalar("SELECT count(*) FROM organization_scratch WHERE run = $1 AND n = ANY ($2)")
            .bind(&run.name)
            .bind(&numbers)
            .fetch_one(pool)
            .await?;
    run.equal(count, 200, "copied rows")
}

async fn errors(pool: &PgPool, run: &mut Run) -> Result<()> {
    for (sql, code) in [
        ("SELECT nothing FROM documents", "42703"),
        ("SELECT 1 / (id - 7) FROM documents WHERE id = 7", "22012"),
    ] {
        let error = sqlx::query(sql).fetch_all(pool).await.err().ok_or("no error")?;
        let got = error.as_database_error().and_then(|e| e.code()).map(String::from);
        run.equal(got.as_deref(), Some(code), sql)?;
    }
    let row = sqlx::query(&format!("{COLUMNS} WHERE id = $1")).bind(run.anyone()).fetch_one(pool).await?;
    document(run, &row).map(drop)
}

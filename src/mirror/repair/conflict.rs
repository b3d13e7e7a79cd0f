//! Who holds the unique value that a row needs?

use tokio_postgres::Row;

use crate::{
    mirror::{
        apply::{Key, key_text, parse_record},
        session::{Error, Session, Text},
        tables::Table,
    },
    wire::frame::quote_ident,
};

/// Keys of the follower's rows that keep `image` out, by the index that `error` (23505, 23P01) names. Empty when
/// that cannot be found out.
pub(super) async fn conflicting(
    follower: &mut Session,
    table: &Table,
    image: &[u8],
    error: &Error,
) -> Result<Vec<Key>, Error> {
    let Error::Query(side, postgres) = error else { return Ok(Vec::new()) };
    let side = *side;
    let Some(db) = postgres.as_db_error() else { return Ok(Vec::new()) };
    let (Some(schema), Some(relation), Some(index)) = (db.schema(), db.table(), db.constraint()) else {
        return Ok(Vec::new());
    };
    let found = follower.rows(INDEX, &[&schema, &index]).await?;
    let Some(row) = found.first() else { return Ok(Vec::new()) };
    let sql = question(table, schema, relation, row).map_err(|e| Error::Query(side, e))?;
    let columns = parse_record(image);
    let parameters: Vec<Text<'_>> = columns.iter().map(|c| Text(c.as_deref())).collect();
    let parameters: Vec<&(dyn tokio_postgres::types::ToSql + Sync)> =
        parameters.iter().map(|p| p as &(dyn tokio_postgres::types::ToSql + Sync)).collect();
    let rows = match follower.rows(&sql, &parameters).await {
        Ok(rows) => rows,
        Err(error) if error.is_fatal() => return Err(error),
        // An index over what an image does not hold, such as a generated column.
        Err(_) => return Ok(Vec::new()),
    };
    let key = |row: &Row| Some(Key { table: table.meta.number, text: row.try_get(0).ok()? });
    Ok(rows.iter().filter_map(key).collect())
}

/// Rows of the relation that are equal to the image, expression by expression of the index. A parameter per column.
fn question(
    table: &Table,
    schema: &str,
    relation: &str,
    index: &Row,
) -> Result<String, tokio_postgres::Error> {
    let expressions: Vec<String> = index.try_get(0)?;
    let operators: Vec<String> = index.try_get(1)?;
    let nulls_alike: bool = index.try_get(2)?;
    let meta = &table.meta;
    let values: Vec<String> = meta
        .columns
        .iter()
        .zip(&meta.column_types)
        .enumerate()
        .map(|(n, (name, kind))| format!("${}::{kind} AS {}", n + 1, quote_ident(name)))
        .collect();
    let wanted: Vec<String> =
        expressions.iter().enumerate().map(|(n, e)| format!("({e}) AS \"crossfade {n}\"")).collect();
    let equal: Vec<String> = expressions
        .iter()
        .zip(&operators)
        .enumerate()
        .map(|(n, (e, operator))| {
            let equal = format!("({e}) OPERATOR({operator}) \"crossfade {n}\"");
            let nulls = format!("(({e}) IS NULL AND \"crossfade {n}\" IS NULL)");
            if nulls_alike { format!("({equal} OR {nulls})") } else { equal }
        })
        .collect();
    Ok(format!(
        "SELECT {} FROM {}.{}, (SELECT {} FROM (SELECT {}) AS image) AS wanted WHERE {}",
        key_text(meta),
        quote_ident(schema),
        quote_ident(relation),
        wanted.join(", "),
        values.join(", "),
        equal.join(" AND "),
    ))
}

const INDEX: &str = "SELECT
  ARRAY(SELECT pg_catalog.pg_get_indexdef(i.indexrelid, n, false)
    FROM pg_catalog.generate_series(1, i.indnkeyatts::int4) AS n ORDER BY n),
  ARRAY(SELECT coalesce(
      (SELECT pg_catalog.format('%I.%s', s.nspname, o.oprname)
       FROM pg_catalog.pg_constraint x
       JOIN pg_catalog.pg_operator o ON o.oid = x.conexclop[n]
       JOIN pg_catalog.pg_namespace s ON s.oid = o.oprnamespace
       WHERE x.conindid = i.indexrelid AND x.contype = 'x'),
      (SELECT pg_catalog.format('%I.%s', s.nspname, o.oprname)
       FROM pg_catalog.pg_opclass f
       JOIN pg_catalog.pg_amop m ON m.amopfamily = f.opcfamily AND m.amoplefttype = f.opcintype
         AND m.amoprighttype = f.opcintype AND m.amopstrategy = 3
       JOIN pg_catalog.pg_operator o ON o.oid = m.amopopr
       JOIN pg_catalog.pg_namespace s ON s.oid = o.oprnamespace
       WHERE f.oid = i.indclass[n - 1]), 'pg_catalog.=')
    FROM pg_catalog.generate_series(1, i.indnkeyatts::int4) AS n ORDER BY n),
  coalesce((pg_catalog.to_jsonb(i) ->> 'indnullsnotdistinct')::bool, false)
FROM pg_catalog.pg_index i
JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid
JOIN pg_catalog.pg_namespace s ON s.oid = c.relnamespace
WHERE s.nspname = $1 AND c.relname = $2";

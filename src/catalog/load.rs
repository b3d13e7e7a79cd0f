//! Reads both databases' catalogs, in one snapshot and a handful of queries a side, all sent at once.
//!
//! Every name in a query is schema-qualified or found in the pinned `search_path` (`pg_catalog`); names of
//! the user's travel as values only. Postgres 12 to 18.

use std::{collections::HashMap, time::Duration};

use tokio::time::timeout;
use tokio_postgres::{Client, IsolationLevel, Transaction};

use super::{Catalog, build};
use crate::{
    Side,
    backend::control::{self, Pool},
};

/// What came of reading both sides.
#[derive(Debug)]
pub struct Loaded {
    /// Of the sides that answered. While a side does not, `on` is false for it and no OIDs are mapped.
    pub catalog: Catalog,
    /// [`fingerprint`] of each side, in the very snapshot that was read; `None` when the side did not answer.
    pub fingerprints: [Option<i64>; 2],
    /// Why a side did not answer.
    pub failed: [Option<Error>; 2],
}

/// Why a catalog could not be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No connection.
    #[error("could not open a control connection: {0}")]
    Connect(#[from] control::Error),
    /// It does not answer.
    #[error("no answer in time")]
    Timeout,
    /// A query failed.
    #[error("could not read the catalog: {}", control::describe(.0))]
    Query(#[from] tokio_postgres::Error),
}

/// Reads both sides at once. An error (the source's) only when neither answers.
pub async fn load(pools: [&Pool; 2], generation: u64) -> Result<Loaded, Error> {
    let (source, target) = tokio::join!(load_in_time(pools[0]), load_in_time(pools[1]));
    let (mut raw, mut fingerprints, mut failed) = ([None, None], [None, None], [None, None]);
    for (side, result) in Side::BOTH.into_iter().zip([source, target]) {
        match result {
            Ok((side_raw, print)) => {
                raw[side.index()] = Some(side_raw);
                fingerprints[side.index()] = Some(print);
            }
            Err(error) => failed[side.index()] = Some(error),
        }
    }
    if let [Some(_), Some(_)] = failed {
        let [source, _] = failed;
        return Err(source.expect("both failed"));
    }
    let catalog = build::build(&raw, generation);
    Ok(Loaded { catalog, fingerprints, failed })
}

/// A server that hangs must not hold up the other one, nor the start.
async fn load_in_time(pool: &Pool) -> Result<(Raw, i64), Error> {
    timeout(PROBE, fingerprint(pool)).await.map_err(|_| Error::Timeout)??;
    timeout(WHOLE, load_side(pool)).await.map_err(|_| Error::Timeout)?
}

const PROBE: Duration = Duration::from_secs(5);
const WHOLE: Duration = Duration::from_secs(60);

/// Changes whenever something changes that [`load`] reads; temporary tables and statistics do not count.
/// For polling: one query, some milliseconds for thousands of tables.
pub async fn fingerprint(pool: &Pool) -> Result<i64, Error> {
    let client = control::get(pool).await?;
    let row = client.query_one(FINGERPRINT, &[]).await?;
    Ok(row.get(0))
}

/// One side's catalog as its server tells it.
#[derive(Debug, Default)]
pub(super) struct Raw {
    /// Not temporary, not TOAST: OID -> name. The system's are here too: types live in their schemas.
    pub(super) schemas: HashMap<u32, String>,
    pub(super) relations: Vec<RawRelation>,
    /// (relation with rules, `p`roc or `c`lass, OID of what the rules use)
    pub(super) rules: Vec<(u32, bool, u32)>,
    /// (view, schema of a function that it calls and that is not immutable, the function's name)
    pub(super) calls: Vec<(u32, u32, String)>,
    /// (relation, on writes alone, OID of a function that is called)
    pub(super) code: Vec<(u32, bool, u32)>,
    /// (relation, what a write to it writes as well by a foreign key)
    pub(super) cascades: Vec<(u32, u32)>,
    pub(super) functions: Vec<RawFunction>,
    pub(super) types: Vec<RawType>,
    /// (relation, OID of the type of a column); only types that are not built in.
    pub(super) columns: Vec<(u32, u32)>,
    /// Relation -> columns of its best key.
    pub(super) keys: HashMap<u32, Vec<String>>,
}

#[derive(Debug)]
pub(super) struct RawRelation {
    pub(super) oid: u32,
    pub(super) schema: u32,
    pub(super) name: String,
    pub(super) kind: u8,
    /// 0 for none.
    pub(super) parent: u32,
}

#[derive(Debug)]
pub(super) struct RawFunction {
    pub(super) oid: u32,
    pub(super) schema: u32,
    pub(super) name: String,
    pub(super) volatile: bool,
    pub(super) reads_tables: bool,
}

#[derive(Debug, Default)]
pub(super) struct RawType {
    pub(super) oid: u32,
    pub(super) schema: u32,
    /// Of the element for an array: the names of array types are made up by the server.
    pub(super) name: String,
    pub(super) array: bool,
    /// Types that its binary form is made of: element, domain's base, range's subtype; 0 for none.
    pub(super) inner: u32,
    /// Relation of a composite type; 0 for none.
    pub(super) relation: u32,
}

async fn load_side(pool: &Pool) -> Result<(Raw, i64), Error> {
    let mut client = control::get(pool).await?;
    Ok(read(&mut client).await?)
}

async fn read(client: &mut Client) -> Result<(Raw, i64), tokio_postgres::Error> {
    let transaction = client
        .build_transaction()
        .isolation_level(IsolationLevel::RepeatableRead)
        .read_only(true)
        .start()
        .await?;
    let t = &transaction;
    // Polled together, the queries go out in one burst and the answers come back in turn.
    let (schemas, relations, rules, calls, code, cascades, functions, types, columns, keys, print) = tokio::try_join!(
        rows(t, SCHEMAS),
        rows(t, RELATIONS),
        rows(t, RULES),
        rows(t, CALLS),
        rows(t, CODE),
        rows(t, CASCADES),
        rows(t, FUNCTIONS),
        rows(t, TYPES),
        rows(t, COLUMNS),
        rows(t, KEYS),
        rows(t, FINGERPRINT),
    )?;
    transaction.commit().await?;
    let mut raw = Raw {
        schemas: schemas.iter().map(|r| (r.get(0), r.get(1))).collect(),
        rules: rules.iter().map(|r| (r.get(0), r.get(1), r.get(2))).collect(),
        calls: calls.iter().map(|r| (r.get(0), r.get(1), r.get(2))).collect(),
        code: code.iter().map(|r| (r.get(0), r.get(1), r.get(2))).collect(),
        cascades: cascades.iter().map(|r| (r.get(0), r.get(1))).collect(),
        columns: columns.iter().map(|r| (r.get(0), r.get(1))).collect(),
        ..Raw::default()
    };
    raw.relations = relations
        .iter()
        .map(|r| RawRelation {
            oid: r.get(0),
            schema: r.get(1),
            name: r.get(2),
            kind: r.get::<_, i8>(3).to_ne_bytes()[0],
            parent: r.get(4),
        })
        .collect();
    raw.functions = functions
        .iter()
        .map(|r| RawFunction {
            oid: r.get(0),
            schema: r.get(1),
            name: r.get(2),
            volatile: r.get(3),
            reads_tables: r.get(4),
        })
        .collect();
    raw.types = types
        .iter()
        .map(|r| RawType {
            oid: r.get(0),
            schema: r.get(1),
            name: r.get(2),
            array: r.get(3),
            inner: r.get(4),
            relation: r.get(5),
        })
        .collect();
    // Best first.
    for row in &keys {
        raw.keys.entry(row.get(0)).or_insert_with(|| row.get(1));
    }
    Ok((raw, print[0].get(0)))
}

async fn rows(t: &Transaction<'_>, sql: &str) -> Result<Vec<tokio_postgres::Row>, tokio_postgres::Error> {
    t.query(sql, &[]).await
}

/// `pg_temp_3`, `pg_toast`, `pg_toast_temp_3`: made by the server for sessions and large values.
const SCHEMAS: &str = "
SELECT n.oid, n.nspname::text FROM pg_catalog.pg_namespace n WHERE n.nspname !~ '^pg_(toast|temp_)'";

/// The parent of a sequence is the table whose column owns it (SERIAL, IDENTITY, OWNED BY).
const RELATIONS: &str = "
SELECT c.oid, c.relnamespace, c.relname::text, c.relkind,
       COALESCE((SELECT i.inhparent FROM pg_catalog.pg_inherits i WHERE i.inhrelid = c.oid ORDER BY i.inhseqno LIMIT 1),
                (SELECT d.refobjid FROM pg_catalog.pg_depend d
                 WHERE c.relkind = 'S' AND d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.objid = c.oid
                   AND d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.deptype IN ('a', 'i') LIMIT 1),
                0::oid)
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p', 'v', 'm', 'S', 'f') AND c.relpersistence <> 't'
  AND n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname !~ '^pg_(toast|temp_)'";

/// What the rules of a relation use (a view is a rule), operators by their functions.
const RULES: &str = "
SELECT DISTINCT r.ev_class, d.refclassid <> 'pg_catalog.pg_class'::pg_catalog.regclass, COALESCE(o.oprcode::oid, d.refobjid)
FROM pg_catalog.pg_rewrite r
JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass AND d.objid = r.oid
LEFT JOIN pg_catalog.pg_operator o ON d.refclassid = 'pg_catalog.pg_operator'::pg_catalog.regclass AND o.oid = d.refobjid
WHERE d.refclassid IN ('pg_catalog.pg_class'::pg_catalog.regclass, 'pg_catalog.pg_proc'::pg_catalog.regclass,
                       'pg_catalog.pg_operator'::pg_catalog.regclass)
  AND d.refobjid >= 16384 AND NOT (d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.refobjid = r.ev_class)";

/// What views call, from their trees: built-in functions are pinned, and `pg_depend` leaves out what is pinned. Names and
/// constants cannot look like these tags, since blanks in names are escaped, and constants are bytes. Key words such as
/// `CURRENT_TIMESTAMP` and `CURRENT_USER` (`SQLValueFunctionOp`, clocks first) go by a function that answers the same way.
const CALLS: &str = "
WITH found(relation, tag, number) AS (
  SELECT DISTINCT r.ev_class, m.tag, pg_catalog.split_part(p.piece, ' ', 1)::int8
  FROM pg_catalog.pg_rewrite r JOIN pg_catalog.pg_class c ON c.oid = r.ev_class
  CROSS JOIN (VALUES (' :funcid '), ('{SQLVALUEFUNCTION :op ')) m(tag)
  CROSS JOIN LATERAL pg_catalog.unnest(pg_catalog.string_to_array(r.ev_action::text, m.tag)) WITH ORDINALITY p(piece, place)
  WHERE c.oid >= 16384 AND c.relkind = 'v' AND r.ev_type = '1' AND p.place > 1
)
SELECT f.relation, p.pronamespace, p.proname::text
FROM found f JOIN pg_catalog.pg_proc p ON p.oid = f.number::oid WHERE f.tag = ' :funcid ' AND p.provolatile <> 'i'
UNION SELECT f.relation, 11::oid, CASE WHEN f.number <= 8 THEN 'now' ELSE 'current_user' END
FROM found f WHERE f.tag <> ' :funcid '";

/// What is called by triggers, defaults, constraints (of domains as well) and policies; operators by their functions.
/// Capture is ours: it leaves nothing behind in a session.
const CODE: &str = "
WITH objects(class, oid, relation, writes) AS (
  SELECT 'pg_catalog.pg_trigger'::pg_catalog.regclass, t.oid, t.tgrelid, true
  FROM pg_catalog.pg_trigger t JOIN pg_catalog.pg_proc f ON f.oid = t.tgfoid
  WHERE NOT t.tgisinternal AND t.tgenabled <> 'D'
    AND NOT (f.pronamespace = pg_catalog.to_regnamespace('crossfade') AND t.tgname ~ '^crossfade_[iudt]$')
  UNION ALL SELECT 'pg_catalog.pg_attrdef'::pg_catalog.regclass, a.oid, a.adrelid, true FROM pg_catalog.pg_attrdef a
  UNION ALL SELECT 'pg_catalog.pg_constraint'::pg_catalog.regclass, c.oid, c.conrelid, true
            FROM pg_catalog.pg_constraint c WHERE c.conrelid <> 0
  UNION ALL SELECT 'pg_catalog.pg_constraint'::pg_catalog.regclass, c.oid, a.attrelid, true
            FROM pg_catalog.pg_constraint c JOIN pg_catalog.pg_attribute a ON a.atttypid = c.contypid WHERE c.contypid <> 0
  UNION ALL SELECT 'pg_catalog.pg_policy'::pg_catalog.regclass, p.oid, p.polrelid, false FROM pg_catalog.pg_policy p
)
SELECT DISTINCT o.relation, o.writes, COALESCE(x.oprcode::oid, d.refobjid)
FROM objects o JOIN pg_catalog.pg_depend d ON d.classid = o.class AND d.objid = o.oid
LEFT JOIN pg_catalog.pg_operator x ON d.refclassid = 'pg_catalog.pg_operator'::pg_catalog.regclass AND x.oid = d.refobjid
WHERE d.refclassid IN ('pg_catalog.pg_proc'::pg_catalog.regclass, 'pg_catalog.pg_operator'::pg_catalog.regclass)
  AND d.refobjid >= 16384";

const CASCADES: &str = "
SELECT DISTINCT c.confrelid, c.conrelid FROM pg_catalog.pg_constraint c
WHERE c.contype = 'f' AND (c.confdeltype IN ('c', 'n', 'd') OR c.confupdtype IN ('c', 'n', 'd'))";

/// An aggregate is marked immutable whatever its parts are: they count.
const FUNCTIONS: &str = "
SELECT p.oid, p.pronamespace, p.proname::text,
       p.provolatile = 'v' OR COALESCE(part.volatile, false), p.provolatile <> 'i' OR COALESCE(part.reads, false)
FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
LEFT JOIN pg_catalog.pg_aggregate a ON a.aggfnoid = p.oid
LEFT JOIN LATERAL (
  SELECT pg_catalog.bool_or(q.provolatile = 'v') AS volatile, pg_catalog.bool_or(q.provolatile <> 'i') AS reads
  FROM pg_catalog.pg_proc q
  WHERE q.oid IN (a.aggtransfn, a.aggfinalfn, a.aggcombinefn, a.aggserialfn, a.aggdeserialfn, a.aggmtransfn,
                  a.aggminvtransfn, a.aggmfinalfn)
) part ON a.aggfnoid IS NOT NULL
WHERE n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname !~ '^pg_(toast|temp_)'";

/// From 10000 on OIDs are handed out by initdb in an order that differs between majors (`src/include/access/transam.h`).
/// A multirange's binary form holds ranges, a range's its subtype.
const TYPES: &str = "
SELECT t.oid, t.typnamespace, COALESCE(e.typname, t.typname)::text, e.oid IS NOT NULL,
       CASE WHEN e.oid IS NOT NULL THEN e.oid WHEN t.typtype = 'd' THEN t.typbasetype
            WHEN g.rngtypid IS NOT NULL THEN g.rngsubtype WHEN t.typtype = 'm' THEN m.subtype ELSE 0::oid END,
       t.typrelid
FROM pg_catalog.pg_type t JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace
LEFT JOIN pg_catalog.pg_type e ON e.oid = t.typelem AND e.typarray = t.oid
LEFT JOIN pg_catalog.pg_range g ON g.rngtypid = t.oid
LEFT JOIN LATERAL (
  SELECT r.rngsubtype AS subtype FROM pg_catalog.pg_range r
  WHERE (pg_catalog.to_jsonb(r) ->> 'rngmultitypid')::oid = t.oid
) m ON t.typtype = 'm'
WHERE t.oid >= 10000 AND n.nspname !~ '^pg_(toast|temp_)'";

const COLUMNS: &str = "
SELECT DISTINCT a.attrelid, a.atttypid FROM pg_catalog.pg_attribute a
WHERE a.atttypid >= 10000 AND a.attnum > 0 AND NOT a.attisdropped AND a.attrelid >= 10000";

/// Unique indexes over plain columns that cannot be NULL: the primary key first, then the narrowest.
const KEYS: &str = "
SELECT i.indrelid, pg_catalog.array_agg(a.attname::text ORDER BY u.place)
FROM pg_catalog.pg_index i
CROSS JOIN LATERAL pg_catalog.unnest(i.indkey::int2[]) WITH ORDINALITY u(number, place)
JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = u.number
WHERE i.indrelid >= 16384 AND i.indisunique AND i.indimmediate AND i.indisvalid AND i.indpred IS NULL
  AND i.indexprs IS NULL AND u.place <= i.indnkeyatts
GROUP BY i.indrelid, i.indexrelid, i.indisprimary, i.indnkeyatts
HAVING pg_catalog.bool_and(a.attnotnull)
ORDER BY i.indrelid, i.indisprimary DESC, i.indnkeyatts, i.indexrelid";

/// Sums of hashes of (OID, xmin): a row that comes, goes or changes changes the sum. Columns count through
/// their own rows, since SET NOT NULL touches nothing else.
const FINGERPRINT: &str = "
WITH live AS MATERIALIZED (
  SELECT c.oid, c.xmin FROM pg_catalog.pg_class c
  WHERE c.oid >= 16384 AND c.relpersistence <> 't' AND c.relkind IN ('r', 'p', 'v', 'm', 'S', 'f', 'c')
), rows(kind, oid, xmin) AS (
  SELECT 1, l.oid, l.xmin FROM live l
  UNION ALL SELECT 2, a.attrelid, a.xmin FROM pg_catalog.pg_attribute a JOIN live l ON l.oid = a.attrelid WHERE a.attnum > 0
  UNION ALL SELECT 3, i.indexrelid, i.xmin FROM pg_catalog.pg_index i JOIN live l ON l.oid = i.indrelid
  UNION ALL SELECT 4, i.inhrelid, i.xmin FROM pg_catalog.pg_inherits i JOIN live l ON l.oid = i.inhrelid
  UNION ALL SELECT 5, r.oid, r.xmin FROM pg_catalog.pg_rewrite r JOIN live l ON l.oid = r.ev_class
  UNION ALL SELECT 6, p.oid, p.xmin FROM pg_catalog.pg_proc p WHERE p.oid >= 16384
  UNION ALL SELECT 7, t.oid, t.xmin FROM pg_catalog.pg_type t JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace
            WHERE t.oid >= 16384 AND n.nspname !~ '^pg_(toast|temp_)'
  UNION ALL SELECT 8, n.oid, n.xmin FROM pg_catalog.pg_namespace n WHERE n.nspname !~ '^pg_(toast|temp_)'
  UNION ALL SELECT 10, o.oid, o.xmin FROM pg_catalog.pg_operator o WHERE o.oid >= 16384
  UNION ALL SELECT 11, t.oid, t.xmin FROM pg_catalog.pg_trigger t JOIN live l ON l.oid = t.tgrelid
  UNION ALL SELECT 12, a.oid, a.xmin FROM pg_catalog.pg_attrdef a JOIN live l ON l.oid = a.adrelid
  UNION ALL SELECT 13, c.oid, c.xmin FROM pg_catalog.pg_constraint c
            WHERE c.oid >= 16384 AND (c.conrelid = 0 OR c.conrelid IN (SELECT l.oid FROM live l))
  UNION ALL SELECT 14, p.oid, p.xmin FROM pg_catalog.pg_policy p
)
SELECT COALESCE(pg_catalog.sum(pg_catalog.hashint8((r.oid::int8 << 32) # r.xmin::text::int8)::int8 * r.kind), 0)::int8
FROM rows r";

//! What one server says about itself and about the control user's rights there.

use std::collections::{BTreeMap, BTreeSet};

use tokio_postgres::Client;

use crate::statement::Table;

/// Facts that preflight judges. The default knows of no rights and no limits.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Facts {
    /// Made by initdb; copies of a cluster have the same. Empty: it may not be asked for.
    pub system_identifier: String,
    /// Tells two running servers of one identifier apart: start time and process id, and the database.
    pub incarnation: String,
    /// `server_version_num`.
    pub version: i32,
    /// A standby.
    pub in_recovery: bool,
    /// `max_prepared_transactions`.
    pub max_prepared: i32,
    /// `synchronous_commit`.
    pub synchronous_commit: String,
    /// The control user.
    pub user: String,
    /// It is a superuser.
    pub superuser: bool,
    /// No row security applies to it.
    pub bypasses_row_security: bool,
    /// It may set `session_replication_role`.
    pub replica_role: bool,
    /// It sees what others run: without that nobody who blocks can be named.
    pub sees_activity: bool,
    /// What it may not run of [`CONTROL`]: without them nobody knows what became of a transaction.
    pub forbidden: Vec<String>,
    /// It may create a schema in the database.
    pub creates: bool,
    /// Roles whose rights it has, its own included.
    pub roles: BTreeSet<String>,
    /// Sequences that belong to tables: the table, and the sequence's name and last value.
    pub sequences: BTreeMap<Table, Vec<(String, Option<i64>)>>,
}

/// Reads them over a control connection.
pub async fn read(client: &Client) -> Result<Facts, tokio_postgres::Error> {
    let forbidden: Vec<String> = client.query_one(FORBIDDEN, &[&CONTROL.as_slice()]).await?.get(0);
    let asks = if forbidden.iter().any(|f| f == CONTROL[0]) {
        FACTS.replace(SYSTEM_IDENTIFIER, "''::text")
    } else {
        FACTS.to_owned()
    };
    let (one, roles, sequences) = tokio::try_join!(
        client.query_one(&asks, &[]),
        client.query(ROLES, &[]),
        client.query(SEQUENCES, &[])
    )?;
    let version: i32 = one.get(2);
    let superuser: bool = one.get(7);
    let mut facts = Facts {
        system_identifier: one.get(0),
        incarnation: one.get(1),
        version,
        in_recovery: one.get(3),
        max_prepared: one.get(4),
        synchronous_commit: one.get(5),
        user: one.get(6),
        superuser,
        bypasses_row_security: one.get(8),
        replica_role: superuser,
        sees_activity: one.get(9),
        forbidden,
        creates: one.get(10),
        roles: roles.iter().map(|row| row.get(0)).collect(),
        sequences: BTreeMap::new(),
    };
    // Before Postgres 15 nobody else could.
    if version >= 150_000 && !superuser {
        let sql = "SELECT pg_catalog.has_parameter_privilege('session_replication_role', 'SET')";
        facts.replica_role = client.query_one(sql, &[]).await?.get(0);
    }
    for row in &sequences {
        let table = Table { schema: row.get(0), name: row.get(1) };
        facts.sequences.entry(table).or_default().push((row.get(2), row.get(3)));
    }
    Ok(facts)
}

/// Functions by which a server says who it is, and whether it has crashed.
pub const CONTROL: [&str; 2] = ["pg_control_system()", "pg_control_checkpoint()"];

const FORBIDDEN: &str =
    "SELECT COALESCE(pg_catalog.array_agg(f.name), '{}') FROM pg_catalog.unnest($1::text[]) f(name)
WHERE NOT pg_catalog.has_function_privilege('pg_catalog.' || f.name, 'EXECUTE')";

const SYSTEM_IDENTIFIER: &str = "(SELECT c.system_identifier::text FROM pg_catalog.pg_control_system() c)";

const FACTS: &str = "
SELECT (SELECT c.system_identifier::text FROM pg_catalog.pg_control_system() c),
       pg_catalog.pg_postmaster_start_time()::text || ' ' || COALESCE(pg_catalog.inet_server_port()::text, '') || ' '
         || (SELECT d.oid::text FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database()),
       pg_catalog.current_setting('server_version_num')::int, pg_catalog.pg_is_in_recovery(),
       pg_catalog.current_setting('max_prepared_transactions')::int, pg_catalog.current_setting('synchronous_commit'),
       r.rolname::text, r.rolsuper, r.rolsuper OR r.rolbypassrls,
       r.rolsuper OR pg_catalog.pg_has_role('pg_read_all_stats', 'USAGE'),
       pg_catalog.has_database_privilege(pg_catalog.current_database(), 'CREATE')
FROM pg_catalog.pg_roles r WHERE r.rolname = current_user";

const ROLES: &str =
    "SELECT r.rolname::text FROM pg_catalog.pg_roles r WHERE pg_catalog.pg_has_role(r.oid, 'USAGE')";

/// Sequences of SERIAL and identity columns.
const SEQUENCES: &str = "
SELECT n.nspname::text, t.relname::text, s.schemaname || '.' || s.sequencename, s.last_value
FROM pg_catalog.pg_depend d
JOIN pg_catalog.pg_class q ON q.oid = d.objid AND q.relkind = 'S'
JOIN pg_catalog.pg_namespace qn ON qn.oid = q.relnamespace
JOIN pg_catalog.pg_sequences s ON s.schemaname = qn.nspname AND s.sequencename = q.relname
JOIN pg_catalog.pg_class t ON t.oid = d.refobjid JOIN pg_catalog.pg_namespace n ON n.oid = t.relnamespace
WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass
  AND d.deptype IN ('a', 'i')
ORDER BY 1, 2, 3";

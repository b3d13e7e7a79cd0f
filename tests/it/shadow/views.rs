//! Views that call built-in functions, which `pg_depend` does not tell of.

use super::{outcomes, start};
use crate::support::{
    cluster::{newest, oldest},
    needs_proxy,
    proxy::Proxy,
};

const TABLES: &str = "CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1); CREATE SEQUENCE t_seq;
    CREATE VIEW v_lock AS SELECT id, pg_advisory_lock(77) IS NULL AS locked FROM t;
    CREATE VIEW v_over AS SELECT t.id, v_lock.locked FROM t JOIN v_lock USING (id);
    CREATE VIEW v_xact AS SELECT id FROM t WHERE pg_advisory_xact_lock(78) IS NOT NULL;
    CREATE VIEW v_notify AS SELECT id FROM (SELECT id, pg_notify('c', 'x') IS NULL FROM t OFFSET 0) x;
    CREATE VIEW v_drawn AS SELECT id, nextval('t_seq') FROM t;
    CREATE VIEW v_setting AS SELECT id, current_setting('TimeZone') FROM t;
    CREATE VIEW v_user AS SELECT id, CURRENT_USER AS u FROM t;
    CREATE VIEW v_chance AS WITH x AS (SELECT id, random() AS r FROM t) SELECT * FROM x;
    CREATE VIEW v_clock AS SELECT id FROM t WHERE now() > '2000-01-01' AND CURRENT_DATE > '2000-01-01'";

fn skipped(proxy: &Proxy, reason: &str) -> String {
    proxy.metric("shadow_skipped_total", &[&format!("reason=\"{reason}\"")]).to_string()
}

/// Locks of sessions, source's and target's, and whether the sequences were drawn from.
fn traces(name: &str) -> [String; 2] {
    [oldest(), newest()].map(|cluster| {
        let locks = "SELECT count(*) || ' ' || (SELECT is_called FROM t_seq) FROM pg_locks
            WHERE locktype = 'advisory' AND objid IN (77, 78)
              AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
        cluster.admin(name).run(locks).expect("a row")
    })
}

/// A view that has effects is read once, and what it says of the moment, of chance or of the session is not compared.
#[test]
fn functions_inside_of_views_are_seen() {
    needs_proxy!();
    let proxy = start("sh_views", [TABLES, TABLES], |_| {});
    let mut client = proxy.client("alice");
    for view in
        ["v_lock", "v_over", "v_xact", "v_notify", "v_drawn", "v_setting", "v_user", "v_chance", "v_clock"]
    {
        client.run(&format!("SELECT * FROM {view}"));
    }
    assert_eq!(outcomes(&proxy, 1.0), "match 1");
    assert_eq!(["side_effect", "by_nature"].map(|reason| skipped(&proxy, reason)), ["4", "3"]);
    assert_eq!(traces("sh_views"), ["1 true", "0 false"]);
}

/// Reads go to the target; what a view locks or draws does so where the same call in the text would: at home.
#[test]
fn views_with_effects_stay_at_home() {
    needs_proxy!();
    let proxy = start("sh_views_home", [TABLES, TABLES], |s| s.document_reads_target = 100);
    let mut client = proxy.client("alice");
    client.run("SELECT * FROM v_clock");
    for call in ["*, pg_advisory_lock(77) FROM t", "* FROM v_over"] {
        client.run(&format!("SELECT {call}"));
        assert_eq!(traces("sh_views_home"), ["1 false", "0 false"], "{call}");
        client.run("SELECT pg_advisory_unlock_all()");
    }
    client.run("SELECT * FROM v_drawn");
    assert_eq!(traces("sh_views_home"), ["0 true", "0 false"]);
}

//! What the triggers record.

use super::Pair;
use crate::support::{
    cluster::{Cluster, newest, oldest},
    wire::Wire,
};

/// Runs `sql` armed and returns the write set, a line a row: `table ops key image`. Rolled back.
#[track_caller]
fn captured(pair: &Pair, cluster: &Cluster, sql: &[&str]) -> Vec<String> {
    let mut admin = pair.admin(cluster);
    let side = if cluster.port == oldest().port { "source" } else { "target" };
    admin.run("BEGIN");
    admin.run(&format!("UPDATE crossfade.repositories SET lead = '{side}'"));
    admin.run(&format!("SELECT crossfade.arm('{{1}}', '{side}')"));
    for one in sql {
        admin.run(one);
    }
    let set = write_set(&mut admin, pair, cluster);
    admin.run("ROLLBACK");
    set
}

/// Reads the write set of an open transaction.
#[track_caller]
fn write_set(client: &mut Wire, pair: &Pair, cluster: &Cluster) -> Vec<String> {
    let token = pair.admin(cluster).run("SELECT value FROM crossfade.meta WHERE key = 'token'");
    let sql = "SELECT CASE w.relation WHEN 0 THEN 'first' ELSE (SELECT t.table_name FROM crossfade.tables t \
               WHERE t.number = w.relation) END, w.ops, CASE WHEN w.relation <> 0 THEN w.key END, w.image \
               FROM crossfade.write_set($1, $2) WITH ORDINALITY w(relation, ops, key, image, place) ORDER BY w.place";
    let rows = client.execute(sql, &["false", &token.expect("installed")]).expect("a write set");
    let text = |column: &Option<String>| column.clone().unwrap_or_else(|| "-".to_owned());
    let lines = rows.iter().map(|row| row.iter().map(text).collect::<Vec<_>>().join(" "));
    lines.collect()
}

/// On both majors.
#[track_caller]
fn check(pair: &Pair, sql: &[&str], expected: &[&str]) {
    for cluster in [oldest(), newest()] {
        let set = captured(pair, cluster, sql);
        assert_eq!(set[0], "first  - -", "{sql:?} on {}", cluster.major);
        assert_eq!(set[1..], *expected, "{sql:?} on {}", cluster.major);
    }
}

#[test]
fn plain_statements() {
    let pair = Pair::new("capture_plain", "");
    pair.install();
    let start = "INSERT INTO users VALUES (1, 'a'), (2, 'b')";
    check(&pair, &[start], &["users I 1 (1,a)", "users I 2 (2,b)"]);
    check(
        &pair,
        &[start, "UPDATE users SET name = 'c' WHERE id = 2"],
        &["users I 1 (1,a)", "users IU 2 (2,c)"],
    );
    check(&pair, &[start, "DELETE FROM users WHERE id = 1"], &["users ID 1 -", "users I 2 (2,b)"]);
    check(
        &pair,
        &[start, "UPDATE users SET id = 7 WHERE id = 2"],
        &["users I 1 (1,a)", "users ID 2 -", "users I 7 (7,b)"],
    );
    check(
        &pair,
        &[start, "TRUNCATE users", "INSERT INTO users VALUES (1, 'z')"],
        &["users T - -", "users I 1 (1,z)"],
    );
}

//! What cannot be mirrored is named, with the reason and the way out.

use super::Pair;
use crate::support::cluster::{newest, oldest};

/// On the source, on the target, and what is said.
const CASES: &[(&str, &str, &str)] = &[
    ("CREATE TABLE t01 (a int)", "CREATE TABLE t01 (a int)", "warning: public.t01: has no primary key"),
    (
        "CREATE TABLE t02 (a int PRIMARY KEY DEFERRABLE)",
        "CREATE TABLE t02 (a int PRIMARY KEY DEFERRABLE)",
        "refused: target: public.t02: its only key, t02_pkey, is DEFERRABLE",
    ),
    (
        "CREATE TABLE t03 (a int PRIMARY KEY, b int UNIQUE DEFERRABLE)",
        "CREATE TABLE t03 (a int PRIMARY KEY, b int UNIQUE DEFERRABLE)",
        "warning: target: public.t03: t03_b_key is DEFERRABLE",
    ),
    ("CREATE TABLE t04 (a int PRIMARY KEY)", "", "refused: target: public.t04: does not exist"),
    ("", "CREATE TABLE t05 (a int PRIMARY KEY)", "refused: source: public.t05: does not exist"),
    (
        "CREATE TABLE t06 (a int PRIMARY KEY, b int)",
        "CREATE TABLE t06 (a int PRIMARY KEY)",
        "refused: target: public.t06: has no column b",
    ),
    (
        "CREATE TABLE t07 (a int PRIMARY KEY)",
        "CREATE TABLE t07 (a int PRIMARY KEY, b int NOT NULL)",
        "refused: source: public.t07: has no column b",
    ),
    (
        "CREATE TABLE t08 (a int PRIMARY KEY)",
        "CREATE TABLE t08 (a int PRIMARY KEY, b int NOT NULL DEFAULT 1)",
        "warning: source: public.t08: has no column b",
    ),
    (
        "CREATE TABLE t09 (a int PRIMARY KEY, b int)",
        "CREATE TABLE t09 (a bigint PRIMARY KEY, b text)",
        "refused: public.t09: b is integer on the source and text on the target",
    ),
    (
        "CREATE TABLE t10 (a int PRIMARY KEY)",
        "CREATE TABLE t10 (a bigint PRIMARY KEY)",
        "warning: public.t10: a is integer on the source and bigint on the target",
    ),
    (
        "CREATE TABLE t11 (a int PRIMARY KEY)",
        "CREATE TABLE t11 (a int NOT NULL)",
        "refused: target: public.t11: lacks the key",
    ),
    (
        "CREATE TABLE t12 (a int PRIMARY KEY, b int)",
        "CREATE TABLE t12 (a int PRIMARY KEY, b int UNIQUE)",
        "refused: target: public.t12: has the unique index btree (b), which the source has not",
    ),
    (
        "CREATE TABLE t13 (a int PRIMARY KEY, b int UNIQUE)",
        "CREATE TABLE t13 (a int PRIMARY KEY, b int)",
        "warning: target: public.t13: lacks the unique index btree (b)",
    ),
    (
        "CREATE TABLE t14 (a int PRIMARY KEY REFERENCES users)",
        "CREATE TABLE t14 (a int PRIMARY KEY)",
        "warning: target: public.t14: lacks the foreign key FOREIGN KEY (a) REFERENCES public.users(id)",
    ),
    (
        "CREATE TABLE t15 (a int PRIMARY KEY); CREATE TABLE t15_child () INHERITS (t15)",
        "CREATE TABLE t15 (a int PRIMARY KEY); CREATE TABLE t15_child () INHERITS (t15)",
        "refused: source: public.t15: takes part in old-style inheritance",
    ),
    (
        "CREATE UNLOGGED TABLE t16 (a int PRIMARY KEY)",
        "CREATE TABLE t16 (a int PRIMARY KEY)",
        "warning: source: public.t16: is unlogged",
    ),
    (
        "CREATE FOREIGN DATA WRAPPER w; CREATE SERVER s FOREIGN DATA WRAPPER w; CREATE FOREIGN TABLE t17 (a int) SERVER s",
        "CREATE TABLE t17 (a int PRIMARY KEY)",
        "refused: source: public.t17: is a foreign table",
    ),
    (
        "CREATE TABLE t18 (a int PRIMARY KEY, b oid)",
        "CREATE TABLE t18 (a int PRIMARY KEY, b oid)",
        "warning: public.t18: b may point to large objects",
    ),
    (
        "CREATE TABLE t19 (a int PRIMARY KEY, b int GENERATED ALWAYS AS (a) STORED)",
        "CREATE TABLE t19 (a int PRIMARY KEY, b int)",
        "refused: public.t19: b is generated on the source alone",
    ),
    (
        "CREATE TABLE t20 (a int GENERATED ALWAYS AS IDENTITY PRIMARY KEY)",
        "CREATE TABLE t20 (a int GENERATED ALWAYS AS IDENTITY PRIMARY KEY)",
        "note: public.t20: sequences are not mirrored: public.t20_a_seq is at its start",
    ),
    (
        "CREATE TYPE pair21 AS (a int, b int); CREATE TABLE t21 (a pair21 PRIMARY KEY)",
        "CREATE TYPE pair21 AS (a int, b int); CREATE TABLE t21 (a pair21 PRIMARY KEY)",
        "refused: public.t21: a of its key is of a type whose input may run code",
    ),
    (
        "CREATE DOMAIN d22 AS int CHECK (VALUE > 0); CREATE TABLE t22 (a d22[] PRIMARY KEY)",
        "CREATE DOMAIN d22 AS int CHECK (VALUE > 0); CREATE TABLE t22 (a d22[] PRIMARY KEY)",
        "refused: public.t22: a of its key is of a type whose input may run code",
    ),
    (
        "CREATE TABLE t23 (a int PRIMARY KEY)",
        "CREATE TABLE t23 (a int PRIMARY KEY); CREATE FUNCTION f23() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'; \
         CREATE TRIGGER t AFTER INSERT ON t23 EXECUTE FUNCTION f23(); ALTER TABLE t23 ENABLE ALWAYS TRIGGER t",
        "warning: target: public.t23: its trigger t fires also for rows that are applied",
    ),
    (
        "CREATE TABLE t24 (a int PRIMARY KEY) PARTITION BY LIST (a); CREATE TABLE other_24 PARTITION OF t24 DEFAULT",
        "CREATE TABLE t24 (a int PRIMARY KEY)",
        "refused: source: public.t24: its partition public.other_24 belongs to another repository",
    ),
    (
        "CREATE TABLE t25 (a int NOT NULL, b int NOT NULL, UNIQUE (b, a))",
        "CREATE TABLE t25 (b int NOT NULL, a int NOT NULL, PRIMARY KEY (a, b))",
        "warning: target: public.t25: lacks the unique index btree (b, a)",
    ),
];

#[test]
fn every_obstacle_is_named() {
    let pair =
        Pair::new("preflight_all", "").with("public.*", "public.t*").repository("other", "public.other_*");
    for (source, target, _) in CASES {
        pair.admin(oldest()).run(source);
        pair.admin(newest()).run(target);
    }
    let (code, text) = pair.mirror(&["install"]);
    assert_eq!(code, 1, "{text}");
    for (_, _, expected) in CASES {
        assert!(text.lines().any(|line| line.starts_with(expected)), "{expected} is not in\n{text}");
    }
    // Half a repository is worse than none.
    for cluster in [oldest(), newest()] {
        let sql = "SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'crossfade%'";
        assert_eq!(pair.admin(cluster).run(sql).as_deref(), Some("0"));
    }
    // The others are installed all the same.
    let pair = pair.repository("user", "public.users");
    let (code, text) = pair.mirror(&["install"]);
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("done: target: triggers on public.users"), "{text}");
    assert!(!text.contains("triggers on public.t"), "{text}");
}

#[test]
fn rights_of_the_control_user() {
    let pair = Pair::new("preflight_rights", "")
        .with("user = \"postgres\"\npassword = \"secret\"", "user = \"bob\"\npassword = \"bob-pw\"");
    let (code, text) = pair.mirror(&["install"]);
    assert_eq!(code, 1, "{text}");
    for expected in [
        "refused: source: bob may not create the schema crossfade",
        "warning: target: bob may not set session_replication_role",
        "warning: source: bob does not see what others run",
        "refused: target: public.users: belongs to postgres: bob may not create triggers on it. GRANT postgres TO bob",
    ] {
        assert!(text.contains(expected), "{expected} is not in\n{text}");
    }
    // With what it asks for it works, superuser or not.
    for cluster in [oldest(), newest()] {
        let mut admin = pair.admin(cluster);
        admin.run("GRANT CREATE ON DATABASE preflight_rights TO bob");
        for table in ["documents", "users", "organizations", "deferred", "people"] {
            admin.run(&format!("ALTER TABLE {table} OWNER TO bob"));
        }
    }
    pair.install();
    let mut alice = super::capture::alice(&pair, oldest());
    alice.run("INSERT INTO users VALUES (1, 'a')");
    alice.run("BEGIN; SELECT crossfade.arm('{1}', 'source'); INSERT INTO users VALUES (2, 'b')");
    let token = pair.admin(oldest()).run("SELECT value FROM crossfade.meta WHERE key = 'token'").unwrap();
    let set = super::capture::read_set(&mut alice, &token).unwrap();
    assert_eq!(set.changes[0].image.as_deref(), Some(&b"(2,b)"[..]));
    alice.run("COMMIT");
    let kinds = "SELECT string_agg(sync::text, ' ' ORDER BY id) FROM crossfade.journal";
    assert_eq!(pair.admin(oldest()).run(kinds).as_deref(), Some("false true"));
    // Row security that applies to the owner would hide rows from it.
    for cluster in [oldest(), newest()] {
        pair.admin(cluster)
            .run("ALTER TABLE users ENABLE ROW LEVEL SECURITY; ALTER TABLE users FORCE ROW LEVEL SECURITY");
    }
    let (_, text) = pair.mirror(&["status"]);
    assert!(text.contains("refused: target: public.users: its row security applies to bob"), "{text}");
}

/// Without these functions nobody can tell whether a lead has crashed, and what became of its transactions.
#[test]
fn functions_that_say_who_a_server_is() {
    let pair = Pair::new("preflight_control", "");
    let bob =
        pair.with("user = \"postgres\"\npassword = \"secret\"", "user = \"bob\"\npassword = \"bob-pw\"");
    let expected = "refused: source: bob may not run pg_control_checkpoint()";
    let (_, text) = bob.mirror(&["install"]);
    assert!(!text.contains("may not run"), "{text}");
    bob.admin(oldest()).run("REVOKE EXECUTE ON FUNCTION pg_control_checkpoint() FROM PUBLIC");
    let (code, text) = bob.mirror(&["install"]);
    assert!(code == 1 && text.contains(expected), "{text}");
    assert!(!text.contains("target: bob may not run"), "{text}");
    bob.admin(oldest()).run("REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC");
    let (_, text) = bob.mirror(&["install"]);
    let both = "refused: source: bob may not run pg_control_system(), pg_control_checkpoint()";
    assert!(
        text.contains(both)
            && text.contains("GRANT EXECUTE ON FUNCTION pg_control_system(), pg_control_checkpoint() TO bob"),
        "{text}"
    );
    // From the journal alone nothing depends on it.
    let bob = bob.with("mirror = \"journaled\"", "mirror = \"async\"");
    let (_, text) = bob.mirror(&["install"]);
    assert!(text.contains(&both.replace("refused", "warning")), "{text}");
    bob.admin(oldest()).run(
        "GRANT EXECUTE ON FUNCTION pg_control_system() TO bob; GRANT EXECUTE ON FUNCTION pg_control_checkpoint() TO bob",
    );
    let (_, text) = bob.mirror(&["install"]);
    assert!(!text.contains("may not run"), "{text}");
}

#[test]
fn the_same_database_twice() {
    // By another name, or the configuration itself would be refused.
    let target = format!("host = \"127.0.0.1\"\nport = {}\n", newest().port);
    let source = format!("host = \"localhost\"\nport = {}\n", oldest().port);
    let pair = Pair::new("preflight_same", "").with(&target, &source);
    let (code, text) = pair.mirror(&["install"]);
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("refused: source and target are the same database"), "{text}");
}

//! What the triggers record.

use std::fmt::Write as _;

use bytes::Bytes;
use crossfade::mirror::write_set::{Change, WriteSet};

use super::Pair;
use crate::support::{
    PATIENCE,
    cluster::{Cluster, newest, oldest},
    frames,
    reply::Frame,
    wire::{DbError, Login, Next, Wire},
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
pub(super) fn write_set(client: &mut Wire, pair: &Pair, cluster: &Cluster) -> Vec<String> {
    let token = pair.admin(cluster).run("SELECT value FROM crossfade.meta WHERE key = 'token'");
    let set = read_set(client, &token.expect("installed")).expect("a write set");
    let names = pair
        .admin(cluster)
        .query("SELECT number, table_name FROM crossfade.tables")
        .expect("names of tables");
    let text = |bytes: &Option<Bytes>| match bytes {
        Some(bytes) => String::from_utf8(bytes.to_vec()).expect("text"),
        None => "-".to_owned(),
    };
    let line = |change: &Change| {
        let number = Some(change.table.to_string());
        let name = names.iter().find(|row| row[0] == number).and_then(|row| row[1].as_deref());
        let operations = text(&Some(change.operations.clone()));
        format!("{} {operations} {} {}", name.unwrap_or("?"), text(&change.key), text(&change.image))
    };
    assert!(set.journal.is_some() || set.changes.is_empty(), "{set:?}");
    let first = if set.overflow { "all in the journal" } else { "here" }.to_owned();
    std::iter::once(first).chain(set.changes.iter().map(line)).collect()
}

/// The write set of an open transaction, as the proxy reads it.
pub(super) fn read_set(client: &mut Wire, token: &str) -> Result<WriteSet, DbError> {
    let sql = format!(
        "SELECT pg_catalog.encode(pg_catalog.array_send(crossfade.write_set('{token}'::pg_catalog.text)), 'hex')"
    );
    let rows = client.query(&sql)?;
    let hex = rows[0][0].as_deref().expect("an array");
    let bytes: Vec<u8> = (0..hex.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hexadecimal"))
        .collect();
    Ok(WriteSet::read(bytes.into()).expect("an array that the proxy reads"))
}

/// On both majors.
#[track_caller]
fn check(pair: &Pair, sql: &[&str], expected: &[&str]) {
    for cluster in [oldest(), newest()] {
        let set = captured(pair, cluster, sql);
        assert_eq!(set[0], "here", "{sql:?} on {}", cluster.major);
        assert_eq!(set[1..], *expected, "{sql:?} on {}", cluster.major);
    }
}

/// Tables of every kind, and code that writes them.
const SCHEMA: &str = r"
CREATE TABLE composite (a text, b int, v text, PRIMARY KEY (b, a));
CREATE TABLE parent (id int PRIMARY KEY, v text);
CREATE TABLE child (id int PRIMARY KEY, p int REFERENCES parent ON DELETE CASCADE ON UPDATE CASCADE DEFERRABLE INITIALLY DEFERRED);
CREATE TABLE part (id bigint, d date, v text, PRIMARY KEY (id, d)) PARTITION BY RANGE (d);
CREATE TABLE part_a PARTITION OF part FOR VALUES FROM ('2020-01-01') TO ('2021-01-01');
CREATE TABLE part_b PARTITION OF part FOR VALUES FROM ('2021-01-01') TO ('2022-01-01') PARTITION BY HASH (id);
CREATE TABLE part_b0 PARTITION OF part_b FOR VALUES WITH (MODULUS 1, REMAINDER 0);
CREATE TABLE log (what text, at timestamp);
CREATE TABLE made (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, n int, twice int GENERATED ALWAYS AS (n * 2) STORED);
CREATE TABLE audited (id int PRIMARY KEY, slug text);
CREATE FUNCTION slug() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  UPDATE audited SET slug = 'slug-' || NEW.id WHERE id = NEW.id;
  INSERT INTO users VALUES (1000 + NEW.id, 'by trigger'); RETURN NULL; END $$;
CREATE TRIGGER slug AFTER INSERT ON audited FOR EACH ROW EXECUTE FUNCTION slug();
CREATE FUNCTION add_user(id int) RETURNS void LANGUAGE sql AS 'INSERT INTO users VALUES (id, ''by function'')';
CREATE TABLE late (id int PRIMARY KEY);
CREATE FUNCTION late() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  INSERT INTO users VALUES (2000 + NEW.id, current_user); RETURN NULL; END $$;
CREATE CONSTRAINT TRIGGER late AFTER INSERT ON late DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION late();
INSERT INTO users VALUES (100, 'there'), (101, 'too');
INSERT INTO parent VALUES (1, 'p'); INSERT INTO child VALUES (10, 1), (11, 1);
";

#[test]
fn statements_of_every_kind() {
    let pair = Pair::new("capture_kinds", SCHEMA);
    pair.install();
    let check = |sql: &[&str], expected: &[&str]| check(&pair, sql, expected);
    let start = "INSERT INTO users VALUES (1, 'a'), (2, 'b')";
    check(&[start], &["users I 1 (1,a)", "users I 2 (2,b)"]);
    check(&[start, "UPDATE users SET name = 'c' WHERE id = 2"], &["users I 1 (1,a)", "users IU 2 (2,c)"]);
    check(&[start, "DELETE FROM users WHERE id = 1"], &["users ID 1 -", "users I 2 (2,b)"]);
    check(
        &[start, "UPDATE users SET id = 7 WHERE id = 2"],
        &["users I 1 (1,a)", "users ID 2 -", "users I 7 (7,b)"],
    );
    check(&["UPDATE users SET name = 'x' WHERE id < 0"], &[]);
    check(
        &[
            "INSERT INTO users VALUES (100, 'x'), (3, 'y') ON CONFLICT (id) DO UPDATE SET name = EXCLUDED.name",
        ],
        &["users U 100 (100,x)", "users I 3 (3,y)"],
    );
    check(&["INSERT INTO users VALUES (100, 'x') ON CONFLICT DO NOTHING"], &[]);
    check(
        &["MERGE INTO users u USING (VALUES (100, 'm'), (101, NULL), (5, 'n')) s(id, name) ON u.id = s.id \
           WHEN MATCHED AND s.name IS NULL THEN DELETE WHEN MATCHED THEN UPDATE SET name = s.name \
           WHEN NOT MATCHED THEN INSERT VALUES (s.id, s.name)"],
        &["users U 100 (100,m)", "users D 101 -", "users I 5 (5,n)"],
    );
    check(
        &[
            "WITH gone AS (DELETE FROM users WHERE id = 100 RETURNING id), more AS (INSERT INTO users SELECT id + 1000, 'w' FROM gone) SELECT 1",
        ],
        &["users D 100 -", "users I 1100 (1100,w)"],
    );
    check(
        &["DO $$ BEGIN FOR i IN 1..2 LOOP INSERT INTO users VALUES (i, 'd' || i); END LOOP; END $$"],
        &["users I 1 (1,d1)", "users I 2 (2,d2)"],
    );
    check(&["SELECT add_user(8)"], &["users I 8 (8,\"by function\")"]);
    check(
        &["INSERT INTO audited VALUES (4, NULL)"],
        &["audited IU 4 (4,slug-4)", "users I 1004 (1004,\"by trigger\")"],
    );
    check(&["INSERT INTO late VALUES (1)"], &["late I 1 (1)", "users I 2001 (2001,postgres)"]);
    check(
        &["INSERT INTO made (n) VALUES (4)", "UPDATE made SET id = DEFAULT WHERE false"],
        &["made I 1 (1,4)"],
    );
    check(
        &["INSERT INTO log VALUES ('a,\"b', '2020-02-03 04:05:06'), (NULL, NULL)"],
        &["log R - (\"a,\"\"b\",\"2020-02-03 04:05:06\")", "log R - (,)"],
    );
}

#[test]
fn cascades_and_keys() {
    let pair = Pair::new("capture_cascades", SCHEMA);
    pair.install();
    let check = |sql: &[&str], expected: &[&str]| check(&pair, sql, expected);
    check(&["DELETE FROM parent"], &["parent D 1 -", "child D 10 -", "child D 11 -"]);
    check(
        &["UPDATE parent SET id = 2"],
        &["parent D 1 -", "parent I 2 (2,p)", "child U 10 (10,2)", "child U 11 (11,2)"],
    );
    check(&["TRUNCATE parent CASCADE"], &["parent T - -", "child T - -"]);
    check(
        &[
            "INSERT INTO child VALUES (1, 1)",
            "SET CONSTRAINTS ALL IMMEDIATE",
            "TRUNCATE child",
            "INSERT INTO child VALUES (2, 1)",
            "UPDATE child SET id = 3",
        ],
        &["child T - -", "child ID 2 -", "child I 3 (3,1)"],
    );
    check(
        &["INSERT INTO log VALUES ('void')", "TRUNCATE log", "INSERT INTO log VALUES ('a'), ('a')"],
        &["log T - -", "log R - (a,)", "log R - (a,)"],
    );
    check(
        &[
            "INSERT INTO users VALUES (1, 'a')",
            "SAVEPOINT s",
            "UPDATE users SET id = 5 WHERE id = 1",
            "ROLLBACK TO s",
            "SAVEPOINT t",
            "INSERT INTO users VALUES (2, 'b')",
            "RELEASE t",
        ],
        &["users I 1 (1,a)", "users I 2 (2,b)"],
    );
}

#[test]
fn partitions() {
    let pair = Pair::new("capture_partitions", SCHEMA);
    pair.install();
    let late = "CREATE TABLE part_c PARTITION OF part FOR VALUES FROM ('2022-01-01') TO ('2023-01-01'); \
                CREATE TABLE part_d (LIKE part INCLUDING ALL); INSERT INTO part_d VALUES (9, '2023-05-05', 'was there'); \
                ALTER TABLE part ATTACH PARTITION part_d FOR VALUES FROM ('2023-01-01') TO ('2024-01-01')";
    for cluster in [oldest(), newest()] {
        pair.admin(cluster).run(late);
    }
    let check = |sql: &[&str], expected: &[&str]| check(&pair, sql, expected);
    check(
        &[
            "INSERT INTO part VALUES (1, '2020-05-05', 'x'), (2, '2021-05-05', 'y'), (3, '2022-05-05', 'z')",
            "INSERT INTO part_b0 VALUES (4, '2021-06-06', 'w')",
            "INSERT INTO part_d VALUES (5, '2023-06-06', 'v')",
        ],
        &[
            "part I {1,2020-05-05} (1,2020-05-05,x)",
            "part I {2,2021-05-05} (2,2021-05-05,y)",
            "part I {3,2022-05-05} (3,2022-05-05,z)",
            "part I {4,2021-06-06} (4,2021-06-06,w)",
            "part I {5,2023-06-06} (5,2023-06-06,v)",
        ],
    );
    // A row that moves to another partition is deleted there and inserted here.
    check(
        &["INSERT INTO part VALUES (1, '2020-05-05', 'x')", "UPDATE part SET d = '2021-05-05' WHERE id = 1"],
        &["part ID {1,2020-05-05} -", "part I {1,2021-05-05} (1,2021-05-05,x)"],
    );
    check(
        &[
            "INSERT INTO part VALUES (1, '2020-05-05', 'x')",
            "TRUNCATE part",
            "INSERT INTO part VALUES (2, '2020-05-05', 'y')",
        ],
        &["part T - -", "part I {2,2020-05-05} (2,2020-05-05,y)"],
    );
    let (code, text) = pair.mirror(&["status"]);
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("public.part: public.part_c has no trigger crossfade_t"), "{text}");
    let text = pair.install();
    assert!(text.contains("done: target: triggers on public.part\n"), "{text}");
    // Emptied alone: the other side's partitions may differ, so the repairer looks at every key.
    for cluster in [oldest(), newest()] {
        for partition in ["part_a", "part_c", "part_b", "part_b0"] {
            let set = captured(
                &pair,
                cluster,
                &["INSERT INTO users VALUES (1, 'a')", &format!("TRUNCATE {partition}")],
            );
            assert_eq!(set.len(), 1, "{partition}: {set:?}");
            assert!(set[0] == "all in the journal", "{partition}: {set:?}");
        }
    }
}

#[test]
fn copy() {
    let pair = Pair::new("capture_copy", SCHEMA);
    pair.install();
    for (cluster, side) in [(oldest(), "source"), (newest(), "target")] {
        let mut admin = pair.admin(cluster);
        admin.run("BEGIN");
        admin.run(&format!("UPDATE crossfade.repositories SET lead = '{side}'"));
        admin.run(&format!("SELECT crossfade.arm('{{1}}', '{side}')"));
        admin.send(&frames::query("COPY users FROM STDIN"));
        while admin.next(PATIENCE) != Next::Frame(Frame { kind: b'G', body: vec![0, 0, 2, 0, 0, 0, 0] }) {}
        admin.send(&frames::frame(b'd', b"1\ta\n2\tb\n"));
        admin.send(&frames::frame(b'c', b""));
        admin.until_ready(1).unwrap();
        assert_eq!(write_set(&mut admin, &pair, cluster)[1..], ["users I 1 (1,a)", "users I 2 (2,b)"]);
    }
}

/// Type, a value, and another value of a key's column.
const KEYS: &[(&str, &str, &str)] = &[
    ("text", "it''s \"q\", {b}, \\back\\\\, tab\t, new\nline, ünïcødé 象", "NULL"),
    ("text", "", "null"),
    ("varchar(20)", " lead and trail ", "(a,b)"),
    ("char(5)", "ab", "\"\""),
    ("name", "a name", "b"),
    ("int2", "-32768", "0"),
    ("int8", "9223372036854775807", "1"),
    ("numeric", "-12345678901234567890.0100", "NaN"),
    ("numeric", "Infinity", "0.10"),
    ("float8", "0.1", "-Infinity"),
    ("float4", "1e-38", "NaN"),
    ("bool", "true", "false"),
    ("uuid", "A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11", "00000000-0000-0000-0000-000000000000"),
    ("bytea", "\\x00ff225c", "\\x"),
    ("date", "2020-02-03", "infinity"),
    ("timestamp", "2020-02-03 04:05:06.789", "-infinity"),
    ("timestamptz", "2020-02-03 04:05:06+09", "0044-03-15 BC"),
    ("time", "23:59:60", "00:00"),
    ("timetz", "12:00+05", "12:00-05"),
    ("interval", "1 year -2 mons +3 days -04:05:06.7", "-1 day"),
    ("money", "-1234.5", "0"),
    ("inet", "10.0.0.1/8", "::1"),
    ("macaddr", "08:00:2b:01:02:03", "00:00:00:00:00:00"),
    ("bit(3)", "101", "000"),
    ("varbit", "10101", ""),
    ("text[]", "{a,NULL,\"x y\",\"q\\\"\\\\\"}", "{}"),
    ("int4range", "[1,5)", "empty"),
    ("daterange", "[2020-01-01,)", "(,2021-01-01)"),
    ("jsonb", "{\"a\": \"b\\\\c\", \"n\": null}", "null"),
    ("mood", "ok", "sad"),
    ("odd", "7", "9"),
    ("\"Odd\"", "7", "9"),
    ("\"char\"", "x", "y"),
    ("oid", "7", "8"),
    ("regclass", "public.users", "pg_class"),
    ("xid8", "7", "8"),
    ("pg_lsn", "0/1", "1/0"),
    ("tsvector", "''a'':1 ''b\"c'':2", ""),
];

#[test]
fn keys_of_every_type() {
    let mut schema =
        String::from("CREATE DOMAIN odd AS int CHECK (VALUE % 2 = 1); CREATE DOMAIN \"Odd\" AS odd;");
    for (n, (kind, ..)) in KEYS.iter().enumerate() {
        let _ = write!(
            schema,
            "CREATE TABLE k{n:02} (k {kind} PRIMARY KEY, v text); CREATE TABLE m{n:02} (\"o\"\"dd\" text, k {kind}, v text, PRIMARY KEY (\"o\"\"dd\", k));"
        );
    }
    let pair = Pair::new("capture_types", &schema);
    pair.install();
    for (cluster, side) in [(oldest(), "source"), (newest(), "target")] {
        let mut admin = pair.admin(cluster);
        let token = admin.run("SELECT value FROM crossfade.meta WHERE key = 'token'").unwrap();
        for (n, (kind, one, other)) in KEYS.iter().enumerate() {
            let (one, other) =
                (format!("E'{}'", one.replace('\\', "\\\\")), format!("E'{}'", other.replace('\\', "\\\\")));
            admin.run("BEGIN");
            admin.run(&format!("UPDATE crossfade.repositories SET lead = '{side}'"));
            // Settings that shape text, and strings that are read in another way.
            admin.run("SET LOCAL DateStyle = 'SQL, DMY'; SET LOCAL TimeZone = 'Asia/Kolkata'; SET LOCAL IntervalStyle = 'sql_standard'; \
                       SET LOCAL extra_float_digits = -10; SET LOCAL bytea_output = 'escape'; SET LOCAL standard_conforming_strings = off; \
                       SET LOCAL escape_string_warning = off; SET LOCAL quote_all_identifiers = on; SET LOCAL array_nulls = off");
            admin.run(&format!("SELECT crossfade.arm('{{1}}', '{side}')"));
            admin.run(&format!(
                "SET LOCAL search_path = public; INSERT INTO k{n:02} VALUES ({one}, 'v'), ({other}, 'w'); \
                INSERT INTO m{n:02} VALUES ('a\"b', {one}, 'v'); UPDATE k{n:02} SET v = 'x' WHERE k = ({one})::{kind}; \
                DELETE FROM k{n:02} WHERE k = ({other})::{kind}; UPDATE m{n:02} SET k = {other}"
            ));
            // The image that comes with a key is the row whose key has that text.
            let sql = format!(
                "SET LOCAL DateStyle = ISO; SET LOCAL TimeZone = UTC; SET LOCAL IntervalStyle = postgres; SET LOCAL extra_float_digits = 1; \
                 SET LOCAL bytea_output = hex; SET LOCAL standard_conforming_strings = on; SET LOCAL search_path = pg_catalog; \
                 SET LOCAL quote_all_identifiers = off; \
                 SELECT string_agg(w.ops || CASE WHEN image IS NULL THEN '-' WHEN image IN ((SELECT t::text FROM public.k{n:02} t WHERE t.k::text = w.key), \
                   (SELECT t::text FROM public.m{n:02} t WHERE ARRAY[t.\"o\"\"dd\", t.k::text]::text = w.key)) THEN '=' ELSE key || ':' || image END, ' ' ORDER BY place) \
                 FROM (SELECT place, left(a[place], 1) AS ops, substr(a[place], strpos(a[place], ':') + 1) AS key, a[place + 1] AS image \
                   FROM crossfade.write_set('{token}') a, generate_series(4, cardinality(a), 2) place) w"
            );
            let got = admin.run(&sql);
            assert_eq!(got.as_deref(), Some("I= I- I- U= D- D- I="), "{kind} on {}", cluster.major);
            admin.run("ROLLBACK");
        }
    }
}

#[test]
fn not_armed_is_journaled_and_fenced() {
    let pair = Pair::new("capture_journal", SCHEMA);
    pair.install();
    let journal = "SELECT string_agg(array_to_string(entries, ' '), ' | ' ORDER BY id) FROM crossfade.journal WHERE NOT sync AND xid = \
                   (SELECT max(xid::text::bigint)::text::xid8 FROM crossfade.journal)";
    let number = |table: &str| {
        let sql = format!("SELECT number FROM crossfade.tables WHERE table_name = '{table}'");
        pair.admin(oldest()).run(&sql).unwrap()
    };
    let (users, part, log) = (number("users"), number("part"), number("log"));
    let mut source = pair.admin(oldest());
    for (sql, expected) in [
        ("INSERT INTO users VALUES (1, 'a'), (2, 'b')", format!("I{users}:1 | I{users}:2")),
        ("UPDATE users SET id = 3 WHERE id = 2", format!("D{users}:2 I{users}:3")),
        ("TRUNCATE part_a", format!("T{part}:")),
        ("INSERT INTO log VALUES ('x', NULL)", format!("R{log}:(x,)")),
        ("SET session_replication_role = replica; INSERT INTO users VALUES (4, 'r')", format!("I{users}:4")),
    ] {
        source.run(sql);
        assert_eq!(source.run(journal), Some(expected), "{sql}");
    }
    source.run("SET session_replication_role = origin");
    // Those who apply rows are not captured, whatever else fires; others cannot say that they apply rows.
    let before = source.run("SELECT count(*) FROM crossfade.journal");
    source.run("SET crossfade.role = 'apply'; SET session_replication_role = replica; INSERT INTO users VALUES (5, 'applied'); TRUNCATE log");
    assert_eq!(source.run("SELECT count(*) FROM crossfade.journal"), before);
    let mut alice = alice(&pair, oldest());
    alice.run("SET crossfade.role = 'apply'; INSERT INTO users VALUES (6, 'not applied')");
    assert_eq!(source.run(journal), Some(format!("I{users}:6")));
    // Whoever goes past the proxy must write to the lead.
    let mut target = pair.admin(newest());
    for level in ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"] {
        target.run(&format!("SET default_transaction_isolation = '{level}'"));
        let error = target.query("INSERT INTO users VALUES (7, 'wrong side')").unwrap_err();
        assert_eq!(error.sqlstate, "55000", "{error:?}");
        assert!(error.message.contains("repository all are led by the source"), "{error:?}");
    }
    for sql in ["UPDATE log SET what = 'y'", "DELETE FROM log"] {
        source.run("RESET ALL");
        source.run("INSERT INTO log VALUES ('x', NULL)");
        let error = source.query(sql).unwrap_err();
        assert_eq!(error.sqlstate, "55000", "{error:?}");
        assert!(error.message.contains("has no key"), "{error:?}");
    }
}

pub(super) fn alice(pair: &Pair, cluster: &Cluster) -> Wire {
    Wire::connect(cluster.port, &Login::new("alice", "alice-pw", &pair.name)).expect("alice may log in")
}

#[test]
fn overflow_and_spill() {
    let pair = Pair::new("capture_overflow", "");
    pair.install();
    for (cluster, side) in [(oldest(), "source"), (newest(), "target")] {
        let mut admin = pair.admin(cluster);
        let entries = "SELECT count(DISTINCT e) FROM crossfade.journal, unnest(entries) e WHERE NOT sync";
        admin.run("BEGIN");
        admin.run(&format!("UPDATE crossfade.repositories SET lead = '{side}'"));
        admin.run(&format!("SELECT crossfade.arm('{{1}}', '{side}')"));
        admin.run("SAVEPOINT s");
        admin.run("INSERT INTO users SELECT g, 'u' || g FROM generate_series(1, 10000) g");
        assert_eq!(admin.run("SELECT left(current_setting('crossfade.keys'), 1)").as_deref(), Some("!"));
        admin.run("ROLLBACK TO s");
        assert_eq!(admin.run("SELECT current_setting('crossfade.keys')").as_deref(), Some("{"));
        admin.run("INSERT INTO users SELECT g, 'u' || g FROM generate_series(1, 5000) g");
        let set = write_set(&mut admin, &pair, cluster);
        assert_eq!(set.len(), 1, "{set:?}");
        assert!(set[0] == "all in the journal", "{set:?}");
        assert_eq!(admin.run(entries).as_deref(), Some("5000"));
        admin.run("ROLLBACK");
        // Just below the limit nothing is spilled, and what repeats comes once.
        admin.run("BEGIN");
        admin.run(&format!("UPDATE crossfade.repositories SET lead = '{side}'"));
        admin.run(&format!("SELECT crossfade.arm('{{1}}', '{side}')"));
        admin.run("INSERT INTO users SELECT g, 'u' || g FROM generate_series(1, 1500) g");
        admin.run("UPDATE users SET name = 'x' || id WHERE id <= 500");
        let set = write_set(&mut admin, &pair, cluster);
        assert_eq!(set.len(), 1501);
        assert_eq!(set[500..502], ["users IU 500 (500,x500)", "users I 501 (501,u501)"]);
        assert_eq!(admin.run(entries).as_deref(), Some("0"));
        // Where the proxy cannot intercept the COMMIT.
        admin.run("SELECT crossfade.spill_armed()");
        assert_eq!(admin.run("SELECT current_setting('crossfade.keys')").as_deref(), Some(""));
        assert_eq!(admin.run(entries).as_deref(), Some("2000"));
        admin.run("ROLLBACK");
    }
}

#[test]
fn arm_says_who_leads() {
    let pair = Pair::new("capture_arm", "");
    pair.install();
    let mut source = pair.admin(oldest());
    let refused = |client: &mut Wire, sql: &str| client.query(sql).unwrap_err().sqlstate;
    assert_eq!(refused(&mut source, "SELECT crossfade.arm('{1}', 'target')"), "CF001");
    assert_eq!(refused(&mut source, "SELECT crossfade.arm('{99}', 'source')"), "CF001");
    let mut target = pair.admin(newest());
    assert_eq!(refused(&mut target, "SELECT crossfade.arm('{1}', 'target')"), "CF001");
    // Armed twice: what is held stays.
    source.run("BEGIN; SELECT crossfade.arm('{1}', 'source'); INSERT INTO users VALUES (1, 'a'); SELECT crossfade.arm('{1}', 'source')");
    assert_ne!(source.run("SELECT current_setting('crossfade.keys')").as_deref(), Some("{"));
    source.run("ROLLBACK");
    assert_eq!(source.run("SELECT current_setting('crossfade.keys')").as_deref(), Some(""));
    // A snapshot from before the lead moved does not hide that it moved.
    for (level, expected) in
        [("READ COMMITTED", "CF001"), ("REPEATABLE READ", "40001"), ("SERIALIZABLE", "40001")]
    {
        let mut client = alice(&pair, oldest());
        client.run(&format!("BEGIN ISOLATION LEVEL {level}"));
        client.run("SELECT 1 FROM users");
        source.run("UPDATE crossfade.repositories SET lead = 'target'");
        assert_eq!(refused(&mut client, "SELECT crossfade.arm('{1}', 'source')"), expected, "{level}");
        source.run("UPDATE crossfade.repositories SET lead = 'source'");
    }
    // While somebody moves it, writers wait.
    source.run("BEGIN; SELECT pg_advisory_xact_lock(407137, 1)");
    let mut client = alice(&pair, oldest());
    client.run("SET lock_timeout = 50");
    assert_eq!(refused(&mut client, "SELECT crossfade.arm('{1}', 'source')"), "55P03");
    assert_eq!(refused(&mut client, "INSERT INTO users VALUES (1, 'a')"), "55P03");
}

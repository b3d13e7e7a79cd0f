//! Every kind of statement: the same script to one Postgres alone and through the proxy, answers equal, and in the end
//! three times the same rows.

use super::{SYNCHRONOUS, check_equal, rows, start};
use crate::support::{
    cluster::oldest,
    frames::{self, bind, copy_data, copy_done, describe, execute, extended, flush, parse, query, sync},
    needs_proxy,
    reply::{Frame, short},
    wire::{Login, Wire},
};

const SCHEMA: &str = "
CREATE TABLE t_item (id bigint PRIMARY KEY, name text UNIQUE, n int NOT NULL DEFAULT 0 CHECK (n < 1000));
CREATE TABLE t_serial (id serial PRIMARY KEY, v text);
CREATE TABLE t_child (id int PRIMARY KEY, item bigint REFERENCES t_item ON DELETE CASCADE ON UPDATE CASCADE
  DEFERRABLE INITIALLY DEFERRED);
CREATE TABLE t_audit (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, what text, old bigint);
CREATE FUNCTION audit() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS
  'BEGIN INSERT INTO public.t_audit (what, old) VALUES (TG_OP, CASE WHEN TG_OP <> ''INSERT'' THEN OLD.id END); RETURN NULL; END';
CREATE TRIGGER audit AFTER INSERT OR UPDATE OR DELETE ON t_item FOR EACH ROW EXECUTE FUNCTION audit();
CREATE TABLE t_two (a text, b int, v text, PRIMARY KEY (a, b));
CREATE TABLE t_log (n int, what text);
CREATE TABLE t_gen (id int PRIMARY KEY, a int, b int GENERATED ALWAYS AS (a * 2) STORED);
CREATE TABLE t_part (id int, d int, v text, PRIMARY KEY (id, d)) PARTITION BY RANGE (d);
CREATE TABLE t_part_1 PARTITION OF t_part FOR VALUES FROM (0) TO (10);
CREATE TABLE t_part_2 PARTITION OF t_part FOR VALUES FROM (10) TO (20);
CREATE FUNCTION add_item(bigint, text) RETURNS bigint LANGUAGE sql VOLATILE AS
  'INSERT INTO public.t_item VALUES ($1, $2) RETURNING id';
GRANT ALL ON ALL TABLES IN SCHEMA public TO PUBLIC;
GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO PUBLIC;
";

/// Sends each step to both and compares what is said.
#[track_caller]
fn check(name: &str, steps: &[(Vec<u8>, usize)]) {
    needs_proxy!();
    for mode in SYNCHRONOUS {
        for transaction in [false, true] {
            let database = format!("m_{name}_{}_{}", &mode[..1], if transaction { "t" } else { "s" });
            let alone = format!("{database}_alone");
            oldest().database(&alone);
            oldest().admin(&alone).run(SCHEMA);
            let proxy = start(&database, SCHEMA, |s| {
                s.mirror = format!("mirror = {mode:?}");
                s.tables += "]\nfunctions = [\"public.add_item\"";
                if transaction {
                    s.pool_mode = "transaction";
                }
            });
            let mut oracle =
                Wire::connect(oldest().port, &Login::new("alice", "alice-pw", &alone)).expect("the oracle");
            let mut client = proxy.client("alice");
            for (step, readies) in steps {
                let answers = [&mut oracle, &mut client].map(|wire| {
                    wire.send(step);
                    let frames = wire.until_ready(*readies).expect("answers");
                    (short(&frames), frames.iter().map(Frame::full).collect::<Vec<_>>())
                });
                let [(expected, expected_full), (got, got_full)] = answers;
                let text = String::from_utf8_lossy(step);
                assert_eq!(got, expected, "{text} ({mode}, transaction pooling: {transaction})");
                assert_eq!(got_full, expected_full, "{text} ({mode}, transaction pooling: {transaction})");
            }
            check_equal(&proxy);
            let mut of_proxy = Wire::connect(oldest().port, &Login::new("postgres", "secret", &database))
                .expect("the source");
            assert_eq!(rows(&mut of_proxy), rows(&mut oldest().admin(&alone)), "as one Postgres alone");
        }
    }
}

fn simple(lines: &[&str]) -> Vec<(Vec<u8>, usize)> {
    lines.iter().map(|sql| (query(sql), 1)).collect()
}

#[test]
fn autocommit() {
    check(
        "auto",
        &simple(&[
            "INSERT INTO t_item VALUES (1, 'a'), (2, 'b') RETURNING id, name",
            "INSERT INTO t_item VALUES (1, 'x')",
            "UPDATE t_item SET n = n + 1",
            "UPDATE t_item SET n = n + 1 WHERE id = 7",
            "SELECT id, n FROM t_item ORDER BY id",
            "INSERT INTO t_item VALUES (2, 'b2') ON CONFLICT (id) DO UPDATE SET name = EXCLUDED.name RETURNING *",
            "INSERT INTO t_item VALUES (3, 'c') ON CONFLICT DO NOTHING",
            "INSERT INTO t_item VALUES (3, 'c') ON CONFLICT DO NOTHING",
            "UPDATE t_item SET id = 30 WHERE id = 3",
            "DELETE FROM t_item WHERE id = 1",
            "DELETE FROM t_item WHERE id = 1",
            "INSERT INTO t_serial (v) VALUES ('one'), ('two') RETURNING id",
            "INSERT INTO t_two VALUES ('a,\"{}\\ ''x', 1, NULL), ('', 2, ''), ('NULL', 3, 'null')",
            "UPDATE t_two SET v = 'new' WHERE a = 'a,\"{}\\ ''x'",
            "DELETE FROM t_two WHERE a = ''",
            "INSERT INTO t_log VALUES (1, 'x'), (1, 'x'), (NULL, NULL)",
            "INSERT INTO t_gen (id, a) VALUES (1, 2)",
            "UPDATE t_gen SET a = 5",
            "INSERT INTO t_part VALUES (1, 1, 'x'), (2, 11, 'y')",
            "UPDATE t_part SET d = d + 10 WHERE id = 1",
            "INSERT INTO t_part_1 VALUES (5, 5, 'direct')",
            "SELECT add_item(50, 'by a function')",
            "WITH gone AS (DELETE FROM t_item WHERE id = 2 RETURNING *) INSERT INTO t_two SELECT name, id, 'moved' FROM gone",
            "UPDATE t_item SET n = 5000 WHERE id = 30",
            "INSERT INTO t_child VALUES (1, 999)",
            "INSERT INTO t_child VALUES (1, 30)",
            "DELETE FROM t_item WHERE id = 30",
            "MERGE INTO t_item USING (VALUES (50::bigint, 'm'), (60, 'n')) v(id, name) ON t_item.id = v.id \
             WHEN MATCHED THEN UPDATE SET name = v.name WHEN NOT MATCHED THEN INSERT VALUES (v.id, v.name)",
            "TRUNCATE t_two",
            "INSERT INTO t_two VALUES ('after', 1, 'truncate')",
            "SELECT 1/0",
            "INSERT INTO t_item SELECT g, 'g' || g FROM generate_series(100, 400) g",
            "UPDATE t_item SET n = 1 WHERE id > 200",
            "DELETE FROM t_item WHERE id > 300",
        ]),
    );
}

#[test]
fn several_statements_in_a_text() {
    check(
        "several",
        &simple(&[
            "INSERT INTO t_item VALUES (1, 'a'); SELECT count(*) FROM t_item; UPDATE t_item SET n = 2",
            "INSERT INTO t_item VALUES (2, 'b'); SELECT 1/0; INSERT INTO t_item VALUES (3, 'c')",
            "SELECT 1; DELETE FROM t_item; INSERT INTO t_item VALUES (1, 'again')",
            "BEGIN; INSERT INTO t_item VALUES (4, 'd'); COMMIT",
            "BEGIN; INSERT INTO t_item VALUES (5, 'e')",
            "INSERT INTO t_item VALUES (6, 'f'); COMMIT; INSERT INTO t_item VALUES (7, 'g')",
            "SELECT id FROM t_item ORDER BY id",
            "",
            ";",
        ]),
    );
}

#[test]
fn blocks() {
    check(
        "blocks",
        &simple(&[
            "BEGIN",
            "INSERT INTO t_item VALUES (1, 'a')",
            "INSERT INTO t_child VALUES (1, 2)",
            "INSERT INTO t_item VALUES (2, 'b')",
            "SAVEPOINT s",
            "UPDATE t_item SET n = 9",
            "DELETE FROM t_item WHERE id = 1",
            "ROLLBACK TO s",
            "UPDATE t_item SET n = 3 WHERE id = 2",
            "COMMIT",
            "BEGIN",
            "UPDATE t_item SET n = 4",
            "ROLLBACK",
            "BEGIN",
            "SAVEPOINT first",
            "INSERT INTO t_item VALUES (10, 'x')",
            "ROLLBACK TO first",
            "INSERT INTO t_item VALUES (11, 'y')",
            "RELEASE first",
            "COMMIT",
            // The deferred foreign key fails at COMMIT.
            "BEGIN",
            "INSERT INTO t_child VALUES (5, 12345)",
            "COMMIT",
            "SELECT count(*) FROM t_child",
            "BEGIN",
            "INSERT INTO t_item VALUES (1, 'twice')",
            "SELECT 1",
            "COMMIT",
            "BEGIN ISOLATION LEVEL SERIALIZABLE",
            "UPDATE t_item SET n = n + 1",
            "END",
            "BEGIN ISOLATION LEVEL REPEATABLE READ",
            "DELETE FROM t_item WHERE id = 11",
            "COMMIT AND CHAIN",
            "INSERT INTO t_item VALUES (12, 'chained')",
            "COMMIT",
            "BEGIN",
            "SELECT count(*) FROM t_item",
            "COMMIT",
            // The values of a unique column change places.
            "BEGIN",
            "UPDATE t_item SET name = NULL WHERE id = 1",
            "UPDATE t_item SET name = 'a' WHERE id = 2",
            "UPDATE t_item SET name = 'b' WHERE id = 1",
            "COMMIT",
            "BEGIN",
            "INSERT INTO t_log VALUES (1, 'kept'), (1, 'kept')",
            "SAVEPOINT s",
            "INSERT INTO t_log VALUES (2, 'not kept')",
            "ROLLBACK TO s",
            "TRUNCATE t_two",
            "INSERT INTO t_two VALUES ('a', 1, 'b')",
            "COMMIT",
        ]),
    );
}

#[test]
fn extended_protocol() {
    let exec = |sql: &str, values: &[&str]| extended(sql, values);
    check(
        "extended",
        &[
            ([exec("INSERT INTO t_item VALUES ($1, $2)", &["1", "a"]), sync()].concat(), 1),
            ([exec("INSERT INTO t_item VALUES ($1, $2)", &["1", "a"]), sync()].concat(), 1),
            // A pipeline of several statements is one transaction.
            (
                [
                    exec("INSERT INTO t_item VALUES ($1, $2)", &["2", "b"]),
                    exec("UPDATE t_item SET n = $1 WHERE id = 2", &["5"]),
                    exec("SELECT n FROM t_item WHERE id = $1", &["2"]),
                    sync(),
                ]
                .concat(),
                1,
            ),
            (
                [
                    exec("INSERT INTO t_item VALUES ($1, $2)", &["3", "c"]),
                    exec("SELECT 1/0", &[]),
                    exec("INSERT INTO t_item VALUES ($1, $2)", &["4", "d"]),
                    sync(),
                    exec("INSERT INTO t_item VALUES ($1, $2)", &["5", "e"]),
                    sync(),
                ]
                .concat(),
                2,
            ),
            // A statement prepared once, without a name too.
            ([parse("", "UPDATE t_item SET n = n + 1"), describe(b'S', ""), sync()].concat(), 1),
            ([bind("", "", &[]), execute("", 0), sync()].concat(), 1),
            ([bind("", "", &[]), execute("", 0), sync()].concat(), 1),
            ([parse("up", "UPDATE t_item SET n = n + $1::int RETURNING n"), sync()].concat(), 1),
            ([bind("", "up", &["10"]), describe(b'P', ""), execute("", 0), sync()].concat(), 1),
            ([bind("", "up", &["10"]), execute("", 1), execute("", 0), sync()].concat(), 1),
            // BEGIN, statements and COMMIT in one pipeline, and in several.
            (
                [
                    exec("BEGIN", &[]),
                    exec("DELETE FROM t_item WHERE id = 5", &[]),
                    exec("COMMIT", &[]),
                    sync(),
                ]
                .concat(),
                1,
            ),
            (
                [
                    exec("BEGIN", &[]),
                    sync(),
                    exec("INSERT INTO t_item VALUES (6, 'f')", &[]),
                    sync(),
                    exec("COMMIT", &[]),
                    sync(),
                ]
                .concat(),
                3,
            ),
            ([exec("BEGIN", &[]), exec("INSERT INTO t_item VALUES (7, 'g')", &[]), sync()].concat(), 1),
            ([bind("", "up", &["1"]), execute("", 1), sync()].concat(), 1),
            (
                [
                    parse("commit", "COMMIT"),
                    bind("", "commit", &[]),
                    describe(b'P', ""),
                    execute("", 0),
                    sync(),
                ]
                .concat(),
                1,
            ),
            // The deferred foreign key fails at the end of the pipeline.
            ([exec("INSERT INTO t_child VALUES (1, 777)", &[]), sync()].concat(), 1),
            ([exec("BEGIN", &[]), sync()].concat(), 1),
            ([exec("INSERT INTO t_child VALUES (1, 777)", &[]), sync()].concat(), 1),
            ([exec("COMMIT", &[]), sync()].concat(), 1),
            (query("SELECT id, n FROM t_item ORDER BY id"), 1),
            // COPY.
            (
                [
                    query("COPY t_item (id, name) FROM STDIN"),
                    copy_data("20\tcopied\n21\tcopied too\n"),
                    copy_done(),
                ]
                .concat(),
                1,
            ),
            ([query("COPY t_item (id, name) FROM STDIN"), copy_data("20\tagain\n"), copy_done()].concat(), 1),
            ([query("COPY t_item (id, name) FROM STDIN"), frames::copy_fail("no")].concat(), 1),
            (
                [exec("COPY t_item (id, name) FROM STDIN", &[]), copy_data("22\tx\n"), copy_done(), sync()]
                    .concat(),
                1,
            ),
            ([exec("INSERT INTO t_item VALUES (30, 'flushed')", &[]), flush(), sync()].concat(), 1),
            (query("PREPARE ins AS INSERT INTO t_item VALUES ($1, $2)"), 1),
            (query("EXECUTE ins (40, 'by name')"), 1),
            (query("DEALLOCATE ins"), 1),
            (query("SELECT id, name, n FROM t_item ORDER BY id"), 1),
        ],
    );
}

//! The table: what is sent, and what Postgres answers (measured on 15 and 18).

use super::{
    Case,
    Step::{self, Cancel, CancelWrongKey, Elsewhere, Eof, Quiet, Ready, Until},
    Where,
};
use crate::support::frames::{
    bind, bind_raw, close, copy_data, copy_done, copy_fail, describe, execute, extended, flush, frame,
    function_call, lying, parse, parse_typed, query, sync,
};

/// One flight.
fn s(frames: &[Vec<u8>]) -> Step {
    Step::Send(frames.concat())
}

/// Sends and reads to the `ReadyForQuery`.
fn ask(frames: &[Vec<u8>]) -> Vec<Step> {
    vec![s(frames), Ready(1)]
}

/// Several simple queries, each answered before the next.
fn talk(queries: &[&str]) -> Vec<Step> {
    queries.iter().flat_map(|sql| ask(&[query(sql)])).collect()
}

fn case(name: &'static str, steps: Vec<Step>, golden: &'static str) -> Case {
    Case { name, at: Where::All, steps, golden }
}

fn once(name: &'static str, steps: Vec<Step>, golden: &'static str) -> Case {
    Case { name, at: Where::Once, steps, golden }
}

fn session(name: &'static str, steps: Vec<Step>, golden: &'static str) -> Case {
    Case { name, at: Where::Session, steps, golden }
}

/// All of them.
pub(crate) fn all() -> Vec<Case> {
    [simple(), extended_errors(), portals(), statements(), copy_in(), copy_out(), settings(), odd(), cancels(), deaths()]
        .concat()
}

fn simple() -> Vec<Case> {
    vec![
        case("select", talk(&["SELECT 1"]), "T D C[SELECT_1] ZI EOF"),
        case("empty", talk(&["", ";;", "-- nothing"]), "I ZI I ZI I ZI EOF"),
        case("several", talk(&["SELECT 1; SELECT 2 WHERE false; UPDATE documents SET n = 1"]),
            "T D C[SELECT_1] T C[SELECT_0] C[UPDATE_10] ZI EOF"),
        case("an error rolls back what went before in the same text",
            talk(&["INSERT INTO users VALUES (1, 'a'); SELECT 1/0; INSERT INTO users VALUES (2, 'b')", "SELECT count(*) FROM users"]),
            "C E(22012) ZI T D C ZI EOF"),
        case("several transactions in one text",
            talk(&["INSERT INTO users VALUES (1, 'a'); COMMIT; SELECT 1/0", "SELECT count(*) FROM users"]),
            "C[INSERT_0_1] N(25P01) C[COMMIT] E(22012) ZI T D C ZI EOF"),
        case("transactions written out in one text",
            talk(&["BEGIN; INSERT INTO users VALUES (1, 'a'); COMMIT; BEGIN; INSERT INTO users VALUES (2, 'b'); ROLLBACK; BEGIN",
                "SELECT id FROM users", "COMMIT"]),
            "C[BEGIN] C C[COMMIT] C[BEGIN] C C[ROLLBACK] C[BEGIN] ZT T D C ZT C[COMMIT] ZI EOF"),
        case("pipelined queries", vec![s(&[query("SELECT 1"), query("SELECT 1/0"), query("SELECT 3")]), Ready(3)],
            "T D C ZI E(22012) ZI T D C ZI EOF"),
        case("commit of a failed transaction", talk(&["BEGIN", "SELECT 1/0", "SELECT 1", "COMMIT"]),
            "C[BEGIN] ZT E(22012) ZE E(25P02) ZE C[ROLLBACK] ZI EOF"),
        case("savepoints", talk(&["BEGIN; SAVEPOINT a; INSERT INTO users VALUES (1, 'a')", "SELECT 1/0", "ROLLBACK TO a", "SELECT count(*) FROM users", "COMMIT AND CHAIN", "COMMIT"]),
            "C[BEGIN] C[SAVEPOINT] C ZT E(22012) ZE C[ROLLBACK] ZT T D C ZT C[COMMIT] ZT C[COMMIT] ZI EOF"),
        case("begin twice, commit twice", talk(&["BEGIN", "BEGIN", "COMMIT", "COMMIT", "ROLLBACK"]),
            "C ZT N(25001) C ZT C ZI N(25P01) C ZI N(25P01) C ZI EOF"),
        case("deferred constraint", talk(&["BEGIN; INSERT INTO deferred VALUES (2, 1)", "COMMIT", "SELECT count(*) FROM deferred"]),
            "C C ZT E(23505) ZI T D C ZI EOF"),
        case("deferred constraint in a text", talk(&["INSERT INTO deferred VALUES (2, 1)"]), "E(23505) ZI EOF"),
        case("error fields: not null", talk(&["INSERT INTO documents VALUES (77, NULL)"]), "E(23502) ZI EOF"),
        case("error fields: check", talk(&["UPDATE documents SET n = -1"]), "E(23514) ZI EOF"),
        case("error fields: unique", talk(&["INSERT INTO documents VALUES (1, 'again')"]), "E(23505) ZI EOF"),
        case("error fields: enum", talk(&["INSERT INTO people VALUES (1, 'angry')"]), "E(22P02) ZI EOF"),
        case("error fields: position", talk(&["SELECT nothing FROM documents"]), "E(42703) ZI EOF"),
        case("error fields: hint and position", talk(&["SELECT titel FROM documents"]), "E(42703) ZI EOF"),
        case("error fields: context", talk(&["DO $$ BEGIN RAISE 'no' USING ERRCODE = 'P9999', HINT = 'h', DETAIL = 'd', TABLE = 't', COLUMN = 'c', SCHEMA = 's', CONSTRAINT = 'n', DATATYPE = 'd'; END $$"]),
            "E(P9999) ZI EOF"),
        case("notices", talk(&["DO $$ BEGIN RAISE NOTICE 'one'; RAISE WARNING 'two'; END $$; SELECT 1; DROP TABLE IF EXISTS absent"]),
            "N(00000) N(01000) C[DO] T D C N(00000) C ZI EOF"),
        case("notice between rows", talk(&["CREATE FUNCTION pg_temp.f(i int) RETURNS int LANGUAGE plpgsql AS $$ BEGIN RAISE NOTICE '%', i; RETURN i; END $$",
                "SELECT pg_temp.f(i) FROM generate_series(1, 2) i"]),
            "C ZI T N(00000) D N(00000) D C ZI EOF"),
        case("types", talk(&["SELECT 1::int2, 'x'::mood, ARRAY[1,2], NULL, now() IS NULL, '{\"a\":1}'::jsonb, '\\x00ff'::bytea, 1.50::numeric FROM (SELECT 'ok'::mood x) y"]),
            "E(22P02) ZI EOF"),
        case("enum", talk(&["SELECT 'ok'::mood, ARRAY['sad','happy']::mood[]"]), "T D C ZI EOF"),
        case("syntax error", talk(&["SELEC 1"]), "E(42601) ZI EOF"),
        case("read only", talk(&["BEGIN READ ONLY", "INSERT INTO users VALUES (1, 'a')", "ROLLBACK"]), "C ZT E(25006) ZE C ZI EOF"),
        case("vacuum in a transaction", talk(&["BEGIN; VACUUM"]), "C E(25001) ZE EOF"),
        case("create, use, drop", talk(&["CREATE TABLE made (a int); INSERT INTO made VALUES (1) RETURNING a; DROP TABLE made"]),
            "C[CREATE_TABLE] T D C[INSERT_0_1] C[DROP_TABLE] ZI EOF"),
        case("explain and show", talk(&["EXPLAIN (COSTS OFF) SELECT 1", "SHOW work_mem"]), "T D C ZI T D C[SHOW] ZI EOF"),
        case("cursor", talk(&["BEGIN; DECLARE c CURSOR FOR SELECT id FROM documents ORDER BY id; FETCH 2 FROM c", "FETCH 1 FROM c; MOVE 2 IN c; CLOSE c; COMMIT"]),
            "C C[DECLARE_CURSOR] T D D C[FETCH_2] ZT T D C[FETCH_1] C[MOVE_2] C[CLOSE_CURSOR] C ZI EOF"),
        case("cursor with hold", talk(&["DECLARE h CURSOR WITH HOLD FOR SELECT id FROM documents ORDER BY id", "FETCH 1 FROM h", "CLOSE h"]),
            "C ZI T D C ZI C ZI EOF"),
        case("temp table", talk(&["CREATE TEMP TABLE tt (a int)", "INSERT INTO tt VALUES (1)", "SELECT * FROM tt", "DROP TABLE tt"]),
            "C ZI C ZI T D C ZI C ZI EOF"),
        case("listen and notify", talk(&["LISTEN ch", "NOTIFY ch, 'hello'", "UNLISTEN *"]),
            "C[LISTEN] ZI C[NOTIFY] A ZI C[UNLISTEN] ZI EOF"),
        case("session advisory lock", talk(&["SELECT pg_advisory_lock(4711)", "SELECT pg_advisory_unlock(4711)", "SELECT pg_advisory_unlock(4711)"]),
            "T D C ZI T D C ZI T N(01000) D C ZI EOF"),
    ]
}

fn extended_errors() -> Vec<Case> {
    vec![
        case("parse error, then Q before Sync",
            vec![s(&[parse("", "SELEC 1"), query("SELECT 'skipped'"), sync(), query("SELECT 1")]), Ready(2)],
            "E(42601) ZI T D C ZI EOF"),
        case("flush without sync", vec![s(&[extended("SELECT 1", &[]), flush()]), Quiet], "1 2 T D C EOF"),
        case("flush, then sync", vec![s(&[extended("SELECT 1", &[]), flush()]), Until(b'C'), s(&[sync()]), Ready(1)], "1 2 T D C ZI EOF"),
        case("error, then flush", vec![s(&[parse("", "SELECT 1"), bind("", "absent", &[]), flush(), parse("", "SELECT 2"), flush()]), Quiet, s(&[sync()]), Ready(1)],
            "1 E(26000) ZI EOF"),
        case("describe first: P D Flush, B E Sync",
            vec![s(&[parse("q", "SELECT id FROM documents WHERE id = $1"), describe(b'S', "q"), flush()]), Until(b'T'),
                s(&[bind("", "q", &["3"]), execute("", 0), sync()]), Ready(1)],
            "1 t T 2 D C[SELECT_1] ZI EOF"),
        case("two inserts in one batch, the second fails",
            vec![s(&[extended("INSERT INTO users VALUES (1, 'a')", &[]), extended("INSERT INTO users VALUES (1, 'b')", &[]), sync(), query("SELECT count(*) FROM users")]), Ready(2)],
            "1 2 n C 1 2 n E(23505) ZI T D C ZI EOF"),
        case("begin in a batch, then an error",
            vec![s(&[parse("", "BEGIN"), bind("", "", &[]), execute("", 0), parse("", "SELEC"), bind("", "", &[]), sync()]), Ready(1), s(&[query("ROLLBACK")]), Ready(1)],
            "1 2 C[BEGIN] E(42601) ZE C[ROLLBACK] ZI EOF"),
        case("batches with several syncs",
            vec![s(&[extended("INSERT INTO users VALUES (1, 'a')", &[]), sync(), extended("SELECT 1/0", &[]), sync(), extended("SELECT count(*) FROM users", &[]), sync()]), Ready(3)],
            "1 2 n C ZI 1 E(22012) ZI 1 2 T D C ZI EOF"),
        case("empty statement", ask(&[extended("", &[]), sync()]), "1 2 n I ZI EOF"),
        case("two statements in one Parse", ask(&[parse("", "SELECT 1; SELECT 2"), sync()]), "E(42601) ZI EOF"),
        case("too few parameters", ask(&[parse("", "SELECT $1::int"), bind("", "", &[]), sync()]), "1 E(08P01) ZI EOF"),
        case("unbound portal", ask(&[execute("absent", 0), sync()]), "E(34000) ZI EOF"),
        case("describe what is not there", vec![s(&[describe(b'S', "absent"), sync(), describe(b'P', "absent"), sync()]), Ready(2)],
            "E(26000) ZI E(34000) ZI EOF"),
        case("close what is not there", ask(&[close(b'S', "absent"), close(b'P', "absent"), sync()]), "3 3 ZI EOF"),
        case("bad value", ask(&[extended("SELECT $1::int", &["x"]), sync()]), "1 E(22P02) ZI EOF"),
        case("parameter types", ask(&[parse_typed("", "SELECT $1, $2", &[23, 25]), describe(b'S', ""), bind("", "", &["1", "b"]), execute("", 0), sync()]),
            "1 t T 2 D C ZI EOF"),
        case("null and binary results", ask(&[parse_typed("", "SELECT $1, 258", &[25]), bind_raw("", "", &[None], &[1]), execute("", 0), sync()]), "1 2 D C ZI EOF"),
        case("NUL in a text value", ask(&[parse_typed("", "SELECT $1", &[25]), bind_raw("", "", &[Some(b"a\0b")], &[]), sync()]), "1 E(22021) ZI EOF"),
        case("bad UTF-8 in a text value", ask(&[parse_typed("", "SELECT $1", &[25]), bind_raw("", "", &[Some(b"a\xff\xfe")], &[]), sync()]), "1 E(22021) ZI EOF"),
        case("bad UTF-8 in a query", ask(&[frame(b'Q', b"SELECT '\xff'\0")]), "E(22021) ZI EOF"),
        case("deferred constraint at Sync", ask(&[extended("INSERT INTO deferred VALUES (2, 1)", &[]), sync()]), "1 2 n C E(23505) ZI EOF"),
        case("syncs alone", vec![s(&[sync(), sync(), sync()]), Ready(3)], "ZI ZI ZI EOF"),
        case("commit in a failed transaction", vec![s(&[query("BEGIN"), extended("SELECT 1/0", &[]), sync(), extended("COMMIT", &[]), sync()]), Ready(3)],
            "C ZT 1 E(22012) ZE 1 2 n C[ROLLBACK] ZI EOF"),
        case("not allowed in a failed transaction", vec![s(&[query("BEGIN"), query("SELECT 1/0"), parse("", "SELECT 1"), sync()]), Ready(3)],
            "C ZT E(22012) ZE E(25P02) ZE EOF"),
        case("a query ends a batch", vec![s(&[extended("SELECT 1", &[]), query("SELECT 2"), query("SELECT 3"), sync()]), Ready(3)], "1 2 T D C T D C ZI T D C ZI ZI EOF || 1 2 T D C T D C ZT T D C ZT ZI EOF"),
        case("a function call ends a batch", vec![s(&[parse("", "SELECT 1"), function_call(177, &["2", "3"]), query("SELECT 3")]), Ready(2)], "1 V ZI T D C ZI EOF"),
        case("settings of a batch that was flushed", vec![s(&[extended("SELECT 1", &[]), flush()]), Until(b'C'), s(&[extended("SET work_mem = '9MB'", &[]), sync()]), Ready(1), s(&[query("SHOW work_mem")]), Ready(1)],
            "1 2 T D C 1 2 n C ZI T D C ZI EOF"),
        case("begin in a batch that was flushed", vec![s(&[extended("SELECT 1", &[]), flush()]), Until(b'C'), s(&[extended("BEGIN", &[]), sync()]), Ready(1), s(&[query("SAVEPOINT a"), query("COMMIT")]), Ready(2)],
            "1 2 T D C 1 2 n C ZT C ZT C ZI EOF"),
        case("simple after extended without sync", vec![s(&[extended("SELECT 1", &[]), query("SELECT 2")]), Ready(1)], "1 2 T D C T D C ZI EOF || 1 2 T D C T D C ZT EOF"),
    ]
}

fn portals() -> Vec<Case> {
    let rows = "SELECT id FROM documents ORDER BY id";
    vec![
        case("portal dies at Sync", vec![s(&[parse("", rows), bind("p", "", &[]), execute("p", 3), sync(), execute("p", 3), sync()]), Ready(2)],
            "1 2 D D D s ZI E(34000) ZI EOF"),
        case("portal survives Flush",
            vec![s(&[parse("", rows), bind("p", "", &[]), execute("p", 3), flush()]), Until(b's'), s(&[execute("p", 0), sync()]), Ready(1)],
            "1 2 D D D s D D D D D D D C[SELECT_7] ZI EOF"),
        case("portal over Syncs in a transaction",
            vec![s(&[query("BEGIN"), parse("", rows), bind("p", "", &[]), execute("p", 2), sync()]), Ready(2),
                s(&[execute("p", 2), sync()]), Ready(1), s(&[close(b'P', "p"), sync()]), Ready(1), s(&[execute("p", 2), sync()]), Ready(1), s(&[query("COMMIT")]), Ready(1)],
            "C ZT 1 2 D D s ZT D D s ZT 3 ZT E(34000) ZE C[ROLLBACK] ZI EOF"),
        case("exactly all rows", ask(&[parse("", "SELECT 1"), bind("", "", &[]), execute("", 1), execute("", 1), sync()]), "1 2 D s C[SELECT_0] ZI EOF"),
        case("execute again after the end", ask(&[parse("", "SELECT 1"), bind("", "", &[]), execute("", 0), execute("", 0), sync()]), "1 2 D C[SELECT_1] C[SELECT_0] ZI EOF"),
        case("execute a command again", ask(&[parse("", "INSERT INTO users VALUES (1, 'a')"), bind("", "", &[]), execute("", 0), execute("", 0), sync()]), "1 2 C E(55000) ZI EOF"),
        case("portal name twice", ask(&[parse("", rows), bind("p", "", &[]), bind("p", "", &[]), sync()]), "1 2 E(42P03) ZI EOF"),
        case("describe a portal", ask(&[parse("", rows), bind("p", "", &[]), describe(b'P', "p"), execute("p", 1), sync()]), "1 2 T D s ZI EOF"),
        case("interleaved portals",
            ask(&[parse("a", rows), parse("b", "SELECT 'b' || id FROM documents ORDER BY id"), bind("p", "a", &[]), bind("q", "b", &[]),
                execute("p", 1), execute("q", 1), execute("p", 1), execute("q", 0), sync()]),
            "1 1 2 2 D s D s D s D D D D D D D D D C ZI EOF"),
        case("RETURNING with a row limit", ask(&[parse("", "INSERT INTO users SELECT i, i::text FROM generate_series(1,3) i RETURNING id"), bind("p", "", &[]), execute("p", 1), execute("p", 0), sync()]),
            "1 2 D s D D C[INSERT_0_2] ZI EOF"),
        case("declared cursor as a portal", vec![s(&[query("BEGIN; DECLARE c CURSOR FOR SELECT id FROM documents ORDER BY id")]), Ready(1), s(&[execute("c", 2), sync(), query("COMMIT")]), Ready(2)],
            "C C ZT D D s ZT C ZI EOF"),
    ]
}

fn statements() -> Vec<Case> {
    let use_it = |name: &str, values: &[&str]| [bind("", name, values), execute("", 0), sync()].concat();
    vec![
        case("over transactions",
            vec![s(&[parse("st", "SELECT $1::int + 1"), sync()]), Ready(1), s(&[use_it("st", &["1"])]), Ready(1), s(&[query("BEGIN")]), Ready(1), s(&[use_it("st", &["2"])]), Ready(1), s(&[query("COMMIT")]), Ready(1), s(&[use_it("st", &["3"])]), Ready(1)],
            "1 ZI 2 D C ZI C ZT 2 D C ZT C ZI 2 D C ZI EOF"),
        case("name twice", vec![s(&[parse("st", "SELECT 1"), sync(), parse("st", "SELECT 1"), sync()]), Ready(2)], "1 ZI E(42P05) ZI EOF"),
        case("close and use", vec![s(&[parse("st", "SELECT 1"), close(b'S', "st"), sync()]), Ready(1), s(&[use_it("st", &[])]), Ready(1)], "1 3 ZI E(26000) ZI EOF"),
        case("close and reuse the name", ask(&[parse("st", "SELECT 1"), close(b'S', "st"), parse("st", "SELECT 'two'"), use_it("st", &[])]), "1 3 1 2 D C ZI EOF"),
        case("made in an aborted transaction, survives",
            vec![s(&[query("BEGIN"), parse("st", "SELECT 7"), sync(), query("SELECT 1/0"), query("ROLLBACK"), use_it("st", &[])]), Ready(5)],
            "C ZT 1 ZT E ZE C[ROLLBACK] ZI 2 D C ZI EOF"),
        case("a failed Parse leaves no statement", vec![s(&[parse("st", "SELECT absent"), sync(), use_it("st", &[])]), Ready(2)], "E(42703) ZI E(26000) ZI EOF"),
        case("SQL DEALLOCATE of a protocol statement",
            vec![s(&[parse("c", "SELECT 1"), sync()]), Ready(1), s(&[query("DEALLOCATE c")]), Ready(1), s(&[use_it("c", &[])]), Ready(1)],
            "1 ZI C[DEALLOCATE] ZI E(26000) ZI EOF"),
        case("SQL PREPARE, then Bind", vec![s(&[query("PREPARE d AS SELECT 42")]), Ready(1), s(&[use_it("d", &[])]), Ready(1), s(&[query("EXECUTE d")]), Ready(1)],
            "C[PREPARE] ZI 2 D C ZI T D C ZI EOF"),
        case("SQL PREPARE with parameters and Describe",
            vec![s(&[query("PREPARE d (int, text) AS SELECT $1 + 1, $2")]), Ready(1), s(&[describe(b'S', "d"), use_it("d", &["1", "x"])]), Ready(1), s(&[query("EXECUTE d(5, 'y')")]), Ready(1)],
            "C ZI t T 2 D C ZI T D C ZI EOF"),
        case("Parse, then SQL EXECUTE", vec![s(&[parse("e", "SELECT $1::int * 2"), sync()]), Ready(1), s(&[query("EXECUTE e(21)")]), Ready(1)], "1 ZI T D C ZI EOF"),
        case("SQL PREPARE twice", talk(&["PREPARE d AS SELECT 1", "PREPARE d AS SELECT 2", "EXECUTE d"]), "C ZI E(42P05) ZI T D C ZI EOF"),
        case("EXECUTE and DEALLOCATE what is not there", talk(&["EXECUTE absent", "DEALLOCATE absent", "DEALLOCATE ALL"]), "E(26000) ZI E(26000) ZI C[DEALLOCATE_ALL] ZI EOF"),
        case("PREPARE and EXECUTE in one text", talk(&["PREPARE d AS SELECT 9; EXECUTE d; DEALLOCATE d", "EXECUTE d"]), "C T D C C ZI E(26000) ZI EOF"),
        case("quoted names", talk(&["PREPARE \"Q\"\"x\" AS SELECT 5", "EXECUTE \"Q\"\"x\"", "EXECUTE q"]), "C ZI T D C ZI E(26000) ZI EOF"),
        case("DEALLOCATE ALL", vec![s(&[parse("a", "SELECT 1"), sync()]), Ready(1), s(&[query("DEALLOCATE ALL")]), Ready(1), s(&[use_it("a", &[])]), Ready(1)],
            "1 ZI C[DEALLOCATE_ALL] ZI E(26000) ZI EOF"),
        case("DISCARD ALL", vec![s(&[parse("a", "SELECT 1"), sync(), query("SET application_name = 'x'")]), Ready(2), s(&[query("DISCARD ALL")]), Ready(1), s(&[use_it("a", &[])]), Ready(1)],
            "1 ZI C S(application_name) ZI C[DISCARD_ALL] S(application_name) ZI E(26000) ZI EOF"),
        case("DISCARD ALL where it must not be", talk(&["SELECT 1; DISCARD ALL", "BEGIN; DISCARD ALL", "ROLLBACK"]), "T D C E(25001) ZI C E(25001) ZE C ZI EOF"),
        case("a simple query destroys the unnamed statement", vec![s(&[parse("", "SELECT 1"), sync()]), Ready(1), s(&[query("SELECT 2")]), Ready(1), s(&[use_it("", &[])]), Ready(1)],
            "1 ZI T D C ZI E(26000) ZI EOF"),
        case("the unnamed statement over transactions", vec![s(&[parse("", "SELECT 1"), sync()]), Ready(1), s(&[use_it("", &[])]), Ready(1), s(&[use_it("", &[])]), Ready(1)],
            "1 ZI 2 D C ZI 2 D C ZI EOF"),
        case("cached plan must not change its result type",
            vec![s(&[query("CREATE TABLE made (a int)"), parse("st", "SELECT * FROM made"), sync(), use_it("st", &[])]), Ready(3), s(&[query("ALTER TABLE made ADD b int")]), Ready(1), s(&[use_it("st", &[])]), Ready(1), s(&[query("DROP TABLE made")]), Ready(1)],
            "C ZI 1 ZI 2 C ZI C ZI E(0A000) ZI C ZI EOF"),
        case("npgsql: DISCARD ALL before the batch", vec![s(&[query("DISCARD ALL"), extended("SELECT 1", &[]), sync()]), Ready(2)], "C ZI 1 2 T D C ZI EOF"),
        case("pgjdbc: savepoint in the middle",
            vec![s(&[query("BEGIN")]), Ready(1), s(&[query("SAVEPOINT PGJDBC_AUTOSAVE")]), Ready(1), s(&[extended("SELECT 1/0", &[]), sync()]), Ready(1), s(&[query("ROLLBACK TO SAVEPOINT PGJDBC_AUTOSAVE")]), Ready(1), s(&[query("COMMIT")]), Ready(1)],
            "C ZT C[SAVEPOINT] ZT 1 E(22012) ZE C[ROLLBACK] ZT C[COMMIT] ZI EOF"),
        // In transaction pooling the view shows the names on the server (docs/compatibility.md).
        session("pg_prepared_statements shows the client's names", vec![s(&[parse("mine", "SELECT 1"), sync()]), Ready(1), s(&[query("SELECT name FROM pg_prepared_statements")]), Ready(1)],
            "1 ZI T D C ZI EOF"),
        case("prepared again after its result type changed",
            vec![s(&[query("CREATE TABLE made (a int)"), parse("st", "SELECT * FROM made"), sync(), use_it("st", &[])]), Ready(3), s(&[query("ALTER TABLE made ADD b int")]), Ready(1), s(&[use_it("st", &[])]), Ready(1),
                s(&[close(b'S', "st"), parse("st", "SELECT * FROM made"), use_it("st", &[]), query("DROP TABLE made")]), Ready(2)],
            "C ZI 1 ZI 2 C ZI C ZI E(0A000) ZI 3 1 2 C ZI C ZI EOF"),
        case("names in errors are the client's", vec![s(&[query("PREPARE d (int) AS SELECT $1"), query("EXECUTE d"), query("EXECUTE d(x)"), query("/* \u{e4} */ EXECUTE \"d\"('x'::uuid)"), query("PREPARE d AS SELECT 2"), query("EXECUTE  nothing")]), Ready(6)],
            "C ZI E(42601) ZI E(42703) ZI E(22P02) ZI E(42P05) ZI E(26000) ZI EOF"),
        case("names in errors of a batch", vec![s(&[parse("a", "SELECT $1::int"), parse("b", "SELECT $1::int"), sync(), bind("", "a", &[]), sync(), parse("b", "SELECT $1::int"), sync(), parse("a", "SELECT 2"), sync(), bind("", "none", &[]), sync()]), Ready(5)],
            "1 1 ZI E(08P01) ZI E(42P05) ZI E(42P05) ZI E(26000) ZI EOF"),
        case("extended PREPARE and EXECUTE", vec![s(&[extended("PREPARE d AS SELECT 4", &[]), sync()]), Ready(1), s(&[extended("EXECUTE d", &[]), sync()]), Ready(1), s(&[query("EXECUTE d")]), Ready(1), s(&[use_it("d", &[])]), Ready(1),
                s(&[extended("DEALLOCATE d", &[]), sync(), query("EXECUTE d")]), Ready(2)],
            "1 2 n C ZI 1 2 T D C ZI T D C ZI 2 D C ZI 1 2 n C ZI E(26000) ZI EOF"),
        case("extended EXECUTE of what Parse made", vec![s(&[parse("d", "SELECT 4"), sync()]), Ready(1), s(&[extended("EXECUTE d", &[]), extended("DEALLOCATE d", &[]), sync(), use_it("d", &[])]), Ready(2)],
            "1 ZI 1 2 T D C 1 2 n C ZI E(26000) ZI EOF"),
        case("extended EXECUTE twice in a skipped batch", vec![s(&[parse("a", "SELECT 1/0"), sync(), bind("", "a", &[]), execute("", 0), query("EXECUTE a"), sync(), parse("", "SELECT 2"), query("DEALLOCATE a"), query("EXECUTE a")]), Ready(4)],
            "1 ZI E(22012) ZI 1 C ZI E(26000) ZI EOF"),
        case("statements that execute one another", vec![s(&[parse("a", "EXECUTE b"), parse("b", "EXECUTE a"), sync(), parse("c", "EXECUTE c"), sync(), describe(b'S', "a"), sync()]), Ready(3)],
            "1 1 ZI 1 ZI t n ZI EOF"),
        case("nothing of another client", vec![s(&[use_it("", &[]), use_it("cf_1", &[]), use_it("cf_2", &[]), query("EXECUTE cf_3"), query("SELECT 1; EXECUTE cf_4"), query("DEALLOCATE cf_5"), describe(b'S', "cf_6"), sync()]), Ready(7)],
            "E(26000) ZI E(26000) ZI E(26000) ZI E(26000) ZI T D C E(26000) ZI E(26000) ZI E(26000) ZI EOF"),
        case("extended DEALLOCATE ALL keeps what comes after it", ask(&[parse("a", "SELECT 1"), parse("b", "SELECT 2"), extended("DEALLOCATE ALL", &[]), parse("a", "SELECT 3"), bind("", "a", &[]), execute("", 0), bind("", "b", &[]), sync()]),
            "1 1 1 2 n C 1 2 D C E(26000) ZI EOF"),
        case("extended DEALLOCATE is not undone by an error", vec![s(&[parse("a", "SELECT 1"), sync(), extended("DEALLOCATE a", &[]), parse("b", "SELEC"), parse("c", "SELECT 1"), sync(), use_it("a", &[]), use_it("b", &[]), use_it("c", &[])]), Ready(5)],
            "1 ZI 1 2 n C E(42601) ZI E(26000) ZI E(26000) ZI E(26000) ZI EOF"),
        case("extended DEALLOCATE ALL leaves the unnamed statement", ask(&[extended("DEALLOCATE ALL", &[]), bind("", "", &[]), execute("", 0), sync()]), "1 2 n C 2 C ZI EOF"),
        case("a failed Parse destroys the unnamed statement", vec![s(&[parse("", "SELECT 1"), sync(), parse("", "SELEC"), sync(), use_it("", &[])]), Ready(3)], "1 ZI E(42601) ZI E(26000) ZI EOF"),
        case("the unnamed statement behind a change of settings", vec![s(&[extended("SET application_name = 'z'", &[]), sync(), bind("", "", &[]), execute("", 0), sync()]), Ready(2)], "1 2 n C S(application_name) ZI 2 C ZI EOF"),
        case("an error behind which the session is pinned", vec![s(&[parse("a", "SELECT 1"), sync(), parse("a", "SELECT 2"), query("EXECUTE a"), sync(), query("EXECUTE a")]), Ready(3)], "1 ZI E(42P05) ZI T D C ZI EOF"),
        case("a Parse that cannot be read leaves it", vec![s(&[parse("", "SELECT 1"), sync(), frame(b'P', b"\0SELECT 2\0\0\x01"), sync(), use_it("", &[])]), Ready(3)], "1 ZI E(08P01) ZI 2 D C ZI EOF"),
        case("what an error skips changes no name", vec![s(&[parse("a", "SELECT 1"), parse("", "SELECT 2"), sync(), bind("", "x", &[]), close(b'S', "a"), parse("b", "SELECT 3"), query("DEALLOCATE ALL"), sync(), use_it("", &[]), use_it("a", &[]), use_it("b", &[])]), Ready(5)],
            "1 1 ZI E(26000) ZI 2 D C ZI 2 D C ZI E(26000) ZI EOF"),
        case("the same, told first", vec![s(&[parse("a", "SELECT 1"), parse("", "SELECT 2"), sync(), bind("", "x", &[]), flush()]), Until(b'E'), s(&[close(b'S', "a"), parse("b", "SELECT 3"), flush(), query("DEALLOCATE ALL"), function_call(177, &["2", "3"]), sync(), use_it("", &[]), use_it("a", &[]), use_it("b", &[])]), Ready(4)],
            "1 1 ZI E(26000) ZI 2 D C ZI 2 D C ZI E(26000) ZI EOF"),
        case("a function call leaves the unnamed statement", vec![s(&[parse("", "SELECT 1"), sync(), function_call(177, &["2", "3"]), use_it("", &[])]), Ready(3)], "1 ZI V ZI 2 D C ZI EOF"),
        case("known text in a failed transaction", vec![s(&[parse("a", "SELECT 1"), parse("z", "ROLLBACK"), sync(), query("BEGIN"), query("SELECT 1/0"), parse("b", "SELECT 1"), sync(), parse("y", "ROLLBACK"), use_it("y", &[]), use_it("b", &[])]), Ready(6)],
            "1 1 ZI C ZT E(22012) ZE E(25P02) ZE 1 2 C ZI E(26000) ZI EOF"),
    ]
}

fn copy_in() -> Vec<Case> {
    let copy = "COPY users FROM STDIN";
    let count = "SELECT count(*) FROM users";
    vec![
        case("copy in", vec![s(&[query(copy)]), Until(b'G'), s(&[copy_data("1\ta\n2\t"), copy_data("b\n"), copy_done()]), Ready(1), s(&[query(count)]), Ready(1)],
            "G C[COPY_2] ZI T D C ZI EOF"),
        case("copy in, sent at once", vec![s(&[query(copy), copy_data("1\ta\n"), copy_done(), query(count)]), Ready(2)], "G C[COPY_1] ZI T D C ZI EOF"),
        case("copy in, failed by the client", vec![s(&[query(copy)]), Until(b'G'), s(&[copy_data("1\ta\n"), copy_fail("no more"), query(count)]), Ready(2)], "G E(57014) ZI T D C ZI EOF"),
        case("copy in, early error, the client goes on",
            vec![s(&[query(copy)]), Until(b'G'), s(&[copy_data("x\ta\n")]), s(&[copy_data("2\tb\n"), copy_data("3\tc\n"), copy_done(), query(count)]), Ready(2)],
            "G E(22P02) ZI T D C ZI EOF"),
        case("copy in, error at the end", vec![s(&[query(copy), copy_data("1\ta\n1\tb\n"), copy_done(), query(count)]), Ready(2)], "G E(23505) ZI T D C ZI EOF"),
        case("copy in that cannot begin", vec![s(&[query("COPY absent FROM STDIN"), copy_data("1\n"), copy_done(), query(count)]), Ready(2)], "E(42P01) ZI T D C ZI EOF"),
        case("copy in the middle of a text", vec![s(&[query("SELECT 1; COPY users FROM STDIN; SELECT 2")]), Until(b'G'), s(&[copy_data("1\ta\n"), copy_done()]), Ready(1)], "T D C G C[COPY_1] T D C ZI EOF"),
        case("two copies in one text", vec![s(&[query("COPY users FROM STDIN; COPY organizations FROM STDIN")]), Until(b'G'), s(&[copy_data("1\ta\n"), copy_done()]), Until(b'G'), s(&[copy_data("1\ta\n"), copy_done()]), Ready(1)],
            "G C[COPY_1] G C[COPY_1] ZI EOF"),
        case("Flush and Sync inside copy in are ignored", vec![s(&[query(copy), flush(), sync(), copy_data("1\ta\n"), sync(), copy_done()]), Ready(1)], "G C[COPY_1] ZI EOF"),
        case("extended copy in, Sync behind the data", vec![s(&[parse("", copy), bind("", "", &[]), execute("", 0), flush()]), Until(b'G'), s(&[copy_data("1\ta\n"), copy_done(), sync()]), Ready(1)],
            "1 2 G C[COPY_1] ZI EOF"),
        case("extended copy in, Sync before the data", vec![s(&[parse("", copy), bind("", "", &[]), execute("", 0), sync()]), Until(b'G'), s(&[copy_data("1\ta\n"), copy_done(), sync()]), Ready(1), s(&[query(count)]), Ready(1)],
            "1 2 G C[COPY_1] ZI T D C ZI EOF"),
        case("extended copy in, early error", vec![s(&[parse("", copy), bind("", "", &[]), execute("", 0), flush()]), Until(b'G'), s(&[copy_data("x\ta\n"), copy_data("2\tb\n"), copy_done(), parse("", "SELECT 1"), sync(), query(count)]), Ready(2)],
            "1 2 G E(22P02) ZI T D C ZI EOF"),
        case("extended copy in, failed by the client", vec![s(&[parse("", copy), bind("", "", &[]), execute("", 0), copy_fail("no"), sync(), query(count)]), Ready(2)], "1 2 G E(57014) ZI T D C ZI EOF"),
        case("copy in in a transaction", vec![s(&[query("BEGIN"), query(copy), copy_data("1\ta\n"), copy_done(), query("ROLLBACK"), query(count)]), Ready(4)], "C ZT G C[COPY_1] ZT C ZI T D C ZI EOF"),
        case("copy data and its end sent on before the copy was seen, then Sync", vec![s(&[parse("", copy), bind("", "", &[]), execute("", 0), flush(), copy_data("1\ta\n"), copy_done(), sync(), query(count)]), Ready(2)], "1 2 G C[COPY_1] ZI T D C ZI EOF"),
        case("two copies in one batch", vec![s(&[parse("", copy), bind("", "", &[]), execute("", 0), flush(), copy_data("1\ta\n"), copy_done(), bind("", "", &[]), execute("", 0), flush(), copy_data("2\tb\n"), copy_done(), sync(), query(count)]), Ready(2)],
            "1 2 G C[COPY_1] 2 G C[COPY_1] ZI T D C ZI EOF"),
        case("copy in behind a batch without Sync", vec![s(&[parse("", "SELECT 1"), query(copy), copy_data("1\ta\n"), copy_done(), query(count)]), Ready(2)], "1 G C[COPY_1] ZI T D C ZI EOF"),
        case("copy that fails while half of a message is on its way", vec![s(&[query(copy)]), Until(b'G'), Step::Send([copy_data("x\ta\n"), copy_data(&"z".repeat(70_000))[..35_000].to_vec()].concat()), Until(b'Z'), Step::Send([copy_data(&"z".repeat(70_000))[35_000..].to_vec(), copy_done(), query(count)].concat()), Ready(1)],
            "G E(22P02) ZI T D C ZI EOF"),
        case("stray copy messages are ignored", vec![s(&[copy_data("x"), copy_done(), copy_fail("y"), query(count)]), Ready(1)], "T D C ZI EOF"),
        case("stray copy messages in a batch", ask(&[parse("", "SELECT 1"), copy_data("x"), copy_done(), bind("", "", &[]), execute("", 0), sync()]), "1 2 D C ZI EOF"),
        case("an empty copy", vec![s(&[query(copy), copy_done()]), Ready(1)], "G C[COPY_0] ZI EOF"),
        once("a query inside copy in is fatal", vec![s(&[query(copy)]), Until(b'G'), s(&[query("SELECT 1")]), Eof], "G E(08P01) E!(08P01) EOF"),
    ]
}

fn copy_out() -> Vec<Case> {
    vec![
        case("copy out", talk(&["COPY (SELECT id FROM documents ORDER BY id LIMIT 2) TO STDOUT"]), "H d d c C[COPY_2] ZI EOF"),
        case("copy out in the middle of a text", talk(&["SELECT 1; COPY (SELECT 1) TO STDOUT; SELECT 2"]), "T D C H d c C T D C ZI EOF"),
        case("copy out with an error half-way", talk(&["COPY (SELECT 10 / (3 - i) FROM generate_series(1, 5) i) TO STDOUT"]), "H d d E(22012) ZI EOF"),
        case("extended copy out", ask(&[extended("COPY (SELECT 1) TO STDOUT (FORMAT binary)", &[]), sync()]), "1 2 n H d d c C ZI EOF"),
        case("copy out, then in, then out", vec![s(&[query("COPY (SELECT 1) TO STDOUT; COPY users FROM STDIN; COPY users TO STDOUT")]), Until(b'G'), s(&[copy_data("5\te\n"), copy_done()]), Ready(1)],
            "H d c C G C H d c C ZI EOF"),
    ]
}

fn settings() -> Vec<Case> {
    vec![
        case("a parameter is told before Z", talk(&["SET application_name = 'a'; SELECT 1"]), "C[SET] T D C S(application_name) ZI EOF"),
        case("set_config tells too", talk(&["SELECT set_config('application_name', 'b', false)"]), "T D C S(application_name) ZI EOF"),
        case("and again on ROLLBACK", talk(&["BEGIN; SET application_name = 'a'", "ROLLBACK", "SHOW application_name"]),
            "C C S(application_name) ZT C S(application_name) ZI T D C ZI EOF"),
        case("SET LOCAL ends with the transaction", talk(&["BEGIN; SET LOCAL DateStyle = 'German'", "SELECT '2024-02-01'::date", "COMMIT", "SELECT '2024-02-01'::date"]),
            "C C S(DateStyle) ZT T D C ZT C S(DateStyle) ZI T D C ZI EOF"),
        case("SET in extended protocol", ask(&[extended("SET TimeZone = 'Europe/Berlin'", &[]), sync()]), "1 2 n C S(TimeZone) ZI EOF"),
        case("SET survives transactions", talk(&["SET TimeZone = 'Asia/Tokyo'", "BEGIN; SELECT 1; COMMIT", "SELECT '2024-01-01 00:00+00'::timestamptz"]),
            "C S(TimeZone) ZI C T D C C ZI T D C ZI EOF"),
        case("search_path is told from 18 on", talk(&["SET search_path = pg_catalog, public", "SHOW search_path"]), "C ZI T D C ZI EOF || C S(search_path) ZI T D C ZI EOF"),
        case("a setting never told", talk(&["SET work_mem = '7MB'", "SHOW work_mem", "RESET work_mem", "SHOW work_mem"]), "C ZI T D C ZI C[RESET] ZI T D C ZI EOF"),
        case("a long quoted value is truncated", talk(&["SET search_path TO \"aaaaaaaaaabbbbbbbbbbccccccccccddddddddddeeeeeeeeeeffffffffffgggggggggg\"", "SHOW search_path"]),
            "N(42622) C ZI T D C ZI EOF || N(42622) C S(search_path) ZI T D C ZI EOF"),
        case("SET ROLE", talk(&["SET ROLE auditor", "SELECT current_user, session_user", "RESET ROLE", "SELECT current_user"]), "C ZI T D C ZI C ZI T D C ZI EOF"),
        case("SET ROLE in a transaction that fails", talk(&["BEGIN; SET ROLE auditor; SELECT 1/0", "ROLLBACK", "SELECT current_user"]), "C C E(22012) ZE C ZI T D C ZI EOF"),
        case("SET TRANSACTION outside", talk(&["SET TRANSACTION ISOLATION LEVEL SERIALIZABLE"]), "N(25P01) C ZI EOF"),
        case("isolation", talk(&["BEGIN ISOLATION LEVEL REPEATABLE READ; SHOW transaction_isolation", "COMMIT", "SET default_transaction_isolation = 'serializable'", "SHOW transaction_isolation"]),
            "C T D C ZT C ZI C ZI T D C ZI EOF"),
        case("a setting that does not exist", talk(&["SET no_such_thing = 1", "SHOW no_such_thing"]), "E(42704) ZI E(42704) ZI EOF"),
        case("a setting of the application", talk(&["SET app.tenant = '7'", "SELECT current_setting('app.tenant')", "BEGIN; SET LOCAL app.tenant = '8'; SELECT current_setting('app.tenant'); ROLLBACK", "SHOW app.tenant"]),
            "C ZI T D C ZI C C T D C C ZI T D C ZI EOF"),
        case("client_encoding", talk(&["SET client_encoding = 'LATIN1'", "SELECT chr(228)"]), "C S(client_encoding) ZI T D C ZI EOF"),
        case("standard_conforming_strings", talk(&["SET standard_conforming_strings = off; SELECT 1", "SET escape_string_warning = off", "SELECT 'a\\'b; SELECT 2'"]),
            "C T D C S(standard_conforming_strings) ZI C ZI T D C ZI EOF"),
        once("statement_timeout", talk(&["SET statement_timeout = '40ms'", "SELECT pg_sleep(3)", "RESET statement_timeout", "SELECT 1"]), "C ZI T E(57014) ZI C ZI T D C ZI EOF"),
    ]
}

fn odd() -> Vec<Case> {
    let big = "x".repeat(8 << 20);
    vec![
        case("function call", ask(&[function_call(177, &["2", "3"])]), "V ZI EOF"),
        case("function call that fails", ask(&[function_call(154, &["2", "0"])]), "E(22012) ZI EOF"),
        case("function call of nothing", vec![s(&[function_call(99_999_999, &[]), query("SELECT 1")]), Ready(2)], "E(42883) ZI T D C ZI EOF"),
        case("Sync with a body", vec![s(&[frame(b'S', b"x"), query("SELECT 1")]), Ready(2)], "E(08P01) ZI T D C ZI EOF"),
        case("Query with an inner NUL", vec![s(&[frame(b'Q', b"SELECT 1\0SELECT 2\0"), query("SELECT 3")]), Ready(2)], "E(08P01) ZI T D C ZI EOF"),
        case("Query without NUL, then Sync", vec![s(&[frame(b'Q', b"SELECT 1"), sync(), query("SELECT 3")]), Ready(3)], "E(08P01) ZI ZI T D C ZI EOF"),
        case("Parse that is too short", ask(&[frame(b'P', b"\0SELECT 1\0"), sync()]), "E(08P01) ZI EOF"),
        case("Parse that claims 65535 types", ask(&[frame(b'P', b"\0SELECT 1\0\xff\xff"), sync()]), "E(08P01) ZI EOF"),
        case("Bind that claims 65535 values", ask(&[parse("", "SELECT 1"), frame(b'B', b"\0\0\0\0\xff\xff"), sync()]), "1 E(08P01) ZI EOF"),
        case("Bind with a value beyond its end", ask(&[parse("", "SELECT $1::text"), frame(b'B', b"\0\0\0\0\0\x01\0\0\0\x09abc\0\0"), sync()]), "1 E(08P01) ZI EOF"),
        case("Describe of nothing", ask(&[frame(b'D', b""), sync()]), "E(08P01) ZI EOF"),
        case("Describe of what is neither", ask(&[frame(b'D', b"Xa\0"), sync()]), "E(08P01) ZI EOF"),
        case("Close of what is neither", ask(&[frame(b'C', b"Xa\0"), sync()]), "E(08P01) ZI EOF"),
        case("Execute without a limit", ask(&[parse("", "SELECT 1"), bind("", "", &[]), frame(b'E', b"\0"), sync()]), "1 2 E(08P01) ZI EOF"),
        once("unknown type behind a batch", vec![s(&[extended("SELECT 1", &[]), frame(b'y', b"")]), Eof], "1 2 T D C E!(08P01) EOF"),
        once("unknown type behind queries", vec![s(&[query("SELECT 1"), query("SELECT 2"), frame(b'y', b"")]), Eof], "T D C ZI T D C ZI E!(08P01) EOF"),
        once("a password behind a batch", vec![s(&[extended("SELECT 1", &[]), frame(b'p', b"x\0")]), Eof], "1 2 T D C E!(08P01) EOF"),
        once("unknown type inside copy in", vec![s(&[query("COPY users FROM STDIN")]), Until(b'G'), s(&[frame(b'y', b"")]), Eof], "G E(08P01) E!(08P01) EOF"),
        once("unknown type", vec![s(&[frame(b'y', b"")]), Eof], "E!(08P01) EOF"),
        once("length 3", vec![s(&[lying(b'Q', 3, b"")]), Eof], "EOF"),
        once("negative length", vec![s(&[lying(b'Q', -1, b"")]), Eof], "EOF"),
        once("length beyond any limit", vec![s(&[lying(b'Q', 0x7fff_ffff, b"")]), Eof], "EOF"),
        once("a password nobody asked for", vec![s(&[frame(b'p', b"x\0")]), Eof], "E!(08P01) EOF"),
        case("nothing behind Terminate", vec![s(&[query("SELECT 1")]), Ready(1), s(&[frame(b'X', b""), query("INSERT INTO users VALUES (1, 'late')")]), Eof], "T D C ZI EOF"),
        once("a bind of 8 MB", ask(&[extended("SELECT length($1::text)", &[&big]), sync()]), "1 2 T D C ZI EOF"),
        once("a query of 2 MB", ask(&[query(&format!("SELECT length('{}')", &big[..2 << 20]))]), "T D C ZI EOF"),
        once("a row of 8 MB", talk(&["SELECT repeat('y', 8388608)"]), "T D C ZI EOF"),
        once("1600 values", ask(&[extended(&format!("SELECT {}", (1..=1600).map(|i| format!("${i}::int")).collect::<Vec<_>>().join("+")), &vec!["1"; 1600]), sync()]), "1 2 T D C ZI EOF"),
        once("many statements in one text", talk(&[MANY]), MANY_GOLDEN),
        case("comments and dollars", talk(&["/* a /* b; */ ; */ SELECT $a$ ; COMMIT $a$, E'it\\'s; x', U&'\\0041'; -- ; \nSELECT 2"]), "T D C T D C ZI EOF"),
    ]
}

const MANY: &str = "SELECT 1;SELECT 2;SELECT 3;SELECT 4;SELECT 5;SELECT 6;SELECT 7;SELECT 8";
const MANY_GOLDEN: &str = "T D C T D C T D C T D C T D C T D C T D C T D C ZI EOF";

fn cancels() -> Vec<Case> {
    vec![
        once("cancel while idle", vec![Cancel, s(&[query("SELECT 1")]), Ready(1)], "T D C ZI EOF"),
        once("cancel with a wrong key", vec![s(&[query("SELECT pg_sleep(0.15)")]), CancelWrongKey, Ready(1)], "T D C ZI EOF"),
        once("cancel what runs",
            vec![s(&[query("SELECT pg_sleep(21)")]), Elsewhere("SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND query LIKE 'SELECT pg_sleep(21)%'"), Cancel, Ready(1), s(&[query("SELECT 1")]), Ready(1)],
            "T E(57014) ZI T D C ZI EOF"),
        once("cancel in a transaction",
            vec![s(&[query("BEGIN")]), Ready(1), s(&[query("SELECT pg_sleep(22)")]), Elsewhere("SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND query LIKE 'SELECT pg_sleep(22)%'"), Cancel, Ready(1), s(&[query("ROLLBACK")]), Ready(1)],
            "C ZT T E(57014) ZE C ZI EOF"),
        once("cancel in a pipeline kills up to the Sync",
            vec![s(&[extended("SELECT pg_sleep(23)", &[]), extended("SELECT 'skipped'", &[]), sync(), query("SELECT 1")]), Elsewhere("SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND query LIKE 'SELECT pg_sleep(23)%'"), Cancel, Ready(2)],
            "1 2 T E(57014) ZI T D C ZI EOF"),
    ]
}

fn deaths() -> Vec<Case> {
    vec![
        session("terminated while it runs",
            vec![s(&[query("SELECT pg_sleep(24)")]), Elsewhere("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND query LIKE 'SELECT pg_sleep(24)%'"), Eof],
            "T E!(57P01) EOF"),
        session("terminated while idle",
            vec![s(&[query("SELECT 'idle 25'")]), Ready(1), Elsewhere("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE state = 'idle' AND query LIKE 'SELECT ''idle 25''%'"), Eof],
            "T D C ZI E!(57P01) EOF"),
        session("idle in transaction too long", vec![s(&[query("SET idle_in_transaction_session_timeout = '40ms'"), query("BEGIN")]), Ready(2), Eof], "C ZI C ZT E!(25P03) EOF"),
        session("idle too long", vec![s(&[query("SET idle_session_timeout = '40ms'")]), Ready(1), Eof], "C ZI E!(57P05) EOF"),
        session("terminates itself", vec![s(&[query("SELECT pg_terminate_backend(pg_backend_pid())")]), Eof], "T D E!(57P01) EOF"),
    ]
}

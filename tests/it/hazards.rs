//! The interleavings that break dual writes (of statements): each played on two real servers through the proxy, and in
//! the end both sides have the same rows.
//!
//! A case is a text of lines `A: sql` (send, wait for the answer), `B& sql` (send only) and `B?` (now the answer).
//! ` => answer` behind it says what must be answered, in short form. `journal` waits until it is empty; `stop` and
//! `start` are the follower's processes, frozen and let go.

mod flip;
mod rows;

use std::collections::BTreeMap;

use crate::{
    mirror::{MODES, check_equal, start_between},
    support::{
        cluster::{Cluster, newest, oldest},
        frames, needs_proxy,
        proxy::Proxy,
        reply::short,
        wire::Wire,
    },
};

/// Tables of the cases.
const SCHEMA: &str = "
CREATE TABLE t (id int PRIMARY KEY, v text, st text);
CREATE TABLE t_u (id int PRIMARY KEY, pos int NOT NULL UNIQUE);
CREATE TABLE t_d (id int PRIMARY KEY, pos int NOT NULL UNIQUE DEFERRABLE INITIALLY DEFERRED);
CREATE TABLE t_price (id int PRIMARY KEY, p int);
CREATE TABLE t_parent (id int PRIMARY KEY, v text);
CREATE TABLE t_child (id int PRIMARY KEY, parent int REFERENCES t_parent ON DELETE CASCADE ON UPDATE CASCADE);
CREATE TABLE t_gen (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, a int, b int GENERATED ALWAYS AS (a + 1) STORED);
CREATE TABLE t_slug (id int PRIMARY KEY, title text, slug text, at timestamptz DEFAULT clock_timestamp());
CREATE TABLE t_side (id serial PRIMARY KEY, what text, at timestamptz DEFAULT clock_timestamp(), r float8 DEFAULT random());
CREATE FUNCTION slug() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN
  UPDATE public.t_slug SET slug = lower(NEW.title) || ''-'' || NEW.id WHERE id = NEW.id AND slug IS NULL;
  INSERT INTO public.t_side (what) VALUES (NEW.title); RETURN NULL; END';
CREATE TRIGGER slug AFTER INSERT ON t_slug FOR EACH ROW EXECUTE FUNCTION slug();
CREATE PROCEDURE work() LANGUAGE plpgsql AS 'BEGIN
  INSERT INTO public.t VALUES (101, ''one''); COMMIT;
  INSERT INTO public.t VALUES (102, ''two''); ROLLBACK;
  INSERT INTO public.t VALUES (103, ''three''); COMMIT; END';
INSERT INTO t SELECT g, 'v' || g, 'old' FROM generate_series(1, 6) g;
INSERT INTO t_u SELECT g, g FROM generate_series(1, 4) g;
INSERT INTO t_d SELECT g, g FROM generate_series(1, 4) g;
INSERT INTO t_price SELECT g, g * 10 FROM generate_series(1, 4) g;
INSERT INTO t_parent SELECT g, 'p' FROM generate_series(1, 4) g;
INSERT INTO t_child SELECT g, 1 + g % 3 FROM generate_series(1, 9) g;
GRANT ALL ON ALL TABLES IN SCHEMA public TO PUBLIC;
GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO PUBLIC;
";

/// Plays the cases one after another in every mode; after each both sides are equal.
#[track_caller]
fn check(name: &str, cases: &[&str]) {
    needs_proxy!();
    for mode in MODES {
        let proxy = proxy(oldest(), newest(), name, mode);
        for case in cases {
            play(&proxy, None, case);
            check_equal(&proxy);
        }
    }
}

fn proxy(source: &Cluster, target: &Cluster, name: &str, mode: &str) -> Proxy {
    start_between(source, target, &format!("h_{name}_{mode}"), SCHEMA, |s| {
        s.mirror = format!("mirror = {mode:?}");
        s.tables += "]\nfunctions = [\"public.work\"";
    })
}

/// Plays one case on sessions of its own.
#[track_caller]
fn play(proxy: &Proxy, target: Option<&Cluster>, case: &str) {
    let mut sessions: BTreeMap<char, Wire> = BTreeMap::new();
    for line in case.lines().map(str::trim).filter(|l| !l.is_empty()) {
        match (line, target) {
            ("stop", Some(target)) => target.signal("STOP"),
            ("start", Some(target)) => target.signal("CONT"),
            ("equal", _) => check_equal(proxy),
            _ => step(proxy, &mut sessions, line),
        }
    }
}

#[track_caller]
fn step(proxy: &Proxy, sessions: &mut BTreeMap<char, Wire>, line: &str) {
    let (head, rest) = line.split_at(2);
    let mut letters = head.chars();
    let (name, how) = (letters.next().expect("a session"), letters.next().expect("how"));
    let wire = sessions.entry(name).or_insert_with(|| proxy.client("alice"));
    let (sql, expected) = rest.split_once(" => ").map_or((rest, None), |(sql, e)| (sql, Some(e)));
    if how != '?' {
        wire.send(&frames::query(sql.trim()));
    }
    if how == '&' {
        return;
    }
    let answer = wire.until_ready(1).unwrap_or_else(|e| panic!("{line}: {e:?}"));
    let said = short(&answer);
    match expected {
        Some(expected) => assert_eq!(said, expected, "{line}"),
        None => assert!(!said.contains("E("), "{line}: {said}"),
    }
}

/// P1: what two transactions see of each other differs between two databases.
#[test]
fn concurrency() {
    check(
        "order",
        &[
            // a. Reads without locks.
            "A: BEGIN
             A: INSERT INTO t VALUES (10, 'a', 'new')
             B: BEGIN
             B: INSERT INTO t_price SELECT 50, count(*) FROM t
             A: COMMIT
             B: COMMIT",
            "A: BEGIN ISOLATION LEVEL SERIALIZABLE
             B: BEGIN ISOLATION LEVEL SERIALIZABLE
             A: INSERT INTO t SELECT 11, count(*)::text, 'x' FROM t_price
             B: INSERT INTO t_price SELECT 51, count(*) FROM t_u
             A: COMMIT
             B: COMMIT",
            // b. Phantoms.
            "A: BEGIN
             A: INSERT INTO t VALUES (12, 'a', 'old')
             B: BEGIN
             B: UPDATE t SET v = 'seen' WHERE st = 'old' => C[UPDATE_6] ZT
             A: COMMIT
             B: COMMIT",
            // c. Key of a row that is being inserted.
            "A: BEGIN
             A: INSERT INTO t VALUES (13, 'a', 'x')
             B: UPDATE t SET id = 14 WHERE id = 13 => C[UPDATE_0] ZI
             A: COMMIT
             B: UPDATE t SET id = 14 WHERE id = 13 => C[UPDATE_1] ZI",
            // d. Same count, other values.
            "A: BEGIN
             A: UPDATE t_price SET p = 1000 WHERE id = 1
             B: UPDATE t SET v = (SELECT p FROM t_price WHERE id = 1)::text WHERE id = 1
             A: COMMIT",
            // e. A queue.
            "A: BEGIN
             A: DELETE FROM t WHERE id = (SELECT id FROM t ORDER BY id FOR UPDATE SKIP LOCKED LIMIT 1)
             B: BEGIN
             B: DELETE FROM t WHERE id = (SELECT id FROM t ORDER BY id FOR UPDATE SKIP LOCKED LIMIT 1)
             B: COMMIT
             A: ROLLBACK",
            // The application's own deadlock is one error of the lead.
            "A: BEGIN
             B: BEGIN
             A: UPDATE t SET v = 'A' WHERE id = 3
             B: UPDATE t SET v = 'B' WHERE id = 4
             A& UPDATE t SET v = 'A' WHERE id = 4
             B: SET LOCAL lock_timeout = '300ms'
             B: UPDATE t SET v = 'B' WHERE id = 3 => E(55P03) ZE
             B: ROLLBACK
             A?
             A: COMMIT",
            // g. The next one sees what the follower does not: insert, then delete, one right behind the other.
            "A& INSERT INTO t VALUES (20, 'gap', 'x')
             A?
             B: DELETE FROM t WHERE id = 20 => C[DELETE_1] ZI
             A: INSERT INTO t VALUES (20, 'again', 'x')
             B: UPDATE t SET v = 'more' WHERE id = 20 => C[UPDATE_1] ZI
             A: DELETE FROM t WHERE id = 20 => C[DELETE_1] ZI",
        ],
    );
}

/// P2: what a statement does is more than what it says.
#[test]
fn effects() {
    check(
        "effects",
        &[
            // b, c. A trigger changes the row and others, with clocks, sequences and chance.
            "A: INSERT INTO t_slug VALUES (1, 'Hello'), (2, 'World') RETURNING slug
             A: UPDATE t_slug SET at = now() WHERE id = 1",
            // d. Cascades.
            "A: DELETE FROM t_parent WHERE id = 1
             A: UPDATE t_parent SET id = 20 WHERE id = 2",
            // e. Deferrable unique constraints, kept and broken.
            "A: BEGIN
             A: UPDATE t_d SET pos = 2 WHERE id = 1
             A: UPDATE t_d SET pos = 1 WHERE id = 2
             A: COMMIT => C[COMMIT] ZI
             A: BEGIN
             A: UPDATE t_d SET pos = 3 WHERE id = 1
             A: COMMIT => E(23505) ZI",
            // f. Unique values change places.
            "A: BEGIN
             A: UPDATE t_u SET pos = -1 WHERE id = 1
             A: UPDATE t_u SET pos = 1 WHERE id = 2
             A: UPDATE t_u SET pos = 2 WHERE id = 1
             A: COMMIT
             A: UPDATE t_u SET pos = pos + 100",
            // g. Keys change, in a ring too.
            "A: UPDATE t SET id = id + 1000
             A: BEGIN
             A: UPDATE t_u SET id = -1 WHERE id = 3
             A: UPDATE t_u SET id = 3 WHERE id = 4
             A: UPDATE t_u SET id = 4 WHERE id = -1
             A: COMMIT",
            // h. Statements that hide their writes.
            "A: WITH gone AS (DELETE FROM t WHERE id = 1002 RETURNING v) INSERT INTO t_slug SELECT 9, v FROM gone
             A: MERGE INTO t USING (VALUES (1003, 'm'), (77, 'n')) x(id, v) ON t.id = x.id WHEN MATCHED THEN UPDATE SET v = x.v WHEN NOT MATCHED THEN INSERT VALUES (x.id, x.v, 'x')
             A: DO $$BEGIN UPDATE public.t SET v = 'done' WHERE id = 77; END$$",
            // i. Generated and identity columns.
            "A: INSERT INTO t_gen (a) VALUES (1), (2)
             A: INSERT INTO t_gen OVERRIDING SYSTEM VALUE VALUES (50, 5)
             A: UPDATE t_gen SET a = a * 10",
            // Savepoints.
            "A: BEGIN
             A: INSERT INTO t VALUES (200, 'stays', 'x')
             A: SAVEPOINT s
             A: INSERT INTO t VALUES (201, 'goes', 'x')
             A: DELETE FROM t_price WHERE id = 2
             A: ROLLBACK TO s
             A: UPDATE t SET v = 'changed' WHERE id = 200
             A: COMMIT",
        ],
    );
}

/// P3: the ends of transactions.
#[test]
fn ends() {
    check(
        "ends",
        &[
            // a. Insert in doubt, then changes by others.
            "A: BEGIN
             A: INSERT INTO t VALUES (30, 'a', 'x'), (31, 'a', 'x')
             B& DELETE FROM t WHERE id = 30
             C& INSERT INTO t VALUES (31, 'c', 'x') ON CONFLICT (id) DO UPDATE SET v = 'c'
             A: COMMIT
             B?
             C?
             C: DELETE FROM t WHERE id = 31 => C[DELETE_1] ZI",
            // b. COMMIT of a failed block says ROLLBACK, and no error.
            "A: BEGIN
             A: INSERT INTO t VALUES (40, 'never', 'x')
             A: SELECT 1/0 => E(22012) ZE
             A: COMMIT => C[ROLLBACK] ZI",
            "A: BEGIN
             A: UPDATE t SET v = 'never' WHERE id = 1
             A: ROLLBACK AND CHAIN
             A: UPDATE t SET v = 'chained' WHERE id = 1
             A: COMMIT AND CHAIN
             A: UPDATE t SET v = 'chained again' WHERE id = 2
             A: COMMIT",
            // l. What cannot be wrapped.
            "A: CALL work()
             A: VACUUM t
             A: INSERT INTO t VALUES (50, 'x', 'y'); COMMIT; INSERT INTO t VALUES (51, 'x', 'y')
             A: BEGIN; INSERT INTO t VALUES (52, 'x', 'y'); COMMIT; UPDATE t SET v = 'z' WHERE id = 52
             A: INSERT INTO t VALUES (53, 'x', 'y'); SELECT 1/0 => C[INSERT_0_1] E(22012) ZI
             A: CREATE INDEX CONCURRENTLY ON t (v) => E(0A000) ZI
             A: ALTER TABLE t ADD COLUMN more int => E(0A000) ZI",
            // P7: COPY, TRUNCATE, upserts, LIMIT without order.
            "A: INSERT INTO t VALUES (1, 'up', 'x'), (90, 'new', 'x') ON CONFLICT (id) DO UPDATE SET v = EXCLUDED.v
             A: DELETE FROM t WHERE ctid IN (SELECT ctid FROM t LIMIT 2)
             A: TRUNCATE t_price
             A: INSERT INTO t_price VALUES (1, 1)
             A: BEGIN
             A: INSERT INTO t_price VALUES (2, 2)
             A: TRUNCATE t_price
             A: INSERT INTO t_price VALUES (3, 3)
             A: COMMIT",
        ],
    );
}

/// P5, and P3a with time to look: the follower is frozen, transactions go on, it comes back.
#[test]
fn frozen_follower() {
    needs_proxy!();
    let target = Cluster::start("hazards", newest().major);
    for mode in MODES {
        let proxy = proxy(oldest(), &target, "frozen", mode);
        for case in [
            // a, b. Rows come and go while nobody ships them; a stale row is there when its key comes again.
            "A: INSERT INTO t VALUES (10, 'both', 'x')
             equal
             stop
             A: DELETE FROM t WHERE id = 10
             A: INSERT INTO t VALUES (11, 'lead alone', 'x')
             start
             B: INSERT INTO t VALUES (10, 'again', 'x')
             B: DELETE FROM t WHERE id = 11
             B: INSERT INTO t VALUES (11, 'new', 'x')
             A: DELETE FROM t WHERE id = 11",
            // e. Unique values change places meanwhile.
            "stop
             A: BEGIN
             A: UPDATE t_u SET pos = -1 WHERE id = 1
             A: UPDATE t_u SET pos = 1 WHERE id = 2
             A: UPDATE t_u SET pos = 2 WHERE id = 1
             A: COMMIT
             start
             A: UPDATE t_u SET pos = pos + 10",
            // f, g. A child whose parent the follower has not heard of; a failure in the middle of a transaction.
            "stop
             A: INSERT INTO t_parent VALUES (50, 'missed')
             start
             B: INSERT INTO t_child VALUES (50, 50)
             B: UPDATE t_parent SET v = 'seen' WHERE id = 50
             B: BEGIN
             B: UPDATE t SET v = 'early' WHERE id = 1
             stop
             B: UPDATE t SET v = 'late' WHERE id = 2
             B: COMMIT
             start
             B: DELETE FROM t_parent WHERE id = 50",
        ] {
            play(&proxy, Some(&target), case);
            check_equal(&proxy);
        }
    }
}

/// P6: values come from the lead; the follower's sequences are not touched.
#[test]
fn sequences() {
    needs_proxy!();
    for mode in MODES {
        let proxy = proxy(oldest(), newest(), "sequences", mode);
        let mut client = proxy.client("alice");
        client.run("INSERT INTO t_side (what) VALUES ('a'), ('b'), ('c')");
        client.run("INSERT INTO t_gen (a) VALUES (1), (2)");
        check_equal(&proxy);
        let database = &proxy.settings.database;
        for sequence in ["t_side_id_seq", "t_gen_id_seq"] {
            let state = format!("SELECT last_value || ' ' || is_called FROM {sequence}");
            assert_eq!(newest().admin(database).run(&state).as_deref(), Some("1 false"), "{mode} {sequence}");
        }
    }
}

/// P1g and P3a at speed: several clients insert, change and delete the same few keys.
#[test]
fn gap_at_speed() {
    needs_proxy!();
    for mode in MODES {
        let proxy = proxy(oldest(), newest(), "gap", mode);
        let proxy = &proxy;
        std::thread::scope(|scope| {
            for n in 0..3 {
                scope.spawn(move || hammer(proxy, n));
            }
        });
        check_equal(proxy);
    }
}

fn hammer(proxy: &Proxy, n: u64) {
    let mut rng = crate::support::Rng(crate::support::seed("gap_at_speed") + n);
    let mut client = proxy.client("alice");
    for _ in 0..60 {
        let id = 300 + rng.below(3);
        client.run(&match rng.below(3) {
            0 => format!("INSERT INTO t VALUES ({id}, '{n}', 'x') ON CONFLICT DO NOTHING"),
            1 => format!("UPDATE t SET v = v || '{n}' WHERE id = {id}"),
            _ => format!("DELETE FROM t WHERE id = {id}"),
        });
    }
}

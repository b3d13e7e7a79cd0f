//! P9: the lead of a repository moves while others write, and some of them have not heard of it.

use crate::{
    mirror::{check_equal, start},
    support::{
        cluster::{newest, oldest},
        frames, free_port, needs_proxy,
        proxy::{Proxy, Settings},
        reply::short,
        wait_for,
        wire::Wire,
    },
};

const SCHEMA: &str = "
CREATE TABLE t_parent (id int PRIMARY KEY, n int NOT NULL DEFAULT 0);
CREATE TABLE t_child (id int PRIMARY KEY, parent int REFERENCES t_parent ON DELETE CASCADE);
INSERT INTO t_parent SELECT g FROM generate_series(1, 20) g;
INSERT INTO t_child SELECT g, g FROM generate_series(1, 5) g;
GRANT ALL ON ALL TABLES IN SCHEMA public TO PUBLIC;
";

fn proxy(name: &str, mode: &str, change: impl FnOnce(&mut Settings)) -> Proxy {
    start(&format!("h_{name}_{mode}"), SCHEMA, |s| {
        s.mirror = format!("mirror = {mode:?}");
        change(s);
    })
}

fn lead(proxy: &Proxy) -> Option<String> {
    let rows = proxy.console("bob").ok()?.query("SHOW REPOSITORIES").ok()?;
    rows.into_iter().find(|row| row[0].as_deref() == Some("document"))?[7].clone()
}

/// The target is to lead, and does.
#[track_caller]
fn flip(proxy: &mut Proxy) {
    proxy.edit(|s| s.document_writes_target = true);
    wait_for("the target leads", || lead(proxy).as_deref() == Some("target"));
}

/// SQLSTATE of what it is told; "" when nothing is wrong.
fn told(client: &mut Wire, sql: &str) -> String {
    client.query(sql).err().map(|e| e.sqlstate).unwrap_or_default()
}

fn n(admin: &mut Wire, id: u32) -> String {
    admin.run(&format!("SELECT n FROM t_parent WHERE id = {id}")).expect("a row")
}

/// b, past the proxy and in its place: who looked at the lead before the flip, and writes after it, does not write to the
/// old lead, whatever its snapshot shows.
#[test]
fn a_first_write_after_the_flip() {
    needs_proxy!();
    let mut proxy = proxy("first", "journaled", |_| ());
    let database = proxy.settings.database.clone();
    let number = "SELECT number FROM crossfade.repositories WHERE name = 'document'";
    let number = oldest().admin(&database).run(number).expect("a number");
    // Isolation, and what an unarmed and an armed write are told.
    let cases = [
        ("READ COMMITTED", "55000", "CF001"),
        ("REPEATABLE READ", "40001", "40001"),
        ("SERIALIZABLE", "40001", "40001"),
    ];
    let mut sessions = Vec::new();
    for (isolation, unarmed, armed) in cases {
        for expected in [unarmed, armed] {
            let mut session = oldest().admin(&database);
            session.run(&format!("BEGIN ISOLATION LEVEL {isolation}"));
            assert_eq!(
                session.run("SELECT lead FROM crossfade.repositories WHERE name = 'document'").as_deref(),
                Some("source"),
                "it has looked"
            );
            sessions.push((session, isolation, expected));
        }
    }
    flip(&mut proxy);
    for (i, (session, isolation, expected)) in sessions.iter_mut().enumerate() {
        let sql = if i % 2 == 0 {
            "UPDATE t_parent SET n = 1 WHERE id = 1".to_owned()
        } else {
            format!("SELECT crossfade.arm('{{{number}}}', 'source')")
        };
        assert_eq!(told(session, &sql), *expected, "{isolation}: {sql}");
    }
    drop(sessions);
    check_equal(&proxy);
    assert_eq!(n(&mut newest().admin(&database), 1), "0");
}

/// c, e: a transaction that has written before the flip, past the proxy, is waited for and shipped; both databases say who
/// leads then.
#[test]
fn a_transaction_open_across_the_flip() {
    needs_proxy!();
    for mode in ["async", "journaled", "atomic"] {
        let mut proxy = proxy("open", mode, |_| ());
        let database = proxy.settings.database.clone();
        let (mut source, mut target) = (oldest().admin(&database), newest().admin(&database));
        let mut beside = oldest().admin(&database);
        beside.run("BEGIN");
        beside.run("UPDATE t_parent SET n = 7 WHERE id = 2");
        let mut through = proxy.client("alice");
        through.run("BEGIN");
        through.run("UPDATE t_parent SET n = 8 WHERE id = 3");
        proxy.edit(|s| s.document_writes_target = true);
        for (client, left) in [(&mut beside, "the other one"), (&mut through, "nobody")] {
            let waited = || proxy.metric("lead_moves_total", &["outcome=\"waited\""]);
            let before = waited();
            wait_for("an attempt that waits", || waited() > before);
            assert_eq!(lead(&proxy).as_deref(), Some("source"), "{left} is still there");
            client.run("COMMIT");
        }
        wait_for("the target leads", || lead(&proxy).as_deref() == Some("target"));
        check_equal(&proxy);
        assert_eq!((n(&mut target, 2), n(&mut target, 3)), ("7".to_owned(), "8".to_owned()), "{mode}");
        let who = "SELECT lead || ' ' || epoch FROM crossfade.repositories WHERE name = 'document'";
        assert_eq!(source.run(who), target.run(who), "{mode}");
        // What was waited for goes on there.
        for client in [&mut beside, &mut through] {
            client.run("SELECT 1");
        }
        through.run("UPDATE t_parent SET n = 9 WHERE id = 3");
        assert_eq!(n(&mut target, 3), "9", "{mode}");
        check_equal(&proxy);
    }
}

/// d: the old lead refuses whoever goes past the proxy, in every way to write.
#[test]
fn the_old_lead_refuses_every_way_to_write() {
    needs_proxy!();
    let mut proxy = proxy("past", "atomic", |_| ());
    let database = proxy.settings.database.clone();
    oldest().admin(&database).run(
        "CREATE FUNCTION write() RETURNS void LANGUAGE sql AS 'UPDATE public.t_parent SET n = 1 WHERE id = 1'",
    );
    flip(&mut proxy);
    let before = newest().admin(&database).run("SELECT string_agg(t::text, ' ' ORDER BY id) FROM t_parent t");
    for setting in [
        "SELECT 1",
        // Triggers that are not ALWAYS would stay silent.
        "SET session_replication_role = replica",
        "SET session_replication_role = local",
    ] {
        let mut superuser = oldest().admin(&database);
        superuser.run(setting);
        for sql in [
            "INSERT INTO t_parent VALUES (100)",
            "UPDATE t_parent SET n = 1 WHERE id = 1",
            "UPDATE t_parent SET id = 101 WHERE id = 20",
            "DELETE FROM t_parent WHERE id = 20",
            "DELETE FROM t_child WHERE id = 5",
            "TRUNCATE t_parent CASCADE",
            "MERGE INTO t_parent p USING (VALUES (1)) v(id) ON p.id = v.id WHEN MATCHED THEN UPDATE SET n = 2",
            "WITH gone AS (DELETE FROM t_child RETURNING id) SELECT count(*) FROM gone",
            "INSERT INTO t_parent VALUES (1) ON CONFLICT (id) DO UPDATE SET n = 3",
            "SELECT write()",
            "DO $$ BEGIN UPDATE t_parent SET n = 4 WHERE id = 1; END $$",
        ] {
            assert_eq!(told(&mut superuser, sql), "55000", "{setting}: {sql}");
        }
        superuser.send(&frames::query("COPY t_parent (id) FROM STDIN"));
        superuser.send(&[frames::copy_data("100\n"), frames::copy_done()].concat());
        let answer = short(&superuser.until_ready(1).expect("an answer"));
        assert!(answer.contains("E(55000)"), "{setting}: {answer}");
    }
    // A role of its own helps nobody but crossfade itself.
    let mut alice = Wire::connect(oldest().port, &proxy.login("alice")).expect("the cluster answers");
    alice.run("SET crossfade.role = 'apply'");
    assert_eq!(told(&mut alice, "UPDATE t_parent SET n = 1 WHERE id = 1"), "55000");
    // Reading is always fine, and so is a statement that hits nothing.
    assert_eq!(n(&mut alice, 1), "0");
    assert_eq!(told(&mut alice, "UPDATE t_parent SET n = 1 WHERE id = 999"), "");
    check_equal(&proxy);
    let after = newest().admin(&database).run("SELECT string_agg(t::text, ' ' ORDER BY id) FROM t_parent t");
    assert_eq!(before, after);
}

/// d: an instance that was frozen while the lead moved wakes up with old ideas of who leads, and with work to do.
#[test]
fn a_stale_instance() {
    needs_proxy!();
    for mode in ["async", "journaled", "atomic"] {
        let mut one = proxy("stale", mode, |_| ());
        let other = Settings { ..one.settings.clone() }.start();
        let database = one.settings.database.clone();
        let [mut lone, mut block, mut extended] = ["alice", "bob", "alice"].map(|user| other.client(user));
        lone.run("UPDATE t_parent SET n = 1 WHERE id = 1");
        block.run("BEGIN");
        block.run("SELECT n FROM t_parent WHERE id = 2");
        other.signal("STOP");
        flip(&mut one);
        lone.send(&frames::query("UPDATE t_parent SET n = n + 1 WHERE id = 1"));
        block.send(&frames::query("UPDATE t_parent SET n = n + 1 WHERE id = 2"));
        let batch = frames::extended("UPDATE t_parent SET n = n + $1::int WHERE id = 3", &["1"]);
        extended.send(&[batch, frames::sync()].concat());
        other.signal("CONT");
        for client in [&mut lone, &mut block, &mut extended] {
            let answer = short(&client.until_ready(1).expect("an answer"));
            assert!(answer.contains("C[UPDATE_1]"), "{mode}: {answer}");
        }
        block.run("COMMIT");
        let mut target = newest().admin(&database);
        let there: Vec<_> = (1..=3).map(|id| n(&mut target, id)).collect();
        assert_eq!(there, ["2", "1", "1"], "{mode}: once each, on the new lead");
        check_equal(&one);
        wait_for("it has heard of it", || lead(&other).as_deref() == Some("target"));
    }
}

/// f: an instance that cannot ask the new lead does not write to the old one; nobody needs a lease, since the old lead
/// itself knows.
#[test]
fn an_instance_that_cannot_ask() {
    needs_proxy!();
    let mut one = proxy("alone", "journaled", |_| ());
    let mut other = Settings { timeouts: "query_wait = \"2s\"".to_owned(), ..one.settings.clone() }.start();
    let database = one.settings.database.clone();
    let mut client = other.client("alice");
    client.run("UPDATE t_parent SET n = 1 WHERE id = 1");
    check_equal(&one);
    let right = other.settings.target;
    other.edit(|s| s.target = free_port());
    flip(&mut one);
    let mut source = oldest().admin(&database);
    for sql in ["UPDATE t_parent SET n = 100 WHERE id = 1", "DELETE FROM t_parent WHERE id = 20"] {
        let why = told(&mut client, sql);
        assert!(["55000", "08006"].contains(&why.as_str()), "{sql}: {why:?}");
    }
    assert_eq!(told(&mut client, "BEGIN"), "");
    let why = told(&mut client, "UPDATE t_parent SET n = 100 WHERE id = 1");
    assert!(["55000", "08006", "40001"].contains(&why.as_str()), "{why:?}");
    let _ = client.query("ROLLBACK");
    assert_eq!(n(&mut source, 1), "1", "nothing was written");
    other.edit(|s| s.target = right);
    let mut again = other.client("alice");
    wait_for("it writes again", || told(&mut again, "UPDATE t_parent SET n = 5 WHERE id = 1").is_empty());
    assert_eq!(n(&mut newest().admin(&database), 1), "5");
    check_equal(&one);
}

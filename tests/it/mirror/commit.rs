//! The end of a transaction: who waits for whom, and what happens when somebody dies.

use super::{SYNCHRONOUS, check_equal, journal, said, start};
use crate::support::{needs_proxy, wait_for};

const SCHEMA: &str = "CREATE TABLE t (id int PRIMARY KEY, v text); GRANT ALL ON t TO PUBLIC";

/// Four round trips for an autocommit write, n + 4 for a block of n statements.
#[test]
fn round_trips() {
    needs_proxy!();
    for mode in SYNCHRONOUS {
        let proxy = start(&format!("m_trips_{mode}"), SCHEMA, |s| s.mirror = format!("mirror = {mode:?}"));
        let mut client = proxy.client("alice");
        client.run("INSERT INTO t VALUES (0, 'warm')");
        let trips = || proxy.metric("mirror_round_trips_total", &["lead=\"source\""]);
        let shipped = || proxy.metric("mirror_transactions_total", &["lead=\"source\"", "outcome=\"both\""]);
        // The client hears of it before the follower's end.
        wait_for("the first", || (shipped() - 1.0).abs() < 0.5);
        let before = (trips(), shipped());
        for i in 1..=10 {
            client.run(&format!("INSERT INTO t VALUES ({i}, 'x')"));
        }
        wait_for("ten transactions", || (shipped() - before.1 - 10.0).abs() < 0.5);
        assert!((trips() - before.0 - 40.0).abs() < 0.5, "{mode}: {}", trips() - before.0);
        let before = trips();
        client.run("BEGIN");
        client.run("INSERT INTO t VALUES (100, 'x')");
        client.run("UPDATE t SET v = 'y' WHERE id = 100");
        client.run("COMMIT");
        // What is ours: write set, rows, and the follower's end; COMMIT is the client's own.
        wait_for("the block", || (trips() - before - 3.0).abs() < 0.5);
        check_equal(&proxy);
    }
}

/// The follower is stopped: clients go on, the journal keeps the keys, and they are shipped when it is back.
#[test]
fn follower_is_down() {
    needs_proxy!();
    for mode in SYNCHRONOUS {
        let mut target = crate::support::cluster::Cluster::start(
            "down",
            *crate::support::cluster::majors().last().expect("one"),
        );
        let source = crate::support::cluster::oldest();
        let proxy = super::start_between(source, &target, &format!("m_down_{mode}"), SCHEMA, |s| {
            s.mirror = format!("mirror = {mode:?}");
        });
        let mut client = proxy.client("alice");
        client.run("INSERT INTO t VALUES (1, 'both')");
        target.kill();
        assert_eq!(said(&mut client, "INSERT INTO t VALUES (2, 'lead alone')"), "C[INSERT_0_1] ZI");
        client.run("BEGIN");
        client.run("UPDATE t SET v = 'changed' WHERE id = 1");
        client.run("DELETE FROM t WHERE id = 2");
        client.run("INSERT INTO t VALUES (3, 'lead alone')");
        assert_eq!(said(&mut client, "COMMIT"), "C[COMMIT] ZI");
        assert_ne!(journal(&proxy), None);
        target.restart();
        check_equal(&proxy);
        client.run("INSERT INTO t VALUES (4, 'both again')");
        check_equal(&proxy);
    }
}

/// With `on_follower_failure = "fail"` nothing is written anywhere.
#[test]
fn follower_is_down_and_must_not_be() {
    needs_proxy!();
    for mode in SYNCHRONOUS {
        let mut target = crate::support::cluster::Cluster::start(
            "must",
            *crate::support::cluster::majors().last().expect("one"),
        );
        let source = crate::support::cluster::oldest();
        let proxy = super::start_between(source, &target, &format!("m_must_{mode}"), SCHEMA, |s| {
            s.mirror = format!("mirror = {mode:?}\non_follower_failure = \"fail\"");
        });
        let mut client = proxy.client("alice");
        client.run("INSERT INTO t VALUES (1, 'both')");
        target.kill();
        assert_eq!(said(&mut client, "INSERT INTO t VALUES (2, 'x')"), "E(40001) ZI");
        client.run("BEGIN");
        client.run("INSERT INTO t VALUES (3, 'x')");
        assert_eq!(said(&mut client, "COMMIT"), "E(40001) ZI");
        assert_eq!(client.run("SELECT count(*) FROM t").as_deref(), Some("1"));
        target.restart();
        wait_for("writes again", || said(&mut client, "INSERT INTO t VALUES (5, 'x')") == "C[INSERT_0_1] ZI");
        check_equal(&proxy);
    }
}

/// A row of the follower is locked by somebody else: the write goes to the journal, and reads stay on the lead until it
/// is shipped.
#[test]
fn stale_follower_answers_no_reads() {
    needs_proxy!();
    for mode in SYNCHRONOUS {
        let proxy = start(&format!("m_stale_{mode}"), SCHEMA, |s| {
            s.mirror = format!("mirror = {mode:?}");
            s.mirroring = "lock_timeout = \"100ms\"".to_owned();
            s.document_reads_target = 100;
        });
        let database = proxy.settings.database.clone();
        let mut client = proxy.client("alice");
        let read = "SELECT v FROM t WHERE id = 1";
        client.run("INSERT INTO t VALUES (1, 'one')");
        assert_eq!(client.run(read).as_deref(), Some("one"));
        let on_target = || proxy.metric("routes_total", &["repository=\"document\"", "backend=\"target\""]);
        let stale = || proxy.metric("routes_total", &["reason=\"stale\""]);
        wait_for("reads on the target", || {
            let before = on_target();
            client.run(read);
            on_target() > before
        });
        let mut blocker = crate::support::cluster::newest().admin(&database);
        blocker.run("BEGIN");
        blocker.run("SELECT * FROM t FOR UPDATE");
        client.run("UPDATE t SET v = 'two' WHERE id = 1");
        let before = stale();
        for _ in 0..20 {
            assert_eq!(client.run(read).as_deref(), Some("two"), "{mode}: as the lead has it");
        }
        assert!(stale() - before > 19.0, "{mode}");
        blocker.run("ROLLBACK");
        wait_for("reads on the target again", || {
            let before = on_target();
            assert_eq!(client.run(read).as_deref(), Some("two"), "{mode}");
            on_target() > before
        });
        check_equal(&proxy);
    }
}

/// All writes of a block go with its COMMIT: the follower may answer the next read.
#[test]
fn a_block_of_several_writes_leaves_reads_where_they_are() {
    needs_proxy!();
    for mode in SYNCHRONOUS {
        let proxy = start(&format!("m_several_{mode}"), SCHEMA, |s| {
            s.mirror = format!("mirror = {mode:?}");
            s.document_reads_target = 100;
        });
        let mut client = proxy.client("alice");
        let on_target = || proxy.metric("routes_total", &["repository=\"document\"", "backend=\"target\""]);
        let stale = || proxy.metric("routes_total", &["reason=\"stale\""]);
        let count = "SELECT count(*) FROM t";
        wait_for("reads on the target", || {
            let before = on_target();
            client.run(count);
            on_target() > before
        });
        let before = stale();
        for n in 0..10 {
            client.run("BEGIN");
            client.run(&format!("INSERT INTO t VALUES ({n}, 'x')"));
            client.run(&format!("UPDATE t SET v = 'y' WHERE id = {n}"));
            client.run("COMMIT");
            assert_eq!(client.run(count).as_deref(), Some(&*(n + 1).to_string()));
        }
        assert!(stale() - before < 0.5, "{mode}: {} reads went to the lead", stale() - before);
    }
}

/// Ends that cannot be intercepted, and what is left to the repairer: it runs as sent, and arrives.
#[test]
fn what_the_proxy_does_not_ship_arrives() {
    needs_proxy!();
    let steps: &[(&[&str], &str)] = &[
        (
            &["DO $$ BEGIN INSERT INTO t VALUES (1, 'x'); COMMIT; INSERT INTO t VALUES (2, 'x'); END $$"],
            "C[DO] ZI",
        ),
        (&["CALL put(3)"], "C[CALL] ZI"),
        (&["BEGIN; INSERT INTO t VALUES (5, 'x'); COMMIT"], "C[BEGIN] C[INSERT_0_1] C[COMMIT] ZI"),
        (&["INSERT INTO t VALUES (6, 'x'); COMMIT; INSERT INTO t VALUES (7, 'x')"], ""),
        (&["SET client_encoding = 'LATIN1'", "INSERT INTO t VALUES (8, chr(233))"], "C[INSERT_0_1] ZI"),
        (&["SET client_encoding = 'UTF8'", "INSERT INTO t SELECT n FROM generate_series(100, 9999) n"], ""),
        (
            &[
                "BEGIN",
                "INSERT INTO t VALUES (9, 'x')",
                "PREPARE TRANSACTION 'theirs'",
                "COMMIT PREPARED 'theirs'",
            ],
            "",
        ),
        (&["VACUUM t"], "C[VACUUM] ZI"),
        (&["DELETE FROM t WHERE id > 200", "INSERT INTO t VALUES (10, 'last')"], "C[INSERT_0_1] ZI"),
    ];
    let schema = "CREATE TABLE t (id int PRIMARY KEY, v text); GRANT ALL ON t TO PUBLIC;
      CREATE PROCEDURE put(n int) LANGUAGE plpgsql AS $$ BEGIN
        INSERT INTO t VALUES (n, 'x'); COMMIT; INSERT INTO t VALUES (n + 1, 'x'); END $$";
    for mode in SYNCHRONOUS {
        let proxy = start(&format!("m_later_{mode}"), schema, |s| {
            s.mirror = format!("mirror = {mode:?}");
            s.routing = "on_unknown = \"source\"".to_owned();
        });
        let mut client = proxy.client("postgres");
        for (texts, last) in steps {
            let answers: Vec<_> = texts.iter().map(|sql| said(&mut client, sql)).collect();
            let answer = answers.last().expect("one at least");
            assert!(!answers.concat().contains("E("), "{mode}: {texts:?}: {answers:?}");
            assert!(last.is_empty() || answer == last, "{mode}: {texts:?}: {answer}");
        }
        check_equal(&proxy);
        assert_eq!(client.run("SELECT count(*) FROM t").as_deref(), Some("111"), "{mode}");
    }
}

/// Nobody switches capture off by its settings.
#[test]
fn settings_of_capture_are_not_the_clients() {
    needs_proxy!();
    let proxy = start("m_settings", SCHEMA, |s| s.mirror = "mirror = \"journaled\"".to_owned());
    let mut client = proxy.client("alice");
    for sql in [
        "SET crossfade.role = 'apply'",
        "SET LOCAL crossfade.keys = ''",
        "SELECT set_config('crossfade.keys', '', true)",
        "RESET crossfade.role",
    ] {
        assert_eq!(said(&mut client, sql), "E(42501) ZI", "{sql}");
    }
}

/// Definitions of mirrored tables stay as they are unless the operator says otherwise.
#[test]
fn definitions() {
    needs_proxy!();
    let mut proxy = start("m_ddl", SCHEMA, |s| s.mirror = "mirror = \"journaled\"".to_owned());
    let mut client = proxy.client("postgres");
    assert_eq!(said(&mut client, "ALTER TABLE t ADD COLUMN more int"), "E(0A000) ZI");
    assert_eq!(said(&mut client, "DROP TABLE t"), "E(0A000) ZI");
    proxy.edit(|s| s.mirror = "mirror = \"journaled\"\nddl = \"lead\"".to_owned());
    wait_for("the lead's DDL", || {
        said(&mut client, "ALTER TABLE t ADD COLUMN more int") == "C[ALTER_TABLE] ZI"
    });
    crate::support::cluster::newest().admin("m_ddl").run("ALTER TABLE t ADD COLUMN more int");
    proxy.command(&["mirror", "install"]);
    wait_for("the new column", || {
        client.run("INSERT INTO t VALUES (1, 'x', 7) ON CONFLICT (id) DO UPDATE SET more = 7");
        let mut target = crate::support::cluster::newest().admin("m_ddl");
        target.run("SELECT more FROM t WHERE id = 1").as_deref() == Some("7")
    });
    check_equal(&proxy);
}

/// A table that is made later belongs to a mirrored repository by its name: it is not written before it is captured.
#[test]
fn a_new_table_is_noticed() {
    needs_proxy!();
    let mut proxy = start("m_new", SCHEMA, |s| s.mirror = "mirror = \"journaled\"".to_owned());
    let make = "CREATE TABLE t_new (id int PRIMARY KEY); GRANT ALL ON t_new TO PUBLIC";
    for cluster in [crate::support::cluster::oldest(), crate::support::cluster::newest()] {
        cluster.admin("m_new").run(make);
    }
    let mut client = proxy.client("alice");
    wait_for("the catalog", || said(&mut client, "INSERT INTO t_new VALUES (1)") == "E(55000) ZI");
    proxy.edit(|s| s.mirroring = "install = true".to_owned());
    wait_for("it is installed", || said(&mut client, "INSERT INTO t_new VALUES (2)") == "C[INSERT_0_1] ZI");
    check_equal(&proxy);
}

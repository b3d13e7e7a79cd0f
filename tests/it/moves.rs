//! Transaction blocks that move from the target to the source, and what they take along.

use crate::support::{
    cluster::{database, newest, oldest},
    frames, needs_proxy,
    proxy::{Proxy, Settings},
};

/// Reads of documents go to the target, everything else to the source. Rows say where they are.
fn start(name: &str, transaction: bool) -> Proxy {
    database(name);
    for (cluster, side) in [(oldest(), "source"), (newest(), "target")] {
        cluster.admin(name).run(&format!(
            "INSERT INTO documents VALUES (1, '{side}', 0); CREATE SCHEMA other; \
             CREATE TABLE other.users (id int, name text); GRANT ALL ON SCHEMA other TO PUBLIC; \
             GRANT ALL ON other.users TO PUBLIC"
        ));
    }
    let mut settings = Settings::new(name);
    settings.document_reads_target = 100;
    if transaction {
        settings = settings.transaction(1);
    }
    settings.start()
}

/// Runs `script` in one session: `statement => answer`, one a line; no answer is not looked at. `W` reads where documents
/// are read.
#[track_caller]
fn check(name: &str, script: &[&str]) {
    for transaction in [false, true] {
        let proxy = start(&format!("{name}_{}", if transaction { "t" } else { "s" }), transaction);
        let mut other = proxy.client("alice");
        other.run("SET search_path = public");
        let mut client = proxy.client("alice");
        for line in script {
            let (sql, want) = line.split_once(" => ").map_or((*line, None), |(sql, want)| (sql, Some(want)));
            let sql = if sql == "W" { "SELECT title FROM public.documents WHERE id = 1" } else { sql };
            let got = client.run(sql);
            if let Some(want) = want {
                assert_eq!(
                    got.as_deref().unwrap_or("NULL"),
                    want,
                    "{line} (transaction pooling: {transaction})"
                );
            }
        }
        assert_eq!(other.run("SHOW search_path").as_deref(), Some("public"), "another client's setting");
        assert_eq!(other.run("SELECT current_setting('statement_timeout')").as_deref(), Some("0"));
    }
}

#[test]
fn settings_of_a_block_that_commits_stay() {
    needs_proxy!();
    check(
        "moves_commit",
        &[
            "BEGIN",
            "SET search_path = other",
            "SET statement_timeout = '54321ms'",
            "W => target",
            "SHOW search_path => other",
            "INSERT INTO users VALUES (7, 'x')",
            "W => source",
            "COMMIT",
            "SHOW search_path => other",
            "SHOW statement_timeout => 54321ms",
            "W => target",
            "SELECT name FROM other.users WHERE id = 7 => x",
            "RESET ALL",
            "SHOW search_path => \"$user\", public",
        ],
    );
}

#[test]
fn settings_of_a_block_that_rolls_back_are_gone() {
    needs_proxy!();
    check(
        "moves_rollback",
        &[
            "SET search_path = public",
            "BEGIN",
            "SET search_path = other",
            "W => target",
            "ROLLBACK",
            "SHOW search_path => public",
            "BEGIN",
            "W => target",
            "SET search_path = other",
            "SELECT count(*) > 0 FROM pg_class => t",
            "ROLLBACK",
            "SHOW search_path => public",
            "W => target",
            "BEGIN",
            "SAVEPOINT a",
            "SET search_path = other",
            "W => target",
            "ROLLBACK TO a",
            "INSERT INTO users VALUES (8, 'y')",
            "COMMIT",
            "SELECT name FROM public.users WHERE id = 8 => y",
        ],
    );
}

#[test]
fn savepoints_and_local_settings_move_along() {
    needs_proxy!();
    check(
        "moves_local",
        &[
            "BEGIN",
            "SET LOCAL search_path = other",
            "SET TRANSACTION ISOLATION LEVEL READ COMMITTED",
            "W => target",
            "SAVEPOINT a",
            "SET LOCAL statement_timeout = '9s'",
            "INSERT INTO users VALUES (9, 'z')",
            "SHOW statement_timeout => 9s",
            "ROLLBACK TO a",
            "SHOW statement_timeout => 0",
            "COMMIT",
            "SHOW search_path => \"$user\", public",
            "SELECT count(*) FROM other.users => 0",
        ],
    );
}

#[test]
fn a_block_behind_another_chooses_anew() {
    needs_proxy!();
    check(
        "moves_chain",
        &[
            "BEGIN",
            "INSERT INTO users VALUES (10, 'a')",
            "W => source",
            "COMMIT AND CHAIN",
            "W => target",
            "SET statement_timeout = '54321ms'",
            "INSERT INTO users VALUES (11, 'b')",
            "W => source",
            "COMMIT; BEGIN",
            "W => target",
            "SHOW statement_timeout => 54321ms",
            "ROLLBACK AND CHAIN",
            "INSERT INTO users VALUES (12, 'c')",
            "SAVEPOINT a",
            "ROLLBACK AND CHAIN",
            "W => target",
            "COMMIT",
            "SELECT string_agg(name, '') FROM users => ab",
            "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
            "SELECT count(*) FROM users => 2",
            "COMMIT AND CHAIN",
            "W => target",
            "SHOW transaction_isolation => repeatable read",
            "SHOW transaction_read_only => on",
            "COMMIT",
            "RESET ALL",
        ],
    );
}

/// A savepoint or setting that was bound and never executed is not repeated where the block goes.
#[test]
fn what_was_only_bound_does_not_move() {
    needs_proxy!();
    for transaction in [false, true] {
        let proxy = start(if transaction { "moves_bound_t" } else { "moves_bound_s" }, transaction);
        let mut client = proxy.client("alice");
        client.run("BEGIN");
        for sql in ["SAVEPOINT a", "SET LOCAL statement_timeout = '9s'"] {
            client.send(&[frames::parse("", sql), frames::bind("", "", &[]), frames::sync()].concat());
            client.until_ready(1).expect("bound");
        }
        client.run("SELECT title FROM public.documents WHERE id = 1");
        client.run("INSERT INTO users VALUES (1, 'a')");
        assert_eq!(client.run("SHOW statement_timeout").as_deref(), Some("0"));
        let error = client.query("ROLLBACK TO a").expect_err("there is no savepoint");
        assert_eq!(error.sqlstate, "3B001", "transaction pooling: {transaction}");
    }
}

/// What a session has set and the other side refuses costs one error, not the session.
#[test]
fn settings_that_the_other_side_refuses() {
    needs_proxy!();
    let proxy = start("moves_refused", false);
    newest().admin("moves_refused").run("CREATE ROLE only_there; GRANT only_there TO alice");
    let mut client = proxy.client("alice");
    let before = client.run("SELECT pg_backend_pid()");
    client.run("BEGIN READ ONLY");
    assert_eq!(client.run("SELECT title FROM documents WHERE id = 1").as_deref(), Some("target"));
    client.run("SET ROLE only_there");
    client.run("COMMIT");
    let error = client.query("SELECT count(*) FROM users").expect_err("there is no such role");
    assert_eq!(error.sqlstate, "08006");
    assert!(error.message.contains("session's settings"), "{error:?}");
    newest().admin("moves_refused").run("REVOKE only_there FROM alice");
    oldest().admin("moves_refused").run("CREATE ROLE only_there; GRANT only_there TO alice");
    client.run("RESET ROLE");
    assert_eq!(client.run("SELECT pg_backend_pid()"), before, "the session is the same");
    oldest().admin("moves_refused").run("DROP ROLE only_there");
    newest().admin("moves_refused").run("DROP ROLE only_there");
}

#[test]
fn clients_that_swap_sides_do_not_wait_for_one_another() {
    needs_proxy!();
    let proxy = start("moves_swap", true);
    let (mut a, mut b) = (proxy.client("alice"), proxy.client("alice"));
    a.run("BEGIN");
    a.run("SELECT title FROM documents WHERE id = 1"); // holds the only target connection
    b.run("BEGIN"); // holds the only source connection
    std::thread::scope(|scope| {
        let waits = scope.spawn(move || {
            b.run("SELECT title FROM documents WHERE id = 1");
            b.run("COMMIT");
        });
        a.run("INSERT INTO users VALUES (1, 'a')");
        a.run("COMMIT");
        waits.join().unwrap();
    });
}

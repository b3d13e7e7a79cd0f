//! Transaction pooling: what one client's statements leave in a session never reaches the next client.

use crate::support::{
    cluster::{database, newest, oldest},
    frames, needs_proxy,
    proxy::Settings,
    reply::Frame,
    wire::Wire,
};

/// Code that runs although no statement names it, and the protocol's own way to call a function.
#[test]
fn code_that_is_not_named() {
    needs_proxy!();
    database("left_code");
    for cluster in [oldest(), newest()] {
        let mut admin = cluster.admin("left_code");
        for sql in [
            "CREATE FUNCTION leave() RETURNS text LANGUAGE sql AS $$SELECT set_config('app.left', 'x', false)$$",
            "CREATE FUNCTION fire() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN PERFORM public.leave(); RETURN new; END$$",
            "CREATE TRIGGER t BEFORE INSERT ON users FOR EACH ROW EXECUTE FUNCTION fire()",
            "CREATE TABLE defaults (id int, left_over text DEFAULT leave())",
            "CREATE TABLE checked (id int CHECK (leave() = 'x'))",
            "CREATE DOMAIN picky AS int CHECK (leave() = 'x')",
            "CREATE TABLE of_domain (id picky)",
            "CREATE TABLE parted (id int) PARTITION BY LIST (id)",
            "CREATE TABLE part PARTITION OF parted FOR VALUES IN (1)",
            "CREATE TRIGGER t BEFORE INSERT ON part FOR EACH ROW EXECUTE FUNCTION fire()",
            "CREATE VIEW seen AS SELECT leave()",
            "CREATE TABLE guarded (id int)",
            "INSERT INTO guarded VALUES (1)",
            "ALTER TABLE guarded ENABLE ROW LEVEL SECURITY",
            "CREATE POLICY p ON guarded USING (leave() = 'x')",
            "GRANT ALL ON ALL TABLES IN SCHEMA public TO PUBLIC",
        ] {
            admin.query(sql).unwrap_or_else(|e| panic!("{sql}: {e:?}"));
        }
    }
    let proxy = Settings::new("left_code").transaction(1).start();
    let mut next = proxy.client("alice");
    for (what, bytes) in [
        ("trigger", frames::query("INSERT INTO users VALUES (1, 'x')")),
        ("default", frames::query("INSERT INTO defaults VALUES (1)")),
        ("constraint", frames::query("INSERT INTO checked VALUES (1)")),
        ("domain", frames::query("INSERT INTO of_domain VALUES (1)")),
        ("partition", frames::query("INSERT INTO parted VALUES (1)")),
        ("view", frames::query("SELECT * FROM seen")),
        ("policy", frames::query("SELECT * FROM guarded")),
        ("function call", frames::function_call(SET_CONFIG, &["app.left", "x", "f"])),
    ] {
        let mut first = proxy.client("alice");
        first.send(&bytes);
        succeeds(&mut first, what);
        first.terminate();
        let left = next.run("SELECT current_setting('app.left', true)");
        assert!(left.as_deref().unwrap_or_default().is_empty(), "{what} left {left:?}");
    }
}

/// DISCARD ALL of a session with connections to both sides cleans both; a pinned one gives both back.
#[test]
fn discard_all_cleans_both_sides() {
    needs_proxy!();
    for transaction in [false, true] {
        let name = if transaction { "left_discard_t" } else { "left_discard_s" };
        database(name);
        for (cluster, side) in [(oldest(), "source"), (newest(), "target")] {
            cluster.admin(name).run(&format!("INSERT INTO documents VALUES (1, '{side}', 0)"));
        }
        let mut settings = Settings::new(name);
        if transaction {
            settings = settings.transaction(1);
        }
        settings.document_reads_target = 100;
        let proxy = settings.start();
        let (mut client, mut other) = (proxy.client("alice"), proxy.client("alice"));
        let hold = |client: &mut Wire| {
            client.run("BEGIN READ ONLY");
            client.run("DECLARE c CURSOR WITH HOLD FOR SELECT title FROM documents");
            client.run("COMMIT");
            client.run("FETCH c")
        };
        assert_eq!(hold(&mut client).as_deref(), Some("target"), "transaction pooling: {transaction}");
        client.run("CREATE TEMP TABLE mine (id int)");
        client.run("DISCARD ALL");
        assert!(client.query("FETCH c").is_err_and(|e| e.sqlstate == "34000"));
        assert!(client.query("SELECT * FROM mine").is_err_and(|e| e.sqlstate == "42P01"));
        // In a pool of one, others are served at once, and the name is free where it was taken.
        assert_eq!(other.run("SELECT count(*) FROM users").as_deref(), Some("0"));
        let next = if transaction { &mut other } else { &mut client };
        assert_eq!(hold(next).as_deref(), Some("target"), "transaction pooling: {transaction}");
    }
}

/// Prepared statements that are named inside another statement, by simple queries and by the extended protocol.
#[test]
fn names_inside_statements() {
    needs_proxy!();
    database("left_names");
    let mut settings = Settings::new("left_names").transaction(3);
    settings.document_reads_target = 100;
    let proxy = settings.start();
    let texts =
        ["EXPLAIN EXECUTE foo", "EXPLAIN (ANALYZE) EXECUTE foo", "CREATE TEMP TABLE made AS EXECUTE foo"];
    for text in texts {
        for send in [frames::query(text), [frames::extended(text, &[]), frames::sync()].concat()] {
            // Another client's name on the same connection must not be met.
            let mut other = proxy.client("alice");
            other.run("PREPARE foo AS SELECT 'other' AS id, 'other' AS name");
            let mut client = proxy.client("alice");
            client.run("PREPARE foo AS SELECT id, title FROM documents");
            client.send(&send);
            succeeds(&mut client, text);
            assert_eq!(client.query("EXECUTE foo").map(|rows| rows.len()), Ok(0), "{text}");
            if text.starts_with("CREATE") {
                assert_eq!(client.run("SELECT count(*) FROM made").as_deref(), Some("0"));
            }
            client.terminate();
            assert_eq!(other.run("EXECUTE foo").as_deref(), Some("other"));
        }
    }
}

/// libpq's large objects are the source's, whoever leads the tables; a block that wrote on the target cannot call them.
#[test]
fn function_calls_run_at_home() {
    needs_proxy!();
    database("left_calls");
    for transaction in [None, Some(3)] {
        let mut settings = Settings::new("left_calls");
        if let Some(size) = transaction {
            settings = settings.transaction(size);
        }
        settings.document_writes_target = true;
        settings.document_reads_target = 100;
        settings.routing = "on_unknown = \"refuse\"".to_owned();
        let proxy = settings.start();
        let mut client = proxy.client("alice");
        let made = "SELECT count(*) FROM pg_largeobject_metadata";
        let count = || [oldest(), newest()].map(|cluster| cluster.admin("left_calls").run(made));
        let before = count();
        client.run("BEGIN");
        client.send(&frames::function_call(LO_CREAT, &["131072"]));
        succeeds(&mut client, "lo_creat");
        client.run("COMMIT");
        let after = count();
        assert!(before[0] != after[0] && before[1] == after[1], "{before:?} {after:?}");
        client.run("BEGIN; INSERT INTO documents VALUES (1, 'x', 0)");
        client.send(&frames::function_call(LO_CREAT, &["131072"]));
        let answer = client.until_ready(1).expect("answered");
        let refused = answer.iter().find(|frame| frame.kind == b'E').map(Frame::sqlstate);
        assert_eq!(refused.as_deref(), Some("0A000"), "pooling {transaction:?}");
        client.run("ROLLBACK");
        assert_eq!(count(), after);
    }
}

fn succeeds(client: &mut Wire, what: &str) {
    let frames = client.until_ready(1).unwrap_or_else(|e| panic!("{what}: {e:?}"));
    let error = frames.iter().find(|frame| frame.kind == b'E').map(Frame::sqlstate);
    assert_eq!(error, None, "{what}");
}

const LO_CREAT: u32 = 957;
/// `set_config` in every `pg_proc`.
const SET_CONFIG: u32 = 2078;

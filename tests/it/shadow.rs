//! Reads executed on both sides: what differs is found and named, and clients never notice.

mod texts;
mod views;

use std::{
    collections::BTreeSet,
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    thread::Scope,
    time::{Duration, Instant},
};

use crate::support::{
    cluster::{Cluster, majors, newest, oldest},
    frames, needs_proxy,
    proxy::{Proxy, Settings},
    wait_for,
    wire::Wire,
};

/// Every read is executed twice; `source` and `target` make the two databases.
pub(crate) fn start(name: &str, [source, target]: [&str; 2], change: impl FnOnce(&mut Settings)) -> Proxy {
    start_between(newest(), name, [source, target], change)
}

fn start_between(
    cluster: &Cluster,
    name: &str,
    [source, target]: [&str; 2],
    change: impl FnOnce(&mut Settings),
) -> Proxy {
    for (cluster, sql) in [(oldest(), source), (cluster, target)] {
        cluster.database(name);
        let mut admin = cluster.admin(name);
        admin.run(sql);
        admin.run("GRANT ALL ON ALL TABLES IN SCHEMA public TO PUBLIC");
        admin.run("GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO PUBLIC");
    }
    let mut settings = Settings::new(name).backends(oldest(), cluster);
    settings.tables += ", \"public.t*\"";
    "shadow = 1.0".clone_into(&mut settings.repositories);
    "values = true\nexpire = \"10s\"".clone_into(&mut settings.shadow);
    change(&mut settings);
    settings.start()
}

pub(crate) fn outcome(proxy: &Proxy, outcome: &str) -> f64 {
    proxy.metric("shadow_comparisons_total", &["repository=\"document\"", &format!("outcome=\"{outcome}\"")])
}

/// Waits until so many comparisons have come to their end, and says what came of them.
#[track_caller]
fn outcomes(proxy: &Proxy, expected: f64) -> String {
    let all = ["match", "order_only", "ignored", "noise", "transient", "indeterminate", "divergence"];
    let counts = || all.map(|name| (name, outcome(proxy, name)));
    wait_for("all comparisons", || (counts().iter().map(|(_, n)| n).sum::<f64>() - expected).abs() < 0.5);
    let seen = counts().into_iter().filter(|(_, n)| *n > 0.5);
    seen.map(|(name, n)| format!("{name} {n}")).collect::<Vec<_>>().join(", ")
}

/// What the metrics say of shadow reads.
pub(crate) fn shown(proxy: &Proxy) -> String {
    let metrics = proxy.metrics();
    metrics.lines().filter(|line| line.starts_with("crossfade_shadow")).collect::<Vec<_>>().join("\n")
}

/// Class, column, key and values of each divergence.
fn divergences(proxy: &Proxy) -> BTreeSet<String> {
    let rows = proxy.console("bob").expect("may look").query("SHOW DIVERGENCES").expect("rows");
    let text = |cell: &Option<String>| cell.clone().unwrap_or_else(|| "-".to_owned());
    rows.iter().map(|row| [2, 3, 4, 6, 7].map(|i| text(&row[i])).join(" ")).collect()
}

/// One planted difference of each kind, by the simple and the extended protocol, in text and in binary.
#[test]
fn planted_differences_are_found_and_named() {
    needs_proxy!();
    let common = "CREATE TABLE t (id int PRIMARY KEY, pos int, v text, x numeric, f float8, at timestamptz);
        INSERT INTO t SELECT i, i, 'v' || i, i + 0.5, i, '2024-01-01'::timestamptz + i * interval '1 day' FROM generate_series(1, 1000) i;
        CREATE TABLE t_same AS SELECT i AS id, 'same' AS v FROM generate_series(1, 3000) i;";
    let source = format!(
        "{common} CREATE TABLE t_kind (id int PRIMARY KEY, a int); CREATE TABLE t_more (id int PRIMARY KEY, a int);"
    );
    let target = format!(
        "{common} UPDATE t SET v = 'planted' WHERE id = 500; DELETE FROM t WHERE id = 700;
         INSERT INTO t VALUES (1001, 1001, 'extra', 1, 1, 'epoch'); UPDATE t SET x = 10.50 WHERE id = 10;
         UPDATE t SET pos = 21 WHERE id = 20; UPDATE t SET pos = 20 WHERE id = 21;
         CREATE TABLE t_kind (id int PRIMARY KEY, a bigint); CREATE TABLE t_more (id int PRIMARY KEY, a int, b int);"
    );
    let proxy = start("sh_planted", [&source, &target], |_| {});
    let mut client = proxy.client("alice");
    let queries = [
        ("SELECT id, v FROM t WHERE id = 1", ""),
        ("SELECT id, v FROM t WHERE id = 500", "cell v id=500 v500 planted"),
        ("SELECT id, v FROM t WHERE id BETWEEN 499 AND 501 ORDER BY id", "cell v id=500 v500 planted"),
        ("SELECT id FROM t WHERE id BETWEEN 690 AND 710 ORDER BY id", "missing_row - id=700 700 -"),
        ("SELECT id FROM t WHERE id > 995", "extra_row - id=1001 - 1001"),
        ("SELECT v FROM t WHERE id BETWEEN 18 AND 24 ORDER BY pos, id", "order - -  "),
        ("SELECT id, x FROM t WHERE id = 10", "cell x id=10 10.5 10.50"),
        ("SELECT a FROM t_kind", "type a - type 23 in Text type 20 in Text"),
        ("SELECT * FROM t_more", "columns - - id, a id, a, b"),
        ("SELECT b FROM t_more", "error - - 42703 none"),
        ("SELECT count(*) FROM t WHERE id <> 700", "cell count - 999 1000"),
        ("SELECT id, v FROM t_same", ""),
    ];
    for (sql, _) in queries {
        let _ = client.query(sql);
        let _ = client.execute(sql, &[]);
    }
    // The order of a bag is nobody's business.
    assert_eq!(outcomes(&proxy, 24.0), "match 4, divergence 20");
    let expected: BTreeSet<String> =
        queries.iter().map(|(_, found)| (*found).to_owned()).filter(|found| !found.is_empty()).collect();
    assert_eq!(divergences(&proxy), expected);

    // Results in binary.
    let bound = |id: u32| {
        let id = id.to_string();
        [
            frames::parse_typed("", "SELECT id, v, at FROM t WHERE id = $1", &[23]),
            frames::bind_raw("", "", &[Some(id.as_bytes())], &[1]),
            frames::execute("", 0),
            frames::sync(),
        ]
        .concat()
    };
    for id in [1, 500] {
        client.send(&bound(id));
        client.until_ready(1).expect("an answer");
    }
    assert_eq!(outcomes(&proxy, 26.0), "match 5, divergence 21");
    let rows = proxy.console("bob").expect("may look").query("SHOW QUERIES").expect("rows");
    assert!(
        rows.iter().any(|row| row[13].as_deref() == Some("SELECT id, v FROM t WHERE id = $1")),
        "{rows:?}"
    );
    assert!(rows.iter().all(|row| row[13].as_deref().is_some_and(|sql| !sql.contains("500"))), "{rows:?}");
}

/// Rules of the repository, and what is only spelled in another way.
#[test]
fn rules_are_kept() {
    needs_proxy!();
    let tables = "CREATE TABLE t (id int PRIMARY KEY, x numeric, f float8, j json, seen text);";
    let source = format!("{tables} INSERT INTO t VALUES (1, 1.0, 1, '{{\"a\": 1}}', 'now')");
    let target = format!("{tables} INSERT INTO t VALUES (1, 1.00, 1.0000000001, '{{\"a\":1.0}}', 'then')");
    let rules =
        "compare = { ignore = [\"seen\"], float_tolerance = 1e-6, numeric = \"value\", json = \"semantic\" }";
    for (name, rules, expected) in [("sh_strict", "", "divergence 1"), ("sh_rules", rules, "ignored 1")] {
        let proxy = start(name, [&source, &target], |s| s.repositories = format!("shadow = 1\n{rules}"));
        proxy.client("alice").run("SELECT * FROM t WHERE id = 1");
        assert_eq!(outcomes(&proxy, 1.0), expected);
    }
}

/// The second execution has the client's settings, and those that the answering server reported.
#[test]
fn settings_are_pinned() {
    needs_proxy!();
    let tables = "CREATE TABLE t (id int PRIMARY KEY, at timestamptz, i interval, b bytea);
        INSERT INTO t VALUES (1, '2024-02-29 12:00+00', '1 day 2 hours', '\\x00ff')";
    for (name, transaction) in [("sh_set_session", false), ("sh_set_transaction", true)] {
        let proxy = start(name, [tables, tables], |s| {
            newest().admin(name).run(&format!("ALTER DATABASE {name} SET TimeZone = 'America/New_York'"));
            newest().admin(name).run(&format!("ALTER DATABASE {name} SET DateStyle = 'German'"));
            if transaction {
                *s = s.clone().transaction(4);
            }
        });
        let mut client = proxy.client("alice");
        let read = "SELECT * FROM t WHERE id = 1";
        client.run(read);
        for set in [
            "SET TimeZone = 'Asia/Tokyo'",
            "SET DateStyle = 'SQL, DMY'",
            "SET IntervalStyle = 'iso_8601'",
            "SET bytea_output = 'escape'",
            "SET extra_float_digits = 0",
        ] {
            client.run(set);
            client.run(read);
        }
        assert_eq!(outcomes(&proxy, 6.0), "match 6", "{:?}", divergences(&proxy));
    }
}

/// What has effects runs once, and what cannot be compared is counted with its reason.
#[test]
fn nothing_with_effects_runs_twice() {
    needs_proxy!();
    let tables = "CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1); CREATE SEQUENCE t_seq;
        CREATE FUNCTION touch() RETURNS int LANGUAGE sql VOLATILE AS 'SELECT 1'";
    let proxy = start("sh_effects", [tables, tables], |_| {});
    let mut client = proxy.client("alice");
    for sql in [
        "SELECT nextval('t_seq'), id FROM t",
        "SELECT pg_advisory_xact_lock(77), id FROM t",
        "SELECT pg_notify('c', 'x'), id FROM t",
        "SELECT touch(), id FROM t",
        "SELECT id FROM t FOR UPDATE",
        "SELECT random(), id FROM t",
        "SELECT 1; SELECT id FROM t",
    ] {
        let _ = client.query(sql);
    }
    client.run("BEGIN");
    client.run("INSERT INTO t VALUES (2)");
    client.run("SELECT id FROM t");
    client.run("COMMIT");
    client.run("BEGIN ISOLATION LEVEL REPEATABLE READ");
    client.run("SELECT id FROM t");
    client.run("COMMIT");
    client.run("SELECT id FROM t WHERE id = 1");
    assert_eq!(outcomes(&proxy, 1.0), "match 1");
    let skipped = |reason: &str| proxy.metric("shadow_skipped_total", &[&format!("reason=\"{reason}\"")]);
    for (reason, expected) in [("wrote", 1.0), ("snapshot", 1.0), ("several", 1.0), ("by_nature", 1.0)] {
        assert!(
            (skipped(reason) - expected).abs() < 0.5,
            "{reason}: {}\n{}",
            skipped(reason),
            proxy.metrics()
        );
    }
    let drawn = newest().admin("sh_effects").run("SELECT is_called FROM t_seq");
    assert_eq!(drawn.as_deref(), Some("f"), "the target's sequence was drawn from");
}

/// Reads one row until it is told to stop; the longest time an answer took.
fn read_all_the_time(mut client: Wire, stop: &AtomicBool) -> (usize, Duration) {
    let (mut n, mut longest) = (0, Duration::ZERO);
    while !stop.load(Ordering::Relaxed) {
        let began = Instant::now();
        assert_eq!(
            client.execute("SELECT v FROM t WHERE id = $1", &["1"]).expect("no error")[0][0].as_deref(),
            Some("one")
        );
        longest = longest.max(began.elapsed());
        n += 1;
    }
    (n, longest)
}

/// The target is frozen, then killed: clients do not notice, counters say what happened, and all recovers by itself.
#[test]
fn a_dead_target_is_nobodys_business() {
    needs_proxy!();
    let mut target = Cluster::start("shadow", *majors().last().expect("a major"));
    let tables = "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'one')";
    let proxy = start_between(&target, "sh_dead", [tables, tables], |s| {
        s.shadow = "statement_timeout = \"200ms\"\nexpire = \"200ms\"\nqueue = 50".to_owned();
        s.timeouts = "server_login_retry = \"100ms\"\nserver_connect = \"1s\"".to_owned();
    });
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let end = Stop(&stop);
        let readers: Vec<_> =
            (0..2).map(|_| scope.spawn(|| read_all_the_time(proxy.client("alice"), &stop))).collect();
        let matches = || outcome(&proxy, "match");
        let dropped = || proxy.metric("shadow_dropped_total", &[]);
        wait_for("comparisons", || matches() > 20.0);
        target.signal("STOP");
        let before = dropped();
        wait_for("a full queue", || dropped() > before + 100.0);
        target.signal("CONT");
        let before = matches();
        wait_for("comparisons after the freeze", || matches() > before + 20.0);
        target.kill();
        let before = dropped();
        wait_for("drops without a target", || dropped() > before + 20.0);
        target.restart();
        let before = matches();
        wait_for("comparisons after the restart", || matches() > before + 20.0);
        drop(end);
        for reader in readers {
            let (n, longest) = reader.join().expect("no client error");
            assert!(n > 100 && longest < Duration::from_secs(1), "{n} reads, {longest:?}");
        }
    });
    assert!(outcome(&proxy, "divergence") < 0.5, "{:?}", divergences(&proxy));
}

/// Ends those who look at it, also when the test fails.
pub(crate) struct Stop<'a>(pub(crate) &'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// So many clients write so many rows of this table as fast as they can.
fn write_hot_rows<'a>(
    scope: &'a Scope<'a, '_>,
    proxy: &'a Proxy,
    stop: &'a AtomicBool,
    (writers, table, rows): (u32, &'a str, u32),
) {
    for writer in 0..writers {
        scope.spawn(move || {
            let mut client = proxy.client("alice");
            let mut n = writer;
            while !stop.load(Ordering::Relaxed) {
                n += 7;
                client.run(&format!("UPDATE {table} SET n = n + 1 WHERE id = {}", n % rows + 1));
            }
        });
    }
}

/// Hot rows that are mirrored: what readers of the target would see for a moment is transient, and nothing diverges.
#[test]
fn hot_rows_do_not_diverge() {
    needs_proxy!();
    let tables = "CREATE TABLE t (id int PRIMARY KEY, n int);
        INSERT INTO t SELECT i, 0 FROM generate_series(1, 20) i";
    let proxy = start("sh_hot", [tables, tables], |s| {
        s.mirror = "mirror = \"journaled\"".to_owned();
        s.shadow = "expire = \"100ms\"".to_owned();
    });
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _stop = Stop(&stop);
        write_hot_rows(scope, &proxy, &stop, (4, "t", 20));
        for _ in 0..2 {
            scope.spawn(|| {
                let mut client = proxy.client("alice");
                let mut n = 0;
                while !stop.load(Ordering::Relaxed) {
                    n += 1;
                    client.run(&format!("SELECT n FROM t WHERE id = {}", n % 20 + 1));
                    client.run("SELECT id, n FROM t ORDER BY id");
                    client.run("SELECT sum(n) FROM t");
                }
            });
        }
        let seen = || outcome(&proxy, "match") + outcome(&proxy, "transient");
        let enough = crate::support::holds_within(Duration::from_secs(60), || seen() > 100.0);
        assert!(enough, "{}", shown(&proxy));
    });
    crate::mirror::check_equal(&proxy);
    assert!(outcome(&proxy, "divergence") < 0.5, "{:?}", divergences(&proxy));
}

/// Applications are told apart, also those with start-up parameters of their own, on two connections for all of them.
#[test]
fn applications_are_told_apart() {
    needs_proxy!();
    let tables = "CREATE TABLE t (id int PRIMARY KEY, f float8); INSERT INTO t VALUES (1, 1.0 / 3)";
    let proxy = start("sh_apps", [tables, tables], |s| {
        s.shadow = "connections = 2\nexpire = \"10s\"".to_owned();
    });
    for (digits, name) in [("0", "old"), ("1", "new"), ("3", "other"), ("-1", "fourth"), ("2", "old")] {
        let login = proxy.login("alice").parameter("application_name", name);
        let login = login.parameter("extra_float_digits", digits);
        let mut client = Wire::connect(proxy.port, &login).expect("a login");
        client.run("SELECT f FROM t WHERE id = 1");
    }
    assert_eq!(outcomes(&proxy, 5.0), "match 5");
    let rows = proxy.console("bob").expect("may look").query("SHOW SHADOW").expect("rows");
    let compared =
        |name: &str| rows.iter().find(|r| r[1].as_deref() == Some(name)).and_then(|r| r[5].clone());
    assert_eq!(["old", "new", "other", "fourth"].map(|name| compared(name).unwrap()), ["2", "1", "1", "1"]);
}

/// A name that is set later counts from then on, and the second execution keeps its own.
#[test]
fn a_name_that_is_set_is_followed() {
    needs_proxy!();
    let tables = "CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)";
    for (name, transaction) in [("sh_name_session", false), ("sh_name_transaction", true)] {
        let proxy = start(name, [tables, tables], |s| {
            if transaction {
                *s = s.clone().transaction(4);
            }
        });
        let login = proxy.login("alice").parameter("application_name", "first");
        let mut client = Wire::connect(proxy.port, &login).expect("a login");
        let read = "SELECT id FROM t WHERE id = 1";
        client.run(read);
        client.run("SET application_name = 'second'");
        client.run(read);
        client.run(read);
        client.run("SELECT set_config('application_name', 'third', false)");
        client.run(read);
        client.run("RESET application_name");
        client.run(read);
        assert_eq!(outcomes(&proxy, 5.0), "match 5", "{}", shown(&proxy));
        let rows = proxy.console("bob").expect("may look").query("SHOW SHADOW").expect("rows");
        let compared =
            |name: &str| rows.iter().find(|r| r[1].as_deref() == Some(name)).and_then(|r| r[5].clone());
        let seen = ["first", "second", "third"].map(|name| compared(name).unwrap_or_default());
        assert_eq!(seen, ["2", "2", "1"], "{rows:?}");
        let mut admin = newest().admin(name);
        let others =
            "SELECT count(*) FROM pg_stat_activity WHERE application_name IN ('first', 'second', 'third')";
        assert_eq!(admin.run(others).as_deref(), Some("0"));
    }
}

/// What was found is still there after a restart, and shares are hot.
#[test]
fn evidence_outlives_the_process() {
    needs_proxy!();
    let tables = "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'one')";
    let file = crate::support::cluster::base_dir().join("sh_kept.json");
    let mut proxy = start("sh_kept", [tables, &tables.replace("'one'", "'eins'")], |s| {
        s.shadow = format!("evidence = '{}'", file.display());
    });
    proxy.client("alice").run("SELECT id, v FROM t WHERE id = 1");
    assert_eq!(outcomes(&proxy, 1.0), "divergence 1");
    proxy.signal("TERM");
    wait_for("the end", || proxy.ended().is_some());
    let kept = std::fs::read_to_string(&file).expect("evidence");
    assert!(!kept.contains("eins") && !kept.contains("one\""), "values were not to be kept: {kept}");
    proxy.launch();
    wait_for("the evidence", || outcome(&proxy, "divergence") > 0.5);
    assert_eq!(divergences(&proxy), BTreeSet::from(["cell v id=1 - -".to_owned()]));
    let mut client = proxy.client("alice");
    proxy.edit(|s| s.repositories = "shadow = 0".to_owned());
    let sampled = || proxy.metric("shadow_reads_total", &["state=\"sampled\""]);
    wait_for("the new share", || {
        let before = sampled();
        client.run("SELECT id, v FROM t WHERE id = 1");
        (sampled() - before).abs() < 0.5
    });
}

/// A write that meets rows which the follower lacks, or has too many, is evidence; it is made good by the way.
#[test]
fn mirrored_writes_are_compared() {
    needs_proxy!();
    let tables = "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, 'v' FROM generate_series(1, 9) i";
    for mode in ["journaled", "atomic"] {
        let name = format!("sh_writes_{mode}");
        let proxy = start(&name, [tables, tables], |s| {
            s.mirror = format!("mirror = \"{mode}\"");
            s.repositories.clear();
        });
        let mut admin = newest().admin(&name);
        admin.run("SET crossfade.role = 'apply'"); // not to be mirrored back
        admin.run("DELETE FROM t WHERE id IN (1, 2)");
        admin.run("INSERT INTO t VALUES (100, 'extra')");
        let count = |outcome: &str| {
            let outcome = format!("outcome=\"{outcome}\"");
            proxy.metric("mirror_writes_compared_total", &["repository=\"document\"", &outcome])
        };
        let mut client = proxy.client("alice");
        wait_for("a first look", || {
            client.run("UPDATE t SET v = 'w' WHERE id = 3");
            count("equal") > 0.5
        });
        let before = count("equal");
        for sql in [
            "INSERT INTO t VALUES (10, 'x')",
            "UPDATE t SET v = 'w'  WHERE id > 5",
            "DELETE FROM t WHERE id = 4",
        ] {
            client.run(sql);
        }
        assert_eq!(
            [count("equal") - before, count("different")].map(|n| n.to_string()),
            ["3", "0"],
            "{mode}"
        );
        client.run("UPDATE t SET v = 'y' WHERE id IN (1, 3)");
        client.run("INSERT INTO t VALUES (100, 'z')");
        client.run("DELETE FROM t WHERE id = 2");
        assert_eq!(
            [count("equal") - before, count("different")].map(|n| n.to_string()),
            ["3", "3"],
            "{mode}"
        );
        let rows = proxy.console("bob").expect("may look").query("SHOW SHADOW").expect("rows");
        let shown = rows.iter().find(|row| row[0].as_deref() == Some("document")).expect("a row");
        assert_eq!(shown.last().cloned().flatten().as_deref(), Some("3"), "{shown:?}");
        let (_, state) = crate::support::http::get(proxy.http, "/state").expect("an answer");
        assert!(state.contains("\"differed\":3"), "{state}");
        let url = format!("http://127.0.0.1:{}", proxy.http);
        let report = Command::new(env!("CARGO_BIN_EXE_crossfade")).args(["report", "--url", &url]).output();
        let report = String::from_utf8(report.expect("it runs").stdout).expect("text");
        assert!(report.contains(", 3 different"), "{report}");
        crate::mirror::check_equal(&proxy);
    }
}

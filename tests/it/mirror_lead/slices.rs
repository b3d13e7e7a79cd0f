//! Source and target take turns under load: no key twice, no lock twice, no child without a parent, and clients wait a
//! moment at most.

use std::time::Duration;

use super::{
    moves::lead,
    writers::{SCHEMA, Seen, end, judge, write},
};
use crate::support::{
    PATIENCE, Rng,
    cluster::{Cluster, majors, newest, oldest},
    holds_throughout, holds_within, needs_proxy,
    proxy::{Proxy, Settings},
    seed, wait_for,
};

/// Half of the time each, a second at a time.
fn settings(name: &str, mode: &str, pooling: &str) -> Settings {
    for cluster in [oldest(), newest()] {
        cluster.database(name);
        cluster.admin(name).run(SCHEMA);
    }
    of(Settings::new(name), mode, pooling)
}

fn of(mut settings: Settings, mode: &str, pooling: &str) -> Settings {
    settings.tables += ", \"public.t_*\"";
    settings.mirror = format!("mirror = \"{mode}\"");
    "slice = \"2s\"".clone_into(&mut settings.mirroring);
    settings.writes_target = Some(50);
    if pooling == "transaction" { settings.transaction(8) } else { settings }
}

/// A proxy that is ready, and has taken turns.
fn turning(settings: Settings) -> Proxy {
    let proxy = settings.start();
    let mut first = proxy.client("alice");
    wait_for("what mirroring needs", || first.query("UPDATE t_sums SET n = 0 WHERE who = 31").is_ok());
    if proxy.settings.writes_target == Some(50) {
        wait_for("turns", || moved(&proxy) >= 2.0);
    }
    proxy
}

fn moved(proxy: &Proxy) -> f64 {
    proxy.metric("lead_moves_total", &["outcome=\"moved\""])
}

/// What people would look at.
fn state(proxy: &Proxy) -> Vec<Vec<Option<String>>> {
    let mut console = proxy.console("bob").expect("may look");
    let shows = ["SHOW REPOSITORIES", "SHOW JOURNAL", "SHOW IN_DOUBT"];
    shows.iter().flat_map(|show| console.query(show).expect("rows")).collect()
}

/// Waits for so many turns, four times as long as they take.
fn turns(proxy: &Proxy, enough: f64) {
    assert!(holds_within(4 * PATIENCE, || moved(proxy) >= enough), "{} turns, not {enough}", moved(proxy));
}

/// How the waits of clients at changes were, in milliseconds: the longest ones, as many as there were changes.
fn stalls(seen: &[Seen], changes: usize) -> String {
    let mut all: Vec<Vec<u128>> =
        seen.iter().map(|s| s.longest.iter().map(Duration::as_millis).collect()).collect();
    let mut of_changes: Vec<u128> = Vec::new();
    for longest in &mut all {
        longest.sort_unstable_by(|a, b| b.cmp(a));
        of_changes.extend(longest.iter().take(changes));
    }
    of_changes.sort_unstable();
    let at = |part: usize| of_changes.get((of_changes.len().max(1) - 1) * part / 100).copied().unwrap_or(0);
    format!("p50 {} ms, p99 {} ms, max {} ms", at(50), at(99), at(100))
}

/// Lines that the target led, and all of them.
fn shares(name: &str) -> (f64, f64) {
    let sql = format!("SELECT count(*) FILTER (WHERE port = {}), count(*) FROM t_lines", newest().port);
    let rows = oldest().admin(name).query(&sql).expect("counts");
    let number = |i: usize| rows[0][i].as_deref().and_then(|n: &str| n.parse().ok()).expect("a number");
    (number(0), number(1))
}

fn under_load(mode: &str, pooling: &str) {
    needs_proxy!();
    let name = format!("slices_{mode}_{pooling}");
    let proxy = turning(settings(&name, mode, pooling));
    let before = moved(&proxy);
    let (world, writers) = write(&proxy, 0..8, false);
    turns(&proxy, before + 12.0);
    let seen = end(&world, writers);
    let ((target, all), changes) = (shares(&name), moved(&proxy) - before);
    let transactions: u32 = seen.iter().map(|s| s.transactions).sum();
    let stalls = stalls(&seen, 12);
    println!(
        "{name}: {transactions} transactions, {target} of {all} lines led by the target, {changes} changes, stalls {stalls}"
    );
    assert!((0.15..0.85).contains(&(target / all)), "{target} of {all}");
    judge([oldest(), newest()], &name, &seen);
}

#[test]
fn journaled_session() {
    under_load("journaled", "session");
}

#[test]
fn journaled_transaction() {
    under_load("journaled", "transaction");
}

#[test]
fn atomic_session() {
    under_load("atomic", "session");
}

#[test]
fn atomic_transaction() {
    under_load("atomic", "transaction");
}

#[test]
fn a_small_share_is_what_it_says() {
    needs_proxy!();
    let mut settings = settings("slices_share", "journaled", "transaction");
    settings.writes_target = Some(20);
    "slice = \"10s\"".clone_into(&mut settings.mirroring);
    let proxy = turning(settings);
    let before = moved(&proxy);
    let (world, writers) = write(&proxy, 0..8, false);
    turns(&proxy, before + 4.0);
    let seen = end(&world, writers);
    let (target, all) = shares("slices_share");
    println!("{target} of {all} lines led by the target");
    // A slow machine is late for every turn, and misses some.
    assert!((0.03..0.4).contains(&(target / all)), "{target} of {all}");
    // By the clock, not by chance: its two seconds, and what a change may be late.
    let strays = format!(
        "SELECT count(*) FROM t_lines WHERE port = {} AND EXTRACT(epoch FROM at)::numeric % 10 > 7",
        newest().port
    );
    assert_eq!(oldest().admin("slices_share").run(&strays).as_deref(), Some("0"), "led out of turn");
    judge([oldest(), newest()], "slices_share", &seen);
}

#[test]
fn weights_move_between_whole_and_parts_under_load() {
    needs_proxy!();
    let mut proxy = turning(settings("slices_reload", "atomic", "transaction"));
    let (world, writers) = write(&proxy, 0..8, false);
    for share in [0, 50, 100, 50, 90, 100, 10, 0] {
        proxy.edit(|s| s.writes_target = Some(share));
        let now = moved(&proxy);
        if share % 100 != 0 {
            turns(&proxy, now + if share == 50 { 2.0 } else { 0.0 });
            continue;
        }
        let side = if share == 0 { "source" } else { "target" };
        let there = || lead(&proxy).as_deref() == Some(side);
        // A turn may be under way when the file is read.
        let stays = || there() && holds_throughout(Duration::from_millis(1_500), there);
        assert!(holds_within(4 * PATIENCE, stays), "the {side} leads and goes on");
    }
    let seen = end(&world, writers);
    judge([oldest(), newest()], "slices_reload", &seen);
}

#[test]
fn two_instances_and_one_is_killed_again_and_again() {
    needs_proxy!();
    // What a killed one leaves is shipped by the other after this.
    let quick = |mut settings: Settings| {
        settings.mirroring += "\njournal_grace = \"500ms\"";
        settings
    };
    let mut one = turning(quick(settings("slices_two", "atomic", "transaction")));
    let other = turning(quick(of(Settings::new("slices_two"), "atomic", "session")));
    let mut rng = Rng(seed("slices_two"));
    // Clients of the other one hear nothing of it.
    let (calm, fine) = write(&other, 0..4, false);
    let (rough, hurt) = write(&one, 4..8, true);
    for _ in 0..6 {
        std::thread::sleep(Duration::from_millis(rng.next() % 1_500));
        one.kill();
        one.launch();
        let before = moved(&one) + moved(&other);
        let turned = holds_within(4 * PATIENCE, || moved(&one) + moved(&other) >= before + 1.0);
        assert!(turned, "no turn any more: {:?}", state(&other));
    }
    let mut seen = end(&calm, fine);
    seen.extend(end(&rough, hurt));
    judge([oldest(), newest()], "slices_two", &seen);
}

#[test]
fn a_row_lock_holds_the_lead_where_it_is() {
    needs_proxy!();
    let mut settings = settings("slices_lock", "journaled", "transaction");
    settings.writes_target = Some(0);
    let proxy = turning(settings);
    for (text, extended) in [
        ("SELECT id FROM t_doors WHERE id = 0 FOR UPDATE", false),
        ("SELECT id FROM t_doors WHERE id = 0 FOR UPDATE", true),
        ("LOCK TABLE t_doors", false),
    ] {
        let mut client = proxy.client("alice");
        client.query("BEGIN").expect("a block");
        if extended { client.execute(text, &[]) } else { client.query(text) }.expect("a lock");
        let held = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND classid = 407137 \
                    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
        assert_eq!(oldest().admin("slices_lock").run(held).as_deref(), Some("1"), "{text}");
        client.query("COMMIT").expect("nothing was written");
        assert_eq!(oldest().admin("slices_lock").run(held).as_deref(), Some("0"), "{text}");
    }
}

/// Nine tenths of five seconds are the source's; ends when one of its turns has begun.
fn at_the_source(mut settings: Settings) -> Proxy {
    settings.writes_target = Some(10);
    "slice = \"5s\"\nlock_timeout = \"200ms\"\njournal_grace = \"500ms\"".clone_into(&mut settings.mirroring);
    let proxy = turning(settings);
    for side in ["target", "source"] {
        wait_for("turns", || lead(&proxy).as_deref() == Some(side));
    }
    proxy
}

fn waits_for(proxy: &Proxy) -> Option<String> {
    state(proxy).into_iter().find(|row| row[0].as_deref() == Some("document"))?[13].clone()
}

#[test]
fn a_row_that_cannot_be_shipped_keeps_the_lead_and_stalls_nobody() {
    needs_proxy!();
    let proxy = at_the_source(settings("slices_held", "journaled", "transaction"));
    let mut locker = newest().admin("slices_held");
    locker.run("BEGIN");
    locker.run("SELECT n FROM t_sums WHERE who = 30 FOR UPDATE");
    let mut client = proxy.client("alice");
    client.query("UPDATE t_sums SET n = 7 WHERE who = 30").expect("it goes to the journal");
    let (world, writers) = write(&proxy, 0..4, false);
    wait_for("the reason", || waits_for(&proxy).is_some_and(|why| why.contains("could not be shipped")));
    let before = moved(&proxy);
    let stays = || lead(&proxy).as_deref() == Some("source");
    assert!(holds_throughout(Duration::from_secs(6), stays), "the lead stays for more than a period");
    assert!((moved(&proxy) - before).abs() < 0.5, "and does not go forth and back");
    locker.run("ROLLBACK");
    turns(&proxy, before + 2.0);
    let seen = end(&world, writers);
    let longest = seen.iter().flat_map(|s| &s.longest).max().copied().unwrap_or_default();
    println!("longest wait {longest:?}");
    assert!(longest < PATIENCE / 2, "{longest:?}");
    judge([oldest(), newest()], "slices_held", &seen);
}

#[test]
fn a_side_that_is_down_is_not_moved_to() {
    needs_proxy!();
    let majors = majors();
    let source = Cluster::start("slices-source", majors[0]);
    let mut target = Cluster::start("slices-target", *majors.last().expect("one"));
    for cluster in [&source, &target] {
        cluster.database("slices_down");
        cluster.admin("slices_down").run(SCHEMA);
    }
    let settings = of(Settings::new_between(&source, &target, "slices_down"), "atomic", "transaction");
    let proxy = at_the_source(settings);
    let (world, writers) = write(&proxy, 0..4, false);
    target.kill();
    wait_for("the reason", || waits_for(&proxy).is_some_and(|why| why.contains("target")));
    let before = moved(&proxy);
    assert!(
        holds_throughout(Duration::from_secs(6), || lead(&proxy).as_deref() == Some("source")),
        "it stays"
    );
    target.restart();
    turns(&proxy, before + 2.0);
    let seen = end(&world, writers);
    assert!(seen.iter().all(|s| s.transactions > 20), "they went on");
    judge([&source, &target], "slices_down", &seen);
}

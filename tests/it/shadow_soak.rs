//! Comparisons by the thousand while clients write hot mirrored rows as fast as they can: nothing diverges but what
//! was planted, and that is found and classed right.
//!
//! `SHADOW_COMPARISONS`: of hot rows, 2,000 if not said; `SHADOW_PLANTED`: planted differences, 140 if not said;
//! `SHADOW_ROWS`: of one large result, 300,000 if not said.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread::sleep,
    time::{Duration, Instant},
};

use crate::{
    shadow::{Stop, outcome, shown, start},
    support::{
        cluster::{Cluster, newest, oldest},
        env_number, frames, holds_within, needs_proxy,
        proxy::Proxy,
        seed, wait_for,
        wire::{Next, Wire},
    },
};

/// A planted difference, by the last digit of its number to base 7.
const KINDS: [&str; 7] = ["cell", "missing_row", "extra_row", "order", "type", "zero", "zero by the rules"];

fn query_of(kind: u64) -> &'static str {
    match kind {
        0..=2 => "SELECT id, v FROM t WHERE id = $1",
        3 => "SELECT v FROM t_pair WHERE g = $1 ORDER BY pos, id",
        4 => "SELECT id, a FROM kind_v WHERE id = $1",
        _ => "SELECT id, x FROM t WHERE id = $1",
    }
}

/// Reads of hot rows; `$1` is the number of one.
const READS: [&str; 14] = [
    "SELECT id, n, flag, v FROM t_hot WHERE id = $1",
    "SELECT flag FROM t_hot WHERE id = $1",
    "SELECT n % 2 AS odd FROM t_hot WHERE id = $1",
    "SELECT flag FROM t_hot WHERE id = 1",
    "SELECT id, n, v FROM t_hot WHERE id BETWEEN $1 AND $1 + 10 ORDER BY id",
    "SELECT v FROM t_hot WHERE id BETWEEN $1 AND $1 + 5 ORDER BY pos, id",
    "SELECT id FROM t_hot WHERE flag AND id < 40",
    "SELECT id, n FROM t_hot WHERE flag ORDER BY n DESC, id LIMIT 5",
    "SELECT id, v FROM t_hot WHERE flag ORDER BY id LIMIT 3",
    "SELECT count(*) FROM t_hot WHERE flag",
    "SELECT v, count(*) FROM t_hot WHERE id < 20 GROUP BY v",
    "SELECT max(n) % 3 AS rest, count(*) FROM t_hot WHERE id < 10",
    "SELECT h.id, h.flag, c.m FROM t_hot h JOIN t_child c ON c.hot = h.id WHERE h.id = $1",
    "SELECT id, v FROM t WHERE id = 100000 + $1 % 10",
];

/// Numbers that look like chance, the same ones for a seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

/// Two reads of three by the simple protocol, the third by the extended one with results in binary.
fn read(client: &mut Wire, sql: &str, id: u64, extended: bool) {
    let id = id.to_string();
    if !extended {
        let _ = client.query(&sql.replace("$1", &id)).expect("an answer");
        return;
    }
    let sql = sql.replace("$1", "$1::int4");
    let values: &[Option<&[u8]>] = if sql.contains("$1") { &[Some(id.as_bytes())] } else { &[] };
    let unit = [
        frames::parse("", &sql),
        frames::bind_raw("", "", values, &[1]),
        frames::describe(b'P', ""),
        frames::execute("", 0),
        frames::sync(),
    ];
    client.send(&unit.concat());
    Wire::rows(&client.until_ready(1).expect("an answer")).expect("rows");
}

/// Writes rows that everybody writes.
fn write(client: &mut Wire, dice: &mut Dice) {
    let id = if dice.below(4) == 0 { 1 } else { 1 + dice.below(HOT) };
    let sql = match dice.below(20) {
        0..=11 => format!("UPDATE t_hot SET n = n + 1, flag = NOT flag WHERE id = {id}"),
        12..=14 => format!("UPDATE t_hot SET pos = (pos + 1) % 7, v = 'v' || n % 3 WHERE id = {id}"),
        15 | 16 => format!("UPDATE t_child SET m = 1 - m WHERE hot = {id}"),
        17 => format!("UPDATE t SET v = CASE v WHEN 'a' THEN 'b' ELSE 'a' END WHERE id = 100000 + {id} % 10"),
        18 => format!("DELETE FROM t_hot WHERE id = {HOT} + 1 + {id} % 5"),
        _ => {
            format!("INSERT INTO t_hot SELECT {HOT} + 1 + {id} % 5, 0, true, 'v0', 0 ON CONFLICT DO NOTHING")
        }
    };
    match client.query(&sql) {
        // Who gave way tries again; nobody else may fail.
        Err(error) if error.sqlstate == "40P01" => println!("{sql}: {error:?}"),
        answer => drop(answer.expect("a write")),
    }
}

fn tables(planted: u64) -> [String; 2] {
    let both = format!(
        "CREATE TABLE t (id int PRIMARY KEY, v text, x numeric);
         INSERT INTO t SELECT i, 'v' || i, i + 0.5 FROM generate_series(1, {planted}) i WHERE i % 7 <> 2;
         INSERT INTO t SELECT 100000 + i, 'a', 0 FROM generate_series(0, 9) i;
         CREATE TABLE t_pair (id int PRIMARY KEY, g int, pos int, v text);
         INSERT INTO t_pair SELECT i, i / 2, i, 'v' || i FROM generate_series(1, 2 * {planted} + 1) i;
         CREATE TABLE t_hot (id int PRIMARY KEY, n int, flag bool, v text, pos int);
         INSERT INTO t_hot SELECT i, 0, i % 2 = 0, 'v0', i % 7 FROM generate_series(1, {HOT}) i;
         CREATE TABLE t_child (id int PRIMARY KEY, hot int, m int);
         INSERT INTO t_child SELECT i, (i + 1) / 2, 0 FROM generate_series(1, 2 * {HOT}) i;"
    );
    let view = |a: &str| format!("{both} CREATE VIEW kind_v AS SELECT id, {a} AS a FROM t;");
    [view("id"), view("id::bigint")]
}

fn plant(target: &mut Wire, planted: u64) {
    target.run("SET crossfade.role = 'apply'"); // not to be mirrored back
    target.run(&format!("UPDATE t SET v = 'planted' WHERE id % 7 = 0 AND id <= {planted}"));
    target.run(&format!("DELETE FROM t WHERE id % 7 = 1 AND id <= {planted}"));
    target.run(&format!(
        "INSERT INTO t SELECT i, 'extra', 1 FROM generate_series(1, {planted}) i WHERE i % 7 = 2"
    ));
    target.run("UPDATE t_pair SET pos = pos + CASE id % 2 WHEN 0 THEN 1 ELSE -1 END WHERE g % 7 = 3");
    target.run(&format!("UPDATE t SET x = x + 0.00 WHERE id % 7 IN (5, 6) AND id <= {planted}"));
}

/// Comparisons that have come to their end.
fn compared(proxy: &Proxy) -> f64 {
    proxy.metric("shadow_comparisons_total", &["repository=\"document\""])
}

/// Writers, readers of what is hot, and a look at the queue that lets the readers wait.
struct Storm<'a> {
    proxy: &'a Proxy,
    stop: &'a AtomicBool,
    /// The queue is long enough.
    full: &'a AtomicBool,
    read: &'a AtomicU64,
    seed: u64,
}

impl Storm<'_> {
    fn write(&self, writer: u64) {
        let (mut client, mut dice) = (self.proxy.client("alice"), Dice(self.seed ^ writer << 8));
        while !self.stop.load(Ordering::Relaxed) {
            write(&mut client, &mut dice);
        }
    }

    fn read(&self, reader: u64) {
        let (mut client, mut dice) = (self.proxy.client("alice"), Dice(self.seed ^ reader << 16));
        while !self.stop.load(Ordering::Relaxed) {
            if self.full.load(Ordering::Relaxed) {
                sleep(Duration::from_millis(5));
                continue;
            }
            let sql = READS[usize::try_from(dice.below(READS.len() as u64)).expect("few")];
            read(&mut client, sql, 1 + dice.below(HOT), dice.below(3) == 0);
            self.read.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn watch(&self) {
        while !self.stop.load(Ordering::Relaxed) {
            self.full.store(self.proxy.metric("shadow_queue", &[]) > 100.0, Ordering::Relaxed);
            sleep(Duration::from_millis(100));
        }
    }

    /// Reads all that is planted of these kinds.
    fn dig(&self, planted: u64, kinds: impl Fn(u64) -> bool) -> u64 {
        let (mut client, mut dice) = (self.proxy.client("alice"), Dice(self.seed));
        let mut n = 0;
        for id in (1..=planted).filter(|id| kinds(id % 7)) {
            while self.full.load(Ordering::Relaxed) {
                sleep(Duration::from_millis(5));
            }
            read(&mut client, query_of(id % 7), id, dice.below(3) == 0);
            n += 1;
        }
        n
    }
}

#[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
fn count(n: u64) -> f64 {
    n as f64
}

#[test]
fn nothing_diverges_but_what_was_planted() {
    needs_proxy!();
    let seed = seed("shadow_soak");
    let wanted = env_number("SHADOW_COMPARISONS").unwrap_or(2_000);
    let planted = env_number("SHADOW_PLANTED").unwrap_or(140);
    let [source, target] = tables(planted);
    let mut proxy = start("sh_soak", [&source, &target], |s| {
        s.mirror = "mirror = \"journaled\"".to_owned();
        s.shadow = "values = true\nexpire = \"10m\"\nqueue = 100000\nstatement_timeout = \"60s\"".to_owned();
    });
    plant(&mut newest().admin("sh_soak"), planted);
    let limit = Duration::from_secs(120 + wanted / 20 + planted);
    let began = Instant::now();
    let strict = storm(&proxy, seed, |storm| {
        let found = storm.dig(planted, |kind| kind < 6);
        let all = count(wanted + found);
        assert!(holds_within(limit, || compared(&proxy) >= all), "{}", shown(&proxy));
        assert!(holds_within(limit, || outcome(&proxy, "divergence") >= count(found)), "{}", told(&proxy));
        found
    });
    proxy.edit(|s| s.repositories = "shadow = 1\ncompare = { numeric = \"value\" }".to_owned());
    let ignored = storm(&proxy, seed, |storm| {
        let equal = storm.dig(planted, |kind| kind == 6);
        assert!(holds_within(limit, || outcome(&proxy, "ignored") >= count(equal)), "{}", told(&proxy));
        equal
    });
    let (took, all) = (began.elapsed(), compared(&proxy));
    println!("{}", told(&proxy));
    println!("{all} comparisons in {:.1} s: {:.0}/s", took.as_secs_f64(), all / took.as_secs_f64());
    let class = |class: &str| proxy.metric("shadow_divergences_total", &[&format!("class=\"{class}\"")]);
    let of = |kind: u64| count((1..=planted).filter(|id| id % 7 == kind).count() as u64);
    let classes = [class("cell"), class("missing_row"), class("extra_row"), class("order"), class("type")];
    let expected = [of(0) + of(5), of(1), of(2), of(3), of(4)];
    assert_eq!(classes.map(|n| n.to_string()), expected.map(|n| n.to_string()), "{KINDS:?}");
    let found = ["divergence", "ignored"].map(|name| outcome(&proxy, name).to_string());
    assert_eq!(found, [strict, ignored].map(|n| n.to_string()));
    // Nobody writes what was planted: each write met the rows that it should.
    let written =
        |outcome: &str| proxy.metric("mirror_writes_compared_total", &[&format!("outcome=\"{outcome}\"")]);
    println!("{} mirrored writes compared, {} different", written("equal"), written("different"));
    assert!(written("equal") > 0.5 && written("different") < 0.5, "{}", proxy.log());
    let rows = |cluster: &Cluster| {
        let all = "(SELECT string_agg(t::text, ',' ORDER BY id) FROM t_hot t),
            (SELECT string_agg(t::text, ',' ORDER BY id) FROM t_child t)";
        cluster.admin("sh_soak").run(&format!("SELECT md5(concat({all}))"))
    };
    wait_for("equal rows in the end", || rows(oldest()) == rows(newest()));
}

/// Runs `f` while the storm blows.
fn storm<R>(proxy: &Proxy, seed: u64, f: impl FnOnce(&Storm<'_>) -> R) -> R {
    let (stop, full, read) = (AtomicBool::new(false), AtomicBool::new(false), AtomicU64::new(0));
    let storm = Storm { proxy, stop: &stop, full: &full, read: &read, seed };
    std::thread::scope(|scope| {
        let _stop = Stop(&stop);
        for n in 0..8 {
            let storm = &storm;
            scope.spawn(move || storm.write(n + 1));
        }
        for n in 0..3 {
            let storm = &storm;
            scope.spawn(move || storm.read(n + 1));
        }
        scope.spawn(|| storm.watch());
        f(&storm)
    })
}

/// Figures, and divergences of what nobody planted.
fn told(proxy: &Proxy) -> String {
    let lines = shown(proxy);
    let figures = lines.lines().filter(|l| !l.starts_with("crossfade_shadow_latency") && !l.ends_with(" 0"));
    let rows = proxy.console("bob").expect("may look").query("SHOW DIVERGENCES").expect("rows");
    let planted = |row: &&Vec<Option<String>>| {
        let sql = row.last().and_then(Clone::clone).unwrap_or_default();
        ["t_pair", "kind_v", "id, x", "FROM t WHERE"].iter().any(|word| sql.contains(word))
            && !sql.contains("100000")
    };
    let others: Vec<String> = rows.iter().filter(|row| !planted(row)).map(|row| format!("{row:?}")).collect();
    format!("{}\nnot planted: {}", figures.collect::<Vec<_>>().join("\n"), others.join("\n"))
}

/// Reads all rows and keeps none; how many there were.
fn drain(client: &mut Wire, sql: &str, patience: Duration) -> u64 {
    client.send(&frames::query(sql));
    let mut rows = 0;
    loop {
        match client.next(patience) {
            Next::Frame(frame) if frame.kind == b'D' => rows += 1,
            Next::Frame(frame) if frame.kind == b'Z' => return rows,
            Next::Frame(frame) => assert_ne!(frame.kind, b'E', "{frame:?}"),
            end @ (Next::Quiet | Next::Eof) => panic!("{end:?} after {rows} rows"),
        }
    }
}

/// A large result is compared, and one cell of it found, in a few megabytes.
#[test]
fn a_large_result_takes_little_memory() {
    needs_proxy!();
    let rows = env_number("SHADOW_ROWS").unwrap_or(300_000);
    let width = (64_000_000 / rows).clamp(16, 200);
    let patience = Duration::from_secs(120 + rows / 20_000);
    let tables = "CREATE UNLOGGED TABLE t (id int PRIMARY KEY, v text); CREATE TABLE t_warm (id int PRIMARY KEY, v text)";
    let proxy =
        start("sh_large", [tables, &format!("{tables}; INSERT INTO t_warm VALUES (1, 'extra')")], |s| {
            s.shadow = format!(
                "expire = \"10m\"\nstatement_timeout = \"{}s\"\nmax_result_bytes = {}",
                patience.as_secs(),
                1_u64 << 40
            );
        });
    for cluster in [oldest(), newest()] {
        let mut admin = cluster.admin("sh_large");
        for first in (0..rows).step_by(STEP) {
            let range = format!("generate_series({first} + 1, least({first} + {STEP}, {rows})) i");
            admin.run(&format!("INSERT INTO t SELECT i, lpad(i::text, {width}, '-') FROM {range}"));
        }
    }
    let mut client = proxy.client("alice");
    client.run("SELECT id, v FROM t_warm"); // all that is loaded or kept once
    let found = |outcome: &str| crate::shadow::outcome(&proxy, outcome) > 0.5;
    assert!(holds_within(patience, || found("divergence")), "{}", shown(&proxy));
    let mut target = newest().admin("sh_large");
    for (cells, expected) in [(0, "match"), (1, "divergence")] {
        target.run(&format!("UPDATE t SET v = 'planted' WHERE id = {rows} - 7 AND {cells} = 1"));
        let before = proxy.forget_peak_kib();
        let all = || compared(&proxy);
        let (began, done) = (Instant::now(), all());
        assert_eq!(drain(&mut client, "SELECT id, v FROM t", patience), rows);
        assert!(holds_within(patience, || all() > done + 0.5), "{}", shown(&proxy));
        let more = proxy.peak_kib().saturating_sub(before);
        println!(
            "{rows} rows, {cells} cells changed: {:.1} s, {more} KiB more",
            began.elapsed().as_secs_f64()
        );
        assert!(more < MOST_KIB, "{more} KiB more than {before} KiB");
        assert!(found(expected), "{}", shown(&proxy));
    }
    let class = proxy.metric("shadow_divergences_total", &["class=\"cell\""]);
    assert_eq!(class.to_string(), "1", "{}", shown(&proxy));
    let rows = proxy.console("bob").expect("may look").query("SHOW DIVERGENCES").expect("rows");
    let key = format!("id={}", env_number("SHADOW_ROWS").unwrap_or(300_000) - 7);
    assert!(rows.iter().any(|row| row[3].as_deref() == Some("v") && row[4] == Some(key.clone())), "{rows:?}");
}

/// Rows that are put in at once.
const STEP: usize = 250_000;
/// A comparison takes no more resident memory than this: rows of both sides are kept up to 2 MiB each, which tables of them and the
/// allocator make some 15 MiB, whatever the result.
const MOST_KIB: u64 = 24 << 10;
/// Hot rows.
const HOT: u64 = 100;

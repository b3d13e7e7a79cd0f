//! What is deployed for Prometheus and Grafana asks for what a running proxy says: a real Prometheus scrapes it.

mod prometheus;

use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicBool, Ordering},
};

use regex::Regex;
use serde_json::Value;

use self::prometheus::Prometheus;
use crate::support::{
    PATIENCE,
    cluster::{base_dir, newest, oldest},
    holds_within, needs_proxy,
    proxy::{Proxy, Settings},
    wait_for,
};

/// A query, where it stands, and the labels of the answer that are shown.
struct Asked {
    place: String,
    query: String,
    shown: Vec<String>,
    /// An alert's: what it asks for need not be so.
    alert: bool,
}

#[test]
fn every_panel_and_alert_finds_its_data() {
    needs_proxy!();
    let proxy = start("dashboards");
    let directory = base_dir().join("prometheus");
    let Some(prometheus) = Prometheus::start(&directory, proxy.http) else {
        eprintln!("skipped: needs prometheus (tools/setup rules)");
        return;
    };
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _stop = Stop(&stop);
        let mut pinned = proxy.client("bob");
        pinned.run("CREATE TEMP TABLE mine (a int)");
        for _ in 0..4 {
            scope.spawn(|| work(&proxy, &stop));
        }
        wait_for("the first samples", || !prometheus.labels("crossfade_build_info").is_empty());
        let mut asked = panels();
        asked.extend(rules(&prometheus));
        assert!(asked.len() > 60, "{}", asked.len());
        let found: Vec<String> = asked.iter().filter_map(|asked| check(&prometheus, asked)).collect();
        assert!(found.is_empty(), "{}", found.join("\n"));
    });
}

/// Ends those who look at it, also when the test fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Mirrored, half of the reads on each side, every one executed twice, one row differs, and clients wait for connections.
fn start(name: &str) -> Proxy {
    let tables = "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, 'v' || i FROM generate_series(1, 100) i";
    for cluster in [oldest(), newest()] {
        cluster.database(name);
        let mut admin = cluster.admin(name);
        admin.run(tables);
        admin.run("GRANT ALL ON ALL TABLES IN SCHEMA public TO PUBLIC");
    }
    newest().admin(name).run("UPDATE t SET v = 'planted' WHERE id = 50");
    let mut settings = Settings::new(name).backends(oldest(), newest()).transaction(2);
    settings.tables += ", \"public.t*\"";
    settings.document_reads_target = 50;
    "mirror = \"journaled\"\nshadow = 1.0".clone_into(&mut settings.mirror);
    "max_statement_bytes = 1024".clone_into(&mut settings.limits);
    settings.start()
}

/// Something of everything, until it is told to stop.
fn work(proxy: &Proxy, stop: &AtomicBool) {
    let mut client = proxy.client("alice");
    while !stop.load(Ordering::Relaxed) {
        for id in 41..=50 {
            client.run(&format!("SELECT id, v FROM t WHERE id = {id}"));
            client.run(&format!("UPDATE t SET v = 'w' || v WHERE id = {}", id + 50));
        }
        client.run("SELECT id FROM t WHERE id = 1 FOR UPDATE");
        for failing in [
            "SELECT 1 / 0",
            "DO $$ BEGIN RAISE EXCEPTION 'gone' USING ERRCODE = '57000'; END $$",
            &format!("SELECT '{}'", "x".repeat(2_000)),
        ] {
            let _ = client.query(failing);
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}

/// What is wrong with it.
fn check(prometheus: &Prometheus, asked: &Asked) -> Option<String> {
    let Asked { place, query, .. } = asked;
    let wrong = |why: String| Some(format!("{place}: {why}\n    {query}"));
    let mut labels = BTreeSet::from(["job".to_owned(), "instance".to_owned()]);
    for selector in selectors(query) {
        let mut seen = BTreeSet::new();
        let there = holds_within(PATIENCE, || {
            seen = prometheus.labels(&selector);
            !seen.is_empty()
        });
        if !there {
            return wrong(format!("there is no {selector}"));
        }
        labels.extend(seen);
    }
    let unknown: Vec<String> =
        named(query).into_iter().chain(asked.shown.clone()).filter(|label| !labels.contains(label)).collect();
    if !unknown.is_empty() {
        return wrong(format!("no series has the labels {unknown:?}"));
    }
    let question = if asked.alert { as_question(query) } else { query.clone() };
    let mut answer = Vec::new();
    let answered = holds_within(PATIENCE, || {
        answer = prometheus.query(&question);
        !answer.is_empty() && answer.iter().all(|series| series["value"][1] != "NaN")
    });
    if !answered {
        return wrong(format!("answers {answer:?} to {question}"));
    }
    let lacks = |label: &&String| answer.iter().any(|series| series["metric"][label.as_str()].is_null());
    asked.shown.iter().find(lacks).and_then(|label| wrong(format!("the answer has no {label}: {answer:?}")))
}

/// The series that a query looks at.
fn selectors(query: &str) -> Vec<String> {
    let selector =
        Regex::new(r"(?-u:\b)((?:crossfade|process)_[a-z_]+|up)(?-u:\b)(\{[^}]*\})?").expect("a pattern");
    selector.find_iter(query).map(|found| found.as_str().to_owned()).collect()
}

/// The labels by which a query groups and joins.
fn named(query: &str) -> Vec<String> {
    let clause = Regex::new(r"(?-u:\b)(?:by|on|group_left) *\(([^)]*)\)").expect("a pattern");
    let lists = clause.captures_iter(query).map(|found| found[1].to_owned()).collect::<Vec<_>>();
    lists
        .iter()
        .flat_map(|list| list.split(','))
        .map(|l| l.trim().to_owned())
        .filter(|l| !l.is_empty())
        .collect()
}

/// An alert's condition that answers as well when nothing is the matter.
fn as_question(query: &str) -> String {
    let comparison = Regex::new(r"(>=|<=|==|!=|>|<)( |$)").expect("a pattern");
    comparison.replace_all(query, "$1 bool ").replace(" unless ", " and ")
}

/// Of the dashboards.
fn panels() -> Vec<Asked> {
    let legend = Regex::new(r"\{\{ *([a-z_]+) *\}\}").expect("a pattern");
    let text = include_str!("../../deploy/grafana/dashboards/crossfade.json");
    let dashboard: Value = serde_json::from_str(text).expect("JSON");
    let mut asked = Vec::new();
    for panel in dashboard["panels"].as_array().expect("panels") {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let query = target["expr"].as_str().expect("a query");
            let shown = legend.captures_iter(target["legendFormat"].as_str().unwrap_or_default());
            asked.push(Asked {
                place: panel["title"].as_str().expect("a title").to_owned(),
                query: query.replace("$__rate_interval", "1m").replace("$repository", ".*"),
                shown: shown.map(|found| found[1].to_owned()).collect(),
                alert: false,
            });
        }
    }
    asked
}

/// Of the alerts, as Prometheus has read them.
fn rules(prometheus: &Prometheus) -> Vec<Asked> {
    let shown = Regex::new(r"\$labels\.([a-z_]+)").expect("a pattern");
    let mut asked = Vec::new();
    for rule in prometheus.rules() {
        let text = rule["annotations"].to_string();
        asked.push(Asked {
            place: rule["name"].as_str().expect("a name").to_owned(),
            query: rule["query"].as_str().expect("a query").to_owned(),
            shown: shown.captures_iter(&text).map(|found| found[1].to_owned()).collect(),
            alert: true,
        });
    }
    asked
}

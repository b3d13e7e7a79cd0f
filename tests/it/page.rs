//! The evidence over HTTP: `/state`, and who reads it. It says what the metrics say.

mod actions;
mod browser;

use std::process::{Command, ExitStatus, Stdio};

use serde_json::{Value, json};

use crate::support::{
    cluster::{newest, oldest},
    http, needs_proxy,
    proxy::{Proxy, Settings},
    wait_for,
    wire::Wire,
};

/// Every read of `document` is executed twice; one row differs.
fn start(name: &str, change: impl FnOnce(&mut Settings)) -> Proxy {
    let tables = "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, 'v' || i FROM generate_series(1, 100) i";
    for cluster in [oldest(), newest()] {
        cluster.database(name);
        let mut admin = cluster.admin(name);
        admin.run(tables);
        admin.run("GRANT ALL ON ALL TABLES IN SCHEMA public TO PUBLIC");
    }
    newest().admin(name).run("UPDATE t SET v = 'planted <b>' WHERE id = 50");
    let mut settings = Settings::new(name).backends(oldest(), newest());
    settings.tables += ", \"public.t*\"";
    "shadow = 1.0".clone_into(&mut settings.repositories);
    "expire = \"10s\"".clone_into(&mut settings.shadow);
    change(&mut settings);
    settings.start()
}

/// Ten reads, one of them of the planted row; waits until all are compared.
fn read(proxy: &Proxy) {
    read_once(proxy);
    wait_for("ten comparisons", || proxy.metric("shadow_comparisons_total", &[]) > 9.5);
}

fn read_once(proxy: &Proxy) {
    let mut login = proxy.login("alice");
    login.parameters.push(("application_name".to_owned(), "rewrite".to_owned()));
    let mut client = Wire::connect(proxy.port, &login).expect("logged in");
    for id in 41..=50 {
        client.run(&format!("SELECT id, v FROM t WHERE id = {id}"));
    }
}

/// `crossfade report` of this proxy.
fn report(proxy: &Proxy, arguments: &[&str]) -> ExitStatus {
    let mut command = Command::new(env!("CARGO_BIN_EXE_crossfade"));
    command.args(["report", "--url", &format!("http://127.0.0.1:{}", proxy.http)]).args(arguments);
    command.stdout(Stdio::null()).stderr(Stdio::null()).status().expect("it runs")
}

fn state(proxy: &Proxy) -> Value {
    let (status, body) = http::get(proxy.http, "/state").expect("an answer");
    assert_eq!(status, 200, "{body}");
    serde_json::from_str(&body).expect("JSON")
}

/// The bounds in seconds between which the metrics have this share of the latencies of a side.
fn bucket(proxy: &Proxy, side: &str, share: f64) -> [f64; 2] {
    let metrics = proxy.metrics();
    let labels = ["repository=\"document\"".to_owned(), format!("backend=\"{side}\"")];
    let labels = [labels[0].as_str(), labels[1].as_str()];
    let all = http::metric(&metrics, "crossfade_shadow_latency_seconds_count", &labels);
    let mut bounds = [0.0, f64::INFINITY];
    for line in metrics.lines().filter(|l| l.starts_with("crossfade_shadow_latency_seconds_bucket")) {
        let bound = line.split("le=\"").nth(1).and_then(|rest| rest.split('"').next()).unwrap_or_default();
        let bound = if bound == "+Inf" { f64::INFINITY } else { bound.parse().expect("a bound") };
        let below: f64 = line.rsplit(' ').next().unwrap_or_default().parse().expect("a count");
        if labels.iter().all(|label| line.contains(label)) {
            let place = usize::from(below >= share * all);
            bounds[place] = if place == 0 { bound } else { bound.min(bounds[1]) };
        }
    }
    bounds
}

#[test]
fn state_says_what_the_metrics_say() {
    needs_proxy!();
    let proxy = start("page_state", |_| {});
    read(&proxy);
    let answer = state(&proxy);
    let repositories = answer["repositories"].as_array().expect("a list");
    let document = repositories.iter().find(|r| r["name"] == "document").expect("the repository");
    let figures = &document["stats"];
    for outcome in ["match", "divergence", "noise"] {
        let labels = ["repository=\"document\"", &format!("outcome=\"{outcome}\"")];
        let counted = proxy.metric("shadow_comparisons_total", &labels);
        let shown = figures["outcomes"][outcome].as_f64().expect("a count");
        assert!((counted - shown).abs() < 0.5, "{outcome}: {counted}, {shown}");
    }
    let counted = proxy.metric("shadow_divergence_rate_upper_bound", &[]);
    let shown = figures["rate_upper"].as_f64().expect("a rate");
    assert!((counted - shown).abs() < 1e-9 && shown > 0.1, "{counted}, {shown}");
    for (side, quantile, name) in [("source", 0.5, "p50"), ("target", 0.99, "p99")] {
        let found = bucket(&proxy, side, quantile);
        let shown = figures["latency_ms"][side][name].as_f64().expect("a latency") / 1e3;
        // A quantile is the middle of a narrow bucket: 3 % of it may lie beyond.
        assert!(found[0] < shown * 1.04 && shown < found[1] * 1.04, "{side} {name}: {found:?}, {shown}");
    }
    assert_eq!(document["coverage"]["sampled"], 10);
    assert_eq!(document["applications"]["rewrite"]["compared"], 10);
    assert_eq!(answer["backends"]["target"], "up");
    let divergences = answer["divergences"].as_array().expect("a list");
    assert_eq!(divergences.len(), 1, "{divergences:?}");
    assert_eq!((&divergences[0]["key"], &divergences[0]["column"]), (&"id=50".into(), &"v".into()));
    assert_eq!(divergences[0]["sql"], "SELECT id, v FROM t WHERE id = $1");
    assert_eq!(answer["divergent"][0]["stats"]["outcomes"]["divergence"], 1);
    let text = answer.to_string();
    assert!(!text.contains("planted") && !text.contains("v50"), "a value is shown: {text}");
}

/// What the report says, in which form, with which exit status.
#[test]
fn the_report_tells_what_was_found() {
    needs_proxy!();
    let mut proxy = start("page_report", |_| {});
    let told = |proxy: &Proxy, arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_crossfade"));
        // The address comes from the configuration here, from `--url` elsewhere.
        command.arg("report").arg("--config").arg(proxy.config_file()).args(arguments);
        let said = command.output().expect("it runs");
        let [out, err] = [said.stdout, said.stderr].map(|text| String::from_utf8(text).expect("UTF-8"));
        (said.status.code(), out, err)
    };
    let (code, out, _) = told(&proxy, &[]);
    assert_eq!(code, Some(3), "nothing was compared: {out}");
    assert!(out.contains("document: nothing compared yet"), "{out}");

    proxy.client("alice").run("SELECT id, v FROM t WHERE id = 1");
    wait_for("a comparison", || proxy.metric("shadow_comparisons_total", &[]) > 0.5);
    let (code, out, _) = told(&proxy, &[]);
    assert_eq!(code, Some(0), "the sides are equal: {out}");

    read_once(&proxy);
    wait_for("eleven comparisons", || proxy.metric("shadow_comparisons_total", &[]) > 10.5);
    let (code, table, _) = told(&proxy, &[]);
    assert_eq!(code, Some(1), "they differ: {table}");
    let line = |name: &str| {
        let line = table.lines().find(|line| line.split_whitespace().next() == Some(name));
        let line = line.unwrap_or_else(|| panic!("no line of {name} in\n{table}"));
        line.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(line("document")[1..4], ["11", "1", "9.0909"], "compared, diverged, percent:\n{table}");
    assert_eq!(line("rewrite")[1..3], ["10", "1"], "by application:\n{table}");
    assert!(table.contains("document cell, column v, key id=50, 1 times, source answered"), "{table}");
    let command = "psql \"$side\" -c 'SELECT id, v FROM t WHERE id = $1'";
    assert!(table.contains(command) && !table.contains("planted"), "{table}");

    let (code, json, _) = told(&proxy, &["--json"]);
    let json: Value = serde_json::from_str(&json).expect("one object");
    let answer = state(&proxy);
    assert_eq!((code, &json["divergences"]), (Some(1), &answer["divergences"]));
    assert_eq!(json["repositories"][1]["stats"], answer["repositories"][1]["stats"]);

    proxy.kill();
    let (code, out, err) = told(&proxy, &["--json"]);
    assert!(
        code == Some(2) && out.is_empty() && err.contains("could not ask 127.0.0.1:"),
        "{code:?} {out} {err}"
    );
}

/// The page in a real browser: empty, filled, live, on a phone, in the dark, without the proxy; and as a file.
#[test]
fn a_browser_shows_the_numbers() {
    needs_proxy!();
    let directory = crate::support::cluster::base_dir().join("chromium");
    let Some(mut browser) = browser::Browser::start(&directory) else {
        eprintln!("skipped: needs chromium and node (tools/setup browser)");
        return;
    };
    let mut proxy = start("page_browser", |s| "shadow = 0".clone_into(&mut s.repositories));
    browser.call(&json!(["view", 1200, 1000, "light"]));
    browser.call(&json!(["go", format!("http://127.0.0.1:{}/", proxy.http)]));
    wait_for("the page", || browser.text("#repository-document").contains("no shadow reads yet"));
    let words = browser.text("#repository-document");
    assert!(words.contains("set shadow = 0.05 for repository document"), "{words}");
    assert!(browser.text("#divergences").contains("none found"));
    proxy.settings.repositories = "shadow = 1".to_owned();
    proxy.write_text(&proxy.text());

    wait_for("the share", || {
        read_once(&proxy);
        proxy.metric("shadow_comparisons_total", &["outcome=\"divergence\""]) > 0.5
    });
    let settled = || {
        proxy.metric("shadow_reads_total", &["state=\"sampled\""])
            - proxy.metric("shadow_comparisons_total", &[])
    };
    wait_for("all comparisons", || settled().abs() < 0.5);
    let compared = proxy.metric("shadow_comparisons_total", &[]);
    wait_for("the numbers without a reload", || browser.figure("document/compared") == compared.to_string());
    for outcome in ["match", "divergence", "transient"] {
        let counted = proxy.metric("shadow_comparisons_total", &[&format!("outcome=\"{outcome}\"")]);
        assert_eq!(browser.figure(&format!("document/{outcome}")), counted.to_string(), "{outcome}");
    }
    let divergences = browser.text("#divergences");
    assert!(divergences.contains("id=50") && !divergences.contains("planted"), "{divergences}");

    // Nothing is wider than a phone, and the dark is dark.
    let paper = "getComputedStyle(document.body).backgroundColor";
    let light = browser.eval(paper);
    browser.call(&json!(["view", 390, 844, "dark"]));
    assert_ne!(browser.eval(paper), light);
    assert_eq!(browser.eval("document.documentElement.scrollWidth"), "390");

    // The report is the same page, of one moment.
    let file = directory.join("report.html");
    let reported = report(&proxy, &["--html", file.to_str().expect("a path")]);
    assert_eq!(reported.code(), Some(1), "there are divergences");
    browser.call(&json!(["go", format!("file://{}", file.display())]));
    assert_eq!(browser.figure("document/compared"), compared.to_string());
    assert_eq!(browser.eval("violations.join()"), "", "of the policy, or errors");

    browser.call(&json!(["go", format!("http://127.0.0.1:{}/", proxy.http)]));
    wait_for("the page again", || browser.figure("document/compared") == compared.to_string());
    proxy.kill();
    wait_for("the error", || browser.text("#status").contains("does not answer"));
    assert_eq!(browser.figure("document/compared"), compared.to_string(), "what was known stays");
    assert_eq!(browser.eval("violations.join()"), "", "of the policy, or errors");
    assert_eq!(report(&proxy, &[]).code(), Some(2), "nobody is there");
}

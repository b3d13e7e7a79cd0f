//! The evidence over HTTP: `/state`, and who reads it. It says what the metrics say.

use serde_json::Value;

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
    let mut login = proxy.login("alice");
    login.parameters.push(("application_name".to_owned(), "rewrite".to_owned()));
    let mut client = Wire::connect(proxy.port, &login).expect("logged in");
    for id in 41..=50 {
        client.run(&format!("SELECT id, v FROM t WHERE id = {id}"));
    }
    wait_for("ten comparisons", || proxy.metric("shadow_comparisons_total", &[]) > 9.5);
}

fn state(proxy: &Proxy) -> Value {
    let (status, body) = http::get(proxy.http, "/state").expect("an answer");
    assert_eq!(status, 200, "{body}");
    serde_json::from_str(&body).expect("JSON")
}

#[test]
fn state_says_what_the_metrics_say() {
    needs_proxy!();
    let proxy = start("page_state", |_| {});
    read(&proxy);
    let state = state(&proxy);
    let repositories = state["repositories"].as_array().expect("a list");
    let document = repositories.iter().find(|r| r["name"] == "document").expect("the repository");
    let stats = &document["stats"];
    for outcome in ["match", "divergence", "noise"] {
        let labels = ["repository=\"document\"", &format!("outcome=\"{outcome}\"")];
        let counted = proxy.metric("shadow_comparisons_total", &labels);
        let shown = stats["outcomes"][outcome].as_f64().expect("a count");
        assert!((counted - shown).abs() < 0.5, "{outcome}: {counted}, {shown}");
    }
    let counted = proxy.metric("shadow_divergence_rate_upper_bound", &[]);
    let shown = stats["rate_upper"].as_f64().expect("a rate");
    assert!((counted - shown).abs() < 1e-9 && shown > 0.1, "{counted}, {shown}");
    for (side, quantile, name) in [("source", "0.5", "p50"), ("target", "0.99", "p99")] {
        let labels = [format!("backend=\"{side}\""), format!("quantile=\"{quantile}\"")];
        let counted = proxy.metric("shadow_latency_seconds", &[&labels[0], &labels[1]]) * 1e3;
        let shown = stats["latency_ms"][side][name].as_f64().expect("a latency");
        assert!((counted - shown).abs() < 1e-6, "{side} {name}: {counted}, {shown}");
    }
    assert_eq!(document["coverage"]["sampled"], 10);
    assert_eq!(document["applications"]["rewrite"]["compared"], 10);
    assert_eq!(state["backends"]["target"], "up");
    let divergences = state["divergences"].as_array().expect("a list");
    assert_eq!(divergences.len(), 1, "{divergences:?}");
    assert_eq!((&divergences[0]["key"], &divergences[0]["column"]), (&"id=50".into(), &"v".into()));
    assert_eq!(divergences[0]["sql"], "SELECT id, v FROM t WHERE id = $1");
    assert_eq!(state["divergent"][0]["stats"]["outcomes"]["divergence"], 1);
    let text = state.to_string();
    assert!(!text.contains("planted") && !text.contains("v50"), "a value is shown: {text}");
}

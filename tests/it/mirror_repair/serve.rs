//! The same inside `crossfade serve`, without any client.

use super::{Bench, SCHEMA, TABLES};
use crate::support::{
    needs_proxy,
    proxy::{Proxy, Settings},
    wait_for,
};

/// The configuration with its first repository mirrored.
fn mirrored(proxy: &Proxy, mode: &str) -> String {
    let writes = "writes = { source = 100, target = 0 }\n";
    proxy.text().replacen(writes, &format!("{writes}mirror = {mode:?}\n"), 1)
}

#[test]
fn writes_beside_the_proxy_arrive() {
    needs_proxy!();
    let bench = Bench::new("repair_serve", SCHEMA);
    let proxy = Settings::new("repair_serve").start();
    let hash = proxy.live_hash();
    proxy.write_text(&mirrored(&proxy, "async"));
    wait_for("the new configuration", || proxy.live_hash() != hash);
    let mut source = bench.source();
    source.run("INSERT INTO documents VALUES (1, 'a', 1)");
    wait_for("the row", || bench.rows(crossfade::Side::Target, "documents") == ["(1,a,1)"]);
    wait_for("the metrics", || proxy.metric("repaired_keys_total", &["backend=\"source\""]) >= 1.0);
    wait_for("an empty journal", || proxy.metric("journal_rows", &["backend=\"source\""]) < 1.0);
    // What the follower refuses is seen, and goes when it may.
    bench.target().run("ALTER TABLE documents ADD CONSTRAINT no_13 CHECK (n <> 13)");
    source.run("INSERT INTO documents VALUES (13, 'x', 13), (14, 'y', 14)");
    let mut console = proxy.console("bob").expect("may look");
    wait_for("the reason", || {
        let rows = console.query("SHOW JOURNAL").expect("rows");
        rows.iter().any(|row| row[10].as_deref().is_some_and(|why| why.contains("no_13")))
    });
    wait_for("the other row", || bench.rows(crossfade::Side::Target, "documents").len() == 2);
    bench.target().run("ALTER TABLE documents DROP CONSTRAINT no_13");
    wait_for("equal tables", || {
        let [a, b] = crossfade::Side::BOTH.map(|side| bench.rows(side, "documents"));
        a == b
    });
    bench.equal(TABLES);
}

#[test]
fn transactions_in_doubt_are_resolved() {
    needs_proxy!();
    let bench = Bench::new("recover_serve", "");
    let mut settings = Settings::new("recover_serve");
    settings.timeouts = "server_connect = \"5s\"".to_owned();
    let proxy = settings.start();
    proxy.write_text(&mirrored(&proxy, "atomic"));
    let (mut source, gid) = super::recovery::half(&bench, 1, |_| ());
    let mut console = proxy.console("bob").expect("may look");
    wait_for("the doubt", || {
        let rows = console.query("SHOW IN_DOUBT").expect("rows");
        rows.iter().any(|row| {
            row[1].as_deref() == Some(&gid.to_string())
                && row[4].as_deref().is_some_and(|v| v.contains("in progress"))
        })
    });
    source.run("COMMIT");
    wait_for("the row", || bench.rows(crossfade::Side::Target, "documents") == ["(1,a,1)"]);
    wait_for("no doubt", || console.query("SHOW IN_DOUBT").expect("rows").is_empty());
    let outcome = ["outcome=\"committed\""];
    wait_for("the count", || proxy.metric("recovered_transactions_total", &outcome) >= 1.0);
}

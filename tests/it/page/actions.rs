//! Actions by HTTP: with `admin.token`, and only with it.

use serde_json::json;

use super::{browser::Browser, read, start, state};
use crate::support::{cluster::base_dir, http, needs_proxy, proxy::Proxy, wait_for};

const TOKEN: &str = "three-in-the-morning-0123456789";

fn with_token() -> String {
    format!("\ntoken = '{TOKEN}'")
}

fn ask(proxy: &Proxy, token: Option<&str>, body: &str) -> (u16, String) {
    http::post(proxy.http, "/act", token, body).expect("an answer")
}

#[test]
fn without_the_token_nobody_acts() {
    needs_proxy!();
    let pause = r#"{"action":"pause","side":"target"}"#;
    let mut proxy = start("act_token", |_| {});
    assert_eq!(state(&proxy)["actions"], false);
    let (status, body) = ask(&proxy, Some(TOKEN), pause);
    assert!(status == 403 && body.contains("admin.token is not set"), "{status} {body}");

    // Hot, from a file.
    let file = base_dir().join("act_token");
    std::fs::write(&file, format!("{TOKEN}\n")).expect("writable");
    let line = format!("\ntoken_file = '{}'", file.display());
    proxy.rewrite(|s| s.admin += &line);
    wait_for("the token", || state(&proxy)["actions"] == true);
    for (token, status, word) in
        [(None, 401, "Bearer"), (Some("three-in-the-morning-012345678"), 403, "not admin.token")]
    {
        let (answered, body) = ask(&proxy, token, pause);
        assert!(answered == status && body.contains(word), "{answered} {body}");
    }
    assert_eq!(state(&proxy)["paused"]["target"], false, "nothing was done");
    let (status, body) = ask(&proxy, Some(TOKEN), pause);
    assert_eq!((status, body.as_str()), (200, r#"{"done":"paused: target"}"#));
    assert_eq!(state(&proxy)["paused"], json!({ "source": false, "target": true }));
    let (status, _) = ask(&proxy, Some(TOKEN), r#"{"action":"resume","side":"both"}"#);
    assert_eq!((status, &state(&proxy)["paused"]["target"]), (200, &json!(false)));

    // What is found is forgotten, in the metrics as well.
    read(&proxy);
    let compared = || proxy.metric("shadow_comparisons_total", &[]);
    assert!(compared() > 9.5);
    let (status, body) = ask(&proxy, Some(TOKEN), r#"{"action":"forget","repository":"documents"}"#);
    assert!(status == 409 && body.contains("there is no repository"), "{status} {body}");
    let (status, _) = ask(&proxy, Some(TOKEN), r#"{"action":"forget","repository":"document"}"#);
    assert_eq!(status, 200);
    assert!(compared() < 0.5 && state(&proxy)["divergences"] == json!([]), "{}", proxy.metrics());

    // A reload says what is wrong with the file.
    let (status, body) = ask(&proxy, Some(TOKEN), r#"{"action":"reload"}"#);
    assert!(status == 200 && body.contains("is in force"), "{status} {body}");
    proxy.write_text("[nonsense]\n");
    let (status, body) = ask(&proxy, Some(TOKEN), r#"{"action":"reload"}"#);
    assert!(status == 409 && body.contains("nonsense") && body.contains("stays in force"), "{status} {body}");

    // All of it is in the log, with who asked; the token is nowhere.
    let log = proxy.log();
    for line in ["an action was refused", "action by HTTP", "Pause { side: Target }", "peer=127.0.0.1:"] {
        assert!(log.contains(line), "{line} is not in\n{log}");
    }
    let rows = proxy.console("bob").expect("may look").query("SHOW CONFIG").expect("rows");
    let shown = rows.iter().find(|row| row[0].as_deref() == Some("admin.token")).expect("the key");
    assert_eq!(shown[1].as_deref(), Some("***"));
    let everything = [log, format!("{rows:?}"), state(&proxy).to_string(), proxy.metrics()].concat();
    assert!(!everything.contains("three-in-the-morning"), "the token is shown");
}

/// A PAUSE that cannot be is undone: who waited for it is told.
#[test]
fn a_pause_waits_for_transactions() {
    needs_proxy!();
    let proxy = start("act_pause", |s| s.admin += &with_token());
    let mut client = proxy.client("alice");
    client.run("BEGIN");
    client.run("SELECT id FROM t WHERE id = 1");
    std::thread::scope(|scope| {
        let pause = scope.spawn(|| ask(&proxy, Some(TOKEN), r#"{"action":"pause","side":"source"}"#));
        wait_for("the pause", || state(&proxy)["paused"]["source"] == true);
        assert!(!pause.is_finished(), "a transaction is open");
        client.run("COMMIT");
        assert_eq!(pause.join().expect("an answer").0, 200);
    });
    ask(&proxy, Some(TOKEN), r#"{"action":"resume","side":"both"}"#);
    client.run("SELECT id FROM t WHERE id = 1");
}

fn unlock(browser: &mut Browser, token: &str) {
    browser.eval(&format!("document.querySelector('#token').value = {}", json!(token)));
    browser.eval("document.querySelector('#operate form').requestSubmit()");
}

/// In a browser: unlock, and an action that is asked for twice.
#[test]
fn a_browser_acts() {
    needs_proxy!();
    let Some(mut browser) = Browser::start(&base_dir().join("chromium-act")) else {
        eprintln!("skipped: needs chromium and node (tools/setup browser)");
        return;
    };
    let proxy = start("act_browser", |s| s.admin += &with_token());
    browser.call(&json!(["view", 390, 844, "light"]));
    browser.call(&json!(["go", format!("http://127.0.0.1:{}/", proxy.http)]));
    wait_for("the form", || browser.eval("document.querySelector('#token') !== null") == "true");
    unlock(&mut browser, "not-the-token-not-the-token");
    wait_for("the refusal", || browser.text("#acted").contains("this is not admin.token"));
    unlock(&mut browser, TOKEN);
    let pause = r#"document.querySelector('[data-act*="pause"][data-act*="target"]')"#;
    wait_for("the buttons", || browser.eval(&format!("{pause} !== null")) == "true");
    assert_eq!(browser.eval("document.documentElement.scrollWidth"), "390");
    browser.eval(&format!("{pause}.click()"));
    assert_eq!(browser.eval(&format!("{pause}.innerText")), "really: pause the target?");
    assert_eq!(state(&proxy)["paused"]["target"], false, "once is not enough");
    browser.eval(&format!("{pause}.click()"));
    wait_for("the pause", || browser.text("#acted") == "paused: target");
    assert_eq!(state(&proxy)["paused"]["target"], true);
    wait_for("the headline", || browser.text("#status").contains("target up, paused"));
    let resume = r#"document.querySelector('[data-act*="resume"][data-act*="target"]')"#;
    browser.eval(&format!("{resume}.click()"));
    wait_for("the end of it", || browser.text("#acted") == "resumed: target");
    assert_eq!(state(&proxy)["paused"]["target"], false);
    let place = browser.eval("location.href");
    assert!(!place.contains("three"), "{place}");
    assert_eq!(browser.eval("violations.join()"), "", "of the policy, or errors");
}

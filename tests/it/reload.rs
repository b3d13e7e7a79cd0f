//! The configuration changes under load and no client notices, or it is refused whole.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::Duration,
};

use crate::support::{
    cluster::{base_dir, database, newest, oldest},
    frames, holds_throughout, needs_proxy,
    proxy::{Proxy, Settings},
    reply::Frame,
    tls::authority,
    wait_for,
    wire::{Cut, DbError, Wire},
};

/// A database whose rows say on which side they are.
fn labelled(name: &str) {
    database(name);
    for (cluster, side) in [(oldest(), "source"), (newest(), "target")] {
        cluster.admin(name).run(&format!(
            "INSERT INTO documents VALUES (1, '{side}', 0); INSERT INTO users VALUES (1, '{side}')"
        ));
    }
}

const WHERE: &str = "SELECT title FROM documents WHERE id = 1";

/// One client's work: reads in every protocol, transactions, its own prepared statement. Counts who answered.
fn work(client: &mut Wire, sides: &mut BTreeMap<String, usize>) -> Result<(), DbError> {
    let mut saw = |rows: Vec<Vec<Option<String>>>| {
        let side =
            rows.into_iter().next().and_then(|row| row.into_iter().next().flatten()).unwrap_or_default();
        assert!(side == "source" || side == "target", "a wrong row: {side:?}");
        *sides.entry(side.clone()).or_default() += 1;
        side
    };
    saw(client.query(WHERE)?);
    saw(client.execute("SELECT title FROM documents WHERE id = $1::int", &["1"])?);
    client.send(&[frames::bind("", "mine", &["1"]), frames::execute("", 0), frames::sync()].concat());
    let frames = client.until_ready(1)?;
    if let Some(error) = frames.iter().find(|f| f.kind == b'E') {
        panic!("the prepared statement: {:?}", error.fields());
    }
    saw(frames.iter().filter(|f| f.kind == b'D').map(Frame::columns).collect());
    client.query("BEGIN")?;
    let first = saw(client.query(WHERE)?);
    let second = saw(client.query(WHERE)?);
    assert_eq!(first, second, "one transaction saw two databases");
    client.query("COMMIT")?;
    assert_eq!(client.query("SELECT name FROM users WHERE id = 1")?[0][0].as_deref(), Some("source"));
    client.query("UPDATE organizations SET name = name; SELECT 1")?;
    Ok(())
}

/// Whoever ends, well or in a panic, ends all: nobody waits for a client that is no more.
struct StopAll<'a>(&'a AtomicBool);

impl Drop for StopAll<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn move_weights(name: &str, transaction: bool) {
    labelled(name);
    let mut settings = Settings::new(name);
    if transaction {
        settings = settings.transaction(3);
    }
    let mut proxy = settings.start();
    let (stop, rounds) = (AtomicBool::new(false), AtomicUsize::new(0));
    let mut clients: Vec<Wire> = (0..4).map(|_| proxy.client("alice")).collect();
    for client in &mut clients {
        client.send(
            &[frames::parse("mine", "SELECT title FROM documents WHERE id = $1::int"), frames::sync()]
                .concat(),
        );
        client.until_ready(1).expect("prepared");
    }
    let totals = std::thread::scope(|scope| {
        let workers: Vec<_> = clients
            .into_iter()
            .map(|mut client| {
                let (stop, rounds) = (&stop, &rounds);
                scope.spawn(move || {
                    let _stop = StopAll(stop);
                    let mut sides = BTreeMap::new();
                    while !stop.load(Ordering::Relaxed) {
                        let worked = work(&mut client, &mut sides);
                        assert!(worked.is_ok(), "a client saw {worked:?}");
                        rounds.fetch_add(1, Ordering::Relaxed);
                    }
                    sides
                })
            })
            .collect();
        let stopper = StopAll(&stop);
        for share in [10, 50, 100, 50, 0, 100, 0] {
            proxy.edit(|s| s.document_reads_target = share);
            let seen = rounds.load(Ordering::Relaxed);
            wait_for("some rounds of work", || {
                stop.load(Ordering::Relaxed) || rounds.load(Ordering::Relaxed) > seen + 12
            });
        }
        drop(stopper);
        let joined = workers.into_iter().map(|w| w.join().expect("no client saw an error"));
        joined.fold(BTreeMap::<String, usize>::new(), |mut all, sides| {
            for (side, n) in sides {
                *all.entry(side).or_default() += n;
            }
            all
        })
    });
    assert!(totals["source"] > 50 && totals["target"] > 50, "{totals:?}");
}

#[test]
fn weights_move_under_load_session() {
    needs_proxy!();
    move_weights("reload_session", false);
}

#[test]
fn weights_move_under_load_transaction() {
    needs_proxy!();
    move_weights("reload_transaction", true);
}

/// Shares are what they say; a transaction keeps the policy it began with.
#[test]
fn weights_are_exact() {
    needs_proxy!();
    labelled("reload_exact");
    let mut proxy = Settings::new("reload_exact").start();
    let mut client = proxy.client("alice");
    client.run("BEGIN");
    assert_eq!(client.run(WHERE).as_deref(), Some("source"));
    proxy.edit(|s| s.document_reads_target = 100);
    assert_eq!(client.run(WHERE).as_deref(), Some("source"), "the transaction began on the source");
    client.run("COMMIT");
    for _ in 0..20 {
        assert_eq!(client.run(WHERE).as_deref(), Some("target"));
    }
    proxy.edit(|s| s.document_reads_target = 25);
    let target = (0..400).filter(|_| client.run(WHERE).as_deref() == Some("target")).count();
    // Five standard deviations.
    assert!((57..=143).contains(&target), "{target} of 400 reads went to the target, not about 100");
    // After its first write a transaction reads from the lead.
    proxy.edit(|s| s.document_reads_target = 100);
    client.run("BEGIN; UPDATE documents SET n = 5 WHERE id = 1");
    assert_eq!(client.run("SELECT title || n FROM documents WHERE id = 1").as_deref(), Some("source5"));
    client.run("ROLLBACK");
    // No lead, no write: nothing of this reached the target.
    client.run("UPDATE documents SET n = 6 WHERE id = 1");
    assert_eq!(oldest().admin("reload_exact").run("SELECT n FROM documents").as_deref(), Some("6"));
    assert_eq!(newest().admin("reload_exact").run("SELECT n FROM documents").as_deref(), Some("0"));
}

/// Writes move as a whole, and those of one repository only.
#[test]
fn writes_move() {
    needs_proxy!();
    labelled("reload_writes");
    let mut proxy = Settings::new("reload_writes").start();
    let mut client = proxy.client("alice");
    proxy.edit(|s| (s.document_reads_target, s.document_writes_target) = (100, true));
    client.run("INSERT INTO documents VALUES (2, 'new')");
    client.run("INSERT INTO users VALUES (2, 'new')");
    let count = |cluster: &crate::support::cluster::Cluster, table: &str| {
        cluster.admin("reload_writes").run(&format!("SELECT count(*) FROM {table}"))
    };
    assert_eq!(count(newest(), "documents").as_deref(), Some("2"));
    assert_eq!(count(oldest(), "documents").as_deref(), Some("1"));
    assert_eq!(count(newest(), "users").as_deref(), Some("1"));
    assert_eq!(count(oldest(), "users").as_deref(), Some("2"));
    // Two repositories that no backend can serve together.
    client.send(&frames::query("SELECT * FROM documents, users"));
    let answer = client.until_ready(1).expect("refused, and the session goes on");
    let error = answer.iter().find(|f| f.kind == b'E').expect("two sides").fields();
    assert_eq!(error[&'C'], "0A000");
    assert!(error[&'D'].contains("document") && error[&'D'].contains("user"), "{error:?}");
    assert_eq!(client.run("SELECT 1").as_deref(), Some("1"));
}

/// Files that must be refused, made from the good text.
fn bad_files(good: &str) -> Vec<(&'static str, String)> {
    vec![
        ("no TOML", format!("{good}\n[[[")),
        ("empty", String::new()),
        ("an unknown key", good.replace("[pool]\n", "[pool]\nsizze = 3\n")),
        (
            "weights above 100",
            good.replacen("reads = { source = 100, target = 0 }", "reads = { source = 100, target = 20 }", 1),
        ),
        (
            "fractional writes without mirroring",
            good.replacen(
                "writes = { source = 100, target = 0 }",
                "writes = { source = 90, target = 10 }",
                1,
            ),
        ),
        ("a table in two repositories", good.replace("\"public.users\"", "\"public.documents\"")),
        ("an unknown mirror", good.replacen("\ntables = ", "\nmirror = \"sideways\"\ntables = ", 1)),
        ("a port beyond", good.replacen("\nport = ", "\nport = 9", 1)),
        (
            "half a file",
            good[..good.len() / 2].trim_end().trim_end_matches(|c| c != '\n').to_owned() + "reads = {",
        ),
    ]
}

fn refusals(proxy: &Proxy) -> f64 {
    proxy.metric("config_reload_total", &[])
}

#[test]
fn a_bad_file_changes_nothing() {
    needs_proxy!();
    labelled("reload_bad");
    let mut proxy = Settings::new("reload_bad").start();
    let mut client = proxy.client("alice");
    let (good, hash) = (proxy.text(), proxy.live_hash());
    assert!(!hash.is_empty(), "crossfade_config_info is missing:\n{}", proxy.metrics());
    for (name, text) in bad_files(&good) {
        assert_ne!(text, good, "{name}");
        let before = refusals(&proxy);
        proxy.write_text(&text);
        wait_for(&format!("the refusal of {name}"), || refusals(&proxy) > before);
        assert_eq!(proxy.live_hash(), hash, "{name}");
        assert_eq!(client.run(WHERE).as_deref(), Some("source"), "{name}");
        proxy.client("alice").run("SELECT 1");
        // Back to the good one, so that the next is a change again.
        let before = refusals(&proxy);
        proxy.write_text(&good);
        // The same content need not count as a reload; the next refusal is told by its own increment.
        holds_throughout(Duration::from_millis(150), || refusals(&proxy) <= before);
    }
    let mut console = proxy.console("alice").expect("an admin");
    proxy.write_text("rubbish");
    let error = console.query("RELOAD").expect_err("RELOAD of rubbish");
    assert!(
        error.message.contains("proxy.toml") || error.message.contains("line") || !error.message.is_empty()
    );
    proxy.write_text(&good);
    console.query("RELOAD").expect("RELOAD of the good file");
    proxy.edit(|s| s.document_reads_target = 100);
    assert_eq!(client.run(WHERE).as_deref(), Some("target"));
    assert!(proxy.ended().is_none());
}

/// SIGHUP reads the file again and drops nobody.
#[test]
fn sighup() {
    needs_proxy!();
    labelled("reload_hup");
    let mut proxy = Settings::new("reload_hup").start();
    let mut client = proxy.client("alice");
    client.run("BEGIN");
    for _ in 0..5 {
        proxy.signal("HUP");
    }
    proxy.edit(|s| s.document_reads_target = 100);
    proxy.signal("HUP");
    client.run("SELECT 1; COMMIT");
    assert_eq!(client.run(WHERE).as_deref(), Some("target"));
    assert!(proxy.ended().is_none());
}

/// Users, limits and pool sizes are hot as well; who is logged in stays.
#[test]
fn users_are_hot() {
    needs_proxy!();
    labelled("reload_users");
    let mut proxy = Settings::new("reload_users").start();
    let mut bob = proxy.client("bob");
    let users = proxy.settings.users.clone();
    proxy.edit(|s| {
        s.users =
            users.split("[[user]]").filter(|u| !u.contains("\"bob\"")).collect::<Vec<_>>().join("[[user]]");
        s.admin = "admin_users = [\"alice\"]".to_owned();
    });
    assert_eq!(proxy.try_client("bob").expect_err("bob is gone").sqlstate, "28P01");
    assert_eq!(bob.run("SELECT 1").as_deref(), Some("1"));
    proxy.edit(|s| s.users = users);
    proxy.client("bob").run("SELECT 1");
}

/// A renewed certificate is shown to the next client.
#[test]
fn certificates_are_hot() {
    needs_proxy!();
    labelled("reload_tls");
    let dir = base_dir().join("hot-certificate");
    std::fs::create_dir_all(&dir).expect("the temp dir is writable");
    let (certificate, key) = authority().issue(&dir, "hot", "localhost");
    let mut settings = Settings::new("reload_tls");
    settings.client_tls =
        format!("mode = \"require\"\ncertificate = '{}'\nkey = '{}'\n", certificate.display(), key.display());
    let proxy = settings.start();
    let fingerprint = || {
        let mut wire = Wire::open(proxy.port, Cut::Whole).ok()?;
        wire.send(&frames::ssl_request());
        wire.byte().filter(|&b| b == b'S')?;
        wire.start_tls(None, false).ok()?;
        wire.binding()
    };
    let before = fingerprint();
    assert!(before.is_some());
    authority().issue(&dir, "hot", "localhost");
    wait_for("the new certificate", || fingerprint().is_some_and(|f| Some(f) != before));
}

//! Full pools: fairness over threads, clients that give up, cancel requests that come late.

use std::{
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use crate::support::{
    Rng,
    cluster::{database, oldest},
    frames, holds_within, needs_proxy,
    proxy::Settings,
    reply::Frame,
    seed, wait_for,
    wire::{Login, Next, Wire},
};

/// Nobody starves, whichever thread has the connections: also clients with other start-up parameters.
#[test]
fn nobody_starves() {
    needs_proxy!();
    database("op_fair");
    for size in [1, 3] {
        let mut settings = Settings::new("op_fair").transaction(size);
        settings.timeouts = "query_wait = \"20s\"".to_owned();
        let proxy = settings.start();
        let counts: Vec<AtomicUsize> = (0..12).map(|_| AtomicUsize::new(0)).collect();
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for (i, count) in counts.iter().enumerate() {
                let login =
                    proxy.login("alice").parameter("options", if i < 10 { "" } else { "-c work_mem=1MB" });
                let (stop, port) = (&stop, proxy.port);
                scope.spawn(move || busy(port, &login, if i < 10 { "4MB" } else { "1MB" }, stop, count));
            }
            let fair = holds_within(Duration::from_secs(10), || {
                counts.iter().all(|c| c.load(Ordering::Relaxed) >= 20)
            });
            stop.store(true, Ordering::Relaxed);
            let counts: Vec<usize> = counts.iter().map(|c| c.load(Ordering::Relaxed)).collect();
            assert!(fair, "{size} connections: {counts:?}");
        });
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = 'op_fair' AND usename = 'alice'";
        let used = oldest().admin("postgres").run(sql).expect("a count");
        assert!(used.parse::<usize>().expect("a number") <= size, "{used} connections, {size} allowed");
    }
}

fn busy(port: u16, login: &Login, expected: &str, stop: &AtomicBool, count: &AtomicUsize) {
    let mut client = Wire::connect(port, login).expect("login");
    while !stop.load(Ordering::Relaxed) {
        assert_eq!(client.run("SHOW work_mem").as_deref(), Some(expected));
        count.fetch_add(1, Ordering::Relaxed);
    }
}

/// Idle connections of one user give way to another user when the backend's budget is used up.
#[test]
fn idle_connections_make_room() {
    needs_proxy!();
    database("op_room");
    let mut settings = Settings::new("op_room").transaction(4);
    settings.timeouts = "query_wait = \"3s\"".to_owned();
    settings.environment = vec![("CROSSFADE_POOL__MAX_SERVER_CONNECTIONS".to_owned(), "4".to_owned())];
    let proxy = settings.start();
    let mut alices: Vec<Wire> = (0..4).map(|_| proxy.client("alice")).collect();
    for alice in &mut alices {
        alice.send(&frames::query("SELECT pg_sleep(0.1)"));
    }
    for alice in &mut alices {
        alice.until_ready(1).expect("served");
    }
    assert_eq!(proxy.client("bob").run("SELECT current_user::text").as_deref(), Some("bob"));
    for alice in &mut alices {
        assert_eq!(alice.run("SELECT current_user::text").as_deref(), Some("alice"));
    }
}

/// What a client that has gone was waiting for is not begun.
#[test]
fn the_dead_do_not_wait() {
    needs_proxy!();
    database("op_dead");
    let proxy = Settings::new("op_dead").transaction(1).start();
    let mut holder = proxy.client("alice");
    holder.run("BEGIN");
    for i in 0..4 {
        let mut client = proxy.client("alice");
        client.send(&frames::query(&format!("INSERT INTO users VALUES ({i}, 'ghost{i}')")));
        wait_for("the client to wait", || proxy.metric("pool_waiters", &["source"]) > 0.0);
        drop(client);
        wait_for("nobody to wait", || proxy.metric("pool_waiters", &["source"]) == 0.0);
    }
    holder.run("COMMIT");
    assert_eq!(holder.run("SELECT count(*) FROM users").as_deref(), Some("0"));
}

/// Runs a short statement and cancels it about when it ends; tells whether it was hit.
fn cancel_at_random(client: &mut Wire, rng: &mut Rng) -> bool {
    let (port, (pid, key)) = (client.port, client.key.clone().expect("logged in"));
    client.send(&frames::query(&format!("SELECT pg_sleep(0.00{})", rng.below(10))));
    std::thread::sleep(Duration::from_micros(rng.next() % 9_000));
    let late = std::thread::spawn(move || crate::support::wire::cancel(port, pid, &key));
    let frames = client.until_ready(1).expect("answered");
    let hit = frames.iter().find(|f| f.kind == b'E').map(Frame::sqlstate);
    assert!(hit.as_deref().is_none_or(|code| code == "57014"), "{hit:?}");
    // The request is over before the next statement of the same client, which it may rightly hit.
    late.join().expect("sent");
    hit.is_some()
}

/// A cancel request reaches what runs for its client and nothing else, however late it comes.
#[test]
fn late_cancels_hit_nobody() {
    needs_proxy!();
    database("op_cancel");
    let seed = seed("late_cancels");
    let proxy = Settings::new("op_cancel").transaction(2).start();
    let (stop, cancelled) = (AtomicBool::new(false), AtomicUsize::new(0));
    let end = Instant::now() + Duration::from_secs(4);
    std::thread::scope(|scope| {
        for i in 0..4_u64 {
            let (proxy, cancelled) = (&proxy, &cancelled);
            let mut rng = Rng(seed + i);
            scope.spawn(move || {
                let mut client = proxy.client("alice");
                while Instant::now() < end {
                    let hit = cancel_at_random(&mut client, &mut rng);
                    cancelled.fetch_add(usize::from(hit), Ordering::Relaxed);
                }
            });
        }
        for _ in 0..3 {
            let (proxy, stop) = (&proxy, &stop);
            scope.spawn(move || {
                let mut client = proxy.client("alice");
                while !stop.load(Ordering::Relaxed) && Instant::now() < end {
                    client.run("SELECT pg_sleep(0.001)");
                }
            });
        }
    });
    assert!(cancelled.load(Ordering::Relaxed) > 20, "{cancelled:?} statements were cancelled");
    // A client that waits for a connection can cancel, too.
    let (mut a, mut b, mut waiter) = (proxy.client("alice"), proxy.client("alice"), proxy.client("alice"));
    a.run("BEGIN");
    b.run("BEGIN");
    waiter.send(&frames::query("SELECT 1"));
    assert_eq!(waiter.next(Duration::from_millis(200)), Next::Quiet);
    waiter.cancel();
    let frames = waiter.until_ready(1).expect("answered");
    assert_eq!(crate::support::reply::short(&frames), "E(57014) ZI");
}

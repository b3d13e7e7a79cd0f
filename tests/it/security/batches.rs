//! A client that sends batches without end, or prepares without end: bounded memory, or one clear error.

use std::time::Duration;

use crate::support::{
    cluster::database,
    frames::{bind, close, execute, extended, flush, parse, query, sync},
    needs_proxy,
    proxy::{Proxy, Settings},
    wire::{Next, Wire},
};

fn start(name: &str, transaction: bool, limits: &str) -> Proxy {
    let mut settings = Settings::new(name);
    if transaction {
        settings = settings.transaction(1);
    }
    limits.clone_into(&mut settings.limits);
    settings.start()
}

/// The SQLSTATE of the next error.
fn error(client: &mut Wire) -> String {
    loop {
        match client.next(Duration::from_secs(10)) {
            Next::Frame(frame) if frame.kind == b'E' => return frame.sqlstate(),
            Next::Frame(_) => {}
            end @ (Next::Quiet | Next::Eof) => panic!("no error but {end:?}"),
        }
    }
}

#[test]
fn changes_of_names_are_not_kept() {
    needs_proxy!();
    database("sec_batch_names");
    for transaction in [false, true] {
        let proxy = start("sec_batch_names", transaction, "");
        let mut client = proxy.client("alice");
        let changes = [parse("n", "SELECT 1"), close(b'S', "n")].concat();
        let chunk = [changes.repeat(2000), flush()].concat();
        let mut before = 0;
        client.send(&[parse("", "SELECT 2"), bind("", "", &[])].concat());
        for round in 0..60 {
            client.send(&chunk);
            for _ in 0..4000 {
                client.frame(Duration::from_secs(10)).expect("an answer");
            }
            if round == 5 {
                before = proxy.resident_kib();
            }
        }
        let grown = proxy.resident_kib().saturating_sub(before);
        assert!(grown < 6_000, "{grown} KiB more for 216 000 changes, transaction pooling: {transaction}");
        // So many that the server is to answer before its buffer is full.
        client.send(&[changes.repeat(20_000), execute("", 0), sync()].concat());
        client.until_ready(1).expect("all of it was answered");
    }
}

#[test]
fn batches_of_very_many_statements() {
    needs_proxy!();
    database("sec_batch_long");
    let proxy = start("sec_batch_long", false, "max_batch_statements = 50");
    let mut client = proxy.client("alice");
    // The same ones over and over may be as many as they like.
    let pair = [extended("SELECT 1", &[]), extended("SELECT id FROM users", &[])].concat();
    client.send(&flush_each(&pair, 200));
    client.send(&sync());
    client.until_ready(1).expect("all of it was answered");
    let different = |i| extended(&format!("SELECT 1 AS c{i}"), &[]);
    client.send(&[(0..40).flat_map(|i| [different(i), flush()].concat()).collect(), sync()].concat());
    client.until_ready(1).expect("fewer than the limit");
    client.send(&(0..60).flat_map(|i| [different(i), flush()].concat()).collect::<Vec<_>>());
    assert_eq!(error(&mut client), "54000");
    assert!(client.closes_within(Duration::from_secs(3)));
}

fn flush_each(bytes: &[u8], times: usize) -> Vec<u8> {
    [bytes, &flush()].concat().repeat(times)
}

#[test]
fn very_many_names() {
    needs_proxy!();
    database("sec_names");
    for transaction in [false, true] {
        let proxy = start("sec_names", transaction, "max_client_statements = 20");
        let mut client = proxy.client("alice");
        let named = |i: usize| [parse(&format!("n{i}"), "SELECT 1"), sync()].concat();
        for i in 0..20 {
            client.send(&named(i));
            let answer = client.until_ready(1).expect("an answer");
            assert!(answer.iter().all(|f| f.kind != b'E'), "name {i}: {answer:?}");
        }
        for refused in [
            named(20),
            query("PREPARE other AS SELECT 1"),
            [extended("PREPARE other AS SELECT 1", &[]), sync()].concat(),
        ] {
            client.send(&refused);
            assert_eq!(error(&mut client), "54000");
            client.until_ready(1).expect("the session goes on");
        }
        client.send(&[parse("", "SELECT 1"), bind("", "n3", &[]), execute("", 0), sync()].concat());
        let answer = client.until_ready(1).expect("an answer");
        assert!(answer.iter().any(|f| f.kind == b'D'), "what is there can be used: {answer:?}");
        client.run("DEALLOCATE n3");
        client.send(&named(20));
        assert!(client.until_ready(1).expect("an answer").iter().all(|f| f.kind != b'E'));
    }
}

//! The same bytes to Postgres and through crossfade; the answers must be equal.
//!
//! The oracle is tested too: what a case says Postgres answers ([`Case::golden`]) is asserted on the direct connection.

#[rustfmt::skip] // a table reads best with its rows as they are
mod cases;
mod random;
mod startup;

use std::time::Duration;

use crate::support::{
    cluster::{Cluster, newest, oldest},
    frames, holds_within, needs_proxy,
    proxy::{Proxy, Settings},
    reply::Frame,
    wire::{Cut, Login, Next, Wire, cancel},
};

/// What a case does next.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// Sends these bytes as one flight.
    Send(Vec<u8>),
    /// Reads up to the `n`th `ReadyForQuery`.
    Ready(usize),
    /// Reads up to the first message of this type.
    Until(u8),
    /// Reads until nothing more comes.
    Quiet,
    /// Reads to the end of the connection.
    Eof,
    /// A superuser repeats this on another connection until it returns a row.
    Elsewhere(&'static str),
    /// Sends a `CancelRequest` and waits for the end of its socket.
    Cancel,
    /// The same with another key.
    CancelWrongKey,
    /// Reads the one byte that answers an `SSLRequest` or `GSSENCRequest`.
    Byte,
    /// Goes over to TLS, with or without ALPN.
    Tls(bool),
    /// Sends a `StartupMessage` of this version with these parameters besides user and database, and logs in.
    Login(i32, &'static [(&'static str, &'static str)]),
}

/// Where a case must hold.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Where {
    /// In both pool modes, in every cut, with and without TLS.
    All,
    /// In both pool modes, but once only: it takes time, or its bytes are many.
    Once,
    /// In session pooling only, once: the connection dies with the server's own words.
    Session,
}

/// One row of the table.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) at: Where,
    pub(crate) steps: Vec<Step>,
    /// What Postgres answers, in the notation of `wire::short`. `C` stands for any tag, `E` for any SQLSTATE. Where
    /// majors differ: below 18 `||` from 18 on.
    pub(crate) golden: &'static str,
}

/// What was read: each message in short and in full, and how many each step brought.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Transcript {
    pub(crate) short: Vec<String>,
    pub(crate) full: Vec<String>,
    counts: Vec<usize>,
}

impl Transcript {
    fn push(&mut self, frame: &Frame) {
        self.short.push(frame.short());
        self.full.push(frame.full());
    }

    fn note(&mut self, text: &str) {
        self.short.push(text.to_owned());
        self.full.push(text.to_owned());
    }

    fn at_end(&self) -> bool {
        self.short.last().is_some_and(|t| t == "EOF")
    }
}

/// How long silence must last until the oracle believes it. The proxy is given the oracle's number of messages, and
/// then [`EXCESS`] to say too much.
const SILENCE: Duration = Duration::from_millis(120);
const EXCESS: Duration = Duration::from_millis(15);
/// Longest wait for one message.
const LIMIT: Duration = Duration::from_secs(6);

/// Plays the steps. With an `oracle`, [`Step::Quiet`] waits for as many messages as it had.
pub(crate) fn play(
    wire: &mut Wire,
    login: &Login,
    steps: &[Step],
    admin: &mut Wire,
    oracle: Option<&Transcript>,
) -> Transcript {
    let mut seen = Transcript::default();
    for (i, step) in steps.iter().enumerate() {
        let before = seen.short.len();
        match step {
            Step::Send(bytes) => wire.send(bytes),
            Step::Ready(n) => {
                let mut left = *n;
                read(wire, &mut seen, |frame| {
                    left -= usize::from(frame.kind == b'Z');
                    left == 0
                });
            }
            Step::Until(kind) => read(wire, &mut seen, |frame| frame.kind == *kind),
            Step::Eof => read(wire, &mut seen, |_| false),
            Step::Quiet => read_quiet(wire, &mut seen, oracle.and_then(|o| o.counts.get(i).copied())),
            Step::Elsewhere(sql) => {
                if !holds_within(LIMIT, || admin.query(sql).is_ok_and(|rows| !rows.is_empty())) {
                    seen.note("NOTHING-ELSEWHERE");
                }
            }
            Step::Cancel => wire.cancel(),
            Step::CancelWrongKey => {
                let (pid, mut key) = wire.key.clone().expect("logged in");
                key[0] ^= 0x55;
                if cancel(wire.port, pid, &key) > 0 {
                    seen.note("CANCEL-WAS-ANSWERED");
                }
            }
            Step::Byte => {
                let byte = wire.byte().map_or_else(|| "EOF".to_owned(), |b| (b as char).to_string());
                seen.note(&byte);
                if byte == "G" {
                    // GSSAPI it is, which we do not speak.
                    break;
                }
            }
            Step::Tls(alpn) => {
                if wire.start_tls(None, *alpn).is_err() {
                    seen.note("NO-TLS");
                }
            }
            Step::Login(version, parameters) => play_login(wire, login, *version, parameters, &mut seen),
        }
        seen.counts.push(seen.short.len() - before);
    }
    if !seen.at_end() {
        wire.send(&frames::terminate());
        read(wire, &mut seen, |_| false);
    }
    seen
}

fn play_login(wire: &mut Wire, login: &Login, version: i32, more: &[(&str, &str)], seen: &mut Transcript) {
    let mut login = login.clone();
    login.version = version;
    login.parameters.extend(more.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())));
    wire.send(&login.startup());
    let (frames, end) = wire.authenticate(&login, false);
    let failed = frames.last().is_none_or(|f| f.kind == b'E');
    for frame in &frames {
        // Who says "authenticated" first, the server or its database check, is nobody's business; the parameters have
        // a test of their own.
        if frame.kind != b'S' && !(failed && matches!(frame.short().as_str(), "R0" | "R12")) {
            seen.push(frame);
        }
    }
    if end == Next::Eof {
        seen.note("EOF");
    }
}

/// Reads until `enough` says so, or the end, which is noted.
fn read(wire: &mut Wire, seen: &mut Transcript, mut enough: impl FnMut(&Frame) -> bool) {
    if seen.at_end() {
        return;
    }
    loop {
        match wire.next(LIMIT) {
            Next::Frame(frame) => {
                seen.push(&frame);
                if enough(&frame) {
                    return;
                }
            }
            Next::Quiet => return seen.note("SILENCE"),
            Next::Eof => return seen.note("EOF"),
        }
    }
}

fn read_quiet(wire: &mut Wire, seen: &mut Transcript, expected: Option<usize>) {
    let mut count = 0;
    while !seen.at_end() {
        let limit = match expected {
            None => SILENCE,
            Some(n) if count < n => LIMIT,
            Some(_) => EXCESS,
        };
        match wire.next(limit) {
            Next::Frame(frame) => seen.push(&frame),
            Next::Quiet => return,
            Next::Eof => seen.note("EOF"),
        }
        count += 1;
    }
}

/// True when the transcript is the golden one.
fn is_golden(golden: &str, major: u32, seen: &[String]) -> bool {
    let golden = match golden.split_once("||") {
        Some((old, new)) => {
            if major < 18 {
                old
            } else {
                new
            }
        }
        None => golden,
    };
    let tokens: Vec<&str> = golden.split_whitespace().collect();
    let same = |(token, seen): (&&str, &String)| {
        seen == token || seen.strip_prefix(*token).is_some_and(|rest| rest.starts_with(['(', '[']))
    };
    tokens.len() == seen.len() && tokens.iter().zip(seen).all(same)
}

/// The rows every case begins with.
const RESET: &str = "DELETE FROM documents; DELETE FROM users; DELETE FROM organizations; DELETE FROM deferred; DELETE FROM people;
    INSERT INTO documents SELECT i, 'title ' || i, i FROM generate_series(1, 10) i;
    INSERT INTO deferred VALUES (1, 1)";

/// One way of sending a case.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Way {
    tls: bool,
    cut: Cut,
}

const WAYS: [Way; 4] = [
    Way { tls: false, cut: Cut::Whole },
    Way { tls: true, cut: Cut::Whole },
    Way { tls: false, cut: Cut::Bytes },
    Way { tls: true, cut: Cut::Random(7) },
];

/// Logs in and plays a case on fresh rows.
fn run_case(
    port: u16,
    login: &Login,
    steps: &[Step],
    admin: &mut Wire,
    oracle: Option<&Transcript>,
) -> Transcript {
    admin.run(RESET);
    match Wire::connect(port, login) {
        Ok(mut wire) => play(&mut wire, login, steps, admin, oracle),
        Err(error) => {
            let mut seen = Transcript::default();
            seen.note(&format!("NO-LOGIN {error:?}"));
            seen
        }
    }
}

/// The table against Postgres itself.
fn check_golden(cluster: &Cluster, database: &str) {
    cluster.database(database);
    let mut admin = cluster.admin(database);
    let login = Login::new("alice", "alice-pw", database);
    let mut wrong = Vec::new();
    for case in cases::all() {
        let seen = run_case(cluster.port, &login, &case.steps, &mut admin, None);
        if !is_golden(case.golden, cluster.major, &seen.short) {
            wrong.push(format!("{}\n  golden {}\n  seen   {}", case.name, case.golden, seen.short.join(" ")));
        }
    }
    assert!(wrong.is_empty(), "Postgres {}: {} cases:\n{}", cluster.major, wrong.len(), wrong.join("\n"));
}

/// The table through the proxy, against what Postgres answered to the same bytes a moment ago.
fn check_equal(source: &Cluster, target: &Cluster, database: &str, transaction: bool) {
    source.database(database);
    target.database(database);
    let mut settings = Settings::new(database).backends(source, target).tls("prefer");
    if transaction {
        settings = settings.transaction(5);
    }
    let proxy = settings.start();
    let mut admin = source.admin(database);
    let mut wrong = Vec::new();
    let mut runs = 0;
    for case in cases::all() {
        let ways = match case.at {
            Where::All => &WAYS[..],
            Where::Session if transaction => &[],
            Where::Once | Where::Session => &WAYS[..1],
        };
        if ways.is_empty() {
            continue;
        }
        let direct = proxy.login("alice");
        let oracle = run_case(source.port, &direct, &case.steps, &mut admin, None);
        for way in ways {
            runs += 1;
            let login = proxy.login("alice").tls(way.tls).cut(way.cut);
            let seen = run_case(proxy.port, &login, &case.steps, &mut admin, Some(&oracle));
            if seen.full != oracle.full {
                wrong.push(difference(case.name, *way, &oracle, &seen));
                break;
            }
        }
    }
    report(&proxy, runs, &wrong);
}

fn difference(name: &str, way: Way, oracle: &Transcript, seen: &Transcript) -> String {
    let at = oracle.full.iter().zip(&seen.full).take_while(|(a, b)| a == b).count();
    let of = |t: &Transcript| t.full.get(at).map_or("(nothing)", String::as_str).to_owned();
    format!(
        "{name} ({way:?})\n  Postgres  {}\n  crossfade {}\n  message {at}:\n    {}\n    {}",
        oracle.short.join(" "),
        seen.short.join(" "),
        of(oracle),
        of(seen)
    )
}

fn report(proxy: &Proxy, runs: usize, wrong: &[String]) {
    assert!(
        wrong.is_empty(),
        "{} of {runs} runs differ (source port {}):\n{}",
        wrong.len(),
        proxy.settings.source,
        wrong.join("\n")
    );
    println!("{runs} runs equal");
}

#[test]
fn golden_oldest() {
    check_golden(oldest(), "golden_oldest");
}

#[test]
fn golden_newest() {
    check_golden(newest(), "golden_newest");
}

#[test]
fn session_oldest() {
    check_equal(oldest(), newest(), "diff_session_oldest", false);
}

#[test]
fn session_newest() {
    check_equal(newest(), oldest(), "diff_session_newest", false);
}

#[test]
fn transaction_oldest() {
    check_equal(oldest(), newest(), "diff_transaction_oldest", true);
}

#[test]
fn transaction_newest() {
    check_equal(newest(), oldest(), "diff_transaction_newest", true);
}

/// A statement prepared by one client, its name used by another with other text, on a pool of one connection.
#[test]
fn names_are_per_client() {
    needs_proxy!();
    crate::support::cluster::database("diff_names");
    let proxy = Settings::new("diff_names").transaction(1).start();
    let mut clients: Vec<Wire> = (0..4).map(|_| proxy.client("alice")).collect();
    for (i, client) in clients.iter_mut().enumerate() {
        client.send(&[frames::parse("same", &format!("SELECT {i}")), frames::sync()].concat());
        client.until_ready(1).expect("parsed");
    }
    for round in 0..3 {
        for (i, client) in clients.iter_mut().enumerate() {
            client.send(&[frames::bind("", "same", &[]), frames::execute("", 0), frames::sync()].concat());
            let frames = client.until_ready(1).expect("executed");
            let row = frames.iter().find(|f| f.kind == b'D').map(Frame::columns);
            assert_eq!(row, Some(vec![Some(i.to_string())]), "client {i}, round {round}");
        }
    }
}

/// Names that the extended protocol makes and takes away by executing SQL hold on both sides: reads of documents go to
/// the target, or nothing does.
#[test]
fn names_made_in_batches_hold_on_both_sides() {
    needs_proxy!();
    let name = "diff_batch_names";
    let (users, documents) = ("SELECT count(*) FROM users", "SELECT id FROM documents ORDER BY id LIMIT 2");
    let run = |sql: &str| [frames::extended(sql, &[]), frames::sync()].concat();
    let parsed = |sql: &str| [frames::parse("b", sql), frames::sync()].concat();
    let bound = || [frames::bind("", "b", &[]), frames::execute("", 0), frames::sync()].concat();
    let prepare = |sql: &str| format!("PREPARE b AS {sql}");
    let flights = [
        run(&prepare(documents)),
        parsed(users),
        parsed(documents),
        bound(),
        run("EXECUTE b"),
        // Bound, and never executed.
        [frames::parse("", "DEALLOCATE b"), frames::bind("", "", &[]), frames::sync()].concat(),
        parsed(documents),
        // Skipped by the server.
        [frames::parse("", "SELEC"), frames::extended("DEALLOCATE b", &[]), frames::sync()].concat(),
        parsed(documents),
        run("DEALLOCATE b"),
        bound(),
        run(&prepare(users)),
        parsed(documents),
        bound(),
        run(&prepare(users)),
        run("DEALLOCATE ALL"),
        parsed(documents),
        bound(),
        run("DISCARD ALL"),
        bound(),
        // Bound in one batch, executed in another one.
        [
            frames::query("BEGIN"),
            frames::parse("", &prepare(users)),
            frames::bind("p", "", &[]),
            frames::sync(),
            frames::execute("p", 0),
            frames::sync(),
            frames::query("COMMIT"),
        ]
        .concat(),
        parsed(documents),
        bound(),
    ];
    let ready = |bytes: &[u8]| Step::Ready(frames::count(bytes, b"SQ"));
    let steps: Vec<Step> = flights.into_iter().flat_map(|f| [Step::Send(f.clone()), ready(&f)]).collect();
    let cluster = newest();
    cluster.database(name);
    let mut admin = cluster.admin(name);
    for (transaction, reads) in [(false, 100), (true, 100), (false, 0), (true, 0)] {
        let mut settings = Settings::new(name).backends(cluster, cluster);
        settings.document_reads_target = reads;
        let proxy = if transaction { settings.transaction(2) } else { settings }.start();
        let login = proxy.login("alice");
        let oracle = run_case(cluster.port, &login, &steps, &mut admin, None);
        let seen = run_case(proxy.port, &login, &steps, &mut admin, Some(&oracle));
        let what = format!("transaction pooling: {transaction}, reads on the target: {reads}");
        assert_eq!(seen.short, oracle.short, "{what}\n{}", difference(name, WAYS[0], &oracle, &seen));
    }
}

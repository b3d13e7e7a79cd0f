//! Random sequences of messages, legal and not: the same bytes to Postgres and through crossfade.
//!
//! `CROSSFADE_SEED` plays a run again, `CROSSFADE_ROUNDS` sets its length.

use super::{LIMIT, RESET, Transcript, Way, difference};
use crate::support::{
    Rng,
    cluster::{Cluster, newest, oldest},
    env_number,
    frames::{
        bind, close, copy_data, copy_done, copy_fail, describe, execute, flush, frame, parse, query, sync,
        terminate,
    },
    proxy::Settings,
    seed, wait_for,
    wire::{Cut, Login, Next, Wire},
};

const NAMES: [&str; 3] = ["", "a", "b"];

const STATEMENTS: [&str; 23] = [
    "SELECT 1",
    "SELECT id FROM documents ORDER BY id LIMIT 4",
    "SELECT $1::text",
    "INSERT INTO users VALUES (1, 'a')",
    "INSERT INTO users SELECT 2, 'b' RETURNING id",
    "SELECT 1/0",
    "SELEC",
    "",
    "BEGIN",
    "COMMIT",
    "ROLLBACK",
    "SAVEPOINT s",
    "ROLLBACK TO s",
    "SET application_name = 'r'",
    "COPY users FROM STDIN",
    "COPY (SELECT 1) TO STDOUT",
    "PREPARE b AS SELECT id FROM documents ORDER BY id LIMIT 2",
    "EXECUTE a",
    "EXECUTE b",
    "DEALLOCATE b",
    "SELECT title FROM documents ORDER BY id",
    "BEGIN READ ONLY",
    "SET LOCAL work_mem = '7MB'",
];

/// Texts that only a simple query can carry, besides [`STATEMENTS`].
const TEXTS: [&str; 16] = [
    "SELECT 1; SELECT 2",
    "SELECT 1; SELECT 1/0; SELECT 3",
    "BEGIN; SELECT 1",
    "COMMIT; BEGIN",
    "PREPARE a AS SELECT 'prepared'",
    "EXECUTE a",
    "DEALLOCATE a",
    "DEALLOCATE ALL",
    "SET LOCAL DateStyle = 'German'",
    "DECLARE a CURSOR FOR SELECT id FROM documents ORDER BY id",
    "FETCH 1 FROM a",
    "DISCARD ALL",
    "SELECT sum(n) FROM documents WHERE id < 5; SELECT 1",
    "CREATE FUNCTION pg_temp.f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "PREPARE b (int) AS SELECT id FROM documents WHERE id = $1",
    "EXECUTE b (2)",
];

/// A Parse. Statements that execute themselves, or one another, bring Postgres itself down: EXECUTE gets no name.
fn some_parse(rng: &mut Rng, name: &str) -> Vec<u8> {
    let sql = rng.pick(&STATEMENTS);
    parse(if sql.starts_with("EXECUTE") { "" } else { name }, sql)
}

fn message(rng: &mut Rng) -> Vec<u8> {
    let (name, other) = (rng.pick(&NAMES), rng.pick(&NAMES));
    match rng.below(24) {
        0..=3 => some_parse(rng, name),
        4..=7 => bind(name, other, if rng.chance(15) { &["v"] } else { &[] }),
        8 | 9 => describe(rng.pick(b"SP"), name),
        10..=13 => execute(name, i32::try_from(rng.below(3)).expect("small")),
        14 => close(rng.pick(b"SP"), name),
        15 => flush(),
        16..=18 => sync(),
        19 => query(rng.pick(&STATEMENTS)),
        20 => query(rng.pick(&TEXTS)),
        21 => copy_data(rng.pick(&["7\tx\n", "y", ""])),
        22 => {
            if rng.chance(50) {
                copy_done()
            } else {
                copy_fail("enough")
            }
        }
        _ => frame(rng.pick(b"PBDECSQ"), rng.pick(&[&b""[..], b"\0", b"x", b"\0\0\0\0"])),
    }
}

/// A whole batch that makes sense, so that the random part does not live among errors only.
fn sensible(rng: &mut Rng) -> Vec<u8> {
    let name = rng.pick(&NAMES);
    let rows = i32::try_from(rng.below(3)).expect("small");
    let mut out = [close(b'S', name), some_parse(rng, name), bind(name, name, &[])].concat();
    if rng.chance(50) {
        out.extend(describe(b'P', name));
    }
    out.extend(execute(name, rows));
    if rng.chance(70) {
        out.extend(sync());
    }
    out
}

/// A marker that shows that all has been answered, whatever state the connection is in.
const MARK: &str = "the end";

fn sequence(rng: &mut Rng) -> Vec<u8> {
    let mut bytes = Vec::new();
    for _ in 0..3 + rng.below(14) {
        bytes.extend(if rng.chance(25) { sensible(rng) } else { message(rng) });
    }
    bytes.extend([copy_fail("over"), sync(), query("ROLLBACK"), query(&format!("SELECT '{MARK}'"))].concat());
    bytes
}

fn run(port: u16, login: &Login, bytes: &[u8], admin: &mut Wire) -> Transcript {
    admin.run(RESET);
    let mut seen = Transcript::default();
    let mut wire = match Wire::connect(port, login) {
        Ok(wire) => wire,
        Err(error) => {
            seen.note(&format!("NO-LOGIN {error:?}"));
            return seen;
        }
    };
    wire.send(bytes);
    let mut marked = false;
    loop {
        match wire.next(LIMIT) {
            Next::Frame(frame) => {
                seen.push(&frame);
                marked |= frame.kind == b'D' && frame.columns() == [Some(MARK.to_owned())];
                if marked && frame.kind == b'Z' {
                    // Whatever comes after this is too much.
                    wire.send(&terminate());
                }
            }
            Next::Eof => {
                seen.note("EOF");
                return seen;
            }
            Next::Quiet => {
                seen.note("SILENCE");
                return seen;
            }
        }
    }
}

/// Sends random sequences. A share of `reads` percent of what reads documents alone, which nothing here changes, goes
/// to the target: what comes back must be what the source says.
fn check(sides: [&Cluster; 2], database: &str, transaction: bool, reads: u32) {
    check_with(sides, database, |settings| {
        settings.document_reads_target = reads;
        if transaction {
            (settings.pool_mode, settings.pool_size) = ("transaction", 3);
        }
    });
}

fn check_with([source, target]: [&Cluster; 2], database: &str, change: impl FnOnce(&mut Settings)) {
    source.database(database);
    if target.port != source.port {
        target.database(database);
    }
    target.admin(database).run(RESET);
    let start = seed(database);
    let rounds = env_number("CROSSFADE_ROUNDS").unwrap_or(150);
    let mut settings = Settings::new(database).backends(source, target).tls("prefer");
    change(&mut settings);
    let (reads, mirrored) = (settings.document_reads_target, !settings.mirror.is_empty());
    let proxy = settings.start();
    let mut admin = source.admin(database);
    let mut wrong = Vec::new();
    for round in 0..rounds {
        let mut rng = Rng(start.wrapping_add(round));
        let bytes = sequence(&mut rng);
        let cut = rng.pick(&[Cut::Whole, Cut::Random(start), Cut::Bytes]);
        let way = Way { tls: rng.chance(30), cut };
        let oracle = run(source.port, &proxy.login("alice"), &bytes, &mut admin);
        assert!(
            !oracle.short.iter().any(|t| t == "SILENCE"),
            "seed {start} round {round}: the oracle hangs: {oracle:?}"
        );
        // Some sequences bring Postgres itself down, which says nothing about crossfade.
        if admin.query("SELECT").is_err() {
            println!("seed {start} round {round} crashes Postgres: {}", letters(&bytes));
            wait_for("Postgres to recover", || {
                let up = Wire::connect(source.port, &Login::new("postgres", "secret", database));
                up.map(|wire| admin = wire).is_ok() && proxy.try_client("alice").is_ok()
            });
            continue;
        }
        // A simple Query in an extended batch leads Postgres 18 into a state of its own making.
        if oracle.short.iter().any(|t| t.contains("(XX000)")) {
            continue;
        }
        let seen = run(proxy.port, &proxy.login("alice").tls(way.tls).cut(way.cut), &bytes, &mut admin);
        // What is refused because the block cannot move says so, and is documented.
        let refused = reads > 0 && seen.short.iter().any(|t| t == "E(0A000)")
            || mirrored && seen.short.iter().any(|t| t == "E!(0A000)");
        if !refused && !equal(&oracle, &seen) {
            let again = format!(
                "CROSSFADE_SEED={} CROSSFADE_ROUNDS=1, sent {}",
                start.wrapping_add(round),
                letters(&bytes)
            );
            wrong.push(difference(&again, way, &oracle, &seen));
        }
        if wrong.len() >= 10 {
            break;
        }
    }
    assert!(wrong.is_empty(), "{} sequences differ:\n{}", wrong.len(), wrong.join("\n"));
}

/// A connection that ends with a FATAL error while bytes are still on their way is reset, and the reset may overtake
/// the last messages: then one transcript may be shorter.
fn equal(a: &Transcript, b: &Transcript) -> bool {
    let fatal = |t: &Transcript| t.short.iter().any(|token| token.starts_with("E!"));
    if !fatal(a) && !fatal(b) {
        // What a pooled server has not seen yet cannot be prepared on it in a failed transaction: the error is that one.
        let failed = |(x, y): (&String, &String)| x == y || x == "E(08P01)" && y.starts_with("E(25P02)");
        return a.full.len() == b.full.len() && a.full.iter().zip(&b.full).all(failed);
    }
    a.at_end() && b.at_end() && a.full.iter().zip(&b.full).all(|(x, y)| x == y || x == "EOF" || y == "EOF")
}

/// The messages sent, readable.
fn letters(mut bytes: &[u8]) -> String {
    let mut out = Vec::new();
    while bytes.len() >= 5 {
        let length = u32::from_be_bytes(bytes[1..5].try_into().expect("four bytes")) as usize;
        out.push(format!("{}[{}]", bytes[0] as char, bytes[5..=length].escape_ascii()));
        bytes = &bytes[length + 1..];
    }
    out.join(" ")
}

#[test]
fn random_session() {
    check([oldest(), newest()], "random_session", false, 0);
}

/// Both sides of one major: what they say to a simple Query in a batch depends on it.
#[test]
fn random_session_weighted() {
    check([newest(), newest()], "random_session_weighted", false, 50);
}

#[test]
fn random_transaction_weighted() {
    check([oldest(), oldest()], "random_transaction_weighted", true, 50);
}

#[test]
fn random_transaction() {
    check([newest(), oldest()], "random_transaction", true, 0);
}

/// Writes are shipped to the other major meanwhile, and nobody can tell.
#[test]
fn random_session_mirrored() {
    check_with([oldest(), newest()], "random_session_mirrored", |s| {
        s.mirror = "mirror = \"journaled\"".into();
    });
}

#[test]
fn random_transaction_mirrored() {
    check_with([newest(), oldest()], "random_transaction_mirrored", |s| {
        s.mirror = "mirror = \"atomic\"".into();
        (s.pool_mode, s.pool_size) = ("transaction", 3);
    });
}

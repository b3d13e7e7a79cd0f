//! Byte-exact cases, and real drivers over a loopback socket.

use std::pin::pin;

use tokio::{
    io::DuplexStream,
    net::{TcpListener, TcpStream},
    sync::oneshot,
};
use tokio_postgres::{NoTls, SimpleQueryMessage, error::SqlState};

use super::*;
use crate::admin::console::{Role, tests::Fake};

fn caller(role: Role) -> Caller<'static> {
    Caller { user: "eve", role, client: 5, process_id: 77 }
}

/// A frontend message.
fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut out = BytesMut::new();
    frame::put(&mut out, kind, |out| out.put_slice(body));
    out.to_vec()
}

fn parse_message(name: &str, text: &str) -> Vec<u8> {
    message(b'P', format!("{name}\0{text}\0\0\0").as_bytes())
}

fn bind_message(portal: &str, statement: &str, formats: &[u16]) -> Vec<u8> {
    let mut body = format!("{portal}\0{statement}\0\0\0\0\0").into_bytes();
    body.put_u16(u16::try_from(formats.len()).unwrap());
    for format in formats {
        body.put_u16(*format);
    }
    message(b'B', &body)
}

fn execute_message(portal: &str, limit: i32) -> Vec<u8> {
    let mut body = format!("{portal}\0").into_bytes();
    body.put_i32(limit);
    message(b'E', &body)
}

fn query(text: &str) -> Vec<u8> {
    message(b'Q', format!("{text}\0").as_bytes())
}

/// What the console answers to `input`, letters only: errors with their SQLSTATE, tags, status. `cut` is
/// the size of the pieces the input arrives in.
async fn answer(input: &[u8], cut: usize, role: Role) -> String {
    let fake = Fake { clients: 5, ..Fake::default() };
    let (mut client, server) = tokio::io::duplex(64);
    let talk = async {
        let (mut read, mut write) = tokio::io::split(&mut client);
        let send = async {
            for piece in input.chunks(cut) {
                if write.write_all(piece).await.is_err() {
                    break;
                }
            }
            let _ = write.shutdown().await;
        };
        let mut all = Vec::new();
        let receive = async { drop(read.read_to_end(&mut all).await) };
        tokio::join!(send, receive);
        all
    };
    let serve = serve(server, &[], caller(role), &[1, 2, 3, 4], &fake, std::future::pending());
    let (result, all) = tokio::join!(serve, talk);
    result.unwrap();
    let words = describe_frames(&all);
    // The greeting ends with the first ReadyForQuery.
    words.split_once("ZI").map_or(String::new(), |(_, rest)| rest.trim().to_owned())
}

fn describe_frames(mut bytes: &[u8]) -> String {
    let mut words = Vec::new();
    while let [kind, rest @ ..] = bytes {
        let Some(length) = rest.first_chunk() else { break };
        let length = usize::try_from(u32::from_be_bytes(*length)).unwrap();
        // The last frame may be on its way.
        let Some((frame, rest)) = rest.split_at_checked(length) else { break };
        let body = &frame[4..];
        let text = String::from_utf8_lossy(body);
        words.push(match kind {
            b'E' => {
                let field =
                    |code| text.split('\0').find_map(|f| f.strip_prefix(code)).unwrap_or("").to_owned();
                let fatal = if field('S') == "FATAL" { "FATAL" } else { "E" };
                format!("{fatal}[{}]", field('C'))
            }
            b'C' => format!("C[{}]", text.trim_end_matches('\0')),
            b'Z' => format!("Z{text}"),
            _ => char::from(*kind).to_string(),
        });
        bytes = rest;
    }
    words.join(" ")
}

/// The answer must not depend on where the input is cut.
#[track_caller]
fn check(input: &[Vec<u8>], expected: &str) {
    let input = input.concat();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    for cut in [input.len().max(1), 1, 3] {
        assert_eq!(runtime.block_on(answer(&input, cut, Role::Admin)), expected, "pieces of {cut}");
    }
}

fn sync() -> Vec<u8> {
    message(b'S', b"")
}

#[test]
fn simple_queries() {
    check(&[query("SHOW VERSION")], "T D C[SHOW] ZI");
    check(&[query("")], "I ZI");
    check(&[query("RELOAD")], "N C[RELOAD] ZI");
    check(&[query("KILL 7"), query("KILL 8")], "C[KILL] ZI E[42704] ZI");
    check(&[query("SELECT 1; SHOW POOLS; PAUSE")], "T D C[SELECT 1] T D D C[SHOW] C[PAUSE] ZI");
    check(&[query("PAUSE; DROP TABLE a")], "E[42601] ZI");
    check(&[query("kill 8; select 1")], "E[42704] ZI");
}

#[test]
fn transactions() {
    check(&[query("BEGIN; SHOW VERSION"), query("COMMIT")], "C[BEGIN] T D C[SHOW] ZT C[COMMIT] ZI");
    check(
        &[query("BEGIN"), query("nonsense"), query("SHOW VERSION"), query("COMMIT")],
        "C[BEGIN] ZT E[42601] ZE E[25P02] ZE C[ROLLBACK] ZI",
    );
    check(
        &[query("BEGIN"), query("nonsense"), query("ROLLBACK TO a"), query("ROLLBACK")],
        "C[BEGIN] ZT E[42601] ZE C[ROLLBACK] ZT C[ROLLBACK] ZI",
    );
}

#[test]
fn extended_queries() {
    let run = [parse_message("", "SHOW POOLS"), bind_message("", "", &[1]), message(b'D', b"P\0")].concat();
    check(&[run.clone(), execute_message("", 0), sync()], "1 2 T D D C[SHOW] ZI");
    // Flush answers without ReadyForQuery.
    check(&[run, message(b'H', b"")], "1 2 T");
    check(&[parse_message("a", "RELOAD"), message(b'D', b"Sa\0"), sync()], "1 t n ZI");
    check(&[parse_message("a", "select 1"), message(b'D', b"Sa\0"), sync()], "1 t T ZI");
    // Close of what does not exist is no error.
    check(&[message(b'C', b"Sx\0"), message(b'C', b"Px\0"), sync()], "3 3 ZI");
    // After an error all is skipped up to Sync, a simple query too.
    check(
        &[
            parse_message("", "nonsense"),
            bind_message("", "", &[]),
            query("SHOW VERSION"),
            sync(),
            query("SELECT 1"),
        ],
        "E[42601] ZI T D C[SELECT 1] ZI",
    );
    check(&[bind_message("", "missing", &[]), sync()], "E[26000] ZI");
    check(&[execute_message("missing", 0), sync()], "E[34000] ZI");
    check(&[parse_message("a", "select 1"), parse_message("a", "select 1"), sync()], "1 E[42P05] ZI");
    check(&[parse_message("", "select 1; select 1"), sync()], "E[42601] ZI");
    check(&[parse_message("", "select 1"), bind_message("", "", &[1, 1]), sync()], "1 E[08P01] ZI");
    check(&[parse_message("", "select 1"), bind_message("", "", &[2]), sync()], "1 E[22023] ZI");
    check(&[parse_message("", "select 1"), query("select 1"), bind_message("", "", &[]), sync()], {
        "1 T D C[SELECT 1] ZI E[26000] ZI"
    });
    check(
        &[parse_message("a", "select 1"), query("deallocate a; deallocate a")],
        "1 C[DEALLOCATE] E[26000] ZI",
    );
}

#[test]
fn portals() {
    let open = [parse_message("", "SHOW CLIENTS"), bind_message("p", "", &[])].concat();
    // Five clients; a portal dies with the Sync outside a transaction, and lives on inside one.
    check(
        &[open.clone(), execute_message("p", 3), sync(), execute_message("p", 3), sync()],
        "1 2 D D D s ZI E[34000] ZI",
    );
    check(
        &[query("BEGIN"), open.clone(), execute_message("p", 3), sync(), execute_message("p", 3), sync()],
        "C[BEGIN] ZT 1 2 D D D s ZT D D C[SHOW] ZT",
    );
    check(&[open, execute_message("p", 5), execute_message("p", 5), sync()], "1 2 D D D D D s C[SHOW] ZI");
    let twice = [parse_message("", "PAUSE"), bind_message("", "", &[])].concat();
    check(&[twice, execute_message("", 0), execute_message("", 0), sync()], "1 2 C[PAUSE] E[55000] ZI");
    let many = (0..=MAX_PORTALS).flat_map(|n| bind_message(&format!("p{n}"), "", &[])).collect();
    let expected = format!("1{} E[54000] ZI", " 2".repeat(MAX_PORTALS));
    check(&[parse_message("", "select 1"), many, sync()], &expected);
}

#[test]
fn malformed_frames() {
    for (frame, expected) in [
        (message(b'Q', b"SHOW VERSION"), "E[08P01] ZI"),
        (message(b'Q', b"SHOW\0 VERSION\0"), "E[08P01] ZI"),
        (message(b'Q', b"SHOW \xff\0"), "E[22021] ZI"),
        (message(b'F', b""), "E[0A000] ZI"),
        (message(b'd', b"left over"), ""),
        (message(b'y', b""), "FATAL[08P01]"),
        (vec![b'Q', 0, 0, 0, 3], "FATAL[08P01]"),
        (vec![b'Q', 0xff, 0xff, 0xff, 0xff], "FATAL[08P01]"),
        (vec![b'Q', 0, 1, 0, 1], "FATAL[08P01]"),
        (vec![b'Q', 0, 0], ""),
        (vec![b'Q', 0, 0, 0, 9, b'S'], ""),
        (message(b'X', b""), ""),
    ] {
        check(&[frame], expected);
    }
    for (kind, body) in [
        (b'P', &b"\0select 1\0"[..]),
        (b'P', b"\0select 1\0\xff\xff"),
        (b'P', b"\0select 1\0\0\0x"),
        (b'B', b"\0\0"),
        (b'B', b"\0\0\xff\xff"),
        (b'B', b"\0\0\0\0\0\x01\x7f\xff\xff\xff\0\0"),
        (b'B', b"\0\0\0\0\0\x01\xff\xff\xff\xfe\0\0"),
        (b'D', b""),
        (b'D', b"X\0"),
        (b'D', b"S"),
        (b'E', b"\0\0\0\0"),
        (b'C', b"Sa\0b\0"),
        (b'H', b"x"),
    ] {
        check(&[message(kind, body), sync()], "E[08P01] ZI");
    }
}

proptest::proptest! {
    /// No bytes, well-formed or not, make the console panic or hang.
    #[test]
    fn survives_garbage(frames in proptest::collection::vec(("[QPBDECSHFdcfxXy]", proptest::collection::vec(0_u8..128, 0..24)), 0..12), cut in 1_usize..40) {
        let input: Vec<u8> = frames.iter().flat_map(|(kind, body)| message(kind.as_bytes()[0], body)).collect();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(answer(&input, cut, Role::Stats));
    }
}

/// asyncpg prepares with Parse, Describe, Flush, and sends Sync when it has heard of the error.
#[tokio::test]
async fn an_error_is_sent_before_sync() {
    let fake = Fake::default();
    let (mut client, server) = tokio::io::duplex(4096);
    let input = [parse_message("", "nonsense"), message(b'D', b"S\0"), message(b'H', b"")].concat();
    client.write_all(&input).await.unwrap();
    let mut all = Vec::new();
    let answered = async {
        while !describe_frames(&all).ends_with("ZI E[42601]") {
            client.read_buf(&mut all).await.unwrap();
        }
    };
    let serve = serve(server, &[], caller(Role::Stats), b"key!", &fake, std::future::pending());
    tokio::select! {
        _ = serve => panic!("ended early"),
        r = timeout(Duration::from_secs(5), answered) => r.unwrap(),
    }
}

#[tokio::test]
async fn stopping_says_so() {
    let fake = Fake::default();
    let (mut client, server): (DuplexStream, _) = tokio::io::duplex(4096);
    let (stop, stopped) = oneshot::channel::<()>();
    let mut all = Vec::new();
    let rest = query("SELECT 1");
    let mut serve =
        pin!(serve(server, &rest, caller(Role::Stats), b"key!", &fake, async { drop(stopped.await) }));
    // Until the console waits for input.
    let greeted = async { timeout(Duration::from_millis(50), client.read_buf(&mut all)).await };
    tokio::select! { _ = &mut serve => panic!("ended early"), r = greeted => r.unwrap().unwrap() };
    drop(stop);
    serve.await.unwrap();
    client.read_to_end(&mut all).await.unwrap();
    assert!(
        describe_frames(&all).ends_with("ZI T D C[SELECT 1] ZI FATAL[57P01]"),
        "{}",
        describe_frames(&all)
    );
}

/// A console behind a start-up that asks for nothing, on a free port, until `test` is over.
async fn with_console<T>(role: Role, test: impl AsyncFnOnce(u16) -> T) -> T {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let fake = Fake { clients: 300, ..Fake::default() };
    let sessions = async {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            start_up(&mut stream).await;
            serve(stream, &[], caller(role), b"key!", &fake, std::future::pending()).await.unwrap();
        }
    };
    tokio::select! {
        () = sessions => unreachable!("an endless loop"),
        result = test(port) => result,
    }
}

/// Refuses TLS, reads the start-up message, sends `AuthenticationOk`.
async fn start_up(stream: &mut TcpStream) {
    loop {
        let length = usize::try_from(stream.read_u32().await.unwrap()).unwrap();
        let mut body = vec![0; length - 4];
        stream.read_exact(&mut body).await.unwrap();
        if body[..4] == 80_877_103_u32.to_be_bytes() || body[..4] == 80_877_104_u32.to_be_bytes() {
            stream.write_all(b"N").await.unwrap();
        } else {
            return stream.write_all(&[b'R', 0, 0, 0, 8, 0, 0, 0, 0]).await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_real_driver() {
    with_console(Role::Admin, async |port| {
        let address = format!("host=127.0.0.1 port={port} user=eve dbname=crossfade");
        let (client, connection) = tokio_postgres::connect(&address, NoTls).await.unwrap();
        let connection = tokio::spawn(connection);
        // Extended, binary.
        let pools = client.query("SHOW POOLS", &[]).await.unwrap();
        assert_eq!(pools.len(), 2);
        assert_eq!(pools[1].get::<_, &str>("backend"), "target");
        assert_eq!(pools[1].get::<_, i64>("active"), 2);
        assert!((pools[1].get::<_, f64>("max_wait_ms") - 1.5).abs() < f64::EPSILON);
        assert!(!pools[1].get::<_, bool>("paused"));
        let clients = client.query("show clients;", &[]).await.unwrap();
        assert_eq!(clients.len(), 300);
        assert_eq!(clients[299].get::<_, Option<&str>>("pinned"), None);
        assert_eq!(clients[299].get::<_, i32>("process_id"), 0);
        let one = client.query_one("SELECT 1, version(), current_user", &[]).await.unwrap();
        assert_eq!((one.get::<_, i32>(0), one.get::<_, &str>(2)), (1, "eve"));
        let statement = client.prepare("SHOW REPOSITORIES").await.unwrap();
        for _ in 0..3 {
            assert_eq!(client.query_one(&statement, &[]).await.unwrap().get::<_, i64>("source_queries"), 7);
        }
        // An error leaves the session usable.
        let error = client.query("SHOW POOL", &[]).await.unwrap_err();
        assert_eq!(error.code(), Some(&SqlState::SYNTAX_ERROR));
        assert_eq!(client.execute("PAUSE target", &[]).await.unwrap(), 0);
        // Simple.
        let messages = client.simple_query("SHOW STATS; RELOAD").await.unwrap();
        let rows = messages.iter().filter_map(|m| {
            if let SimpleQueryMessage::Row(row) = m { row.get("query_ms_avg") } else { None }
        });
        assert_eq!(rows.collect::<Vec<_>>(), ["0.25"]);
        drop((statement, client));
        connection.await.unwrap().unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_reader_is_refused_by_either_protocol() {
    with_console(Role::Stats, async |port| {
        let address = format!("host=127.0.0.1 port={port} user=eve dbname=crossfade");
        let (client, connection) = tokio_postgres::connect(&address, NoTls).await.unwrap();
        tokio::spawn(connection);
        for text in ["RELOAD", "PAUSE", "RESUME target", "KILL 7"] {
            let errors =
                [client.execute(text, &[]).await.unwrap_err(), client.batch_execute(text).await.unwrap_err()];
            assert!(
                errors.iter().all(|e| e.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE)),
                "{text}: {errors:?}"
            );
        }
        assert_eq!(client.query("SHOW SERVERS", &[]).await.unwrap().len(), 1);
    })
    .await;
}

/// Holds a console open for other drivers, when `CONSOLE_PORT_FILE` says where to write its port.
#[tokio::test]
#[ignore = "for drivers of other languages, by hand"]
async fn stand() {
    let file = std::env::var("CONSOLE_PORT_FILE").unwrap();
    with_console(Role::Admin, async |port| {
        tokio::fs::write(&file, port.to_string()).await.unwrap();
        tokio::time::sleep(Duration::from_secs(300)).await;
    })
    .await;
}

#[tokio::test]
async fn psql() {
    if std::process::Command::new("psql").arg("--version").output().is_err() {
        eprintln!("skipped: there is no psql");
        return;
    }
    with_console(Role::Admin, async |port| {
        let connect = format!("host=127.0.0.1 port={port} user=eve dbname=crossfade");
        let run = tokio::task::spawn_blocking(move || {
            std::process::Command::new("psql")
                .args(["-XAtq", "-v", "ON_ERROR_STOP=1", &connect])
                .args([
                    "-c",
                    "SHOW SERVERS",
                    "-c",
                    "reload;",
                    "-c",
                    "BEGIN",
                    "-c",
                    "show version; select 1",
                    "-c",
                    "COMMIT",
                ])
                .output()
                .unwrap()
        });
        let output = run.await.unwrap();
        let (stdout, stderr) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{stderr}");
        let version = console::VERSION;
        assert_eq!(stdout, format!("source|42|app|idle||3.5|0|9|t\n{version}\n1\n"));
        assert!(stderr.contains("NOTICE:  nothing changed"), "{stderr}");
    })
    .await;
}

//! A backend that says what a test wants, on loopback.

use std::{
    io::{self, Read, Write},
    net::{TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use super::frames::frame;

/// A listening fake. Every connection runs `serve` on a thread of its own; dropped, it stops listening.
#[derive(Debug)]
pub(crate) struct Fake {
    pub(crate) port: u16,
    stop: Arc<AtomicBool>,
    acceptor: Option<JoinHandle<()>>,
}

impl Fake {
    /// Listens and serves.
    pub(crate) fn start(serve: impl Fn(&mut TcpStream) -> io::Result<()> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
        let port = listener.local_addr().expect("bound").port();
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, serve) = (Arc::clone(&stop), Arc::new(serve));
        let acceptor = std::thread::spawn(move || {
            for socket in listener.incoming() {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                let Ok(mut socket) = socket else { continue };
                let serve = Arc::clone(&serve);
                std::thread::spawn(move || {
                    // Bounds the life of the thread; what the proxy does about the end is the test's business.
                    let _ = socket.set_read_timeout(Some(Duration::from_secs(20)));
                    let _ = socket.set_write_timeout(Some(Duration::from_secs(20)));
                    let _ = serve(&mut socket);
                });
            }
        });
        Self { port, stop, acceptor: Some(acceptor) }
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

/// Reads the untyped packets at the start of a connection, refuses TLS and GSS, returns the `StartupMessage`'s code and
/// body.
pub(crate) fn read_startup(socket: &mut TcpStream) -> io::Result<(i32, Vec<u8>)> {
    loop {
        let mut head = [0; 8];
        socket.read_exact(&mut head)?;
        let length = u32::from_be_bytes(head[..4].try_into().expect("four bytes")) as usize;
        let code = i32::from_be_bytes(head[4..].try_into().expect("four bytes"));
        let mut body = vec![0; length.saturating_sub(8).min(10_000)];
        socket.read_exact(&mut body)?;
        if matches!(code, 80_877_103 | 80_877_104) {
            socket.write_all(b"N")?;
        } else {
            return Ok((code, body));
        }
    }
}

/// Reads one typed frame.
pub(crate) fn read_frame(socket: &mut TcpStream) -> io::Result<(u8, Vec<u8>)> {
    let mut head = [0; 5];
    socket.read_exact(&mut head)?;
    let length = u32::from_be_bytes(head[1..].try_into().expect("four bytes")) as usize;
    let mut body = vec![0; length.saturating_sub(4).min(1 << 20)];
    socket.read_exact(&mut body)?;
    Ok((head[0], body))
}

/// `AuthenticationOk`, `ParameterStatus`, `BackendKeyData`, `ReadyForQuery`: a login without a password.
pub(crate) fn greeting() -> Vec<u8> {
    let mut out = frame(b'R', &0i32.to_be_bytes());
    for (name, value) in [
        ("server_version", "15.0"),
        ("server_encoding", "UTF8"),
        ("client_encoding", "UTF8"),
        ("DateStyle", "ISO, MDY"),
        ("TimeZone", "UTC"),
        ("integer_datetimes", "on"),
        ("standard_conforming_strings", "on"),
        ("is_superuser", "on"),
        ("session_authorization", "postgres"),
    ] {
        out.extend(frame(b'S', format!("{name}\0{value}\0").as_bytes()));
    }
    out.extend(frame(b'K', &[0, 0, 0, 7, 0, 0, 0, 9]));
    out.extend(frame(b'Z', b"I"));
    out
}

/// `CommandComplete` and `ReadyForQuery`.
pub(crate) fn done(tag: &str) -> Vec<u8> {
    [frame(b'C', format!("{tag}\0").as_bytes()), frame(b'Z', b"I")].concat()
}

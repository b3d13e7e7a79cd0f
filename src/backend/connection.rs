//! From the address of a backend to a socket, encrypted as configured; and cancel requests over one.

use std::{io, net::SocketAddr, time::Duration};

use bytes::BufMut;
use rustls_pki_types::ServerName;
use socket2::SockRef;
use tokio::{
    io::AsyncReadExt,
    net::{TcpStream, UnixStream},
    time::{Instant, timeout_at},
};

use super::{login::LoginError, tls::BackendTlsContext};
use crate::{
    config::{Backend, Timeouts, TlsMode},
    frontend::listener::tune,
    wire::{
        frame,
        stream::{Buffered, ReadError, Stream},
        tls::end_point_hash,
    },
};

const SSL_REQUEST: u32 = 80_877_103;
const CANCEL_REQUEST: u32 = 80_877_102;

/// A connection on which nothing was said yet.
pub(super) struct Dialed {
    pub(super) stream: Stream,
    /// Hash of the server's certificate for SCRAM-SHA-256-PLUS.
    pub(super) end_point: Option<Vec<u8>>,
    /// Unix socket or loopback: nobody listens in between.
    pub(super) local: bool,
}

/// Connects and negotiates TLS. `plain`: the second attempt of mode `prefer`, without TLS.
pub(super) async fn dial(
    backend: &Backend,
    tls: &BackendTlsContext,
    plain: bool,
    (timeouts, deadline): (&Timeouts, Instant),
) -> Result<Dialed, LoginError> {
    if backend.host.starts_with('/') {
        let path = format!("{}/.s.PGSQL.{}", backend.host, backend.port);
        let stream = Stream::Unix(UnixStream::connect(path).await?);
        return Ok(Dialed { stream, end_point: None, local: true });
    }
    let tcp = connect_any(backend, deadline).await?;
    tune(&SockRef::from(&tcp), timeouts)?;
    let local = tcp.peer_addr()?.ip().is_loopback();
    let unencrypted = |tcp| Dialed { stream: Stream::Tcp(tcp), end_point: None, local };
    let Some(connector) = tls.connector.as_ref().filter(|_| !plain) else { return Ok(unencrypted(tcp)) };

    let mut conn = Buffered::new(Stream::Tcp(tcp));
    frame::put_body(&mut conn.output, |body| body.put_u32(SSL_REQUEST));
    conn.flush().await?;
    conn.need(1).await?;
    let Buffered { stream: Stream::Tcp(tcp), input, .. } = conn else {
        return Err(LoginError::Protocol("not TCP".to_owned()));
    };
    match &input[..] {
        b"S" => {}
        b"N" if backend.tls.mode == TlsMode::Prefer => return Ok(unencrypted(tcp)),
        b"N" => {
            return Err(LoginError::Tls("the server does not support TLS, but it is required".to_owned()));
        }
        // Its text came over an unprotected connection: anybody may have written it (CVE-2024-10977).
        [b'E', ..] => {
            return Err(LoginError::Tls("the server answered the TLS request with an error".to_owned()));
        }
        [b'S' | b'N', ..] => {
            return Err(LoginError::Protocol(
                "received unencrypted data after the answer to the TLS request".to_owned(),
            ));
        }
        _ => return Err(LoginError::Protocol("neither S nor N in answer to the TLS request".to_owned())),
    }
    let name = ServerName::try_from(backend.host.clone())
        .map_err(|_| LoginError::Tls(format!("\"{}\" is not a name that TLS can verify", backend.host)))?;
    let stream = connector.connect(name, tcp).await.map_err(|e| LoginError::Tls(e.to_string()))?;
    let end_point =
        stream.get_ref().1.peer_certificates().and_then(<[_]>::first).and_then(|c| end_point_hash(c));
    Ok(Dialed { stream: Stream::TlsClient(Box::new(stream)), end_point, local })
}

/// Tries every address of the host; each has an equal part of the time that is left.
async fn connect_any(backend: &Backend, deadline: Instant) -> Result<TcpStream, LoginError> {
    let addresses: Vec<SocketAddr> =
        tokio::net::lookup_host((backend.host.as_str(), backend.port)).await?.collect();
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the host name has no address");
    for (i, address) in addresses.iter().enumerate() {
        let left = deadline.saturating_duration_since(Instant::now());
        let parts = u32::try_from(addresses.len() - i).unwrap_or(u32::MAX);
        match timeout_at(Instant::now() + left / parts, TcpStream::connect(address)).await {
            Ok(Ok(tcp)) => return Ok(tcp),
            Ok(Err(error)) => last = io::Error::new(error.kind(), format!("{address}: {error}")),
            Err(_) => last = io::Error::new(io::ErrorKind::TimedOut, format!("{address}: no answer")),
        }
    }
    Err(LoginError::Io(last))
}

/// Asks the server to cancel what runs in its session `process_id`, and waits until it closes the connection: from
/// then on the signal has been sent. Encrypted as the mode says; the key is worth it.
pub async fn cancel(
    backend: &Backend,
    tls: &BackendTlsContext,
    (process_id, key): (i32, &[u8]),
    timeouts: &Timeouts,
    timeout: Duration,
) -> Result<(), LoginError> {
    let deadline = Instant::now() + timeout;
    let run = async {
        let dialed = match dial(backend, tls, false, (timeouts, deadline)).await {
            Err(LoginError::Tls(_)) if backend.tls.mode == TlsMode::Prefer => {
                dial(backend, tls, true, (timeouts, deadline)).await?
            }
            other => other?,
        };
        let mut conn = Buffered::new(dialed.stream);
        frame::put_body(&mut conn.output, |body| {
            body.put_u32(CANCEL_REQUEST);
            body.put_i32(process_id);
            body.put_slice(key);
        });
        conn.flush().await?;
        let mut scrap = [0; 64];
        // A server without a word to say; an end by reset is an end.
        while matches!(conn.stream.read(&mut scrap).await, Ok(n) if n > 0) {}
        Ok(())
    };
    timeout_at(deadline, run).await.map_err(|_| LoginError::Timeout)?
}

impl From<ReadError> for LoginError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Io(error) => Self::Io(error),
            ReadError::Eof => {
                let message = "the server closed the connection during login";
                Self::Io(io::Error::new(io::ErrorKind::UnexpectedEof, message))
            }
            ReadError::Length { .. } => Self::Protocol(error.to_string()),
        }
    }
}

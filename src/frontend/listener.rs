//! Listening sockets and the accept loop.

use std::{
    fs, io,
    net::{SocketAddr, TcpListener},
    os::unix::{
        fs::{FileTypeExt, PermissionsExt},
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::sync::watch;

use super::Peer;
use crate::{
    config::{Listen, Timeouts},
    wire::stream::Stream,
};

/// Why there is no listening socket.
#[derive(Debug, thiserror::Error)]
#[error("could not listen on {at}: {source}")]
pub struct BindError {
    /// Address or path.
    pub at: String,
    /// What the operating system says.
    pub source: io::Error,
}

/// A socket that clients connect to; non-blocking.
#[derive(Debug)]
pub enum Listener {
    /// IPv4 or IPv6.
    Tcp(TcpListener),
    /// The file is removed when this is dropped.
    Unix(UnixListener, SocketFile),
}

/// Removes the file of a Unix socket when dropped.
#[derive(Debug)]
pub struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

impl Listener {
    /// Where it listens; `None` for a Unix socket.
    pub fn address(&self) -> Option<SocketAddr> {
        match self {
            Listener::Tcp(tcp) => tcp.local_addr().ok(),
            Listener::Unix(..) => None,
        }
    }
}

/// Binds every address of the configuration, or none.
pub fn bind(listen: &Listen) -> Result<Vec<Listener>, BindError> {
    let backlog = i32::try_from(listen.backlog).unwrap_or(i32::MAX);
    let mut bound = Vec::new();
    for &address in &listen.addresses {
        let tcp =
            bind_tcp(address, backlog).map_err(|source| BindError { at: address.to_string(), source })?;
        bound.push(Listener::Tcp(tcp));
    }
    if let Some(directory) = &listen.unix_socket_dir {
        let port = bound.first().and_then(Listener::address).map_or(0, |a| a.port());
        let path = directory.join(format!(".s.PGSQL.{port}"));
        let unix = bind_unix(&path, backlog)
            .map_err(|source| BindError { at: path.display().to_string(), source })?;
        bound.push(Listener::Unix(unix, SocketFile(path)));
    }
    Ok(bound)
}

fn bind_tcp(address: SocketAddr, backlog: i32) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        // Else [::]:6432 would take 0.0.0.0:6432 too, depending on a sysctl.
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())?;
    socket.listen(backlog)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

fn bind_unix(path: &Path, backlog: i32) -> io::Result<UnixListener> {
    let is_socket = fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_socket());
    // Left behind by a process that died. Anything but a refusal means that somebody is there.
    if is_socket && UnixStream::connect(path).is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused) {
        fs::remove_file(path)?;
    }
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.bind(&socket2::SockAddr::unix(path)?)?;
    // As Postgres: who may log in is decided by authentication, not by the file.
    fs::set_permissions(path, fs::Permissions::from_mode(0o777))?;
    socket.listen(backlog)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// Sets the options of a client's socket.
pub fn prepare(stream: &Stream, timeouts: &Timeouts) -> io::Result<()> {
    match stream {
        Stream::Tcp(tcp) => tune(&SockRef::from(tcp), timeouts),
        Stream::Unix(_) | Stream::TlsServer(_) | Stream::TlsClient(_) => Ok(()),
    }
}

/// No delay, and the ways by which a dead peer is noticed.
pub(crate) fn tune(socket: &SockRef<'_>, timeouts: &Timeouts) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    if let Some(idle) = timeouts.tcp_keepalive {
        socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(idle))?;
    }
    if timeouts.tcp_user.is_some() {
        socket.set_tcp_user_timeout(timeouts.tcp_user)?;
    }
    Ok(())
}

/// Hands every accepted connection to `on_accept` until `shutdown` becomes true or its sender is gone; then the socket
/// is closed. Running out of file descriptors pauses it for a moment instead of ending it.
pub async fn serve(
    listener: Listener,
    mut shutdown: watch::Receiver<bool>,
    mut on_accept: impl FnMut(Stream, Peer),
) -> io::Result<()> {
    let accept_all = async {
        match listener {
            Listener::Tcp(tcp) => {
                let tcp = tokio::net::TcpListener::from_std(tcp)?;
                accept_loop(&mut on_accept, async || {
                    let (socket, address) = tcp.accept().await?;
                    Ok((Stream::Tcp(socket), Some(address)))
                })
                .await
            }
            Listener::Unix(unix, _file) => {
                let unix = tokio::net::UnixListener::from_std(unix)?;
                accept_loop(&mut on_accept, async || Ok((Stream::Unix(unix.accept().await?.0), None))).await
            }
        }
    };
    tokio::select! {
        biased;
        _ = shutdown.wait_for(|&stop| stop) => Ok(()),
        result = accept_all => result,
    }
}

async fn accept_loop(
    on_accept: &mut impl FnMut(Stream, Peer),
    accept: impl AsyncFn() -> io::Result<(Stream, Option<SocketAddr>)>,
) -> io::Result<()> {
    let mut complained: Option<Instant> = None;
    loop {
        match accept().await {
            Ok((stream, address)) => on_accept(stream, Peer { address, accepted: Instant::now() }),
            Err(error) => {
                if complained.is_none_or(|at| at.elapsed() >= Duration::from_secs(1)) {
                    complained = Some(Instant::now());
                    tracing::warn!(%error, "could not accept a connection");
                }
                // A client that is gone already concerns nobody else; a lack of descriptors does not pass at once.
                if error.kind() != io::ErrorKind::ConnectionAborted {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, io::Write, net::TcpStream};

    use super::*;
    use crate::{frontend::testing::timeouts, wire::scram::random};

    #[tokio::test]
    async fn sockets_of_every_kind_until_shutdown() {
        let suffix: String = crate::frontend::auth::hex(&random::<8>());
        let directory = std::env::temp_dir().join(format!("crossfade-listen-{suffix}"));
        fs::create_dir(&directory).unwrap();
        let addresses = vec!["127.0.0.1:0".parse().unwrap(), "[::1]:0".parse().unwrap()];
        let listen = Listen { addresses, unix_socket_dir: Some(directory.clone()), threads: 1, backlog: 16 };
        let listeners = bind(&listen).unwrap();
        let port = listeners[0].address().unwrap().port();
        let path = directory.join(format!(".s.PGSQL.{port}"));

        // Somebody listens: refused. Nobody does: the file is a leftover and is replaced.
        assert_eq!(bind_unix(&path, 1).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        let stale = directory.join("stale");
        drop(UnixListener::bind(&stale).unwrap());
        bind_unix(&stale, 1).unwrap();

        for listener in listeners {
            let address = listener.address();
            match address {
                Some(address) => drop(TcpStream::connect(address).unwrap().write_all(b"x")),
                None => drop(UnixStream::connect(&path).unwrap().write_all(b"x")),
            }
            let (stop, shutdown) = watch::channel(false);
            let count = Cell::new(0);
            serve(listener, shutdown, |stream, peer| {
                assert_eq!(peer.address.is_some(), address.is_some());
                prepare(&stream, &timeouts()).unwrap();
                count.set(count.get() + 1);
                stop.send(true).unwrap();
            })
            .await
            .unwrap();
            // The refused attempt to bind has knocked at the Unix socket too.
            assert!((1..=2).contains(&count.get()), "{address:?} {}", count.get());
        }
        assert!(!path.exists(), "the socket file goes with its listener");
        fs::remove_dir_all(&directory).unwrap();
    }
}

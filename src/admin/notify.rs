//! Tells systemd what state the service is in: `sd_notify(3)` in a few lines.

use std::{
    env, io,
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixDatagram},
    },
    time::Duration,
};

/// What the service manager is told.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum State {
    /// Start-up is over, or a reload is.
    Ready,
    /// The configuration is being loaded again; [`State::Ready`] follows.
    Reloading,
    /// Draining.
    Stopping,
    /// Alive.
    Watchdog,
}

impl State {
    fn message(self) -> &'static [u8] {
        match self {
            State::Ready => b"READY=1",
            State::Reloading => b"RELOADING=1",
            State::Stopping => b"STOPPING=1",
            State::Watchdog => b"WATCHDOG=1",
        }
    }
}

/// Sends `state` to `$NOTIFY_SOCKET`; does nothing where there is none. Never waits.
pub fn notify(state: State) -> io::Result<()> {
    match env::var("NOTIFY_SOCKET") {
        Ok(socket) => send(&socket, state),
        Err(_) => Ok(()),
    }
}

/// How often [`State::Watchdog`] is due: half of `$WATCHDOG_USEC`, if the manager asked this process for it.
pub fn watchdog_interval() -> Option<Duration> {
    let for_us = env::var("WATCHDOG_PID").map_or(true, |pid| pid == std::process::id().to_string());
    let usec: u64 = env::var("WATCHDOG_USEC").ok()?.parse().ok()?;
    (for_us && usec > 0).then(|| Duration::from_micros(usec) / 2)
}

/// `socket` is a path, or `@` and a name in the abstract namespace.
fn send(socket: &str, state: State) -> io::Result<()> {
    let address = match socket.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(socket)?,
    };
    let datagram = UnixDatagram::unbound()?;
    datagram.set_nonblocking(true)?;
    datagram.send_to_addr(state.message(), &address).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(socket: &str, receiver: &UnixDatagram) {
        receiver.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        for (state, expected) in [
            (State::Ready, "READY=1"),
            (State::Reloading, "RELOADING=1"),
            (State::Stopping, "STOPPING=1"),
            (State::Watchdog, "WATCHDOG=1"),
        ] {
            send(socket, state).unwrap();
            let mut buffer = [0; 64];
            let n = receiver.recv(&mut buffer).unwrap();
            assert_eq!(std::str::from_utf8(&buffer[..n]).unwrap(), expected);
        }
    }

    #[test]
    fn path() {
        let path = env::temp_dir().join(format!("crossfade-notify-{}", std::process::id()));
        let receiver = UnixDatagram::bind(&path).unwrap();
        check(path.to_str().unwrap(), &receiver);
        std::fs::remove_file(&path).unwrap();
        assert!(send(path.to_str().unwrap(), State::Ready).is_err(), "nobody listens");
    }

    #[test]
    fn abstract_name() {
        let name = format!("crossfade-notify-{}", std::process::id());
        let receiver = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        check(&format!("@{name}"), &receiver);
    }
}

//! The application's socket: accept, TLS, authentication.

pub mod auth;
pub mod limits;
pub mod listener;
pub mod packet;
pub mod startup;
#[cfg(test)]
pub(crate) mod testing;
pub mod tls;

use std::{
    fmt,
    future::Future,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use arc_swap::{ArcSwap, ArcSwapOption};

use crate::config::{Config, Secret};

/// Looks up the secret of a user that the configuration does not name (`auth.query`). `Ok(None)`: there is no such user.
/// An error is logged and ends the login with 08006; its text is never shown to the client.
pub type Lookup =
    Arc<dyn Fn(String) -> Pin<Box<dyn Future<Output = Result<Option<Secret>, String>> + Send>> + Send + Sync>;

/// What all logins share, over all threads.
pub struct Shared {
    /// The configuration in force; the reload path stores the next one.
    pub config: Arc<ArcSwap<Config>>,
    /// Our certificate; `None` answers `N` to an `SSLRequest`. The reload path stores the next one.
    pub tls: Arc<ArcSwapOption<tls::ServerTls>>,
    /// Clients and logins at this moment.
    pub limits: Arc<limits::Limits>,
    /// What happened so far.
    pub counters: Counters,
    lookup: Option<Lookup>,
    secrets: auth::Secrets,
    next_client: AtomicU64,
}

impl Shared {
    /// Nothing is cached and nobody is connected yet.
    pub fn new(
        config: Arc<ArcSwap<Config>>,
        tls: Arc<ArcSwapOption<tls::ServerTls>>,
        lookup: Option<Lookup>,
    ) -> Self {
        Self {
            config,
            tls,
            limits: Arc::default(),
            counters: Counters::default(),
            lookup,
            secrets: auth::Secrets::new(),
            next_client: AtomicU64::new(1),
        }
    }

    /// The next client id: shown by SHOW CLIENTS, in the log and in errors of our own.
    pub fn next_client(&self) -> u64 {
        self.next_client.fetch_add(1, Ordering::Relaxed)
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("limits", &self.limits)
            .field("counters", &self.counters)
            .finish_non_exhaustive()
    }
}

/// Monotonic counters of the login path, for the metrics.
#[derive(Debug, Default)]
pub struct Counters {
    /// Clients that proved who they are.
    pub logins: AtomicU64,
    /// Wrong password, unknown user, missing certificate.
    pub failures: AtomicU64,
    /// Malformed or unsupported startup, limits, TLS required; not authentication.
    pub refusals: AtomicU64,
    /// Logins cut off by `timeouts.client_login`.
    pub timeouts: AtomicU64,
    /// Unencrypted bytes behind an `SSLRequest` or `GSSENCRequest`: a broken client or a man in the middle.
    pub stuffed: AtomicU64,
    /// TLS handshakes that failed.
    pub tls_failures: AtomicU64,
}

impl Counters {
    pub(crate) fn count(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// Who is at the other end of an accepted socket, and since when.
#[derive(Clone, Copy, Debug)]
pub struct Peer {
    /// `None` for a Unix socket.
    pub address: Option<SocketAddr>,
    /// When it was accepted: the deadline of the login counts from here.
    pub accepted: Instant,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            Some(address) => address.fmt(f),
            None => f.write_str("unix"),
        }
    }
}

//! Control connections: crossfade's own, never on a client's path. Catalog, checks, `auth_query`, health.

use std::{sync::Arc, time::Duration};

use tokio::sync::watch;
use tokio_postgres::{Client, NoTls, config::SslMode};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::tls::client_config;
use crate::{
    config::{Backend, Secret, TlsMode},
    wire::tls::TlsFileError,
};

/// Control connections of one side. Its tasks run on the runtime that first uses it: use it on that one only.
#[derive(Clone, Debug)]
pub struct Pool {
    connections: bb8::Pool<Manager>,
    /// bb8 itself answers a failed connect with a timeout alone.
    failed: Failed,
}

/// The last failed connect, told to all who wait.
#[derive(Clone, Debug)]
struct Failed(watch::Sender<Option<Arc<Error>>>);

impl bb8::ErrorSink<Error> for Failed {
    fn sink(&self, error: Error) {
        self.0.send_replace(Some(Arc::new(error)));
    }

    fn boxed_clone(&self) -> Box<dyn bb8::ErrorSink<Error>> {
        Box::new(self.clone())
    }
}

/// Why there is no control connection.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A certificate or key file that cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsFileError),
    /// Refused by the server, or the network.
    #[error("{}", describe(.0))]
    Postgres(#[from] tokio_postgres::Error),
    /// The same, told to several who waited.
    #[error("{0}")]
    Shared(Arc<Error>),
    /// No answer, or all connections in use.
    #[error("no connection within {0:?}")]
    Timeout(Duration),
}

/// A Postgres error with its causes, in one line. Holds no password: the server never repeats it.
pub fn describe(error: &tokio_postgres::Error) -> String {
    if let Some(db) = error.as_db_error() {
        return format!("{}: {} ({})", db.severity(), db.message(), db.code().code());
    }
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text = format!("{text}: {inner_text}");
        }
        cause = inner.source();
    }
    text
}

/// At most two control connections to a backend, made when they are needed.
pub fn pool(backend: &Backend, connect_timeout: Duration) -> Result<Pool, Error> {
    let manager = Manager::new(backend, connect_timeout)?;
    let failed = Failed(watch::Sender::new(None));
    let connections = bb8::Pool::builder()
        .max_size(2)
        // A check costs a round trip each time; [`get`] looks whether the connection is closed.
        .test_on_check_out(false)
        // The first refusal is the caller's answer, not a timeout.
        .retry_connection(false)
        .connection_timeout(connect_timeout)
        .error_sink(Box::new(failed.clone()))
        .build_unchecked(manager);
    Ok(Pool { connections, failed })
}

/// A connection of the pool that was open a moment ago.
pub async fn get(pool: &Pool) -> Result<bb8::PooledConnection<'_, Manager>, Error> {
    let mut failed = pool.failed.0.subscribe();
    let waits = pool.connections.config().connection_timeout;
    loop {
        let connection = tokio::select! {
            biased;
            got = pool.connections.get() => got.map_err(|error| match error {
                bb8::RunError::User(error) => error,
                bb8::RunError::TimedOut => Error::Timeout(waits),
            })?,
            Ok(()) = failed.changed() => {
                let error = failed.borrow_and_update().clone().expect("only failures are sent");
                return Err(Error::Shared(error));
            }
        };
        // The server restarted while it was idle; dropping it takes it out of the pool, so this ends.
        if !connection.is_closed() {
            return Ok(connection);
        }
    }
}

/// Makes control connections for [`Pool`].
#[derive(Clone)]
pub struct Manager {
    config: tokio_postgres::Config,
    tls: MakeRustlsConnect,
    timeout: Duration,
}

impl std::fmt::Debug for Manager {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Manager").finish_non_exhaustive()
    }
}

impl Manager {
    /// Reads certificate files; connects to nothing yet.
    pub fn new(backend: &Backend, timeout: Duration) -> Result<Self, Error> {
        let mut config = tokio_postgres::Config::new();
        let Backend { host, port, database, tls, control_user, control_secret } = backend;
        let mode = match tls.mode {
            TlsMode::Disable => SslMode::Disable,
            // There is no TLS on a Unix socket.
            _ if host.starts_with('/') => SslMode::Disable,
            TlsMode::Prefer => SslMode::Prefer,
            TlsMode::Require | TlsMode::VerifyCa | TlsMode::VerifyFull => SslMode::Require,
        };
        config.host(host).port(*port).dbname(database).user(control_user).ssl_mode(mode);
        config.application_name("crossfade control").connect_timeout(timeout);
        match control_secret {
            // Something that looks like an md5 hash can be a password; the server decides.
            Secret::Password(text) | Secret::Md5(text) | Secret::ScramVerifier(text) => {
                config.password(text);
            }
            Secret::None => {}
        }
        let tls = MakeRustlsConnect::new(client_config(tls)?);
        Ok(Self { config, tls, timeout })
    }

    /// Connects and pins the session's settings.
    pub async fn open(&self) -> Result<Client, Error> {
        let open = async {
            // Their tasks end when the client is dropped; errors reach whoever waits for an answer.
            let client = if self.config.get_ssl_mode() == SslMode::Disable {
                // Without a host name (a Unix socket) there would be an error for want of one.
                let (client, connection) = self.config.connect(NoTls).await?;
                tokio::spawn(connection);
                client
            } else {
                let (client, connection) = self.config.connect(self.tls.clone()).await?;
                tokio::spawn(connection);
                client
            };
            // SET rather than a startup option: the role's own search_path stays visible as reset_val, and
            // a pooler in front of the server need not know the option. Nothing runs before it.
            client.batch_execute(PIN).await?;
            Ok(client)
        };
        tokio::time::timeout(self.timeout, open).await.map_err(|_| Error::Timeout(self.timeout))?
    }
}

/// A hostile `search_path` of role or database must not choose operators for us, and nothing may wait forever.
const PIN: &str = "SET search_path TO pg_catalog; SET jit TO off; SET statement_timeout TO '60s'; SET lock_timeout TO '5s'; \
                   SET idle_in_transaction_session_timeout TO '60s'; SET DateStyle TO ISO";

impl bb8::ManageConnection for Manager {
    type Connection = Client;
    type Error = Error;

    async fn connect(&self) -> Result<Client, Error> {
        self.open().await
    }

    async fn is_valid(&self, client: &mut Client) -> Result<(), Error> {
        Ok(client.batch_execute("").await?)
    }

    fn has_broken(&self, client: &mut Client) -> bool {
        client.is_closed()
    }
}

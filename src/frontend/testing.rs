//! What the tests of logins share: a configuration, certificates, and a server that logs clients in on loopback.

use std::{collections::HashMap, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use arc_swap::{ArcSwap, ArcSwapOption};
use bytes::BufMut;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, SignatureAlgorithm};
use tokio::io::AsyncWriteExt;

use super::{
    Lookup, Peer, Shared,
    startup::{Login, Startup, accept},
    tls::ServerTls,
};
use crate::{
    config::{
        Admin, Auth, AuthMethod, Backend, BackendTls, ClientTls, Config, Limits, Listen, Log, Mirror, Pool,
        PoolMode, Secret, Telemetry, Timeouts, TlsMode, User,
    },
    route::policy::{OnUnknown, Policy, Share, TransactionReads},
    wire::{frame, stream::Stream},
};

pub(crate) fn timeouts() -> Timeouts {
    Timeouts {
        client_login: Duration::from_secs(20),
        client_idle: None,
        idle_transaction: None,
        transaction: None,
        query: None,
        query_wait: None,
        server_connect: Duration::from_secs(20),
        server_login_retry: Duration::from_secs(1),
        server_idle: None,
        server_lifetime: None,
        cancel_wait: Duration::from_secs(5),
        drain: Duration::from_secs(1),
        tcp_keepalive: Some(Duration::from_secs(60)),
        tcp_user: Some(Duration::from_secs(60)),
    }
}

pub(crate) fn backend(address: SocketAddr, mode: TlsMode, ca: Option<PathBuf>) -> Backend {
    Backend {
        host: if address.is_ipv4() { "localhost".to_owned() } else { address.ip().to_string() },
        port: address.port(),
        database: "app".to_owned(),
        tls: BackendTls { mode, ca, identity: None },
        control_user: "postgres".to_owned(),
        control_secret: Secret::None,
    }
}

pub(crate) fn config(method: AuthMethod, users: &[(&str, Secret)]) -> Config {
    let backend = backend(([127, 0, 0, 1], 1).into(), TlsMode::Disable, None);
    let user = |(name, secret): &(&str, Secret)| {
        let name = (*name).to_owned();
        let secret = secret.clone();
        let user = User {
            name: name.clone(),
            secret,
            backend: [None, None],
            pool_mode: None,
            pool_size: None,
            max_clients: None,
        };
        (name, user)
    };
    Config {
        shadow: crate::config::Shadow::default(),
        listen: Listen { addresses: Vec::new(), unix_socket_dir: None, threads: 1, backlog: 16 },
        client_tls: None,
        auth: Auth { method, users: users.iter().map(user).collect::<HashMap<_, _>>(), query: None },
        backends: [backend.clone(), backend],
        pool: Pool {
            mode: PoolMode::Session,
            size: 1,
            min_size: 0,
            max_server_connections: 1,
            max_prepared_statements: 1,
        },
        limits: Limits {
            max_clients: 100,
            max_logins: 100,
            max_message_bytes: 1 << 20,
            max_statement_bytes: 1 << 20,
            max_client_statements: 100,
            max_batch_statements: 100,
            plan_cache_bytes: 1 << 20,
        },
        timeouts: timeouts(),
        admin: Admin { http: None, admin_users: Vec::new(), stats_users: Vec::new(), token: None },
        log: Log { filter: "info".to_owned(), json: false, literals: false },
        telemetry: Telemetry { endpoint: None, interval: Duration::from_secs(10), spans: Share::ALL },
        mirror: Mirror {
            install: false,
            connections: 1,
            lock_timeout: Duration::from_secs(1),
            deadlock_after: Duration::from_secs(1),
            apply_timeout: Duration::from_secs(1),
            retry_after: Duration::from_secs(1),
            journal_grace: Duration::from_secs(1),
            slice: Duration::from_secs(10),
        },
        policy: Arc::new(Policy {
            generation: 1,
            repositories: Vec::new(),
            on_unknown: OnUnknown::Refuse,
            transactions: TransactionReads::Weighted,
            sticky: Duration::ZERO,
        }),
        hash: String::new(),
    }
}

pub(crate) fn shared(config: Config, lookup: Option<Lookup>) -> Arc<Shared> {
    let tls = config.client_tls.as_ref().map(|files| Arc::new(ServerTls::load(files).unwrap()));
    Arc::new(Shared::new(Arc::new(ArcSwap::from_pointee(config)), Arc::new(ArcSwapOption::new(tls)), lookup))
}

/// Listens on loopback and leads every connection through [`accept`]; a client gets what follows `AuthenticationOk`, and
/// its login goes to the receiver. Ends with the test.
pub(crate) async fn serve(shared: Arc<Shared>) -> (SocketAddr, tokio::sync::mpsc::UnboundedReceiver<Login>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((socket, address)) = listener.accept().await {
            let (shared, sender) = (Arc::clone(&shared), sender.clone());
            tokio::spawn(async move {
                let peer = Peer { address: Some(address), accepted: std::time::Instant::now() };
                match accept(Stream::Tcp(socket), peer, &shared).await {
                    Startup::Client(mut login) => {
                        let mut out = std::mem::take(&mut login.greeting);
                        frame::put(&mut out, b'S', |body| body.put_slice(b"server_version\x0018\0"));
                        frame::put(&mut out, b'K', |body| body.put_slice(b"\0\0\0\x07keyy"));
                        frame::put(&mut out, b'Z', |body| body.put_u8(b'I'));
                        login.stream.write_all(&out).await.unwrap();
                        login.stream.flush().await.unwrap();
                        let _ = sender.send(*login);
                    }
                    Startup::Cancel { mut stream, process_id, key, .. } => {
                        let _ =
                            stream.write_all(format!("cancel {process_id} {}", key.len()).as_bytes()).await;
                    }
                    Startup::Closed => {}
                }
            });
        }
    });
    (address, receiver)
}

/// A directory of certificates that goes away with the value.
pub(crate) struct Certificates {
    pub(crate) directory: PathBuf,
    ca: Issuer<'static, KeyPair>,
}

impl Drop for Certificates {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

impl Certificates {
    /// Makes an authority in `ca.crt`.
    pub(crate) fn new() -> Self {
        let random: String = super::auth::hex(&crate::wire::scram::random::<8>());
        let directory = std::env::temp_dir().join(format!("crossfade-test-{random}"));
        std::fs::create_dir(&directory).unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        std::fs::write(directory.join("ca.crt"), certificate.pem()).unwrap();
        Self { directory, ca: Issuer::new(params, key) }
    }

    pub(crate) fn path(&self, file: &str) -> PathBuf {
        self.directory.join(file)
    }

    /// Issues `<name>.crt` and `<name>.key` for a common name, valid for `host`.
    pub(crate) fn issue(&self, name: &str, host: &str, algorithm: &'static SignatureAlgorithm) {
        let mut params = CertificateParams::new(vec![host.to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate_for(algorithm).unwrap();
        let certificate = params.signed_by(&key, &self.ca).unwrap();
        std::fs::write(self.path(&format!("{name}.crt")), certificate.pem()).unwrap();
        std::fs::write(self.path(&format!("{name}.key")), key.serialize_pem()).unwrap();
    }

    /// Issues a certificate that signs itself: no authority stands behind it.
    pub(crate) fn self_signed(&self, name: &str, algorithm: &'static SignatureAlgorithm) {
        let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let key = KeyPair::generate_for(algorithm).unwrap();
        let certificate = params.self_signed(&key).unwrap();
        std::fs::write(self.path(&format!("{name}.crt")), certificate.pem()).unwrap();
        std::fs::write(self.path(&format!("{name}.key")), key.serialize_pem()).unwrap();
    }

    pub(crate) fn client_tls(&self, name: &str, require: bool) -> ClientTls {
        ClientTls {
            require,
            certificate: self.path(&format!("{name}.crt")),
            key: self.path(&format!("{name}.key")),
            client_ca: Some(self.path("ca.crt")),
        }
    }
}

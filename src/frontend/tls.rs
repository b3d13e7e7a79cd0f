//! TLS towards clients: certificate, client certificates, ALPN; read again when the files change.

use std::{path::Path, sync::Arc};

use rustls::{RootCertStore, ServerConfig, crypto::CryptoProvider, server::WebPkiClientVerifier};
use tokio_rustls::TlsAcceptor;

use crate::{
    config::ClientTls,
    wire::tls::{ALPN, TlsFileError, end_point_hash, read_certificates, read_key},
};

/// Everything needed to accept TLS, read from files once. Immutable: a reload makes another.
pub struct ServerTls {
    pub(crate) acceptor: TlsAcceptor,
    /// `tls-server-end-point` of our certificate; `None`: SCRAM-SHA-256-PLUS is not offered.
    pub(crate) end_point: Option<Arc<[u8]>>,
}

impl std::fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerTls").field("plus", &self.end_point.is_some()).finish_non_exhaustive()
    }
}

impl ServerTls {
    /// Reads the files and checks that key and certificate fit. On an error the caller keeps what it had. Blocking.
    pub fn load(files: &ClientTls) -> Result<Self, TlsFileError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let chain = read_certificates(&files.certificate)?;
        let end_point = chain.first().and_then(|c| end_point_hash(c)).map(Arc::from);
        let key = read_key(&files.key)?;
        let unusable = |e: rustls::Error| TlsFileError::Unusable(e.to_string());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(unusable)?;
        let builder = match &files.client_ca {
            Some(ca) => builder.with_client_cert_verifier(client_verifier(ca, provider)?),
            None => builder.with_no_client_auth(),
        };
        let mut config = builder.with_single_cert(chain, key).map_err(unusable)?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        // A client of ours stays connected; tickets would cost memory and two more writes per handshake.
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        Ok(Self { acceptor: TlsAcceptor::from(Arc::new(config)), end_point })
    }
}

/// Certificates are asked for but not demanded: only the method `cert` needs one, and it says so in words.
fn client_verifier(
    ca: &Path,
    provider: Arc<CryptoProvider>,
) -> Result<Arc<dyn rustls::server::danger::ClientCertVerifier>, TlsFileError> {
    let mut roots = RootCertStore::empty();
    for certificate in read_certificates(ca)? {
        roots.add(certificate).map_err(|e| TlsFileError::Unusable(e.to_string()))?;
    }
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
        .allow_unauthenticated()
        .build()
        .map_err(|e| TlsFileError::Unusable(e.to_string()))
}

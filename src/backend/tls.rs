//! TLS towards a backend, with the modes of libpq's `sslmode`.

use std::{
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    server::ParsedCertificate,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::TlsConnector;

use crate::{
    config::{Backend, BackendTls, TlsMode},
    wire::tls::{ALPN, TlsFileError, is_current, read_certificates, read_key},
};

/// Everything needed to log in at one backend that is worth keeping: its TLS settings, and keys derived from passwords.
/// Immutable but for that cache; a changed configuration makes another.
pub struct BackendTlsContext {
    pub(super) connector: Option<TlsConnector>,
    pub(super) keys: super::login::KeyCache,
}

impl std::fmt::Debug for BackendTlsContext {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BackendTlsContext").field("tls", &self.connector.is_some()).finish_non_exhaustive()
    }
}

impl BackendTlsContext {
    /// Reads the files of this backend. Blocking.
    pub fn load(backend: &Backend) -> Result<Self, TlsFileError> {
        // libpq never uses TLS on a Unix socket.
        let plain = backend.tls.mode == TlsMode::Disable || backend.host.starts_with('/');
        let config = (!plain).then(|| client_config(&backend.tls)).transpose()?;
        let connector = config.map(|config| TlsConnector::from(Arc::new(config)));
        Ok(Self { connector, keys: super::login::KeyCache::default() })
    }
}

/// rustls' settings for TLS towards a backend, as libpq's `sslmode` means them. Reads files: blocking.
pub fn client_config(files: &BackendTls) -> Result<ClientConfig, TlsFileError> {
    let unusable = |e: rustls::Error| TlsFileError::Unusable(e.to_string());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let ca = files.ca.as_deref().map(read_certificates).transpose()?;
    let check = match (files.mode, &ca) {
        (TlsMode::VerifyFull, _) => Check::Name,
        // As libpq: "require" with a root certificate at hand verifies the chain.
        (TlsMode::VerifyCa, _) | (TlsMode::Require, Some(_)) => Check::Chain,
        (TlsMode::Disable | TlsMode::Prefer | TlsMode::Require, _) => Check::Nothing,
    };
    let verifier = Verifier::new(check, ca, Arc::clone(&provider))?;
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(unusable)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match &files.identity {
        Some((certificate, key)) => builder
            .with_client_auth_cert(read_certificates(certificate)?, read_key(key)?)
            .map_err(unusable)?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    Ok(config)
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Check {
    Nothing,
    Chain,
    Name,
}

/// Signatures of the handshake are always verified: whoever answers owns the key of the certificate that it shows.
#[derive(Debug)]
struct Verifier {
    check: Check,
    webpki: Arc<WebPkiServerVerifier>,
    /// The CA file as it is: a self-signed server certificate listed there is trusted, as by libpq, although it is not
    /// fit to be an authority.
    pinned: Vec<CertificateDer<'static>>,
    provider: Arc<CryptoProvider>,
}

impl Verifier {
    fn new(
        check: Check,
        ca: Option<Vec<CertificateDer<'static>>>,
        provider: Arc<CryptoProvider>,
    ) -> Result<Self, TlsFileError> {
        let mut roots = RootCertStore::empty();
        let pinned = ca.unwrap_or_default();
        if pinned.is_empty() {
            roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
        }
        // A certificate that cannot be an authority may still be the server's own.
        roots.add_parsable_certificates(pinned.iter().cloned());
        if roots.is_empty() {
            return Err(TlsFileError::Unusable("no usable certificate among the authorities".to_owned()));
        }
        let webpki = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .build()
            .map_err(|e| TlsFileError::Unusable(e.to_string()))?;
        Ok(Self { check, webpki, pinned, provider })
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if self.check == Check::Nothing {
            return Ok(ServerCertVerified::assertion());
        }
        if self.pinned.iter().any(|c| c == end_entity) {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            if !is_current(end_entity, now) {
                return Err(Error::InvalidCertificate(CertificateError::Expired));
            }
            if self.check == Check::Name {
                rustls::client::verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
            }
            return Ok(ServerCertVerified::assertion());
        }
        match self.webpki.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            // The name is looked at last: the chain is good.
            Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if self.check == Check::Chain => Ok(ServerCertVerified::assertion()),
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

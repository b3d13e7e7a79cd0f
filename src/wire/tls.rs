//! What both directions need of X.509: PEM files, names, and the hash that binds SCRAM to a certificate.

use std::path::{Path, PathBuf};

use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use sha2::Digest;
use x509_cert::{
    Certificate,
    der::{
        Decode,
        asn1::{PrintableStringRef, TeletexStringRef, Utf8StringRef},
    },
};

/// ALPN protocol name of Postgres; demanded of direct TLS since Postgres 17.
pub const ALPN: &[u8] = b"postgresql";

/// Why a set of TLS files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsFileError {
    /// Missing, unreadable or not PEM.
    #[error("could not read {what} from \"{}\": {reason}", path.display())]
    Read {
        /// "certificates", "private key", ...
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// In words.
        reason: String,
    },
    /// Read, but key and certificate do not fit, or a certificate is broken.
    #[error("TLS files cannot be used: {0}")]
    Unusable(String),
}

/// Reads every certificate of a PEM file; at least one.
pub fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsFileError> {
    let read = |reason: String| TlsFileError::Read { what: "certificates", path: path.to_owned(), reason };
    let certificates = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|e| read(e.to_string()))?;
    if certificates.is_empty() { Err(read("no certificate in it".to_owned())) } else { Ok(certificates) }
}

/// Reads the first private key of a PEM file.
pub fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsFileError> {
    PrivateKeyDer::from_pem_file(path).map_err(|e| TlsFileError::Read {
        what: "private key",
        path: path.to_owned(),
        reason: e.to_string(),
    })
}

/// `tls-server-end-point` (RFC 5929, section 4.1): the certificate's hash by the hash of its signature algorithm,
/// SHA-256 instead of MD5 and SHA-1. `None` where there is no such hash (Ed25519, PSS), as in Postgres.
pub fn end_point_hash(certificate: &[u8]) -> Option<Vec<u8>> {
    let oid = Certificate::from_der(certificate).ok()?.signature_algorithm.oid.to_string();
    let hash = match oid.as_str() {
        // md5, sha1 and sha256 with RSA; ECDSA with sha1 and sha256.
        "1.2.840.113549.1.1.4"
        | "1.2.840.113549.1.1.5"
        | "1.2.840.113549.1.1.11"
        | "1.2.840.10045.4.1"
        | "1.2.840.10045.4.3.2" => sha2::Sha256::digest(certificate).to_vec(),
        "1.2.840.113549.1.1.14" | "1.2.840.10045.4.3.1" => sha2::Sha224::digest(certificate).to_vec(),
        "1.2.840.113549.1.1.12" | "1.2.840.10045.4.3.3" => sha2::Sha384::digest(certificate).to_vec(),
        "1.2.840.113549.1.1.13" | "1.2.840.10045.4.3.4" => sha2::Sha512::digest(certificate).to_vec(),
        _ => return None,
    };
    Some(hash)
}

/// The common name of the subject. `None` without one, with several (which would be meant?) or with a NUL in it.
pub fn common_name(certificate: &[u8]) -> Option<String> {
    let certificate = Certificate::from_der(certificate).ok()?;
    let mut names = certificate
        .tbs_certificate
        .subject
        .0
        .iter()
        .flat_map(|rdn| rdn.0.iter())
        .filter(|attribute| attribute.oid.to_string() == "2.5.4.3");
    let value = &names.next()?.value;
    if names.next().is_some() {
        return None;
    }
    let text = Utf8StringRef::try_from(value)
        .map(|s| s.to_string())
        .or_else(|_| PrintableStringRef::try_from(value).map(|s| s.to_string()))
        .or_else(|_| TeletexStringRef::try_from(value).map(|s| s.to_string()))
        .ok()?;
    (!text.is_empty() && !text.contains('\0')).then_some(text)
}

/// Is `now` (since 1970) within the validity of the certificate?
pub fn is_current(certificate: &[u8], now: std::time::Duration) -> bool {
    Certificate::from_der(certificate).is_ok_and(|c| {
        let validity = c.tbs_certificate.validity;
        validity.not_before.to_unix_duration() <= now && now <= validity.not_after.to_unix_duration()
    })
}

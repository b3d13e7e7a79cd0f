//! Files that the configuration names: certificates, keys, passwords.

use rustls::{RootCertStore, sign::CertifiedKey};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

use super::{Secret, part::Part};

/// Are these a certificate chain and its key?
pub(super) fn certificate_with_key(part: &Part<'_>, certificate: &str, key: &str) {
    let chain = part.file(certificate).and_then(|c| certificates(part, certificate, &c.bytes));
    let private = part.secret_file(key).and_then(|c| {
        PrivateKeyDer::from_pem_slice(&c.bytes)
            .map_err(|_| part.mistake(key, "there is no PEM private key in this file", None))
            .ok()
    });
    let (Some(chain), Some(private)) = (chain, private) else { return };
    let provider = rustls::crypto::ring::default_provider();
    match CertifiedKey::from_der(chain, private, &provider) {
        Ok(_) => {}
        Err(rustls::Error::InconsistentKeys(_)) => {
            part.mistake(key, format!("this key does not belong to {certificate}"), None);
        }
        Err(error) => part.mistake(certificate, format!("cannot be used: {error}"), None),
    }
}

/// Is this a bundle of authorities?
pub(super) fn authorities(part: &Part<'_>, key: &str) {
    let Some(contents) = part.file(key) else { return };
    let Some(list) = certificates(part, key, &contents.bytes) else { return };
    let mut store = RootCertStore::empty();
    for certificate in list {
        if let Err(error) = store.add(certificate) {
            part.mistake(key, format!("holds a certificate that cannot be used: {error}"), None);
        }
    }
}

/// `password` or the contents of `password_file`.
pub(super) fn password(part: &Part<'_>) -> Secret {
    let Some((key, text)) = secret(part, ["password", "password_file"]) else { return Secret::None };
    secret_of(text).unwrap_or_else(|| {
        part.mistake(key, "begins like a SCRAM verifier and is none", None);
        Secret::None
    })
}

/// A text as written or the contents of a file, and which of the two keys says so.
pub(super) fn secret(part: &Part<'_>, [written, file]: [&'static str; 2]) -> Option<(&'static str, String)> {
    let (key, text) = match (part.text(written), part.is_written(file)) {
        (Some(_), true) => {
            part.mistake(file, format!("there is a {written} as well; one of the two"), None);
            return None;
        }
        (None, false) => return None,
        (Some(text), false) => (written, text),
        (None, true) => {
            let contents = part.secret_file(file)?;
            let Ok(text) = String::from_utf8(contents.bytes) else {
                part.mistake(file, "is not UTF-8", None);
                return None;
            };
            // Editors end the last line; a secret does not.
            let line = text.strip_suffix('\n').unwrap_or(&text);
            (file, line.strip_suffix('\r').unwrap_or(line).to_owned())
        }
    };
    if text.is_empty() || text.contains(['\0', '\n']) {
        part.mistake(key, "is empty or has more than one line", None);
        return None;
    }
    Some((key, text))
}

fn certificates(part: &Part<'_>, key: &str, pem: &[u8]) -> Option<Vec<CertificateDer<'static>>> {
    let list: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match list {
        Ok(list) if !list.is_empty() => Some(list),
        Ok(_) | Err(_) => {
            part.mistake(key, "there is no PEM certificate in this file", None);
            None
        }
    }
}

/// Tells passwords from what `pg_authid` stores, as Postgres' `get_password_type` does. `None`: a broken verifier.
pub(super) fn secret_of(text: String) -> Option<Secret> {
    let hex = |s: &str| s.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    if text.len() == 35 && text.strip_prefix("md5").is_some_and(hex) {
        return Some(Secret::Md5(text));
    }
    let Some(rest) = text.strip_prefix("SCRAM-SHA-256$") else { return Some(Secret::Password(text)) };
    let (iterations, rest) = rest.split_once(':')?;
    let (salt, rest) = rest.split_once('$')?;
    let (stored, server) = rest.split_once(':')?;
    let bytes = |s: &str| base64::Engine::decode(&base64::engine::general_purpose::STANDARD, s).ok();
    let good = iterations.parse::<u32>().is_ok_and(|n| n > 0)
        && bytes(salt).is_some_and(|b| !b.is_empty())
        && [stored, server].iter().all(|s| bytes(s).is_some_and(|b| b.len() == 32));
    good.then_some(Secret::ScramVerifier(text))
}

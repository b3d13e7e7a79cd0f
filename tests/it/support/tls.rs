//! A certificate authority for the tests and TLS for [`super::wire::Wire`].

use std::{
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

use super::cluster::base_dir;

/// PEM files of the authority, of a server `localhost`, and of clients named after their users.
#[derive(Debug)]
pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    dir: PathBuf,
}

/// The authority of this process.
pub(crate) fn authority() -> &'static Authority {
    static AUTHORITY: OnceLock<Authority> = OnceLock::new();
    AUTHORITY.get_or_init(|| {
        let mut params = CertificateParams::new([]).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "crossfade test authority");
        let key = KeyPair::generate().expect("a key");
        let issuer = CertifiedIssuer::self_signed(params, key).expect("self-signed");
        let dir = base_dir().join("ca");
        std::fs::create_dir_all(&dir).expect("the temp dir is writable");
        std::fs::write(dir.join("ca.crt"), issuer.pem()).expect("written");
        let authority = Authority { issuer, dir };
        authority.issue(&authority.dir, "server", "localhost");
        authority
    })
}

impl Authority {
    /// The authority's certificate, PEM.
    pub(crate) fn ca(&self) -> PathBuf {
        self.dir.join("ca.crt")
    }

    /// Certificate and key of the server `localhost`, PEM.
    pub(crate) fn server(&self) -> (PathBuf, PathBuf) {
        (self.dir.join("server.crt"), self.dir.join("server.key"))
    }

    /// Certificate and key with this common name, PEM.
    pub(crate) fn client(&self, name: &str) -> (PathBuf, PathBuf) {
        self.issue(&self.dir, &format!("client-{name}"), name)
    }

    /// Writes `<stem>.crt` and `<stem>.key` (0600, as Postgres demands) for `name`, loopback included.
    pub(crate) fn issue(&self, dir: &Path, stem: &str, name: &str) -> (PathBuf, PathBuf) {
        let names = [name, "localhost", "127.0.0.1", "::1"].map(String::from);
        let mut params = CertificateParams::new(names).expect("valid names");
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("signed");
        let files = (dir.join(format!("{stem}.crt")), dir.join(format!("{stem}.key")));
        std::fs::write(&files.0, certificate.pem()).expect("written");
        write_private(&files.1, &key.serialize_pem());
        files
    }
}

/// Writes a file that only its owner may read.
pub(crate) fn write_private(path: &Path, text: &str) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::write(path, text).expect("written");
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).expect("own file");
}

/// How a client of the tests does TLS: it trusts the authority, may show a certificate, may offer ALPN.
pub(crate) fn client_config(user: Option<&str>, alpn: bool) -> Arc<ClientConfig> {
    let authority = authority();
    let mut roots = RootCertStore::empty();
    roots.add(authority.issuer.der().clone()).expect("a valid root");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring does TLS 1.2 and 1.3")
        .with_root_certificates(roots);
    let mut config = match user {
        None => builder.with_no_client_auth(),
        Some(user) => {
            let (certificate, key) = authority.client(user);
            let chain = vec![CertificateDer::from_pem_file(certificate).expect("PEM just written")];
            let key = PrivateKeyDer::from_pem_file(key).expect("PEM just written");
            builder.with_client_auth_cert(chain, key).expect("key and certificate belong together")
        }
    };
    if alpn {
        config.alpn_protocols = vec![b"postgresql".to_vec()];
    }
    Arc::new(config)
}

//! Certificates of a test cluster: a CA of its own, one server certificate for every listener on this machine.

use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::{ClientConfig, RootCertStore};

/// Files of the certificates, and what a client needs to trust them.
#[derive(Clone, Debug)]
pub struct Tls {
    /// Certificate of the CA, PEM.
    pub ca_file: PathBuf,
    /// Server certificate for 127.0.0.1 and localhost, PEM.
    pub cert_file: PathBuf,
    /// Its key, PKCS#8 PEM.
    pub key_file: PathBuf,
    /// Certificate and key in one file, as HAProxy wants them.
    pub both_file: PathBuf,
    /// Trusts the CA only.
    pub client: Arc<ClientConfig>,
}

impl Tls {
    /// Makes a CA and a server certificate in `dir`, for this machine and for `addresses`.
    #[must_use]
    pub fn make(dir: &Path, addresses: &[IpAddr]) -> Self {
        let ca_key = KeyPair::generate().expect("key of the CA");
        let mut ca = CertificateParams::new(Vec::new()).expect("no names");
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        ca.distinguished_name
            .push(DnType::CommonName, "Strongroom test CA");
        let ca_cert = ca.self_signed(&ca_key).expect("signing the CA");
        let issuer = Issuer::from_params(&ca, &ca_key);

        let key = KeyPair::generate().expect("key of the server");
        let mut names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        names.extend(addresses.iter().map(ToString::to_string));
        let mut server = CertificateParams::new(names).expect("names of this machine");
        server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        server
            .distinguished_name
            .push(DnType::CommonName, "localhost");
        let cert = server
            .signed_by(&key, &issuer)
            .expect("signing the server's certificate");

        let write = |name: &str, text: String| {
            let path = dir.join(name);
            fs::write(&path, text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            path
        };
        let mut roots = RootCertStore::empty();
        roots.add(ca_cert.der().clone()).expect("our own CA");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let client = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("protocol versions of the provider")
            .with_root_certificates(roots)
            .with_no_client_auth();
        Self {
            ca_file: write("ca.pem", ca_cert.pem()),
            cert_file: write("server.pem", cert.pem()),
            key_file: write("server-key.pem", key.serialize_pem()),
            both_file: write("both.pem", cert.pem() + &key.serialize_pem()),
            client: Arc::new(client),
        }
    }
}

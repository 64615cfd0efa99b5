//! How a client verifies a server and proves itself: certificate authorities, client certificate, name.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, aws_lc_rs},
};
use rustls_pki_types::{
    CertificateDer, PrivateKeyDer, ServerName, UnixTime,
    pem::{self, PemObject as _},
};
use zeroize::Zeroizing;

/// PEM text, by path or given as such. The text is wiped on drop, since it may be a key.
#[derive(Clone)]
pub(crate) enum Pem {
    /// A file, read when it is used.
    File(PathBuf),
    /// The text itself.
    Inline(Arc<Zeroizing<Vec<u8>>>),
}

/// Leaves the text out.
impl std::fmt::Debug for Pem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Inline(_) => f.write_str("inline PEM"),
        }
    }
}

/// How to verify a server, and what to show it.
#[derive(Clone, Debug, Default)]
pub(crate) struct TlsParameters {
    /// Certificate authorities; the system's when there is neither this nor a directory.
    pub(crate) ca: Option<Pem>,
    /// Directory of PEM files with certificate authorities.
    pub(crate) ca_dir: Option<PathBuf>,
    /// Certificate chain and key of the client.
    pub(crate) client: Option<(Pem, Pem)>,
    /// Expected name of the server, when it is not the host of the address.
    pub(crate) server_name: Option<String>,
    /// Take any certificate. Dangerous.
    pub(crate) skip_verify: bool,
}

/// Why TLS could not be set up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TlsError {
    /// A file or directory cannot be read.
    #[error("{} cannot be read", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The text is no certificate.
    #[error("{0} holds no usable PEM certificate")]
    Certificate(String),
    /// The text is no private key.
    #[error("{0} holds no usable, unencrypted PEM private key")]
    Key(String),
    /// Certificate and key do not fit.
    #[error("the client certificate and its key cannot be used together")]
    Pair(#[source] rustls::Error),
    /// The system has no certificate authorities and none were named.
    #[error("this system lists no certificate authorities; name one with -ca-cert or VAULT_CACERT")]
    NoRoots,
}

impl TlsParameters {
    /// From PEM texts as they come over the API; the empty text is none.
    ///
    /// # Errors
    /// A text that is no certificate or key.
    pub(crate) fn from_pem(
        ca: &str,
        client_cert: &str,
        client_key: &str,
        server_name: &str,
    ) -> Result<Self, TlsError> {
        let inline = |text: &str| Pem::Inline(Arc::new(Zeroizing::new(text.as_bytes().to_vec())));
        let parameters = Self {
            ca: (!ca.is_empty()).then(|| inline(ca)),
            client: (!client_cert.is_empty() || !client_key.is_empty())
                .then(|| (inline(client_cert), inline(client_key))),
            server_name: (!server_name.is_empty()).then(|| server_name.to_owned()),
            ..Self::default()
        };
        parameters.check()?;
        Ok(parameters)
    }

    /// Reads and parses everything that is named, so that mistakes show before the first connection.
    ///
    /// # Errors
    /// The first thing that cannot be used.
    pub(crate) fn check(&self) -> Result<(), TlsError> {
        if let Some(ca) = &self.ca {
            add_roots(&mut RootCertStore::empty(), ca)?;
        }
        self.client_pair().map(drop)
    }

    /// The rustls configuration; offers HTTP/1.1 only.
    ///
    /// # Errors
    /// As [`TlsParameters::check`], or no certificate authority at all.
    pub(crate) fn client_config(&self) -> Result<Arc<ClientConfig>, TlsError> {
        let builder = ClientConfig::builder();
        let builder = if self.skip_verify {
            let provider = CryptoProvider::get_default()
                .cloned()
                .unwrap_or_else(|| Arc::new(aws_lc_rs::default_provider()));
            builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(AcceptAny(provider)))
        } else {
            builder.with_root_certificates(self.roots()?)
        };
        let mut config = match self.client_pair()? {
            None => builder.with_no_client_auth(),
            Some((chain, key)) => builder
                .with_client_auth_cert(chain, key)
                .map_err(TlsError::Pair)?,
        };
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }

    fn roots(&self) -> Result<RootCertStore, TlsError> {
        let mut roots = RootCertStore::empty();
        if let Some(ca) = &self.ca {
            add_roots(&mut roots, ca)?;
        } else if let Some(dir) = &self.ca_dir {
            add_directory(&mut roots, dir)?;
        } else {
            // Single files that do not parse are skipped, as every TLS stack does with the system's store.
            let found = rustls_native_certs::load_native_certs();
            roots.add_parsable_certificates(found.certs);
        }
        if roots.is_empty() {
            return Err(TlsError::NoRoots);
        }
        Ok(roots)
    }

    fn client_pair(
        &self,
    ) -> Result<Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>, TlsError> {
        let Some((cert, key)) = &self.client else {
            return Ok(None);
        };
        let chain = certificates(cert)?;
        let text = read(key)?;
        let key =
            PrivateKeyDer::from_pem_slice(&text).map_err(|_| TlsError::Key(format!("{key:?}")))?;
        Ok(Some((chain, key)))
    }
}

fn read(pem: &Pem) -> Result<Zeroizing<Vec<u8>>, TlsError> {
    match pem {
        Pem::Inline(text) => Ok((**text).clone()),
        Pem::File(path) => read_file(path),
    }
}

fn read_file(path: &Path) -> Result<Zeroizing<Vec<u8>>, TlsError> {
    std::fs::read(path)
        .map(Zeroizing::new)
        .map_err(|source| TlsError::Read {
            path: path.to_owned(),
            source,
        })
}

fn certificates(pem: &Pem) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found: Result<Vec<_>, pem::Error> = CertificateDer::pem_slice_iter(&read(pem)?).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) | Err(_) => Err(TlsError::Certificate(format!("{pem:?}"))),
    }
}

fn add_roots(roots: &mut RootCertStore, pem: &Pem) -> Result<(), TlsError> {
    for certificate in certificates(pem)? {
        roots
            .add(certificate)
            .map_err(|_| TlsError::Certificate(format!("{pem:?}")))?;
    }
    Ok(())
}

/// Every file of a directory; those without certificates are passed over.
fn add_directory(roots: &mut RootCertStore, dir: &Path) -> Result<(), TlsError> {
    let unreadable = |source| TlsError::Read {
        path: dir.to_owned(),
        source,
    };
    for entry in std::fs::read_dir(dir).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        if path.is_file() {
            let found: Vec<_> = CertificateDer::pem_slice_iter(&read_file(&path)?)
                .filter_map(Result::ok)
                .collect();
            roots.add_parsable_certificates(found);
        }
    }
    Ok(())
}

/// Takes any certificate, for `-tls-skip-verify`; signatures are still checked, so the peer holds its key.
#[derive(Debug)]
struct AcceptAny(Arc<CryptoProvider>);

impl ServerCertVerifier for AcceptAny {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(
            message,
            cert,
            dss,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            cert,
            dss,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

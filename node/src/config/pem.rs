//! Whether the PEM files that a configuration names can be used.

use std::path::Path;

use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};

/// Certificates of a file, at least one.
pub(super) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    readable(path)?;
    let found: Vec<_> = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<_, _>>)
        .map_err(|error| format!("{}: not valid PEM: {error}", path.display()))?;
    if found.is_empty() {
        return Err(format!("{} holds no PEM certificate", path.display()));
    }
    Ok(found)
}

/// The private key of a file.
pub(super) fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, String> {
    readable(path)?;
    PrivateKeyDer::from_pem_file(path)
        .map_err(|_| format!("{} holds no unencrypted PEM private key", path.display()))
}

/// What is wrong with a certificate and key, each to be shown where its file is named.
#[derive(Default)]
pub(super) struct PairProblems {
    pub(super) cert: Option<String>,
    pub(super) key: Option<String>,
}

/// Certificate and key, and that they belong together.
pub(super) fn pair(cert_file: &Path, key_file: &Path) -> Result<(), PairProblems> {
    let key_problem = |text: String| PairProblems {
        key: Some(text),
        ..PairProblems::default()
    };
    let (chain, key) = match (certificates(cert_file), private_key(key_file)) {
        (Ok(chain), Ok(key)) => (chain, key),
        (chain, key) => {
            return Err(PairProblems {
                cert: chain.err(),
                key: key.err(),
            });
        }
    };
    let signing_key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key).map_err(|_| {
        key_problem(format!(
            "{}: a kind of key that is not supported",
            key_file.display()
        ))
    })?;
    match rustls::sign::CertifiedKey::new(chain, signing_key).keys_match() {
        Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => Ok(()),
        Err(rustls::Error::InconsistentKeys(_)) => Err(key_problem(format!(
            "{} is not the key of the certificate in {}",
            key_file.display(),
            cert_file.display()
        ))),
        Err(error) => Err(PairProblems {
            cert: Some(format!("{}: {error}", cert_file.display())),
            ..PairProblems::default()
        }),
    }
}

fn readable(path: &Path) -> Result<(), String> {
    std::fs::File::open(path)
        .map(drop)
        .map_err(|error| format!("{} cannot be read: {error}", path.display()))
}

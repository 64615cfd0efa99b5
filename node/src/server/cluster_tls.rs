//! Certificates of the cluster port: one cluster CA, made at initialisation and kept in the keyring; every node mints
//! its own short chain from it at start, in memory only.
//!
//! In: the CA from the decrypted keyring, the node's Raft id and the cluster id. Out: rustls configurations for mutual
//! TLS 1.3.
//!
//! Invariants
//! - No private key of the cluster port is ever on disk outside the keyring.
//! - Node N's certificate names exactly `n<N>.<cluster id in hex>.strongroom`; peers verify that name, so a node of
//!   another cluster, or with another id, is not spoken to.
//! - Validity is unbounded on purpose: trust comes from holding the sealed CA and from membership, and an expiry would
//!   be an outage waiting for its day. A certificate lives as long as the process that minted it.

use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType, date_time_ymd,
};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig, server::WebPkiClientVerifier, version::TLS13,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use zeroize::Zeroizing;

/// A freshly made cluster CA.
pub(crate) struct ClusterCa {
    /// Self-signed certificate, DER.
    pub(crate) certificate: Vec<u8>,
    /// PKCS#8 private key, DER.
    pub(crate) key: Zeroizing<Vec<u8>>,
}

/// Why certificates could not be made or used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClusterTlsError {
    #[error("making a cluster certificate failed")]
    Mint(#[from] rcgen::Error),
    #[error("the cluster CA in the keyring is not usable")]
    Ca(#[source] rustls::Error),
    #[error("the cluster CA in the keyring cannot verify peers")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
}

/// Server and client side of the cluster port.
pub(crate) struct ClusterTls {
    /// For incoming connections; asks for and verifies the peer's certificate.
    pub(crate) server: Arc<ServerConfig>,
    /// For outgoing connections; the caller sets the ALPN name.
    pub(crate) client: Arc<ClientConfig>,
}

/// Makes the CA of a new cluster (ECDSA P-256).
pub(crate) fn generate_ca(cluster_id: &[u8; 16]) -> Result<ClusterCa, ClusterTlsError> {
    let key = KeyPair::generate()?;
    let mut params = base_params(&format!("strongroom cluster {}", hex::encode(cluster_id)));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let certificate = params.self_signed(&key)?;
    Ok(ClusterCa {
        certificate: certificate.der().to_vec(),
        key: Zeroizing::new(key.serialize_der()),
    })
}

/// Mints this node's certificate and builds both TLS configurations, offering and accepting `alpn`.
pub(crate) fn node_tls(
    ca_certificate: &[u8],
    ca_key: &[u8],
    cluster_id: &[u8; 16],
    raft_id: u64,
    alpn: &[&str],
) -> Result<ClusterTls, ClusterTlsError> {
    let ca_der = CertificateDer::from(ca_certificate.to_vec());
    let ca_pair = KeyPair::from_pkcs8_der_and_sign_algo(
        &PrivatePkcs8KeyDer::from(ca_key),
        &rcgen::PKCS_ECDSA_P256_SHA256,
    )?;
    let issuer = Issuer::from_ca_cert_der(&ca_der, ca_pair)?;
    let own = KeyPair::generate()?;
    let name = node_dns_name(cluster_id, raft_id);
    let mut params = base_params(&name);
    params.subject_alt_names = vec![SanType::DnsName(name.try_into()?)];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    let chain = vec![params.signed_by(&own, &issuer)?.der().clone()];
    let key_der = || PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(own.serialize_der()));

    let mut roots = RootCertStore::empty();
    roots.add(ca_der).map_err(ClusterTlsError::Ca)?;
    let roots = Arc::new(roots);
    let verifier = WebPkiClientVerifier::builder(Arc::clone(&roots)).build()?;
    let mut server = ServerConfig::builder_with_protocol_versions(&[&TLS13])
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain.clone(), key_der())
        .map_err(ClusterTlsError::Ca)?;
    server.alpn_protocols = alpn.iter().map(|a| a.as_bytes().to_vec()).collect();
    let client = ClientConfig::builder_with_protocol_versions(&[&TLS13])
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key_der())
        .map_err(ClusterTlsError::Ca)?;
    Ok(ClusterTls {
        server: Arc::new(server),
        client: Arc::new(client),
    })
}

/// The one DNS name in node `raft_id`'s certificate.
pub(crate) fn node_dns_name(cluster_id: &[u8; 16], raft_id: u64) -> String {
    format!("n{raft_id}.{}.strongroom", hex::encode(cluster_id))
}

fn base_params(common_name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.not_before = date_time_ymd(1975, 1, 1);
    params.not_after = date_time_ymd(4096, 1, 1);
    params
        .distinguished_name
        .push(DnType::CommonName, common_name);
    params
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_mints_a_chain_its_peers_can_build() {
        let ca = generate_ca(&[7; 16]).unwrap();
        let tls = node_tls(&ca.certificate, &ca.key, &[7; 16], 3, &["x/1"]).unwrap();
        assert_eq!(tls.server.alpn_protocols, vec![b"x/1".to_vec()]);
    }

    #[test]
    fn a_damaged_ca_is_an_error_not_a_panic() {
        let ca = generate_ca(&[7; 16]).unwrap();
        for (cert, key) in [
            (&b""[..], &ca.key[..]),
            (&ca.certificate[..], &b"junk"[..]),
            (&ca.certificate[..20], &ca.key[..]),
        ] {
            assert!(node_tls(cert, key, &[7; 16], 3, &["x/1"]).is_err());
        }
    }
}

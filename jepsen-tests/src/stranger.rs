//! Somebody at a port who does not belong there.

use std::{
    io::Read,
    net::{SocketAddr, TcpStream},
    sync::Arc,
    time::Duration,
};

use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, Error, SignatureScheme, StreamOwned,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::CryptoProvider,
    version::{TLS12, TLS13},
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject};

use crate::tls::Tls;

/// How long a server that minds has to say so.
const PATIENCE: Duration = Duration::from_secs(3);

/// How to knock.
pub struct Knock<'a> {
    /// Offers TLS 1.2 only, and not 1.3 only.
    pub tls12: bool,
    /// Protocol asked for, if any.
    pub alpn: Option<&'a str>,
    /// Shows this certificate, of a CA that the cluster port does not know.
    pub certificate: Option<&'a Tls>,
}

impl Knock<'_> {
    /// Does a TLS handshake with whoever listens, trusting anybody, and waits for a word.
    ///
    /// # Errors
    /// What the other side said when it refused. A connection that stays open in silence is `Ok`.
    pub fn at(&self, addr: SocketAddr) -> Result<(), String> {
        let tcp = TcpStream::connect_timeout(&addr, PATIENCE).map_err(|e| e.to_string())?;
        tcp.set_read_timeout(Some(PATIENCE))
            .map_err(|e| e.to_string())?;
        let name = ServerName::try_from("localhost").expect("a name");
        let tls = ClientConnection::new(Arc::new(self.config()), name).expect("a client");
        let mut stream = StreamOwned::new(tls, tcp);
        let mut byte = [0];
        match stream.read(&mut byte) {
            Ok(0) => Err("closed".to_owned()),
            Ok(_) => Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(error.to_string()),
        }
    }

    fn config(&self) -> ClientConfig {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let versions: &[_] = if self.tls12 { &[&TLS12] } else { &[&TLS13] };
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(versions)
            .expect("versions of the provider")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(TrustsAnybody(provider)));
        let mut config = match self.certificate {
            None => builder.with_no_client_auth(),
            Some(tls) => {
                let chain = CertificateDer::from_pem_file(&tls.cert_file).expect("our certificate");
                let key = PrivateKeyDer::from_pem_file(&tls.key_file).expect("our key");
                builder
                    .with_client_auth_cert(vec![chain], key)
                    .expect("our certificate")
            }
        };
        config.alpn_protocols = self
            .alpn
            .iter()
            .map(|alpn| alpn.as_bytes().to_vec())
            .collect();
        config
    }
}

/// Only for looking at what the other side refuses.
#[derive(Debug)]
struct TrustsAnybody(Arc<CryptoProvider>);

impl ServerCertVerifier for TrustsAnybody {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

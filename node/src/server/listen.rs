//! The client port: accepts TCP, speaks TLS, hands requests to a router, and drains at shutdown.
//!
//! Invariants
//! - Connections are bounded: past [`MAX_CONNECTIONS`] the kernel's backlog waits.
//! - A peer that stalls in the handshake or in the request head is cut off.
//! - Certificates are read again on demand; a pair that does not load leaves the old one in use.

use std::{
    convert::Infallible,
    io::{self, IoSlice},
    path::PathBuf,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use hyper::{
    rt::{Sleep, Timer},
    service::service_fn,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{
        conn::auto,
        graceful::{GracefulShutdown, Watcher},
    },
};
use rustls::{
    RootCertStore, ServerConfig, SupportedProtocolVersion,
    server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier},
    sign::CertifiedKey,
    version::{TLS12, TLS13},
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use strongroom_api::{
    Service,
    alarm::{Alarm, Alarms},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::config::{ClientAuth, ListenerTls, TlsVersion};

/// Open connections per listener.
const MAX_CONNECTIONS: usize = 8192;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a listener's TLS could not be set up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ListenTlsError {
    #[error("{}: {why}", path.display())]
    File { path: PathBuf, why: String },
}

/// The certificate in use, replaceable while connections are served.
#[derive(Debug)]
pub(crate) struct ReloadableCert {
    settings: ListenerTls,
    current: ArcSwap<CertifiedKey>,
}

impl ReloadableCert {
    /// Reads the pair named by `settings`.
    pub(crate) fn load(settings: ListenerTls) -> Result<Arc<Self>, ListenTlsError> {
        let current = ArcSwap::from_pointee(read_pair(&settings)?);
        Ok(Arc::new(Self { settings, current }))
    }

    /// Reads the pair again; new connections get it.
    pub(crate) fn reload(&self) -> Result<(), ListenTlsError> {
        self.current.store(Arc::new(read_pair(&self.settings)?));
        Ok(())
    }

    /// The rustls configuration that serves this certificate.
    pub(crate) fn server_config(self: &Arc<Self>) -> Result<Arc<ServerConfig>, ListenTlsError> {
        let versions: &[&SupportedProtocolVersion] =
            match (self.settings.min_version, self.settings.max_version) {
                (TlsVersion::Tls12, TlsVersion::Tls13) => &[&TLS13, &TLS12],
                (TlsVersion::Tls13, _) => &[&TLS13],
                (TlsVersion::Tls12, TlsVersion::Tls12) => &[&TLS12],
            };
        let builder = ServerConfig::builder_with_protocol_versions(versions);
        let client_ca = match &self.settings.client_auth {
            ClientAuth::Off => None,
            ClientAuth::Optional { ca_file } => Some((ca_file, false)),
            ClientAuth::Required { ca_file } => Some((ca_file, true)),
        };
        let builder = match client_ca {
            None => builder.with_no_client_auth(),
            Some((path, required)) => {
                let mut verifier = WebPkiClientVerifier::builder(Arc::new(read_roots(path)?));
                if !required {
                    verifier = verifier.allow_unauthenticated();
                }
                let verifier = verifier.build().map_err(|e| ListenTlsError::File {
                    path: path.clone(),
                    why: e.to_string(),
                })?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let mut config =
            builder.with_cert_resolver(Arc::clone(self) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}

impl ResolvesServerCert for ReloadableCert {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.load_full())
    }
}

fn read_pair(settings: &ListenerTls) -> Result<CertifiedKey, ListenTlsError> {
    let file_error = |path: &PathBuf, why: String| ListenTlsError::File {
        path: path.clone(),
        why,
    };
    let chain = CertificateDer::pem_file_iter(&settings.cert_file)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|e| file_error(&settings.cert_file, e.to_string()))?;
    if chain.is_empty() {
        return Err(file_error(
            &settings.cert_file,
            "holds no PEM certificate".to_owned(),
        ));
    }
    let key = PrivateKeyDer::from_pem_file(&settings.key_file)
        .map_err(|e| file_error(&settings.key_file, e.to_string()))?;
    let signing_key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key)
        .map_err(|e| file_error(&settings.key_file, e.to_string()))?;
    let pair = CertifiedKey::new(chain, signing_key);
    pair.keys_match()
        .map_err(|e| file_error(&settings.key_file, e.to_string()))?;
    Ok(pair)
}

fn read_roots(path: &PathBuf) -> Result<RootCertStore, ListenTlsError> {
    let file_error = |why: String| ListenTlsError::File {
        path: path.clone(),
        why,
    };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(path).map_err(|e| file_error(e.to_string()))? {
        let certificate = certificate.map_err(|e| file_error(e.to_string()))?;
        roots
            .add(certificate)
            .map_err(|e| file_error(e.to_string()))?;
    }
    if roots.is_empty() {
        return Err(file_error("holds no PEM certificate".to_owned()));
    }
    Ok(roots)
}

/// Serves `service` on `listener` until `stop`, then lets open requests end (the caller bounds the wait).
///
/// A client has `head_timeout` to send a request's head.
pub(crate) async fn serve(
    listener: TcpListener,
    head_timeout: Duration,
    tls: Option<Arc<ServerConfig>>,
    service: Service,
    stop: CancellationToken,
) {
    let acceptor = tls.map(TlsAcceptor::from);
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let graceful = GracefulShutdown::new();
    let heads = Heads {
        timer: HeadTimer::default(),
        longest: head_timeout,
    };
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = accept(&listener, &permits) => accepted,
        };
        let Some((stream, permit)) = accepted else {
            continue;
        };
        let (acceptor, service, watcher) = (acceptor.clone(), service.clone(), graceful.watcher());
        let (heads, stop) = (heads.clone(), stop.clone());
        tokio::spawn(async move {
            match handshake(stream, acceptor).await {
                Some(Either::Plain(stream)) => {
                    if let Some(stream) = first_bytes(stream, head_timeout, &stop).await {
                        connection(stream, heads, service, watcher).await;
                    }
                }
                Some(Either::Tls(stream)) => {
                    if let Some(stream) = first_bytes(*stream, head_timeout, &stop).await {
                        connection(stream, heads, service, watcher).await;
                    }
                }
                None => {}
            }
            drop(permit);
        });
    }
    drop(listener);
    graceful.shutdown().await;
}

/// What an HTTP/2 client sends first. Source: RFC 9113, section 3.4.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The stream once it is clear which version of HTTP is spoken on it; hyper's own time-out starts only then, so a client that
/// says nothing, or stops within the preface, would hold its place for ever. A silent one is also let go at `stop`.
async fn first_bytes<S>(
    mut stream: S,
    head_timeout: Duration,
    stop: &CancellationToken,
) -> Option<Begun<S>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut head = Vec::with_capacity(PREFACE.len());
    let spoke = tokio::select! {
        () = stop.cancelled() => false,
        read = tokio::time::timeout(head_timeout, read_version(&mut stream, &mut head)) => {
            matches!(read, Ok(Ok(())))
        }
    };
    let begun = Begun {
        head,
        given: 0,
        stream,
    };
    spoke.then_some(begun)
}

/// Reads until `head` is the preface, or something else.
async fn read_version(stream: &mut (impl AsyncRead + Unpin), head: &mut Vec<u8>) -> io::Result<()> {
    while PREFACE.starts_with(head) && head.len() < PREFACE.len() {
        let missing = (PREFACE.len() - head.len()) as u64;
        if stream.take(missing).read_buf(head).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(())
}

/// A stream of which the first bytes have been read: they are given again.
struct Begun<S> {
    head: Vec<u8>,
    given: usize,
    stream: S,
}

impl<S: AsyncRead + Unpin> AsyncRead for Begun<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let left = this.head.get(this.given..).unwrap_or_default();
        let Some(now) = left
            .get(..left.len().min(into.remaining()))
            .filter(|now| !now.is_empty())
        else {
            return Pin::new(&mut this.stream).poll_read(context, into);
        };
        into.put_slice(now);
        this.given += now.len();
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Begun<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// Serves HTTP/1.1 or HTTP/2 on one connection until it ends.
async fn connection<S>(stream: S, heads: Heads, service: Service, watcher: Watcher)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut http = auto::Builder::new(TokioExecutor::new());
    http.http1()
        .timer(heads.timer)
        .header_read_timeout(heads.longest);
    http.http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(Some(Duration::from_secs(60)))
        .max_concurrent_streams(256);
    let service = service_fn(move |request| {
        let service = service.clone();
        async move { Ok::<_, Infallible>(service.answer(request).await) }
    });
    let serving = http
        .serve_connection(TokioIo::new(stream), service)
        .into_owned();
    if let Err(error) = watcher.watch(serving).await {
        tracing::debug!(%error, "a client connection ended");
    }
}

/// How long the head of a request may take.
#[derive(Clone)]
struct Heads {
    timer: HeadTimer,
    longest: Duration,
}

/// Times the heads of requests: hyper sets a timer for every one.
#[derive(Clone, Default)]
struct HeadTimer(Alarms);

/// hyper's name for what ends a wait.
struct HeadSleep(Alarm);

impl Timer for HeadTimer {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Sleep>> {
        self.sleep_until(Instant::now() + duration)
    }

    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn Sleep>> {
        Box::pin(HeadSleep(self.0.at(deadline)))
    }
}

impl Future for HeadSleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        Pin::new(&mut self.0).poll(context)
    }
}

impl Sleep for HeadSleep {}

enum Either {
    Plain(TcpStream),
    Tls(Box<tokio_rustls::server::TlsStream<TcpStream>>),
}

async fn accept(
    listener: &TcpListener,
    permits: &Arc<Semaphore>,
) -> Option<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let permit = Arc::clone(permits).acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, _peer)) => {
            if let Err(error) = stream.set_nodelay(true) {
                tracing::debug!(%error, "TCP_NODELAY was refused");
            }
            Some((stream, permit))
        }
        Err(error) => {
            // Out of descriptors, usually: wait for some connection to end instead of spinning.
            tracing::warn!(%error, "accepting a client connection failed");
            tokio::time::sleep(Duration::from_millis(100)).await;
            None
        }
    }
}

async fn handshake(stream: TcpStream, acceptor: Option<TlsAcceptor>) -> Option<Either> {
    let Some(acceptor) = acceptor else {
        return Some(Either::Plain(stream));
    };
    match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => Some(Either::Tls(Box::new(stream))),
        Ok(Err(error)) => {
            tracing::debug!(%error, "a client's TLS handshake failed");
            None
        }
        Err(_elapsed) => {
            tracing::debug!("a client's TLS handshake timed out");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;

    use super::*;

    #[tokio::test]
    async fn a_silent_client_is_let_go_and_a_speaking_one_loses_nothing() {
        let (soon, stop) = (Duration::from_millis(50), CancellationToken::new());
        let (silent, server) = tokio::io::duplex(64);
        assert!(first_bytes(server, soon, &stop).await.is_none());
        drop(silent);

        // One that stops where it could still become HTTP/2.
        for start in [&b"P"[..], b"PRI * HT"] {
            let (mut stopping, server) = tokio::io::duplex(64);
            stopping.write_all(start).await.unwrap();
            assert!(first_bytes(server, soon, &stop).await.is_none());
            drop(stopping);
        }

        let longer = [PREFACE, b"and more"].concat();
        for whole in [&b"GET"[..], b"PUT /v1/a", PREFACE, &longer] {
            let (mut speaking, server) = tokio::io::duplex(64);
            // In pieces: the version shows only with the last of them.
            let (first, rest) = whole.split_at(1);
            speaking.write_all(first).await.unwrap();
            let begun = tokio::spawn(async move {
                first_bytes(server, Duration::from_secs(60), &CancellationToken::new()).await
            });
            speaking.write_all(rest).await.unwrap();
            let mut stream = begun.await.unwrap().unwrap();
            let mut read = vec![0; whole.len()];
            stream.read_exact(&mut read).await.unwrap();
            assert_eq!(read, whole);
        }

        let (silent, server) = tokio::io::duplex(64);
        stop.cancel();
        let long = Duration::from_secs(3600);
        assert!(first_bytes(server, long, &stop).await.is_none());
        drop(silent);
    }
}

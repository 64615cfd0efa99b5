//! Who is on the other side: names in certificates, addresses of members, connections out.
//!
//! Invariants
//! - Node N's certificate names `n<N>.<cluster id in hex>.strongroom`; the dialing side asks for exactly that name, the
//!   accepting side reads the id from it. What a peer says about itself is only compared with it.
//! - Every step of a connection has a time limit.

use std::{
    collections::{BTreeMap, HashMap},
    future::poll_fn,
    io,
    pin::Pin,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use futures_sink::Sink;
use futures_util::StreamExt;
use prost::Message;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::{TlsConnector, TlsStream};
use tokio_util::codec::Framed;
use x509_parser::{extensions::GeneralName, prelude::FromDer};

use super::{
    frame::{Frame, FrameCodec, Kind},
    wire::{Hello, PROTOCOL, Purpose, Welcome},
};
use crate::{
    error::DialError,
    identity::{Identity, cluster_id_from_hex, cluster_id_hex},
    log::lock,
    types::PeerInfo,
};

/// ALPN name of this crate's protocol; the number is the version of framing and handshake.
pub const ALPN: &str = "strongroom-raft/1";

/// A framed connection after the handshake.
pub(crate) type Connection = Framed<TlsStream<TcpStream>, FrameCodec>;

/// The DNS name in node `raft_id`'s certificate.
pub(crate) fn dns_name(cluster_id: &[u8; 16], raft_id: u64) -> String {
    format!("n{raft_id}.{}.strongroom", cluster_id_hex(cluster_id))
}

/// Reads what [`dns_name`] gave.
fn parse_dns_name(name: &str) -> Option<([u8; 16], u64)> {
    let (id, rest) = name.strip_prefix('n')?.split_once('.')?;
    let cluster = cluster_id_from_hex(rest.strip_suffix(".strongroom")?)?;
    let id: u64 = id.parse().ok()?;
    // Only the one spelling that a certificate has.
    (dns_name(&cluster, id) == name).then_some((cluster, id))
}

/// Cluster and Raft id that a certificate (already verified by TLS) stands for.
pub(crate) fn certificate_identity(certificate: &CertificateDer<'_>) -> Option<([u8; 16], u64)> {
    let (_, parsed) = x509_parser::certificate::X509Certificate::from_der(certificate).ok()?;
    let names = parsed.subject_alternative_name().ok()??;
    let mut found = names.value.general_names.iter().filter_map(|name| {
        let GeneralName::DNSName(name) = name else {
            return None;
        };
        parse_dns_name(name)
    });
    let identity = found.next()?;
    // A certificate that stands for two nodes stands for none.
    found.next().is_none().then_some(identity)
}

/// How members are reached, from the newest membership this node knows.
#[derive(Default)]
pub(crate) struct Directory {
    members: ArcSwap<BTreeMap<u64, PeerInfo>>,
    /// Members that openraft already dials although the membership above does not have them yet.
    early: Mutex<BTreeMap<u64, PeerInfo>>,
}

impl Directory {
    pub(crate) fn replace(&self, members: BTreeMap<u64, PeerInfo>) {
        lock(&self.early).retain(|id, _| !members.contains_key(id));
        self.members.store(Arc::new(members));
    }

    pub(crate) fn note(&self, id: u64, info: &PeerInfo) {
        if !self.members.load().contains_key(&id) {
            lock(&self.early).insert(id, info.clone());
        }
    }

    pub(crate) fn contains(&self, id: u64) -> bool {
        self.members.load().contains_key(&id)
    }

    pub(crate) fn api_addr(&self, id: u64) -> Option<String> {
        let members = self.members.load();
        members.get(&id).map(|info| info.api_addr.clone())
    }

    fn address(&self, id: u64) -> Option<String> {
        if let Some(info) = self.members.load().get(&id) {
            return Some(info.cluster_addr.clone());
        }
        lock(&self.early)
            .get(&id)
            .map(|info| info.cluster_addr.clone())
    }
}

/// That leaders have said that this node was removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Removals {
    /// When it was said first.
    pub(crate) first: Instant,
    /// When it was said last.
    pub(crate) last: Instant,
    /// In whose words.
    pub(crate) reason: String,
}

/// What became of a bare TCP connection to a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Probe {
    /// The machine is there, and no process listens.
    Refused,
    /// Something listens, or did a moment ago.
    Answers,
    /// Nothing is known.
    Silent,
}

/// Makes connections to members.
pub(crate) struct Dialer {
    identity: Identity,
    pub(crate) directory: Arc<Directory>,
    /// The caller's configuration; the ALPN name is set per connection.
    client_tls: Arc<rustls::ClientConfig>,
    by_alpn: Mutex<HashMap<&'static str, TlsConnector>>,
    /// For each step: connecting, TLS, hello.
    step: Duration,
    removals: Mutex<Option<Removals>>,
}

impl Dialer {
    pub(crate) fn new(
        identity: Identity,
        directory: Arc<Directory>,
        client_tls: Arc<rustls::ClientConfig>,
        step: Duration,
    ) -> Self {
        Self {
            identity,
            directory,
            client_tls,
            by_alpn: Mutex::default(),
            step,
            removals: Mutex::default(),
        }
    }

    /// What has been said about a removal of this node since a leader was last heard, at `heard`.
    pub(crate) fn removals(&self, heard: Instant) -> Option<Removals> {
        let mut removals = lock(&self.removals);
        if removals.as_ref().is_some_and(|said| said.first < heard) {
            *removals = None;
        }
        removals.clone()
    }

    fn note_removal(&self, reason: &str) {
        let now = Instant::now();
        let mut removals = lock(&self.removals);
        let said = removals.get_or_insert_with(|| Removals {
            first: now,
            last: now,
            reason: reason.to_owned(),
        });
        said.last = now;
    }

    fn connector(&self, alpn: &'static str) -> TlsConnector {
        let mut by_alpn = lock(&self.by_alpn);
        let connector = by_alpn.entry(alpn).or_insert_with(|| {
            let mut config = (*self.client_tls).clone();
            config.alpn_protocols = vec![alpn.as_bytes().to_vec()];
            TlsConnector::from(Arc::new(config))
        });
        connector.clone()
    }

    /// Whether anything listens at member `id`'s address; refused only if every address behind its name refuses.
    pub(crate) async fn probe(&self, id: u64, limit: Duration) -> Probe {
        let Some(addr) = self.directory.address(id) else {
            return Probe::Silent;
        };
        let Ok(Ok(addresses)) = timeout(limit, tokio::net::lookup_host(addr)).await else {
            return Probe::Silent;
        };
        let mut outcome = Probe::Silent;
        for address in addresses {
            match timeout(limit, TcpStream::connect(address)).await {
                Ok(Ok(_)) => return Probe::Answers,
                Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    outcome = Probe::Refused;
                }
                Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionReset => {
                    return Probe::Answers;
                }
                Ok(Err(_)) | Err(_) => return Probe::Silent,
            }
        }
        outcome
    }

    /// Connects to member `id` and proves both sides' identity by TLS.
    pub(crate) async fn connect(
        &self,
        id: u64,
        alpn: &'static str,
    ) -> Result<TlsStream<TcpStream>, DialError> {
        let addr = self
            .directory
            .address(id)
            .ok_or(DialError::UnknownMember(id))?;
        let failed = |source| DialError::Connect {
            id,
            addr: addr.clone(),
            source,
        };
        let name = ServerName::try_from(dns_name(&self.identity.cluster_id, id))
            .map_err(|error| failed(io::Error::other(error)))?;
        let tcp = timeout(self.step, TcpStream::connect(&addr))
            .await
            .map_err(|_| DialError::TimedOut(id))?
            .map_err(failed)?;
        tcp.set_nodelay(true).map_err(failed)?;
        let tls = timeout(self.step, self.connector(alpn).connect(name, tcp))
            .await
            .map_err(|_| DialError::TimedOut(id))?
            .map_err(failed)?;
        if tls.get_ref().1.alpn_protocol() != Some(alpn.as_bytes()) {
            return Err(failed(io::Error::other(format!(
                "the other side does not speak {alpn}"
            ))));
        }
        Ok(tls.into())
    }

    /// Connects to member `id` for Raft's own messages.
    pub(crate) async fn open(&self, id: u64, purpose: Purpose) -> Result<Connection, DialError> {
        let stream = self.connect(id, ALPN).await?;
        let mut connection = Framed::new(stream, FrameCodec);
        let welcome = timeout(self.step, self.greet(&mut connection, id, purpose))
            .await
            .map_err(|_| DialError::TimedOut(id))?
            .map_err(|source| DialError::Connect {
                id,
                addr: self.directory.address(id).unwrap_or_default(),
                source,
            })?;
        if welcome.refused.is_empty() {
            Ok(connection)
        } else {
            if welcome.removed {
                self.note_removal(&welcome.refused);
            }
            Err(DialError::Refused {
                id,
                reason: welcome.refused,
            })
        }
    }

    async fn greet(
        &self,
        connection: &mut Connection,
        to: u64,
        purpose: Purpose,
    ) -> io::Result<Welcome> {
        let own = &self.identity;
        let hello = Hello {
            purpose: purpose.number(),
            ..hello(&own.cluster_id, own.raft_id, to)
        };
        send(connection, frame(Kind::Hello, &hello)).await?;
        let answer = connection
            .next()
            .await
            .ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))??;
        if answer.kind != Kind::Welcome {
            return Err(io::Error::other("the answer to hello is no welcome"));
        }
        Welcome::decode(answer.body).map_err(io::Error::other)
    }
}

/// The first message of node `from` to node `to`, without a purpose.
pub(crate) fn hello(cluster_id: &[u8; 16], from: u64, to: u64) -> Hello {
    Hello {
        protocol: PROTOCOL,
        cluster_id: cluster_id.to_vec(),
        from,
        to,
        purpose: 0,
    }
}

/// Sends one frame and waits until it is on its way.
pub(crate) async fn send(connection: &mut Connection, frame: Frame) -> io::Result<()> {
    feed(connection, frame).await?;
    flush(connection).await
}

/// Puts one frame into the buffer, so that several go out together; see [`flush`].
pub(crate) async fn feed(
    connection: &mut (impl Sink<Frame, Error = io::Error> + Unpin),
    frame: Frame,
) -> io::Result<()> {
    poll_fn(|cx| Pin::new(&mut *connection).poll_ready(cx)).await?;
    Pin::new(&mut *connection).start_send(frame)
}

/// Waits until everything in the buffer is on its way.
pub(crate) async fn flush(
    connection: &mut (impl Sink<Frame, Error = io::Error> + Unpin),
) -> io::Result<()> {
    poll_fn(|cx| Pin::new(&mut *connection).poll_flush(cx)).await
}

/// A frame without flags or number.
pub(crate) fn frame(kind: Kind, body: &impl Message) -> Frame {
    Frame {
        kind,
        flags: 0,
        seq: 0,
        body: body.encode_to_vec().into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_name_has_one_spelling() {
        let cluster = [0xa1; 16];
        let good = dns_name(&cluster, 42);
        assert_eq!(parse_dns_name(&good), Some((cluster, 42)));
        for bad in [
            "",
            "n42",
            "n42.strongroom",
            &good.to_uppercase(),
            &good.replace("n42", "n042"),
            &good.replace("n42", "n+42"),
            &good.replace("n42", "42"),
            &good.replace("n42", "n99999999999999999999"),
            &good.replace("a1a1", "a1"),
            &format!("{good}."),
            &format!("x.{good}"),
        ] {
            assert_eq!(parse_dns_name(bad), None, "{bad}");
        }
    }
}

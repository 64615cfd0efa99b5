//! Whole nodes in one process, over real TLS on loopback.

use std::{
    collections::{HashMap, HashSet},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use bytes::Bytes;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};
use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme,
    client::{
        Resumption, WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    server::WebPkiClientVerifier,
    version::TLS13,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use strongroom_raft::{
    ALPN, Applied, Command, Expect, Identity, IncomingStream, Op, Options, Pace, PeerInfo,
    ProposeError, Raft, SnapshotOptions, Stores, Transport,
};
use tempfile::TempDir;
use tokio::{net::TcpListener, sync::mpsc};

pub(crate) const CLUSTER: [u8; 16] = [0x5a; 16];
/// A protocol of the caller's own on the cluster port.
pub(crate) const ECHO: &str = "test-echo/1";

pub(crate) fn soon() -> Instant {
    Instant::now() + Duration::from_secs(10)
}

/// A cluster's certificate authority.
pub(crate) struct Ca {
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl Ca {
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap().der().clone();
        Self {
            issuer: Issuer::new(params, key),
            certificate,
        }
    }

    fn verifier(&self) -> Arc<WebPkiServerVerifier> {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone()).unwrap();
        WebPkiServerVerifier::builder(Arc::new(roots))
            .build()
            .unwrap()
    }

    pub(crate) fn tls(
        &self,
        cluster: &[u8; 16],
        raft_id: u64,
    ) -> (Arc<ServerConfig>, Arc<ClientConfig>) {
        let hex: String = cluster.iter().map(|byte| format!("{byte:02x}")).collect();
        let name = format!("n{raft_id}.{hex}.strongroom");
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::DnsName(name.try_into().unwrap())];
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let chain = vec![certificate.der().clone()];
        let der = || PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone()).unwrap();
        let roots = Arc::new(roots);
        let verifier = WebPkiClientVerifier::builder(Arc::clone(&roots))
            .build()
            .unwrap();
        let mut server = ServerConfig::builder_with_protocol_versions(&[&TLS13])
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain.clone(), der())
            .unwrap();
        server.alpn_protocols = vec![ALPN.into(), ECHO.into()];
        let client = ClientConfig::builder_with_protocol_versions(&[&TLS13])
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, der())
            .unwrap();
        (Arc::new(server), Arc::new(client))
    }
}

/// One node and where it lives; it can be stopped and started again.
pub(crate) struct Node {
    pub(crate) raft: Raft,
    pub(crate) identity: Identity,
    pub(crate) addr: String,
    pub(crate) dir: PathBuf,
    pub(crate) streams: Option<mpsc::Receiver<IncomingStream>>,
}

/// Which nodes do not reach which others: pairs (from, to). A node that is cut off from another cannot connect to it;
/// connections there are have to be ended by a [`Relay`].
#[derive(Clone, Debug, Default)]
pub(crate) struct Cuts(Arc<Mutex<HashSet<(u64, u64)>>>);

impl Cuts {
    pub(crate) fn cut(&self, one: u64, other: u64) {
        let mut cuts = self.0.lock().unwrap();
        cuts.extend([(one, other), (other, one)]);
    }

    pub(crate) fn heal(&self) {
        self.0.lock().unwrap().clear();
    }
}

/// Verifies servers as `inner` does, except those that this node is cut off from.
#[derive(Debug)]
struct Selective {
    inner: Arc<WebPkiServerVerifier>,
    own: u64,
    cuts: Cuts,
}

impl ServerCertVerifier for Selective {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let text = name.to_str();
        let to = text
            .strip_prefix('n')
            .and_then(|rest| rest.split('.').next());
        let to: u64 = to.and_then(|id| id.parse().ok()).unwrap();
        if self.cuts.0.lock().unwrap().contains(&(self.own, to)) {
            return Err(rustls::Error::General("cut off".to_owned()));
        }
        self.inner
            .verify_server_cert(end_entity, intermediates, name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, cert, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, cert, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// A cluster that starts with one node and grows by joins.
pub(crate) struct Cluster {
    pub(crate) ca: Ca,
    pub(crate) nodes: Vec<Node>,
    /// For nodes that are started from now on.
    pub(crate) snapshots: SnapshotOptions,
    root: PathBuf,
    /// Removes `root`, if it is the test's own.
    _temporary: Option<TempDir>,
    pub(crate) cuts: Cuts,
}

pub(crate) fn info(name: &str, addr: &str) -> PeerInfo {
    PeerInfo {
        name: name.to_owned(),
        cluster_addr: addr.to_owned(),
        api_addr: format!("https://{name}:8200"),
        hostname: name.to_owned(),
        version: "0.1.0".to_owned(),
        ..PeerInfo::default()
    }
}

pub(crate) fn put(key: &str, value: &str) -> Command {
    Command {
        ops: vec![Op::Put {
            key: Bytes::copy_from_slice(key.as_bytes()),
            value: Bytes::copy_from_slice(value.as_bytes()),
        }],
        ..Command::default()
    }
}

pub(crate) fn check(key: &str, expect: Expect) -> Op {
    Op::Check {
        key: Bytes::copy_from_slice(key.as_bytes()),
        expect,
    }
}

impl Cluster {
    /// A cluster of one.
    pub(crate) async fn new() -> Self {
        Self::with_snapshots(SnapshotOptions::default()).await
    }

    /// A cluster of one that takes snapshots like this.
    pub(crate) async fn with_snapshots(snapshots: SnapshotOptions) -> Self {
        let temporary = tempfile::tempdir().unwrap();
        let mut cluster = Self::on_disk(temporary.path(), snapshots);
        cluster._temporary = Some(temporary);
        cluster.begin().await;
        cluster
    }

    /// A cluster of three voters, each reached through a relay of its own, in the order of `nodes`.
    pub(crate) async fn of_three_behind_relays() -> (Self, Vec<Relay>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let relay = Relay::to(listener.local_addr().unwrap().to_string()).await;
        let temporary = tempfile::tempdir().unwrap();
        let mut cluster = Self::on_disk(temporary.path(), SnapshotOptions::default());
        cluster._temporary = Some(temporary);
        cluster.begin_at(listener, relay.addr.clone()).await;
        let mut relays = vec![relay];
        for name in ["b", "c"] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let relay = Relay::to(listener.local_addr().unwrap().to_string()).await;
            let leader = cluster.leader().await;
            let info = info(name, &relay.addr);
            let raft_id = cluster.nodes[leader].raft.add_node(info).await.unwrap();
            let identity = Identity {
                cluster_id: CLUSTER,
                raft_id,
                name: name.to_owned(),
            };
            let node = cluster.start(identity, relay.addr.clone(), listener).await;
            cluster.nodes.push(node);
            relays.push(relay);
        }
        cluster.until_three_voters().await;
        (cluster, relays)
    }

    /// No node yet; their directories will be in `root`, which stays.
    pub(crate) fn on_disk(root: &Path, snapshots: SnapshotOptions) -> Self {
        // Silent unless RUST_LOG asks; a second call in one process is refused, which is fine.
        drop(
            tracing_subscriber::fmt()
                .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
                .with_test_writer()
                .try_init(),
        );
        Self {
            ca: Ca::new(),
            nodes: Vec::new(),
            cuts: Cuts::default(),
            snapshots,
            root: root.to_owned(),
            _temporary: None,
        }
    }

    /// The first node, initialised.
    pub(crate) async fn begin(&mut self) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        self.begin_at(listener, addr).await;
    }

    async fn begin_at(&mut self, listener: TcpListener, addr: String) {
        let cluster = self;
        let identity = Identity {
            cluster_id: CLUSTER,
            raft_id: 1,
            name: "a".to_owned(),
        };
        let node = cluster.start(identity, addr, listener).await;
        node.raft.initialize().await.unwrap();
        cluster.nodes.push(node);
        cluster.leader().await;
    }

    /// A cluster of three voters.
    pub(crate) async fn of_three() -> Self {
        Self::new().await.grown().await
    }

    /// Two more voters.
    pub(crate) async fn grown(self) -> Self {
        let mut cluster = self;
        for name in ["b", "c"] {
            cluster.join(name).await;
        }
        cluster.until_three_voters().await;
        cluster
    }

    async fn until_three_voters(&self) {
        self.until("three voters", |c| {
            c.nodes.iter().all(|node| {
                let status = node.raft.status();
                status.members.len() == 3 && status.members.iter().all(|member| member.voter)
            })
        })
        .await;
    }

    /// A further node of this cluster, in whatever runtime this is called from; not in `nodes`.
    pub(crate) async fn start(
        &self,
        identity: Identity,
        addr: String,
        listener: TcpListener,
    ) -> Node {
        let dir = self.root.join(identity.raft_id.to_string());
        std::fs::create_dir_all(&dir).unwrap();
        identity.save(&dir).unwrap();
        let stores = Stores::open(&dir, &identity).unwrap();
        let (server_tls, client_tls) = self.ca.tls(&CLUSTER, identity.raft_id);
        let mut client_tls = ClientConfig::clone(&client_tls);
        // A session that is resumed is not verified again, and so not cut.
        client_tls.resumption = Resumption::disabled();
        client_tls
            .dangerous()
            .set_certificate_verifier(Arc::new(Selective {
                inner: self.ca.verifier(),
                own: identity.raft_id,
                cuts: self.cuts.clone(),
            }));
        let client_tls = Arc::new(client_tls);
        let (tx, rx) = mpsc::channel(8);
        let transport = Transport {
            listeners: vec![listener],
            server_tls,
            client_tls,
            streams: HashMap::from([(ECHO, tx)]),
        };
        let options = Options {
            snapshots: self.snapshots,
            ..options(&identity, &addr)
        };
        let raft = Raft::start(stores, options, Some(transport)).await.unwrap();
        Node {
            raft,
            identity,
            addr,
            dir,
            streams: Some(rx),
        }
    }

    /// Adds a node with an empty disk through the leader.
    pub(crate) async fn join(&mut self, name: &str) -> u64 {
        self.join_as(info(name, "")).await
    }

    pub(crate) async fn join_as(&mut self, mut info: PeerInfo) -> u64 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        info.cluster_addr = listener.local_addr().unwrap().to_string();
        let leader = self.leader().await;
        let raft_id = self.nodes[leader]
            .raft
            .add_node(info.clone())
            .await
            .unwrap();
        let identity = Identity {
            cluster_id: CLUSTER,
            raft_id,
            name: info.name,
        };
        let node = self.start(identity, info.cluster_addr, listener).await;
        self.nodes.push(node);
        raft_id
    }

    /// Position in `nodes` of the one that is ready to lead.
    pub(crate) async fn leader(&self) -> usize {
        let found = || {
            self.nodes
                .iter()
                .position(|node| node.raft.status().is_ready_leader)
        };
        self.until("a leader", |_| found().is_some()).await;
        found().unwrap()
    }

    pub(crate) async fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        // Longer than anything takes, on a machine that does other things as well.
        let deadline = Instant::now() + Duration::from_secs(30);
        while !holds(self) {
            assert!(
                Instant::now() < deadline,
                "waited in vain for {what}: {:#?}",
                self.nodes
                    .iter()
                    .map(|n| n.raft.status())
                    .collect::<Vec<_>>()
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Proposes to whoever leads, as a forwarding node would; the same request id makes it safe to repeat.
    pub(crate) async fn write(&self, command: Command) -> Applied {
        let deadline = soon();
        loop {
            let leader = self.leader().await;
            match self.nodes[leader]
                .raft
                .propose(command.clone(), deadline)
                .await
            {
                Ok(applied) => return applied,
                Err(ProposeError::NotLeader { .. } | ProposeError::NoQuorum) => {
                    assert!(Instant::now() < deadline);
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                Err(error) => panic!("{error}"),
            }
        }
    }

    pub(crate) async fn stop(&mut self, position: usize) -> Stopped {
        let node = self.nodes.remove(position);
        node.raft.shutdown().await;
        Stopped {
            identity: node.identity,
            addr: node.addr,
            dir: node.dir,
        }
    }

    pub(crate) async fn restart(&mut self, stopped: Stopped) -> usize {
        let listener = bind_again(&stopped.addr).await;
        let node = self.start(stopped.identity, stopped.addr, listener).await;
        self.nodes.push(node);
        self.nodes.len() - 1
    }

    /// As [`Cluster::restart`], for a node that the others reach through `relay`.
    pub(crate) async fn restart_behind(&mut self, stopped: Stopped, relay: &Relay) -> usize {
        let listener = bind_again(&relay.target).await;
        let node = self.start(stopped.identity, stopped.addr, listener).await;
        self.nodes.push(node);
        self.nodes.len() - 1
    }

    pub(crate) async fn shutdown(self) {
        for node in &self.nodes {
            node.raft.shutdown().await;
        }
    }
}

/// A node that was stopped.
pub(crate) struct Stopped {
    pub(crate) identity: Identity,
    pub(crate) addr: String,
    pub(crate) dir: PathBuf,
}

pub(crate) fn options(identity: &Identity, addr: &str) -> Options {
    Options {
        identity: identity.clone(),
        me: info(&identity.name, addr),
        multiplier: 1,
        max_entry_size: 1 << 20,
        min_free_disk: Some(1),
        snapshots: SnapshotOptions::default(),
        pace: Pace::default(),
    }
}

/// A linearizable read on `node`.
pub(crate) async fn read(node: &Node, key: &str) -> Option<String> {
    let index = node.raft.read_index(soon()).await.unwrap();
    node.raft.wait_applied(index, soon()).await.unwrap();
    local(node, key)
}

pub(crate) fn local(node: &Node, key: &str) -> Option<String> {
    let found = node.raft.state().get(key.as_bytes()).unwrap();
    found.map(|(_, value)| String::from_utf8(value.to_vec()).unwrap())
}

/// A node without a network in `dir`.
pub(crate) async fn solo(dir: &Path) -> Raft {
    solo_with(dir, SnapshotOptions::default()).await
}

/// The same, with snapshots like this.
pub(crate) async fn solo_with(dir: &Path, snapshots: SnapshotOptions) -> Raft {
    let identity = Identity {
        cluster_id: CLUSTER,
        raft_id: 1,
        name: "a".to_owned(),
    };
    identity.save(dir).unwrap();
    let stores = Stores::open(dir, &identity).unwrap();
    let options = Options {
        snapshots,
        ..options(&identity, "127.0.0.1:1")
    };
    Raft::start(stores, options, None).await.unwrap()
}

pub(crate) async fn until_ready(raft: &Raft) {
    let mut role = raft.watch();
    let ready = role.wait_for(|role| role.is_ready_leader);
    drop(
        tokio::time::timeout(Duration::from_secs(10), ready)
            .await
            .unwrap()
            .unwrap(),
    );
}

/// A TCP relay that can be made to swallow everything without closing anything, like a dead network, or to end every
/// connection, and take new ones.
pub(crate) struct Relay {
    pub(crate) addr: String,
    target: String,
    dead: tokio::sync::watch::Sender<bool>,
    broken: tokio::sync::watch::Sender<()>,
}

impl Relay {
    pub(crate) async fn to(target: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        let (dead, state) = tokio::sync::watch::channel(false);
        let (broken, breaks) = tokio::sync::watch::channel(());
        let behind = target.clone();
        tokio::spawn(async move {
            while let Ok((incoming, _)) = listener.accept().await {
                let Ok(outgoing) = tokio::net::TcpStream::connect(&target).await else {
                    continue;
                };
                let (a_read, a_write) = incoming.into_split();
                let (b_read, b_write) = outgoing.into_split();
                for (read, write) in [(a_read, b_write), (b_read, a_write)] {
                    let (state, mut breaks) = (state.clone(), breaks.clone());
                    breaks.mark_unchanged();
                    tokio::spawn(async move {
                        tokio::select! {
                            () = pump(read, write, state) => {}
                            // Both halves go: the connection ends.
                            _ = breaks.changed() => {}
                        }
                    });
                }
            }
        });
        Self {
            addr,
            target: behind,
            dead,
            broken,
        }
    }

    pub(crate) fn break_connections(&self) {
        self.broken.send_replace(());
    }

    /// One that ends the first connection over which `limit` bytes have come in, once. All of these bytes arrive.
    pub(crate) async fn breaking(target: String, limit: usize) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        let broken = Arc::new(std::sync::atomic::AtomicBool::new(false));
        tokio::spawn(async move {
            while let Ok((mut incoming, _)) = listener.accept().await {
                let mut outgoing = tokio::net::TcpStream::connect(&target).await.unwrap();
                let broken = Arc::clone(&broken);
                tokio::spawn(async move {
                    use tokio::io::{AsyncReadExt, AsyncWriteExt};
                    let (mut a_read, mut a_write) = incoming.split();
                    let (mut b_read, mut b_write) = outgoing.split();
                    let back = tokio::io::copy(&mut b_read, &mut a_write);
                    let forth = async {
                        let mut first = (&mut a_read).take(limit as u64);
                        let passed = tokio::io::copy(&mut first, &mut b_write).await;
                        let reached = passed.is_ok_and(|bytes| bytes == limit as u64);
                        if reached && !broken.swap(true, std::sync::atomic::Ordering::SeqCst) {
                            b_write.shutdown().await.unwrap();
                            // Until the target has seen the end and closes its side.
                            return std::future::pending().await;
                        }
                        drop(tokio::io::copy(&mut a_read, &mut b_write).await);
                    };
                    tokio::select! {
                        _ = back => {}
                        () = forth => {}
                    }
                });
            }
        });
        addr
    }

    pub(crate) fn set_dead(&self, dead: bool) {
        self.dead.send_replace(dead);
    }
}

/// A port that was given back may be somebody else's end of a connection for a moment.
async fn bind_again(addr: &str) -> TcpListener {
    for _ in 0..100 {
        match TcpListener::bind(addr).await {
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            bound => return bound.unwrap(),
        }
    }
    panic!("{addr} stays taken");
}

async fn pump(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    mut dead: tokio::sync::watch::Receiver<bool>,
) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut buffer = vec![0; 16 << 10];
    loop {
        if dead.wait_for(|dead| !dead).await.is_err() {
            return;
        }
        let read = tokio::select! {
            read = from.read(&mut buffer) => read,
            changed = dead.changed() => match changed {
                Ok(()) => continue,
                Err(_) => return,
            },
        };
        match read {
            Ok(0) | Err(_) => return,
            Ok(read) => {
                // Bytes read just before the cut arrive after it, as on a real network.
                if dead.wait_for(|dead| !dead).await.is_err() {
                    return;
                }
                if to.write_all(&buffer[..read]).await.is_err() {
                    return;
                }
            }
        }
    }
}

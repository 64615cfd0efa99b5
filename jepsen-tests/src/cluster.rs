//! A cluster of real processes, on 127.0.0.1 or in network namespaces, and what can be done to it.
//!
//! Nodes have numbers from 1. Every node has its own directory with its configuration, its data, its log and its copy
//! of the HSM.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::ExitStatus,
    time::Duration,
};

use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

mod ask;

pub use self::ask::{read, write};
pub use crate::config::NodeConfig;
use crate::{
    cli,
    hsm::{KEY_LABEL, PIN, TOKEN_LABEL, Token},
    logs,
    machine::{self, Turn, free_port, softhsm_module, wait_for},
    network::Network,
    process::Process,
    tls::Tls,
};

/// A node of three that starts together with others on two cores is unsealed after a few seconds; this is for a machine
/// that does other things too.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a cluster is made of.
#[derive(Clone, Debug)]
pub struct Options {
    /// Path of `strongroom`.
    pub binary: PathBuf,
    /// Number of nodes.
    pub nodes: usize,
    /// Whether the seal key is on the tokens before the first start. If not, init makes it (`generate_key`).
    pub key_made_before: bool,
}

/// What `sys/init` gave.
#[derive(Clone, Debug)]
pub struct Init {
    /// Shares in hex.
    pub recovery_keys: Vec<String>,
    /// The root token.
    pub root_token: String,
}

#[derive(Debug)]
struct Node {
    dir: PathBuf,
    config: NodeConfig,
    token: Token,
    /// The server it runs, if not the cluster's.
    binary: Option<PathBuf>,
    process: Option<Process>,
}

impl Node {
    fn log(&self) -> PathBuf {
        self.dir.join("log")
    }

    fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    fn running(&mut self) -> bool {
        self.process
            .as_mut()
            .is_some_and(|process| process.ended().is_none())
    }
}

/// Processes, directories and HSMs of one cluster; everything ends and goes when it is dropped.
///
/// With `STRONGROOM_TEST_KEEP` set, the directory of a test that failed stays; with `always` in it, every one.
#[derive(Debug)]
pub struct Cluster {
    // Dropped in this order: processes before their files, the turn last.
    nodes: Vec<Node>,
    golden: Token,
    tls: Tls,
    init: Option<Init>,
    binary: PathBuf,
    network: Option<Network>,
    dir: Option<TempDir>,
    _turn: Turn,
}

impl Cluster {
    /// Everything that `options` asks for, with no process started.
    #[must_use]
    pub fn prepare(options: &Options) -> Self {
        Self::prepare_in(options, |_| None)
    }

    /// As [`Cluster::prepare`], the nodes in the network that `network` makes of their number.
    pub fn prepare_in(options: &Options, network: impl FnOnce(usize) -> Option<Network>) -> Self {
        let turn = Turn::wait();
        let binary = machine::server(&options.binary);
        assert!(binary.exists(), "{} is not built", binary.display());
        let dir = tempfile::Builder::new()
            .prefix("strongroom-test-")
            .tempdir()
            .expect("temporary directory");
        // Only now, in our turn: one network at a time.
        let network = network(options.nodes);
        let addresses: Vec<IpAddr> = network
            .iter()
            .flat_map(|network| (1..=options.nodes).map(|node| network.address(node).into()))
            .collect();
        let tls = Tls::make(dir.path(), &addresses);
        let golden = Token::make(&dir.path().join("hsm-golden"));
        if options.key_made_before {
            golden.make_key(KEY_LABEL, "5352");
        }
        fs::create_dir_all(dir.path().join("home")).expect("home directory");
        let mut cluster = Self {
            nodes: Vec::new(),
            golden,
            tls,
            init: None,
            binary,
            network,
            dir: Some(dir),
            _turn: turn,
        };
        for _ in 0..options.nodes {
            cluster.add_node();
        }
        // Every node lists all of them, as one configuration for all nodes would.
        let all: Vec<String> = (1..=options.nodes)
            .map(|number| cluster.url(number))
            .collect();
        for number in 1..=options.nodes {
            cluster.configure(number, |config| {
                config.retry_join.clone_from(&all);
                config.generate_key = !options.key_made_before;
            });
        }
        cluster
    }

    /// `nodes` running nodes, not initialised, that share a key made before.
    #[must_use]
    pub fn start(nodes: usize, binary: &str) -> Self {
        let options = Options {
            binary: binary.into(),
            nodes,
            key_made_before: true,
        };
        let mut cluster = Self::prepare(&options);
        cluster.spawn_all();
        cluster
    }

    /// `nodes` running, initialised, unsealed nodes that all vote.
    #[must_use]
    pub fn initialized(nodes: usize, binary: &str) -> Self {
        let mut cluster = Self::start(nodes, binary);
        cluster.init();
        cluster.wait_all();
        cluster
    }

    /// Starts the nodes that were prepared, initialises the cluster, and waits until all vote.
    pub fn bring_up(&mut self) {
        self.spawn_all();
        self.init();
        self.wait_all();
    }

    fn spawn_all(&mut self) {
        for number in 1..=self.nodes.len() {
            self.spawn(number);
        }
        for number in 1..=self.nodes.len() {
            self.wait_listening(number);
        }
    }

    /// One more node that would join the others; not started. Gives its number.
    pub fn add_node(&mut self) -> usize {
        let number = self.nodes.len() + 1;
        let dir = self.dir().join(format!("node-{number}"));
        fs::create_dir_all(dir.join("data")).expect("data directory");
        let (host, api_port, cluster_port) = match &self.network {
            None => (Ipv4Addr::LOCALHOST.into(), free_port(), free_port()),
            Some(network) => (network.address(number).into(), 8200, 8201),
        };
        let config = NodeConfig {
            name: format!("node-{number}"),
            host,
            api_port,
            cluster_port,
            lib: softhsm_module(),
            token_label: TOKEN_LABEL.to_owned(),
            slot: None,
            pin: PIN.to_owned(),
            key_label: KEY_LABEL.to_owned(),
            generate_key: false,
            retry_join: (1..number).map(|other| self.url(other)).collect(),
            log_level: "info",
            listener_extra: String::new(),
            storage_extra: String::new(),
            extra: String::new(),
            environment: Vec::new(),
        };
        let token = self.golden.copy_to(&dir.join("hsm"));
        self.nodes.push(Node {
            dir,
            config,
            token,
            binary: None,
            process: None,
        });
        self.configure(number, |_| ());
        number
    }

    /// Changes the configuration file of a node; read at its next start.
    pub fn configure(&mut self, number: usize, change: impl FnOnce(&mut NodeConfig)) {
        let tls = self.tls.clone();
        let node = self.node_mut(number);
        change(&mut node.config);
        fs::write(
            node.dir.join("strongroom.hcl"),
            node.config.hcl(&node.data(), &tls),
        )
        .expect("configuration file");
    }

    /// The server that a node runs from its next start on; `None`: the cluster's.
    pub fn set_binary(&mut self, number: usize, binary: Option<&Path>) {
        self.node_mut(number).binary = binary.map(Path::to_owned);
    }

    // ---- processes --------------------------------------------------------------------------------------------------

    /// Starts a node and waits until it answers on its API port.
    pub fn start_node(&mut self, number: usize) {
        self.spawn(number);
        self.wait_listening(number);
    }

    /// Starts a node and does not wait.
    pub fn spawn(&mut self, number: usize) {
        let binary = self.node(number).binary.as_ref().unwrap_or(&self.binary);
        let mut command = match &self.network {
            None => cli::clean(binary),
            Some(network) => {
                let mut command = cli::clean(&Network::enter());
                network.prefix(number, &mut command, binary);
                command
            }
        };
        let node = self.node_mut(number);
        assert!(!node.running(), "node {number} runs already");
        command.arg("server").arg(format!(
            "-config={}",
            node.dir.join("strongroom.hcl").display()
        ));
        command.env("SOFTHSM2_CONF", node.token.conf());
        command.envs(
            node.config
                .environment
                .iter()
                .map(|(name, value)| (name, value)),
        );
        node.process = Some(Process::start(
            &format!("node {number}"),
            &mut command,
            &node.log(),
        ));
    }

    /// SIGKILL. The node's copy of the HSM is restored, see [`crate::hsm`].
    pub fn kill9(&mut self, number: usize) {
        let golden = self.golden.clone();
        let node = self.node_mut(number);
        if let Some(process) = node.process.take() {
            process.kill();
        }
        node.token.restore_from(&golden);
    }

    /// SIGKILL. The node's copy of the HSM stays as it is, with a key that its init has made, unless it was destroyed.
    pub fn kill9_keep_token(&mut self, number: usize) {
        let golden = self.golden.clone();
        let node = self.node_mut(number);
        if let Some(process) = node.process.take() {
            process.kill();
        }
        if node.token.is_destroyed() {
            node.token.restore_from(&golden);
        }
    }

    /// SIGTERM, and waits until the node has stopped.
    pub fn terminate(&mut self, number: usize) -> ExitStatus {
        let process = self
            .node_mut(number)
            .process
            .take()
            .expect("a running node");
        process.terminate(PATIENCE)
    }

    /// SIGSTOP: the node is there and does nothing.
    pub fn pause(&self, number: usize) {
        self.process(number).signal(Signal::STOP);
    }

    /// SIGSTOP, and waits until no thread runs any more. One that is in the kernel, in a sync for one, does not come back.
    pub fn freeze(&self, number: usize) {
        self.pause(number);
        let tasks = format!("/proc/{}/task", self.pid(number));
        wait_for(&format!("node {number} to stand still"), PATIENCE, || {
            let mut tasks = fs::read_dir(&tasks).ok()?.flatten();
            let stands = |task: fs::DirEntry| {
                let stat = fs::read_to_string(task.path().join("stat")).unwrap_or_default();
                // The name before it is in parentheses and may hold anything.
                let state = stat
                    .rsplit_once(") ")
                    .and_then(|(_, rest)| rest.chars().next());
                // Gone, stopped, or in the kernel without being interrupted.
                matches!(state, None | Some('T' | 't' | 'D' | 'Z' | 'X'))
            };
            tasks.all(stands).then_some(())
        });
    }

    /// SIGCONT.
    pub fn resume(&self, number: usize) {
        self.process(number).signal(Signal::CONT);
    }

    /// Removes everything a stopped node has stored.
    pub fn wipe(&mut self, number: usize) {
        let node = self.node_mut(number);
        assert!(!node.running(), "node {number} runs");
        fs::remove_dir_all(node.data()).expect("removing data");
        fs::create_dir_all(node.data()).expect("data directory");
    }

    /// Whether the process is there.
    pub fn runs(&mut self, number: usize) -> bool {
        self.node_mut(number).running()
    }

    /// Waits until the process has ended by itself.
    pub fn wait_ended(&mut self, number: usize) -> ExitStatus {
        let process = self
            .node_mut(number)
            .process
            .as_mut()
            .expect("a started node");
        wait_for(&format!("node {number} to end"), PATIENCE, || {
            process.ended()
        })
    }

    // ---- the HSM ----------------------------------------------------------------------------------------------------

    /// The token every copy comes from.
    #[must_use]
    pub fn golden(&self) -> &Token {
        &self.golden
    }

    /// A node's copy of the token.
    #[must_use]
    pub fn token(&self, number: usize) -> &Token {
        &self.node(number).token
    }

    /// Makes a node's copy, with the key its init has generated, the golden one.
    pub fn adopt_token_of(&mut self, number: usize) {
        let made = self.node(number).token.clone();
        self.golden.restore_from(&made);
        for other in 1..=self.nodes.len() {
            if other != number {
                self.node(other).token.restore_from(&self.golden);
            }
        }
    }

    /// Gives a node that has never run the data directory `data`, and the token in `hsm` to all.
    pub fn take_over(&mut self, number: usize, data: &Path, hsm: &Path) {
        fs::remove_dir_all(self.data_dir(number)).expect("removing data");
        fs::rename(data, self.data_dir(number)).expect("data directory");
        self.golden.restore_from(&Token::existing(hsm));
        for node in &self.nodes {
            node.token.restore_from(&self.golden);
        }
    }

    // ---- init, waiting ----------------------------------------------------------------------------------------------

    /// Initialises through node 1 with three recovery shares, two of which suffice.
    pub fn init(&mut self) -> Init {
        let answer = self.anonymous(1).put(
            "sys/init",
            &json!({"recovery_shares": 3, "recovery_threshold": 2}),
        );
        self.keep_init(&answer.expect(200).json())
    }

    /// Remembers what an init on the command line or over HTTP gave.
    ///
    /// # Panics
    /// If it is not the answer of an init.
    pub fn keep_init(&mut self, answer: &Value) -> Init {
        let keys = answer["recovery_keys"]
            .as_array()
            .or(answer["recovery_keys_hex"].as_array());
        let keys = keys.unwrap_or_else(|| panic!("no recovery keys in {answer}"));
        let init = Init {
            recovery_keys: keys
                .iter()
                .map(|key| key.as_str().unwrap().to_owned())
                .collect(),
            root_token: answer["root_token"]
                .as_str()
                .expect("a root token")
                .to_owned(),
        };
        self.init = Some(init.clone());
        init
    }

    /// Waits until a node answers on its API port, whatever it says.
    pub fn wait_listening(&mut self, number: usize) {
        let client = self.anonymous(number).with_timeout(Duration::from_secs(2));
        wait_for(&format!("node {number} to listen"), PATIENCE, || {
            if !self.runs(number) {
                panic!(
                    "node {number} ended:\n{}",
                    logs::tail(&self.log(number), 30)
                );
            }
            client.request("GET", "/v1/sys/health", None).ok()
        });
    }

    /// Status of `sys/health`, 0 when nobody answers. Whether there is a leader does not count.
    #[must_use]
    pub fn health(&self, number: usize) -> u16 {
        let client = self.anonymous(number).with_timeout(Duration::from_secs(2));
        client
            .request(
                "GET",
                "/v1/sys/health?standbyok=true&haunhealthycode=200",
                None,
            )
            .map_or(0, |answer| answer.status)
    }

    /// Body of `sys/seal-status`.
    #[must_use]
    pub fn seal_status(&self, number: usize) -> Value {
        self.anonymous(number)
            .get("sys/seal-status")
            .expect(200)
            .json()
    }

    /// Waits until `seal-status` of a node has a warning that contains `text`.
    pub fn wait_warning(&self, number: usize, text: &str) -> String {
        let mut last = Value::Null;
        let deadline = std::time::Instant::now() + PATIENCE;
        while std::time::Instant::now() < deadline {
            last = self.seal_status(number)["warnings"].clone();
            let all = last.as_array().map(Vec::as_slice).unwrap_or_default();
            if let Some(found) = all
                .iter()
                .filter_map(Value::as_str)
                .find(|warning| warning.contains(text))
            {
                return found.to_owned();
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        panic!(
            "node {number} never warned of {text:?}; it warns: {last}\n{}",
            logs::tail(&self.log(number), 20)
        );
    }

    /// Waits until a node is unsealed and serves.
    pub fn wait_unsealed(&self, number: usize) {
        wait_for(&format!("node {number} to unseal itself"), PATIENCE, || {
            (self.health(number) == 200).then_some(())
        });
    }

    /// Waits until every one of `numbers` is unsealed and serves; what the first one logged last that ended instead.
    pub fn wait_unsealed_or_ended(&mut self, numbers: &[usize]) -> Option<String> {
        let numbers = numbers.to_vec();
        wait_for("nodes to unseal themselves, or to end", PATIENCE, || {
            let ended = numbers.iter().find(|number| !self.runs(**number));
            if let Some(number) = ended {
                let tail = logs::tail(&self.log(*number), 12);
                return Some(Some(format!("node {number} does not start again:\n{tail}")));
            }
            let serve = numbers.iter().all(|number| self.health(*number) == 200);
            serve.then_some(None)
        })
    }

    /// Waits until every node is unsealed, there is a leader, and all running nodes vote.
    pub fn wait_all(&mut self) {
        let running: Vec<usize> = (1..=self.nodes.len())
            .filter(|number| self.runs(*number))
            .collect();
        for number in &running {
            self.wait_unsealed(*number);
        }
        let what = format!("{} voters", running.len());
        wait_for(&what, PATIENCE, || {
            let leader = self.find_leader()?;
            (self.voters(leader) >= running.len()).then_some(())
        });
    }

    fn voters(&self, number: usize) -> usize {
        let servers = self.servers(number);
        servers
            .iter()
            .filter(|server| server["voter"] == true)
            .count()
    }

    /// The members as a node sees them: `sys/storage/raft/configuration`.
    #[must_use]
    pub fn servers(&self, number: usize) -> Vec<Value> {
        let answer = self
            .client(number)
            .request("GET", "/v1/sys/storage/raft/configuration", None);
        let body = answer.map_or(Value::Null, |answer| answer.json());
        body["data"]["config"]["servers"]
            .as_array()
            .cloned()
            .unwrap_or_default()
    }

    /// The number of the node that says it leads.
    #[must_use]
    pub fn find_leader(&self) -> Option<usize> {
        (1..=self.nodes.len()).find(|number| {
            let client = self.anonymous(*number).with_timeout(Duration::from_secs(2));
            let answer = client.request("GET", "/v1/sys/leader", None);
            answer.is_ok_and(|answer| answer.json()["is_self"] == true)
        })
    }

    /// As [`Cluster::find_leader`], waiting for one.
    #[must_use]
    pub fn leader(&self) -> usize {
        wait_for("a leader", PATIENCE, || self.find_leader())
    }

    /// A running node that does not lead.
    ///
    /// # Panics
    /// If there is none.
    pub fn follower(&mut self) -> usize {
        let leader = self.leader();
        let found = (1..=self.nodes.len()).find(|number| *number != leader && self.runs(*number));
        found.expect("a follower")
    }

    // ---- facts ------------------------------------------------------------------------------------------------------

    /// Number of nodes, running or not.
    #[must_use]
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether there is no node.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Directory of everything.
    ///
    /// # Panics
    /// Never: it is there until the cluster is dropped.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.as_ref().expect("there until drop").path()
    }

    /// Home directory of the command lines.
    #[must_use]
    pub fn home(&self) -> PathBuf {
        self.dir().join("home")
    }

    /// The network between the nodes, if they have one of their own.
    ///
    /// # Panics
    /// If they have not.
    #[must_use]
    pub fn network(&self) -> &Network {
        self.network
            .as_ref()
            .expect("a cluster with a network of its own")
    }

    /// Path of `strongroom`.
    #[must_use]
    pub fn binary(&self) -> &Path {
        &self.binary
    }

    /// Certificates.
    #[must_use]
    pub fn tls(&self) -> &Tls {
        &self.tls
    }

    /// The root token, after init.
    #[must_use]
    pub fn root_token(&self) -> Option<&str> {
        self.init.as_ref().map(|init| init.root_token.as_str())
    }

    /// Where a node's API is.
    #[must_use]
    pub fn api_socket(&self, number: usize) -> SocketAddr {
        let config = &self.node(number).config;
        SocketAddr::from((config.host, config.api_port))
    }

    /// Where a node's port for other nodes is.
    #[must_use]
    pub fn cluster_socket(&self, number: usize) -> SocketAddr {
        let config = &self.node(number).config;
        SocketAddr::from((config.host, config.cluster_port))
    }

    /// `https://ADDRESS:PORT` of a node's API.
    #[must_use]
    pub fn url(&self, number: usize) -> String {
        format!("https://{}", self.api_socket(number))
    }

    /// A node's configuration file.
    #[must_use]
    pub fn config_file(&self, number: usize) -> PathBuf {
        self.node(number).dir.join("strongroom.hcl")
    }

    /// A node's data directory.
    #[must_use]
    pub fn data_dir(&self, number: usize) -> PathBuf {
        self.node(number).data()
    }

    /// A node's log.
    #[must_use]
    pub fn log(&self, number: usize) -> PathBuf {
        self.node(number).log()
    }

    /// A node's whole log.
    #[must_use]
    pub fn log_text(&self, number: usize) -> String {
        String::from_utf8_lossy(&fs::read(self.log(number)).unwrap_or_default()).into_owned()
    }

    /// Process id of a running node.
    #[must_use]
    pub fn pid(&self, number: usize) -> u32 {
        self.process(number).pid()
    }

    /// No node has logged a panic, nor a WARN or ERROR that is in none of the lists in `allowed` (see [`logs`]).
    ///
    /// # Panics
    /// With the lines, if one has.
    #[track_caller]
    pub fn assert_logs_clean(&self, allowed: &[&[&str]]) {
        let allowed = allowed.concat();
        for number in 1..=self.nodes.len() {
            let lines = logs::surprises(&self.log(number), &allowed);
            let (count, shown) = (lines.len(), &lines[..lines.len().min(20)]);
            assert!(
                count == 0,
                "node {number} has logged {count} surprises:\n{}",
                shown.join("\n")
            );
        }
    }

    /// No node has logged a panic.
    ///
    /// # Panics
    /// With the lines, if one has.
    #[track_caller]
    pub fn assert_no_panics(&self) {
        for number in 1..=self.nodes.len() {
            let lines = logs::panics(&self.log(number));
            assert!(
                lines.is_empty(),
                "node {number} has panicked:\n{}",
                lines.join("\n")
            );
        }
    }

    fn node(&self, number: usize) -> &Node {
        self.nodes
            .get(number - 1)
            .unwrap_or_else(|| panic!("there is no node {number}"))
    }

    fn node_mut(&mut self, number: usize) -> &mut Node {
        self.nodes
            .get_mut(number - 1)
            .unwrap_or_else(|| panic!("there is no node {number}"))
    }

    fn process(&self, number: usize) -> &Process {
        self.node(number)
            .process
            .as_ref()
            .unwrap_or_else(|| panic!("node {number} does not run"))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let keep = std::env::var_os("STRONGROOM_TEST_KEEP");
        if keep.as_deref().is_some_and(|keep| keep == "always")
            && let Some(dir) = self.dir.take()
        {
            eprintln!("everything is in {}", dir.keep().display());
        }
        if !std::thread::panicking() {
            return;
        }
        for node in &self.nodes {
            eprintln!(
                "---- {} ----\n{}",
                node.config.name,
                logs::tail(&node.log(), 25)
            );
        }
        if keep.is_some()
            && let Some(dir) = self.dir.take()
        {
            eprintln!("everything is in {}", dir.keep().display());
        }
    }
}

//! Machines and a network between them, in this machine's kernel: one network namespace for each node, joined by a
//! bridge, and packet filters that cut it.
//!
//! In: the number of nodes. Out: addresses to listen on, and partitions that come and go.
//!
//! Needs root, and Debian's packages iproute2, nftables and util-linux. Clients live outside the namespaces, on the
//! bridge, and reach every node whatever is cut between the nodes.
//!
//! Invariants
//! - Everything has a name that begins with [`PREFIX`] and holds the pid of its maker; nothing else is ever removed.
//! - Everything goes when the [`Network`] is dropped; what a killed run has left behind goes when the next one starts.

use std::{
    collections::BTreeSet,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::Command,
};

use crate::machine::program;

/// What every namespace, interface and bridge of ours is named with.
pub const PREFIX: &str = "srj";
/// The filter's table, one in each namespace.
const TABLE: &str = "strongroom_jepsen";

/// Which node hears which others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    /// For people.
    pub name: String,
    /// Pairs (from, to): what `from` sends does not reach `to`.
    pub cut: BTreeSet<(usize, usize)>,
}

impl Partition {
    /// Nobody in `one` and nobody outside hear each other.
    #[must_use]
    pub fn split(name: &str, one: &[usize], nodes: usize) -> Self {
        Self::of(name, nodes, |from, to| {
            one.contains(&from) != one.contains(&to)
        })
    }

    /// Two halves that do not hear each other, and `bridge`, which hears all.
    #[must_use]
    pub fn bridge(bridge: usize, nodes: usize) -> Self {
        let others: Vec<usize> = (1..=nodes).filter(|node| *node != bridge).collect();
        let half = &others[..others.len() / 2];
        Self::of(
            &format!("two halves, node {bridge} hears both"),
            nodes,
            |from, to| from != bridge && to != bridge && half.contains(&from) != half.contains(&to),
        )
    }

    /// Every node hears its neighbours on a ring only: for each another majority, of five nodes or more.
    #[must_use]
    pub fn ring(nodes: usize) -> Self {
        Self::of("a ring", nodes, |from, to| {
            let distance = from.abs_diff(to);
            distance.min(nodes - distance) > nodes / 4 && nodes > 3
        })
    }

    /// `node` hears nobody, and is heard.
    #[must_use]
    pub fn deaf(node: usize, nodes: usize) -> Self {
        Self::of(&format!("node {node} hears nobody"), nodes, |_, to| {
            to == node
        })
    }

    /// `node` is heard by nobody, and hears.
    #[must_use]
    pub fn mute(node: usize, nodes: usize) -> Self {
        Self::of(&format!("nobody hears node {node}"), nodes, |from, _| {
            from == node
        })
    }

    fn of(name: &str, nodes: usize, cuts: impl Fn(usize, usize) -> bool) -> Self {
        let cut = (1..=nodes)
            .flat_map(|from| (1..=nodes).map(move |to| (from, to)))
            .filter(|(from, to)| from != to && cuts(*from, *to))
            .collect();
        Self {
            name: name.to_owned(),
            cut,
        }
    }

    /// Whether a majority of `nodes` still hears, and is heard by, one of its own: whether somebody can lead.
    #[must_use]
    pub fn leaves_quorum(&self, nodes: usize) -> bool {
        (1..=nodes).any(|leader| {
            let both_ways = |other: &usize| {
                !self.cut.contains(&(leader, *other)) && !self.cut.contains(&(*other, leader))
            };
            (1..=nodes).filter(both_ways).count() > nodes / 2
        })
    }
}

/// Namespaces, bridge and addresses.
#[derive(Debug)]
pub struct Network {
    tag: String,
    /// Third byte of the addresses.
    subnet: u8,
    nodes: usize,
}

impl Network {
    /// Whether this user can make networks at all. A test without one says so and does nothing.
    #[must_use]
    pub fn is_possible() -> bool {
        rustix::process::geteuid().is_root()
    }

    /// Namespaces for `nodes` nodes, all of which hear each other.
    ///
    /// # Panics
    /// If this machine or user cannot have that, with what is missing.
    #[must_use]
    pub fn up(nodes: usize) -> Self {
        assert!(
            Self::is_possible(),
            "partitions need network namespaces, and those need root: run this as root, or in a container that may \
             make them"
        );
        sweep();
        let pid = std::process::id();
        let network = Self {
            tag: format!("{PREFIX}{pid}"),
            // Two runs at once are possible as different users only; the kernel refuses the second one's address.
            subnet: u8::try_from(pid % 250).unwrap_or(0),
            nodes,
        };
        let bridge = network.bridge();
        ip(&["link", "add", &bridge, "type", "bridge"]);
        let own = format!("{}/24", network.address(254));
        ip(&["addr", "add", &own, "dev", &bridge]);
        ip(&["link", "set", &bridge, "up"]);
        for node in 1..=nodes {
            network.add(node);
        }
        network
    }

    fn add(&self, node: usize) {
        let (space, bridge) = (self.space(node), self.bridge());
        let (outside, inside) = (self.outside(node), "eth0");
        ip(&["netns", "add", &space]);
        ip(&[
            "link", "add", &outside, "type", "veth", "peer", "name", inside, "netns", &space,
        ]);
        ip(&["link", "set", &outside, "master", &bridge, "up"]);
        ip(&["-n", &space, "link", "set", "lo", "up"]);
        let address = format!("{}/24", self.address(node));
        ip(&["-n", &space, "addr", "add", &address, "dev", inside]);
        ip(&["-n", &space, "link", "set", inside, "up"]);
        let rules = format!(
            "add table inet {TABLE}\n\
             add set inet {TABLE} deaf {{ type ipv4_addr; }}\n\
             add set inet {TABLE} mute {{ type ipv4_addr; }}\n\
             add counter inet {TABLE} dropped\n\
             add chain inet {TABLE} in {{ type filter hook input priority 0; }}\n\
             add chain inet {TABLE} out {{ type filter hook output priority 0; }}\n\
             add rule inet {TABLE} in ip saddr @deaf counter name dropped drop\n\
             add rule inet {TABLE} out ip daddr @mute counter name dropped drop\n"
        );
        self.nft(node, &rules);
    }

    /// Cuts what `partition` says, in place of whatever was cut before.
    pub fn cut(&self, partition: &Partition) {
        for node in 1..=self.nodes {
            let mut rules = format!("flush set inet {TABLE} deaf\nflush set inet {TABLE} mute\n");
            // At the receiver too, so that nothing which is on its way still arrives.
            for (set, others) in [
                (
                    "deaf",
                    self.others(partition, |(from, to)| (to == node).then_some(from)),
                ),
                (
                    "mute",
                    self.others(partition, |(from, to)| (from == node).then_some(to)),
                ),
            ] {
                if !others.is_empty() {
                    rules += &format!(
                        "add element inet {TABLE} {set} {{ {} }}\n",
                        others.join(", ")
                    );
                }
            }
            rules += &format!("reset counter inet {TABLE} dropped\n");
            self.nft(node, &rules);
        }
    }

    fn others(
        &self,
        partition: &Partition,
        of: impl Fn((usize, usize)) -> Option<usize>,
    ) -> Vec<String> {
        let others: BTreeSet<usize> = partition.cut.iter().filter_map(|pair| of(*pair)).collect();
        others
            .iter()
            .map(|other| self.address(*other).to_string())
            .collect()
    }

    /// Everybody hears everybody again.
    pub fn heal(&self) {
        self.cut(&Partition {
            name: String::new(),
            cut: BTreeSet::new(),
        });
    }

    /// Takes the cable out of a node: what it sends and what others send to it is lost, clients' packets too, and nobody is told.
    pub fn unplug(&self, node: usize) {
        ip(&["link", "set", &self.outside(node), "nomaster"]);
    }

    /// Puts it back.
    pub fn plug_in(&self, node: usize) {
        let (outside, bridge) = (self.outside(node), self.bridge());
        ip(&["link", "set", &outside, "master", &bridge]);
    }

    /// Packets dropped since the last cut: none means that nothing was cut.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        let packets = |node| {
            let listed = self.nft(node, &format!("list counter inet {TABLE} dropped\n"));
            let mut words = listed
                .split_whitespace()
                .skip_while(|word| *word != "packets");
            words
                .nth(1)
                .and_then(|count| count.parse::<u64>().ok())
                .unwrap_or(0)
        };
        (1..=self.nodes).map(packets).sum()
    }

    /// Where a node listens.
    #[must_use]
    pub fn address(&self, node: usize) -> Ipv4Addr {
        Ipv4Addr::new(10, 213, self.subnet, u8::try_from(node).unwrap_or(255))
    }

    /// Makes a `command` of [`Network::enter`] run `program` in a node's namespace. The process keeps this mount namespace: one of its own would hold on to
    /// file systems that are taken away outside.
    pub fn prefix(&self, node: usize, command: &mut Command, program: &Path) {
        command.arg(format!("--net=/run/netns/{}", self.space(node)));
        command.arg("--").arg(program);
    }

    /// The program that [`Network::prefix`] is for.
    #[must_use]
    pub fn enter() -> PathBuf {
        program("nsenter", "util-linux")
    }

    fn space(&self, node: usize) -> String {
        format!("{}n{node}", self.tag)
    }

    fn outside(&self, node: usize) -> String {
        format!("{}o{node}", self.tag)
    }

    fn bridge(&self) -> String {
        format!("{}b", self.tag)
    }

    fn nft(&self, node: usize, rules: &str) -> String {
        let mut command = Command::new(Self::enter());
        self.prefix(node, &mut command, &program("nft", "nftables"));
        command.args(["-f", "-"]);
        feed(&mut command, rules)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        remove(&self.tag);
    }
}

/// Removes what runs that were killed have left behind.
fn sweep() {
    for name in names() {
        let pid: String = name
            .trim_start_matches(PREFIX)
            .chars()
            .take_while(char::is_ascii_digit)
            .collect();
        if !pid.is_empty() && !Path::new("/proc").join(&pid).exists() {
            remove(&format!("{PREFIX}{pid}"));
        }
    }
}

/// Namespaces and bridges of ours and of other runs.
fn names() -> Vec<String> {
    let spaces = std::fs::read_dir("/run/netns").into_iter();
    let links = std::fs::read_dir("/sys/class/net").into_iter();
    spaces
        .chain(links)
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with(PREFIX))
        .collect()
}

fn remove(tag: &str) {
    let ours = |name: &String| {
        name.strip_prefix(tag)
            .is_some_and(|rest| rest.starts_with(['n', 'b', 'o']))
    };
    for name in names().into_iter().filter(ours) {
        let rest = name.strip_prefix(tag).unwrap_or_default();
        let arguments: &[&str] = if rest.starts_with('n') {
            &["netns", "del", &name]
        } else {
            &["link", "del", &name]
        };
        // Removing a namespace removes its interfaces: the other end may be gone already.
        let _ = Command::new(program("ip", "iproute2"))
            .args(arguments)
            .stderr(std::process::Stdio::null())
            .status();
    }
}

fn ip(arguments: &[&str]) {
    let mut command = Command::new(program("ip", "iproute2"));
    command.args(arguments);
    feed(&mut command, "");
}

/// Runs a command with `input`; gives what it printed.
fn feed(command: &mut Command, input: &str) -> String {
    use std::io::Write as _;
    let mut child = command
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("starting {command:?}: {error}"));
    if let Some(mut stdin) = child.stdin.take() {
        // A command that ends early says why on its standard error.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().expect("output of a command");
    assert!(
        output.status.success(),
        "{command:?} failed: {}\n(network namespaces, veth, a bridge and nftables are needed)\n{input}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_hears_whom() {
        for (partition, nodes, cut, quorum) in [
            (
                Partition::split("one", &[2], 3),
                3,
                vec![(1, 2), (2, 1), (2, 3), (3, 2)],
                true,
            ),
            (Partition::bridge(3, 3), 3, vec![(1, 2), (2, 1)], true),
            (Partition::ring(3), 3, vec![], true),
            (
                Partition::ring(5),
                5,
                vec![
                    (1, 3),
                    (1, 4),
                    (2, 4),
                    (2, 5),
                    (3, 1),
                    (3, 5),
                    (4, 1),
                    (4, 2),
                    (5, 2),
                    (5, 3),
                ],
                true,
            ),
            (Partition::deaf(1, 3), 3, vec![(2, 1), (3, 1)], true),
            (Partition::mute(1, 3), 3, vec![(1, 2), (1, 3)], true),
        ] {
            assert_eq!(
                partition.cut,
                cut.into_iter().collect(),
                "{}",
                partition.name
            );
            assert_eq!(partition.leaves_quorum(nodes), quorum, "{}", partition.name);
        }
        let mut nobody = Partition::split("1", &[1], 3);
        nobody.cut.extend(Partition::split("2", &[2], 3).cut);
        assert!(!nobody.leaves_quorum(3));
    }
}

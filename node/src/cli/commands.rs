//! Every command: its words, what it says about itself, its flags and the function behind it.

use super::{
    Failure, Invocation, VERSION_LINE,
    api::HTTP_FLAGS,
    cluster,
    flags::{Flag, Takes},
    kv, logical, login, operator, raft, secrets, serve, snapshot, status, token,
};

/// One command.
pub(crate) struct Command {
    /// Its words, e.g. `operator`, `raft`, `join`.
    pub(crate) path: &'static [&'static str],
    /// One line for the list of commands.
    pub(crate) synopsis: &'static str,
    /// What follows the words, e.g. `[options] PATH`.
    pub(crate) usage: &'static str,
    /// A paragraph or two.
    pub(crate) help: &'static str,
    /// Which flags it shares with others.
    pub(crate) shared: Shared,
    /// Its own flags.
    pub(crate) own: &'static [Flag],
    /// Does it.
    pub(crate) run: fn(&mut Invocation<'_>) -> Result<(), Failure>,
}

/// Groups of flags that many commands have.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shared {
    /// None.
    Nothing,
    /// `-format`.
    Format,
    /// The server and `-format`.
    Server,
    /// The server, `-format` and `-field`.
    ServerAndField,
}

/// `-format`.
pub(crate) const FORMAT_FLAGS: &[Flag] = &[Flag {
    name: "format",
    takes: Takes::One,
    value: "string",
    help: "Print the output in the given format: \"table\", \"json\" or \"yaml\". The default is table. This can also \
           be specified via the STRONGROOM_FORMAT, VAULT_FORMAT or BAO_FORMAT environment variable.",
}];

/// `-field`.
pub(crate) const FIELD_FLAGS: &[Flag] = &[Flag {
    name: "field",
    takes: Takes::One,
    value: "string",
    help: "Print only the field with the given name, without a line break at the end, for passing it on to another \
           program.",
}];

impl Command {
    /// Whether these are its words.
    pub(crate) fn is(&self, path: &[String]) -> bool {
        self.path.iter().eq(path.iter())
    }

    /// Whether its words start with these and go on.
    pub(crate) fn is_below(&self, path: &[String]) -> bool {
        self.path.len() > path.len() && self.path.iter().zip(path).all(|(own, word)| own == word)
    }

    /// Every flag, in groups.
    pub(crate) fn flags(&self) -> Vec<&'static [Flag]> {
        let mut groups: Vec<&'static [Flag]> = vec![self.own];
        if matches!(self.shared, Shared::Server | Shared::ServerAndField) {
            groups.push(HTTP_FLAGS);
        }
        if self.shared != Shared::Nothing {
            groups.push(FORMAT_FLAGS);
        }
        if self.shared == Shared::ServerAndField {
            groups.push(FIELD_FLAGS);
        }
        groups
    }
}

/// In the order the help lists them.
pub(crate) const COMMANDS: &[Command] = &[
    Command {
        path: &["read"],
        synopsis: "Read data and retrieves secrets",
        usage: "[options] PATH",
        help: "Reads data from the given path: a secret, a configuration, a status.\n\n      $ strongroom read kv/app",
        shared: Shared::ServerAndField,
        own: &[],
        run: logical::read,
    },
    Command {
        path: &["write"],
        synopsis: "Write data, configuration, and secrets",
        usage: "[options] PATH [DATA K=V...]",
        help: "Writes data to the given path. Data are \"key=value\" pairs; a value that starts with an \"@\" is read \
               from that file, the value \"-\" from standard input. \"@file\" and \"-\" alone take a whole JSON object.\
               \n\n      $ strongroom write kv/app password=x",
        shared: Shared::ServerAndField,
        own: logical::WRITE_FLAGS,
        run: logical::write,
    },
    Command {
        path: &["delete"],
        synopsis: "Delete secrets and configuration",
        usage: "[options] PATH",
        help: "Deletes what is at the given path. It is no error if nothing is.\n\n      $ strongroom delete kv/app",
        shared: Shared::Server,
        own: &[],
        run: logical::delete,
    },
    Command {
        path: &["list"],
        synopsis: "List data or secrets",
        usage: "[options] PATH",
        help: "Lists the names under the given path; those that end in a slash have more below.\n\n      $ strongroom \
               list kv/",
        shared: Shared::Server,
        own: &[],
        run: logical::list,
    },
    Command {
        path: &["login"],
        synopsis: "Authenticate locally",
        usage: "[options] [TOKEN]",
        help: "Checks a token and keeps it in ~/.vault-token for the commands that follow. Without TOKEN it is asked \
               for and not shown; \"-\" reads it from standard input.\n\n      $ strongroom login",
        shared: Shared::ServerAndField,
        own: login::FLAGS,
        run: login::login,
    },
    Command {
        path: &["server"],
        synopsis: "Start a server",
        usage: "[options]",
        help: "Starts a node. It unseals itself by its HSM; an empty one waits for \"strongroom operator init\" or \
               joins the cluster that retry_join names.\n\n      $ strongroom server -config=/etc/strongroom/strongroom.hcl",
        shared: Shared::Nothing,
        own: serve::FLAGS,
        run: serve::server,
    },
    Command {
        path: &["status"],
        synopsis: "Print seal and HA status",
        usage: "[options]",
        help: "Prints whether the server is sealed and what part it plays in its cluster. The exit code says it too:\
               \n\n      - 0 - unsealed\n      - 1 - error\n      - 2 - sealed",
        shared: Shared::ServerAndField,
        own: &[],
        run: status::status,
    },
    Command {
        path: &["kv", "delete"],
        synopsis: "Deletes a secret of the KV store",
        usage: "[options] PATH",
        help: "Deletes the secret at the given path. It is no error if there is none.\n\n      $ strongroom kv delete \
               -mount=kv app",
        shared: Shared::Server,
        own: kv::MOUNT_FLAGS,
        run: kv::delete,
    },
    Command {
        path: &["kv", "get"],
        synopsis: "Retrieves a secret of the KV store",
        usage: "[options] PATH",
        help: "Prints the secret at the given path.\n\n      $ strongroom kv get -mount=kv app\n\n  The path may also \
               start with the mount:\n\n      $ strongroom kv get kv/app",
        shared: Shared::ServerAndField,
        own: kv::GET_FLAGS,
        run: kv::get,
    },
    Command {
        path: &["kv", "list"],
        synopsis: "Lists the names of secrets in the KV store",
        usage: "[options] PATH",
        help: "Lists the names under the given path; those that end in a slash have more below.\n\n      $ strongroom kv \
               list kv/",
        shared: Shared::Server,
        own: kv::MOUNT_FLAGS,
        run: kv::list,
    },
    Command {
        path: &["kv", "put"],
        synopsis: "Writes a secret of the KV store",
        usage: "[options] PATH [DATA K=V...]",
        help: "Writes the secret at the given path, replacing what was there.\n\n      $ strongroom kv put -mount=kv app \
               password=x\n\n  A value that starts with an \"@\" is read from that file, the value \"-\" from standard \
               input. \"@file\" and \"-\" alone take a whole JSON object.",
        shared: Shared::ServerAndField,
        own: kv::PUT_FLAGS,
        run: kv::put,
    },
    Command {
        path: &["operator", "init"],
        synopsis: "Initializes a cluster",
        usage: "[options]",
        help: "Makes the cluster's keys, wraps them by the HSM, and prints the recovery key in shares and the root \
               token, once. To be run on one node; the others join.\n\n      $ strongroom operator init",
        shared: Shared::Server,
        own: operator::INIT_FLAGS,
        run: operator::init,
    },
    Command {
        path: &["operator", "key-status"],
        synopsis: "Provides information about the active encryption key",
        usage: "[options]",
        help: "Prints term, age and use of the key that encrypts new values.",
        shared: Shared::Server,
        own: &[],
        run: operator::key_status,
    },
    Command {
        path: &["operator", "members"],
        synopsis: "Returns the list of nodes in the cluster",
        usage: "[options]",
        help: "Lists the nodes of the cluster, their addresses, versions and which one leads.",
        shared: Shared::Server,
        own: &[],
        run: operator::members,
    },
    Command {
        path: &["operator", "raft", "autopilot", "get-config"],
        synopsis: "Returns the configuration of autopilot",
        usage: "[options]",
        help: "Prints by which rules the cluster gives votes, calls a node healthy, and removes silent nodes.",
        shared: Shared::Server,
        own: &[],
        run: cluster::get_config,
    },
    Command {
        path: &["operator", "raft", "autopilot", "set-config"],
        synopsis: "Modifies the configuration of autopilot",
        usage: "[options]",
        help: "Changes the settings that are named and leaves the others as they are.\n\n      $ strongroom operator \
               raft autopilot set-config -cleanup-dead-servers=true -min-quorum=3",
        shared: Shared::Server,
        own: cluster::SET_CONFIG_FLAGS,
        run: cluster::set_config,
    },
    Command {
        path: &["operator", "raft", "autopilot", "state"],
        synopsis: "Displays the state of the cluster as seen by autopilot",
        usage: "[options]",
        help: "Prints which nodes are healthy and how many may fail. The leader is asked, whichever node the command \
               is sent to.",
        shared: Shared::Server,
        own: &[],
        run: cluster::state,
    },
    Command {
        path: &["operator", "raft", "demote"],
        synopsis: "Demotes a voter to a permanent non-voter",
        usage: "[options] SERVER-ID",
        help: "Takes the vote of the node with this node_id until \"operator raft promote\" gives it back. The node \
               keeps all data and serves as before. If it leads, another one takes over first.\n\n      $ strongroom \
               operator raft demote node-3",
        shared: Shared::Server,
        own: &[],
        run: cluster::demote,
    },
    Command {
        path: &["operator", "raft", "join"],
        synopsis: "Joins a node to the Raft cluster",
        usage: "[options] [LEADER-API-ADDR]",
        help: "Tells the node at -address to join the cluster of the node at LEADER-API-ADDR. The options hold PEM \
               text, or \"@FILE\".\n\n      $ strongroom operator raft join https://10.0.0.1:8200",
        shared: Shared::Server,
        own: raft::JOIN_FLAGS,
        run: raft::join,
    },
    Command {
        path: &["operator", "raft", "list-peers"],
        synopsis: "Returns the Raft peer set",
        usage: "[options]",
        help: "Lists the nodes that keep the data, which one leads and which ones vote.",
        shared: Shared::Server,
        own: &[],
        run: raft::list_peers,
    },
    Command {
        path: &["operator", "raft", "promote"],
        synopsis: "Promotes a permanent non-voter to a voter",
        usage: "[options] SERVER-ID",
        help: "Lets the node with this node_id vote: as soon as it has caught up.\n\n      $ strongroom operator raft \
               promote node-3",
        shared: Shared::Server,
        own: &[],
        run: cluster::promote,
    },
    Command {
        path: &["operator", "raft", "remove-peer"],
        synopsis: "Removes a node from the Raft cluster",
        usage: "[options] SERVER-ID",
        help: "Removes the node with this node_id. It stops serving; to come back it needs an empty data directory. A \
               removal that would leave the cluster without a quorum is refused. If the node leads, another one takes \
               over first.\n\n      $ strongroom operator raft remove-peer node-3",
        shared: Shared::Server,
        own: &[],
        run: cluster::remove_peer,
    },
    Command {
        path: &["operator", "raft", "snapshot", "inspect"],
        synopsis: "Inspects a snapshot file",
        usage: "[options] FILE",
        help: "Verifies a snapshot file and says what it is of: where its state stands, which cluster and which HSM key \
               it needs. Needs no server and decrypts nothing.\n\n      $ strongroom operator raft snapshot inspect \
               cluster.snap",
        shared: Shared::Format,
        own: &[],
        run: snapshot::inspect,
    },
    Command {
        path: &["operator", "raft", "snapshot", "restore"],
        synopsis: "Installs the given snapshot, replacing all data of the cluster",
        usage: "[options] FILE",
        help: "Replaces all data of the cluster by those of the snapshot: secrets, mounts, tokens. Members, addresses and \
               the cluster's id stay. On a server that is not initialized it makes a new cluster.\n\n      $ \
               strongroom operator raft snapshot restore cluster.snap",
        shared: Shared::Server,
        own: snapshot::RESTORE_FLAGS,
        run: snapshot::restore,
    },
    Command {
        path: &["operator", "raft", "snapshot", "save"],
        synopsis: "Saves a snapshot of the current state to a file",
        usage: "[options] FILE",
        help: "Writes all data of the cluster, encrypted as they are stored, to a file. Any node can be asked. To be used \
               it needs the cluster's HSM key.\n\n      $ strongroom operator raft snapshot save cluster.snap",
        shared: Shared::Server,
        own: &[],
        run: snapshot::save,
    },
    Command {
        path: &["operator", "seal-reset-pin-guard"],
        synopsis: "Forgets that the HSM refused the PIN",
        usage: "-config=FILE",
        help: "A PIN that the HSM refused is not tried again, not even after a restart, since a few wrong ones lock \
               the token. If the PIN in the configuration is right after all, this command on the node's machine lets \
               it be tried once more at the next start.",
        shared: Shared::Nothing,
        own: serve::CONFIG_FLAGS,
        run: serve::reset_pin_guard,
    },
    Command {
        path: &["operator", "step-down"],
        synopsis: "Hands leadership to another node",
        usage: "[options]",
        help: "Makes the cluster's leader hand leadership to another node, whichever node the command is sent to, and \
               returns when that one leads. Requests wait meanwhile; none fails.\n\n      $ strongroom operator \
               step-down -to=node-2",
        shared: Shared::Server,
        own: cluster::STEP_DOWN_FLAGS,
        run: cluster::step_down,
    },
    Command {
        path: &["operator", "storage", "inspect"],
        synopsis: "Shows what a stopped node has on its disk",
        usage: "[options] PATH-TO-DATA",
        help: "Lists every stored key of a stopped node with its layer (plain, barrier, seal-wrapped), length and a \
               hex view. Decrypts nothing.\n\n      $ strongroom operator storage inspect /var/lib/strongroom",
        shared: Shared::Format,
        own: &[],
        run: serve::inspect,
    },
    Command {
        path: &["operator", "validate-config"],
        synopsis: "Checks configuration files",
        usage: "[options] -config=FILE",
        help: "Reads a configuration as \"strongroom server\" would, and prints every mistake and every setting that \
               has no effect, each with its place. The exit code is 0 if a node could start with it, else 1.\n\n      $ \
               strongroom operator validate-config -config=/etc/strongroom/strongroom.hcl",
        shared: Shared::Format,
        own: serve::CONFIG_FLAGS,
        run: serve::validate_config,
    },
    Command {
        path: &["print", "token"],
        synopsis: "Prints the token that is in use",
        usage: "",
        help: "Prints the token of the environment, or else the one that \"strongroom login\" kept.",
        shared: Shared::Nothing,
        own: &[],
        run: print_token,
    },
    Command {
        path: &["secrets", "disable"],
        synopsis: "Disable a secret engine",
        usage: "[options] PATH",
        help: "Disables the secrets engine at the given path and removes everything in it.\n\n      $ strongroom secrets \
               disable kv/",
        shared: Shared::Server,
        own: &[],
        run: secrets::disable,
    },
    Command {
        path: &["secrets", "enable"],
        synopsis: "Enable a secrets engine",
        usage: "[options] TYPE",
        help: "Enables a secrets engine. With -seal-wrap everything that users store in it goes through the HSM too.\
               \n\n      $ strongroom secrets enable -path=kv -seal-wrap kv",
        shared: Shared::Server,
        own: secrets::ENABLE_FLAGS,
        run: secrets::enable,
    },
    Command {
        path: &["secrets", "list"],
        synopsis: "List enabled secrets engines",
        usage: "[options]",
        help: "Lists the enabled secrets engines.\n\n      $ strongroom secrets list -detailed",
        shared: Shared::Server,
        own: secrets::LIST_FLAGS,
        run: secrets::list,
    },
    Command {
        path: &["version"],
        synopsis: "Prints the version",
        usage: "",
        help: "Prints the version of this program, not of a server.",
        shared: Shared::Nothing,
        own: &[],
        run: version,
    },
];

fn version(run: &mut Invocation<'_>) -> Result<(), Failure> {
    run.print(&format!("{VERSION_LINE}\n"))
}

fn print_token(run: &mut Invocation<'_>) -> Result<(), Failure> {
    let token = token::current(run.environment)
        .map_err(|error| Failure::Local(format!("error getting the token: {error}")))?
        .unwrap_or_default();
    run.print(&format!("{}\n", token.as_str()))
}

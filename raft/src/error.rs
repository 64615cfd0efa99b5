//! What can go wrong, one enum per operation, one variant per thing the caller does next.
//!
//! Invariants
//! - No key, value or name of a secret is in any text.
//! - For a write the three outcomes are told apart: nothing written, unknown, fatal.

use std::{io, path::PathBuf};

/// What to do about a data directory that cannot be trusted.
pub(crate) const REJOIN: &str = "If the cluster has other nodes, move this data directory away and start the node with \
    an empty one: it rejoins under its name and gets everything from the others. A single node must be restored from a backup";

/// Why the stores of a data directory were not opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process, or another part of this one, has the directory open.
    #[error("`{}` is in use by a running node", path.display())]
    Locked {
        /// The data directory.
        path: PathBuf,
    },
    /// The directory's contents belong to another node or another cluster.
    #[error("`{}` belongs to another node or another cluster; node.json and the data do not fit", path.display())]
    Foreign {
        /// The database.
        path: PathBuf,
    },
    /// Written by a version with another layout.
    #[error(
        "`{}` has layout {format}, which this version of strongroom does not know: start the newer version that wrote it. \
         Nothing was changed",
        path.display()
    )]
    UnknownFormat {
        /// The database.
        path: PathBuf,
        /// The layout number found.
        format: u32,
    },
    /// Written by a version that keeps more kinds of rows.
    #[error(
        "`{}` was last used by a newer version of strongroom ({why}): start that version again, or one that is newer \
         still. Nothing was changed",
        path.display()
    )]
    Newer {
        /// The database.
        path: PathBuf,
        /// What RocksDB said.
        why: String,
    },
    /// Data that was there once is gone or damaged: running on would break promises made to the cluster.
    #[error(
        "`{}` is damaged ({why}); this node must not run on it. {REJOIN}",
        path.display()
    )]
    Damaged {
        /// The database or file.
        path: PathBuf,
        /// What does not fit.
        why: String,
    },
    /// RocksDB did not open.
    #[error("opening the database `{}` failed{}", path.display(), crate::rocks::advice(source))]
    Database {
        /// The database.
        path: PathBuf,
        /// What RocksDB said.
        #[source]
        source: rocksdb::Error,
    },
    /// A file or directory cannot be read or written.
    #[error("`{}` cannot be used", path.display())]
    Read {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// Why the local state was not read.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The node is shutting down.
    #[error("the state is closed")]
    Closed,
    /// A restore has replaced the data that the reader knows.
    #[error("the data have been replaced by a restore")]
    Superseded,
    /// The disk or the data failed.
    #[error("reading the state failed")]
    Read(#[from] io::Error),
}

/// Why Raft did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A setting is out of range.
    #[error("the Raft settings are not usable: {0}")]
    Settings(String),
    /// openraft refused the stored state.
    #[error("Raft did not start: {0}")]
    Raft(String),
    /// A listener cannot be used.
    #[error("the cluster port cannot be used")]
    Listener(#[source] io::Error),
}

/// Why a cluster was not made.
#[derive(Debug, thiserror::Error)]
pub enum InitializeError {
    /// The node has a log or has voted: it is part of a cluster.
    #[error("this node is already part of a cluster")]
    NotPristine,
    /// The node cannot go on.
    #[error("Raft failed: {0}")]
    Fatal(String),
}

/// Why a command was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum ProposeError {
    /// Nothing was written: ask the leader.
    #[error("this node is not the leader")]
    NotLeader {
        /// The leader's Raft id, if known.
        leader: Option<u64>,
    },
    /// Nothing was written: the leader cannot reach a quorum.
    #[error("the leader cannot reach a quorum")]
    NoQuorum,
    /// Nothing was written: too much is in flight, or there was no room before the deadline.
    #[error("too many writes are in flight")]
    Busy,
    /// Nothing was written: the disk of this node, which leads, is nearly full.
    #[error("the disk of the leader is nearly full; it takes no writes until there is room")]
    NoRoom,
    /// Nothing was written: the command is larger than an entry may be.
    #[error("the command is {len} bytes; at most {max} are allowed")]
    TooLarge {
        /// Encoded size, bytes.
        len: usize,
        /// Limit, bytes.
        max: usize,
    },
    /// The command may or may not be applied later; the same request id may be proposed again.
    #[error("the outcome of the write is unknown")]
    Unknown,
    /// The node cannot go on.
    #[error("Raft failed: {0}")]
    Fatal(String),
}

/// Why a linearizable read was not possible.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// No leader confirmed an index in time, or this node did not catch up in time.
    #[error("no leader with a quorum answered in time")]
    NoQuorum,
    /// The node cannot go on.
    #[error("Raft failed: {0}")]
    Fatal(String),
}

/// Why the membership was not changed.
#[derive(Debug, thiserror::Error)]
pub enum MembershipError {
    /// Nothing changed: ask the leader.
    #[error("this node is not the leader")]
    NotLeader {
        /// The leader's Raft id, if known.
        leader: Option<u64>,
    },
    /// Nothing changed: another change is running; try again.
    #[error("another membership change is in progress")]
    InProgress,
    /// Nothing changed, or it is not known: there is no quorum now; try again.
    #[error("the cluster has no leader with a quorum")]
    NoQuorum,
    /// The node is no member (any more).
    #[error("node {0} is not a member of the cluster")]
    NotMember(u64),
    /// No member has this name.
    #[error("no node named `{0}` is a member of the cluster")]
    Unknown(String),
    /// It is about the leader: hand leadership over first.
    #[error("the node is the leader")]
    IsLeader,
    /// The change is not possible.
    #[error("the membership change was refused: {0}")]
    Refused(String),
    /// The change would take the cluster's quorum.
    #[error("the membership change was refused: {0}")]
    Quorum(String),
    /// The node cannot go on.
    #[error("Raft failed: {0}")]
    Fatal(String),
}

/// Why leadership was not handed over.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// This node does not lead.
    #[error("this node is not the leader")]
    NotLeader,
    /// No eligible voter is caught up and reachable.
    #[error("no other eligible voter answers and is near enough to take over")]
    NoTarget,
    /// The named node is no member.
    #[error("no node named `{0}` is a member of the cluster")]
    Unknown(String),
    /// The named node leads.
    #[error("node `{0}` is the leader already")]
    LeadsAlready(String),
    /// The named node has no vote.
    #[error("node `{0}` has no vote, so it cannot lead")]
    NotVoter(String),
    /// The named node is marked as one that must not lead.
    #[error("node `{0}` is marked `leader_ineligible` in its configuration")]
    Ineligible(String),
    /// The named node does not answer.
    #[error("node `{0}` does not answer now")]
    Silent(String),
    /// The named node lacks too much.
    #[error("node `{name}` is {lag} entries behind, too far to take over")]
    Behind {
        /// Its name.
        name: String,
        /// Entries it lacks.
        lag: u64,
    },
    /// The named node was to take over, and another one did.
    #[error("node `{leader}` leads now, not `{wanted}`: it was elected meanwhile; try again")]
    Another {
        /// Name of the one that was to.
        wanted: String,
        /// Name of the one that did.
        leader: String,
    },
    /// It did not happen in time; the voters elect a leader after an election time-out.
    #[error("leadership was not taken over in time; the voters elect a leader by themselves")]
    TimedOut,
    /// The node cannot go on.
    #[error("Raft failed: {0}")]
    Fatal(String),
}

/// Why no connection to a member was made.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The node runs without a network.
    #[error("this node has no cluster network")]
    NoNetwork,
    /// Nothing is known about this member.
    #[error("node {0} is not a known member of the cluster")]
    UnknownMember(u64),
    /// It did not answer in time.
    #[error("connecting to node {0} timed out")]
    TimedOut(u64),
    /// The connection failed.
    #[error("connecting to node {id} at {addr} failed")]
    Connect {
        /// The member's Raft id.
        id: u64,
        /// Its `host:port`.
        addr: String,
        /// What the system or TLS said.
        #[source]
        source: io::Error,
    },
    /// The other side answered and refused.
    #[error("node {id} refused the connection: {reason}")]
    Refused {
        /// The member's Raft id.
        id: u64,
        /// Its reason.
        reason: String,
    },
}

//! Prost forms of openraft's types, for disk and for the wire: our bytes never depend on openraft's own encodings.
//!
//! In: prost messages that came from a disk or a peer. Out: openraft values, or an error; nothing is assumed.
//!
//! Invariants
//! - Field numbers are never reused. What is added must be safe to ignore, or goes with a new version number of its
//!   container (record version on disk, protocol version on the wire).

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use openraft::EntryPayload;
use prost::Message;

use crate::types::{
    Encoded, Entry, LeaderId, LogId, Membership, PeerInfo, StoredMembership, Vote, log_id,
};

/// Why a message does not stand for a valid value.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProtoError {
    #[error("a message does not decode")]
    Decode(#[from] prost::DecodeError),
    #[error("a message lacks its {0}")]
    Missing(&'static str),
    #[error("a membership is not valid")]
    Membership,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub(crate) struct LogIdProto {
    #[prost(uint64, tag = "1")]
    pub(crate) term: u64,
    #[prost(uint64, tag = "2")]
    pub(crate) node: u64,
    #[prost(uint64, tag = "3")]
    pub(crate) index: u64,
}

impl From<&LogId> for LogIdProto {
    fn from(id: &LogId) -> Self {
        Self {
            term: id.leader_id.term,
            node: id.leader_id.node_id,
            index: id.index,
        }
    }
}

impl From<LogIdProto> for LogId {
    fn from(id: LogIdProto) -> Self {
        log_id(id.term, id.node, id.index)
    }
}

pub(crate) fn log_id_proto(id: Option<&LogId>) -> Option<LogIdProto> {
    id.map(LogIdProto::from)
}

pub(crate) fn log_id_of(id: Option<LogIdProto>) -> Option<LogId> {
    id.map(LogId::from)
}

#[derive(Clone, Copy, PartialEq, Message)]
pub(crate) struct VoteProto {
    #[prost(uint64, tag = "1")]
    pub(crate) term: u64,
    #[prost(uint64, tag = "2")]
    pub(crate) node: u64,
    #[prost(bool, tag = "3")]
    pub(crate) committed: bool,
}

impl From<&Vote> for VoteProto {
    fn from(vote: &Vote) -> Self {
        Self {
            term: vote.leader_id.term,
            node: vote.leader_id.node_id,
            committed: vote.committed,
        }
    }
}

impl From<VoteProto> for LeaderId {
    fn from(vote: VoteProto) -> Self {
        Self {
            term: vote.term,
            node_id: vote.node,
        }
    }
}

impl From<VoteProto> for Vote {
    fn from(vote: VoteProto) -> Self {
        Self {
            leader_id: vote.into(),
            committed: vote.committed,
        }
    }
}

pub(crate) fn vote_of(vote: Option<VoteProto>) -> Result<Vote, ProtoError> {
    vote.map(Vote::from).ok_or(ProtoError::Missing("vote"))
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct PeerProto {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    cluster_addr: String,
    #[prost(string, tag = "3")]
    api_addr: String,
    #[prost(string, tag = "4")]
    hostname: String,
    #[prost(string, tag = "5")]
    version: String,
    #[prost(bool, tag = "6")]
    non_voter: bool,
    #[prost(bool, tag = "7")]
    leader_ineligible: bool,
    #[prost(string, tag = "8")]
    upgrade_version: String,
    #[prost(string, tag = "9")]
    redundancy_zone: String,
}

impl From<PeerInfo> for PeerProto {
    fn from(info: PeerInfo) -> Self {
        Self {
            name: info.name,
            cluster_addr: info.cluster_addr,
            api_addr: info.api_addr,
            hostname: info.hostname,
            version: info.version,
            non_voter: info.non_voter,
            leader_ineligible: info.leader_ineligible,
            upgrade_version: info.upgrade_version,
            redundancy_zone: info.redundancy_zone,
        }
    }
}

impl From<PeerProto> for PeerInfo {
    fn from(proto: PeerProto) -> Self {
        Self {
            name: proto.name,
            cluster_addr: proto.cluster_addr,
            api_addr: proto.api_addr,
            hostname: proto.hostname,
            version: proto.version,
            non_voter: proto.non_voter,
            leader_ineligible: proto.leader_ineligible,
            upgrade_version: proto.upgrade_version,
            redundancy_zone: proto.redundancy_zone,
        }
    }
}

#[derive(Clone, PartialEq, Message)]
struct VotersProto {
    #[prost(uint64, repeated, tag = "1")]
    ids: Vec<u64>,
}

#[derive(Clone, PartialEq, Message)]
struct MemberProto {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(message, optional, tag = "2")]
    info: Option<PeerProto>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct MembershipProto {
    #[prost(message, repeated, tag = "1")]
    configs: Vec<VotersProto>,
    #[prost(message, repeated, tag = "2")]
    nodes: Vec<MemberProto>,
}

impl From<&Membership> for MembershipProto {
    fn from(membership: &Membership) -> Self {
        let configs = membership.get_joint_config().iter().map(|ids| VotersProto {
            ids: ids.iter().copied().collect(),
        });
        let nodes = membership.nodes().map(|(id, info)| MemberProto {
            id: *id,
            info: Some(info.clone().into()),
        });
        Self {
            configs: configs.collect(),
            nodes: nodes.collect(),
        }
    }
}

impl TryFrom<MembershipProto> for Membership {
    type Error = ProtoError;

    fn try_from(proto: MembershipProto) -> Result<Self, ProtoError> {
        let configs: Vec<BTreeSet<u64>> = proto
            .configs
            .into_iter()
            .map(|voters| voters.ids.into_iter().collect())
            .collect();
        let nodes: BTreeMap<u64, PeerInfo> = proto
            .nodes
            .into_iter()
            .map(|member| (member.id, member.info.unwrap_or_default().into()))
            .collect();
        if configs.is_empty() && nodes.is_empty() {
            // The membership of a node that has none yet; openraft's constructor refuses it.
            return Ok(Self::default());
        }
        Self::new(configs, nodes).map_err(|_| ProtoError::Membership)
    }
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct StoredMembershipProto {
    #[prost(message, optional, tag = "1")]
    log_id: Option<LogIdProto>,
    #[prost(message, optional, tag = "2")]
    membership: Option<MembershipProto>,
}

impl From<&StoredMembership> for StoredMembershipProto {
    fn from(stored: &StoredMembership) -> Self {
        Self {
            log_id: log_id_proto(stored.log_id().as_ref()),
            membership: Some(stored.membership().into()),
        }
    }
}

impl TryFrom<StoredMembershipProto> for StoredMembership {
    type Error = ProtoError;

    fn try_from(proto: StoredMembershipProto) -> Result<Self, ProtoError> {
        let membership = proto
            .membership
            .ok_or(ProtoError::Missing("membership"))?
            .try_into()?;
        Ok(Self::new(log_id_of(proto.log_id), membership))
    }
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct EntryProto {
    #[prost(message, optional, tag = "1")]
    log_id: Option<LogIdProto>,
    #[prost(oneof = "PayloadProto", tags = "2, 3, 4")]
    payload: Option<PayloadProto>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum PayloadProto {
    #[prost(bool, tag = "2")]
    Blank(bool),
    #[prost(bytes = "bytes", tag = "3")]
    Normal(Bytes),
    #[prost(message, tag = "4")]
    Membership(MembershipProto),
}

impl From<&Entry> for EntryProto {
    fn from(entry: &Entry) -> Self {
        Self {
            log_id: Some((&entry.log_id).into()),
            payload: Some(match &entry.payload {
                EntryPayload::Blank => PayloadProto::Blank(true),
                EntryPayload::Normal(command) => PayloadProto::Normal(command.0.clone()),
                EntryPayload::Membership(membership) => PayloadProto::Membership(membership.into()),
            }),
        }
    }
}

/// Reads an entry.
pub(crate) fn entry_of(proto: EntryProto) -> Result<Entry, ProtoError> {
    let log_id = proto.log_id.ok_or(ProtoError::Missing("log id"))?.into();
    let payload = match proto.payload.ok_or(ProtoError::Missing("payload"))? {
        PayloadProto::Blank(_) => EntryPayload::Blank,
        PayloadProto::Normal(command) => EntryPayload::Normal(Encoded(command)),
        PayloadProto::Membership(membership) => EntryPayload::Membership(membership.try_into()?),
    };
    Ok(Entry { log_id, payload })
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_info() -> impl Strategy<Value = PeerInfo> {
        (".{0,8}", ".{0,8}", any::<[bool; 2]>(), ".{0,8}").prop_map(
            |(name, cluster_addr, [non_voter, leader_ineligible], redundancy_zone)| PeerInfo {
                name,
                cluster_addr,
                non_voter,
                leader_ineligible,
                upgrade_version: redundancy_zone.clone(),
                redundancy_zone,
                ..PeerInfo::default()
            },
        )
    }

    pub(crate) fn any_membership() -> impl Strategy<Value = Membership> {
        let ids = || proptest::collection::btree_set(0u64..20, 1..5);
        (ids(), proptest::option::of(ids()), any_info()).prop_map(|(old, new, info)| {
            let mut configs = vec![old.clone()];
            configs.extend(new.clone());
            let nodes: BTreeMap<u64, PeerInfo> = old
                .into_iter()
                .chain(new.into_iter().flatten())
                .chain([99])
                .map(|id| (id, info.clone()))
                .collect();
            Membership::new(configs, nodes).unwrap()
        })
    }

    pub(crate) fn any_entry() -> impl Strategy<Value = Entry> {
        let payload = prop_oneof![
            Just(EntryPayload::Blank),
            proptest::collection::vec(any::<u8>(), 0..100)
                .prop_map(|bytes| EntryPayload::Normal(Encoded(bytes.into()))),
            any_membership().prop_map(EntryPayload::Membership),
        ];
        (any::<(u64, u64, u64)>(), payload).prop_map(|((term, node, index), payload)| Entry {
            log_id: log_id(term, node, index),
            payload,
        })
    }

    proptest! {
        #[test]
        fn an_entry_survives_encoding(entry in any_entry()) {
            let bytes = EntryProto::from(&entry).encode_to_vec();
            let back = entry_of(EntryProto::decode(&bytes[..]).unwrap()).unwrap();
            prop_assert_eq!(back, entry);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(proto) = EntryProto::decode(&bytes[..]) {
                // Either outcome is fine; the property is that it returns.
                let _ = entry_of(proto);
            }
            if let Ok(proto) = StoredMembershipProto::decode(&bytes[..]) {
                let _ = StoredMembership::try_from(proto);
            }
        }
    }

    #[test]
    fn the_empty_membership_survives_encoding() {
        let stored = StoredMembership::default();
        let bytes = StoredMembershipProto::from(&stored).encode_to_vec();
        let back = StoredMembershipProto::decode(&bytes[..]).unwrap();
        assert_eq!(StoredMembership::try_from(back).unwrap(), stored);
    }
}

//! Taking a new version into use by replacing nodes.
//!
//! New nodes of a new version stay without a vote until there are as many of them as voters of older versions. Then one
//! change gives them the vote and takes it from the old ones, and leadership follows. A cluster whose nodes are upgraded
//! in place has no new nodes, so nothing of this happens there.
//!
//! Source: Vault Enterprise's automated upgrades; the order (leader last) and the least number of voters are ours.

use std::collections::BTreeSet;

use semver::Version;

use super::{Action, ENOUGH, View, without};
use crate::types::PeerInfo;

/// The version a node counts as: the operator's word for it, or the program's own. One that does not parse is the
/// lowest.
pub(crate) fn version_of(info: &PeerInfo) -> Option<Version> {
    let named = Some(info.upgrade_version.as_str()).filter(|text| !text.is_empty());
    Version::parse(named.unwrap_or(&info.version)).ok()
}

/// Whether `a` counts as a newer version than `b`.
pub(crate) fn newer(a: &PeerInfo, b: &PeerInfo) -> bool {
    version_of(a) > version_of(b)
}

/// Nodes of the newest version and of older ones; lists hold Raft ids.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UpgradeStatus {
    /// Vault's words: `idle`, `await-new-voters`, `promoting`, `leader-transfer`, `await-server-removal`, `disabled`.
    pub status: &'static str,
    /// The newest version there is.
    pub target_version: String,
    /// Voters of that version.
    pub target_voters: Vec<u64>,
    /// Others of that version.
    pub target_non_voters: Vec<u64>,
    /// Voters of older versions.
    pub other_voters: Vec<u64>,
    /// Others of older versions.
    pub other_non_voters: Vec<u64>,
}

/// Members by version, and what is being waited for.
pub(crate) fn look_at_versions(view: &View) -> UpgradeStatus {
    let version = |id: u64| view.info(id).and_then(version_of);
    let target = view
        .membership
        .nodes()
        .filter_map(|(_, i)| version_of(i))
        .max();
    let voters = view.voters();
    let mut seen = UpgradeStatus {
        target_version: target.as_ref().map(Version::to_string).unwrap_or_default(),
        ..UpgradeStatus::default()
    };
    for (id, _) in view.membership.nodes() {
        let list = match (version(*id) == target, voters.contains(id)) {
            (true, true) => &mut seen.target_voters,
            (true, false) => &mut seen.target_non_voters,
            (false, true) => &mut seen.other_voters,
            (false, false) => &mut seen.other_non_voters,
        };
        list.push(*id);
    }
    let wait = |id: &u64| view.info(*id).is_some_and(|info| !info.non_voter);
    let leader_is_old = version(view.leader) != target;
    seen.status = if view.settings().disable_upgrade_migration {
        "disabled"
    } else if seen.other_voters.is_empty() && seen.other_non_voters.is_empty() {
        "idle"
    } else if !seen.other_voters.is_empty() && seen.target_non_voters.iter().any(wait) {
        if migrate(view).is_some() {
            "promoting"
        } else {
            "await-new-voters"
        }
    } else if leader_is_old {
        "leader-transfer"
    } else {
        "await-server-removal"
    };
    seen
}

/// Whether a learner must wait although it could have a vote: its version is not the voters', and it is not yet, or no
/// longer, that version's turn.
pub(super) fn holds_back(view: &View, id: u64) -> bool {
    if view.settings().disable_upgrade_migration {
        return false;
    }
    let Some(own) = view.info(id).map(version_of) else {
        return false;
    };
    let voters = view.voters();
    let of_voters = || {
        voters
            .iter()
            .filter_map(|id| view.info(*id))
            .map(version_of)
    };
    let is_newer = of_voters().any(|version| version < own);
    let is_older = of_voters().any(|version| version > own);
    is_newer || (is_older && voters.len() >= ENOUGH)
}

/// The change that gives a new version the votes, if its time has come.
pub(super) fn migrate(view: &View) -> Option<Action> {
    let settings = view.autopilot.as_ref()?;
    if settings.disable_upgrade_migration {
        return None;
    }
    let voters = view.voters();
    let version = |id: u64| view.info(id).and_then(version_of);
    let may_vote = |id: &u64| view.info(*id).is_some_and(|info| !info.non_voter);
    let ready: Vec<u64> = view
        .learners()
        .filter(may_vote)
        .filter(|id| view.has_caught_up(*id))
        .filter(|id| view.healthy_for(*id, settings.server_stabilization_time))
        .collect();
    let target = ready.iter().map(|id| version(*id)).max()?;
    let (current, old): (BTreeSet<u64>, BTreeSet<u64>) =
        voters.iter().partition(|id| version(**id) >= target);
    let promote = one_per_zone(view, &current, ready, |id| version(id) == target);
    let after: BTreeSet<u64> = current.iter().chain(&promote).copied().collect();
    let is_time = !old.is_empty()
        && !promote.is_empty()
        && after.len() >= old.len()
        && after.len() >= voters.len().min(ENOUGH)
        && view.is_quorate(&after);
    is_time.then(|| Action::Reshape {
        promote,
        demote: without(&old, &[]).into_iter().collect(),
    })
}

/// Those of `ready` that count, and of each redundancy zone only the first, if none of `current` is there.
fn one_per_zone(
    view: &View,
    current: &BTreeSet<u64>,
    ready: Vec<u64>,
    counts: impl Fn(u64) -> bool,
) -> Vec<u64> {
    let zone = |id: u64| view.info(id).map_or("", |info| &info.redundancy_zone);
    let mut taken: BTreeSet<&str> = current.iter().map(|id| zone(*id)).collect();
    let mut chosen = Vec::new();
    for id in ready.into_iter().filter(|id| counts(*id)) {
        if zone(id).is_empty() || taken.insert(zone(id)) {
            chosen.push(id);
        }
    }
    chosen
}

//! Who should lead: for a hand-over that was asked for, and for one that autopilot makes by itself.
//!
//! Invariants
//! - A node that is marked ineligible is never chosen, except by a leader that stops and has nobody else.
//! - Leadership never goes from a newer version to an older one unless an operator names the node, or there is no other.

use super::{View, newer, upgrade::version_of};
use crate::{error::TransferError, types::PeerInfo};

/// Who is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Successor {
    /// The best one that is eligible.
    Best,
    /// The best one; an ineligible one is better than nobody.
    Anybody,
    /// The node of this name.
    Named(String),
}

/// Whether it went as wanted: `target` was asked to take over and `leader` leads. The voters can elect another one meanwhile.
pub(crate) fn taken_over(
    view: &View,
    wanted: &Successor,
    target: u64,
    leader: u64,
) -> Result<(), TransferError> {
    match wanted {
        Successor::Named(name) if leader != target => Err(TransferError::Another {
            wanted: name.clone(),
            leader: view
                .info(leader)
                .map_or_else(|| leader.to_string(), |info| info.name.clone()),
        }),
        Successor::Named(_) | Successor::Best | Successor::Anybody => Ok(()),
    }
}

/// The voter to hand leadership to, without those `tried`.
pub(crate) fn successor(
    view: &View,
    wanted: &Successor,
    tried: &[u64],
) -> Result<u64, TransferError> {
    match wanted {
        Successor::Named(name) => named(view, name),
        Successor::Best => best(view, tried, false).ok_or(TransferError::NoTarget),
        Successor::Anybody => best(view, tried, false)
            .or_else(|| best(view, tried, true))
            .ok_or(TransferError::NoTarget),
    }
}

fn named(view: &View, name: &str) -> Result<u64, TransferError> {
    let members = || {
        view.membership
            .nodes()
            .filter(|(_, info)| info.name == name)
    };
    let voters = view.voters();
    // After a node was wiped there can be two of its name: the one that votes.
    let (id, info) = members()
        .find(|(id, _)| voters.contains(id))
        .or_else(|| members().next())
        .ok_or_else(|| TransferError::Unknown(name.to_owned()))?;
    let (id, name) = (*id, name.to_owned());
    if id == view.leader {
        return Err(TransferError::LeadsAlready(name));
    }
    if !voters.contains(&id) {
        return Err(TransferError::NotVoter(name));
    }
    if info.leader_ineligible {
        return Err(TransferError::Ineligible(name));
    }
    if !view.answers(id) {
        return Err(TransferError::Silent(name));
    }
    let lag = view.lag(id);
    if lag > view.settings().max_trailing_logs {
        return Err(TransferError::Behind { name, lag });
    }
    Ok(id)
}

fn best(view: &View, tried: &[u64], ineligible_too: bool) -> Option<u64> {
    ready(view)
        .filter(|(id, _)| !tried.contains(id))
        .filter(|(_, info)| ineligible_too || !info.leader_ineligible)
        .max_by_key(|(id, info)| (version_of(info), u64::MAX - view.lag(*id), *id))
        .map(|(id, _)| id)
}

/// Other voters that answer and are near enough.
fn ready(view: &View) -> impl Iterator<Item = (u64, &PeerInfo)> {
    let most = view.settings().max_trailing_logs;
    view.membership
        .voter_ids()
        .filter(|id| *id != view.leader)
        .filter(move |id| view.answers(*id) && view.lag(*id) <= most)
        .filter_map(|id| Some((id, view.info(id)?)))
}

/// A voter that should rather lead than this node.
pub(super) fn better_leader(view: &View) -> Option<u64> {
    if !view.may_transfer {
        return None;
    }
    let own = view.info(view.leader)?;
    let better = best(view, &[], false)?;
    let other = view.info(better)?;
    if !view.voters().contains(&view.leader) || own.non_voter || own.leader_ineligible {
        return Some(better);
    }
    let steady = view.settings().server_stabilization_time;
    let takes_over = view.autopilot.is_some()
        && newer(other, own)
        && !view.is_chosen
        && view.healthy_for(better, steady);
    takes_over.then_some(better)
}

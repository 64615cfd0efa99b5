//! Redundancy zones: of each zone one node votes, the others stand by to take its place.
//!
//! Departure from Vault: while there are fewer than three voters a second node of a zone gets a vote too, and no vote is
//! taken away that would leave fewer than three. A cluster of one zone would otherwise hang on one node.
//!
//! Source: Vault Enterprise's redundancy zones.

use std::collections::BTreeSet;

use super::{Action, ENOUGH, View, without};

/// The zone of a member; `None`: it is in none.
fn zone(view: &View, id: u64) -> Option<&str> {
    let zone = view.info(id)?.redundancy_zone.as_str();
    Some(zone).filter(|zone| !zone.is_empty())
}

/// Voters in the zone of `id`.
fn voters_beside(view: &View, id: u64) -> Vec<u64> {
    let Some(own) = zone(view, id) else {
        return Vec::new();
    };
    let voters = view.membership.voter_ids();
    voters
        .filter(|voter| zone(view, *voter) == Some(own))
        .collect()
}

/// Gives a stable learner its vote, unless a voter of its zone is well; takes it from one that is not.
pub(super) fn promotion(view: &View, id: u64) -> Option<Action> {
    let plainly = Action::Promote {
        id,
        replaces: Vec::new(),
    };
    let beside = voters_beside(view, id);
    if beside.is_empty() {
        return Some(plainly);
    }
    let threshold = view.settings().last_contact_threshold;
    let is_well = |voter: &u64| view.silence(*voter) <= threshold;
    let voters = view.voters();
    if beside.iter().any(is_well) {
        return (voters.len() < ENOUGH).then_some(plainly);
    }
    let mut after = without(&voters, &beside);
    after.insert(id);
    view.is_quorate(&after).then(|| Action::Reshape {
        promote: vec![id],
        demote: beside,
    })
}

/// Takes a vote from a zone that has two.
pub(super) fn surplus(view: &View) -> Option<Action> {
    let voters = view.voters();
    if voters.len() <= ENOUGH {
        return None;
    }
    let crowded = |id: &u64| {
        let beside = voters_beside(view, *id);
        beside
            .iter()
            .any(|other| other != id && view.answers(*other))
    };
    let candidates: BTreeSet<u64> = voters
        .iter()
        .copied()
        .filter(|id| *id != view.leader)
        .filter(crowded)
        .filter(|id| view.is_quorate(&without(&voters, &[*id])))
        .collect();
    // One that does not answer goes first, then the youngest.
    let id = candidates
        .into_iter()
        .max_by_key(|id| (!view.answers(*id), *id))?;
    Some(Action::Reshape {
        promote: Vec::new(),
        demote: vec![id],
    })
}

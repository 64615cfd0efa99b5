//! Decides the next membership change: a pure function of what the leader sees.
//!
//! In: the membership, how far each node is, how long ago it answered. Out: at most one action.
//!
//! Rules, in order
//! 1. A change that a former leader left half done is finished.
//! 2. Of several nodes with one name the newest Raft id is meant: an older learner of that name is dropped.
//! 3. A learner that may vote, has caught up and answers, is promoted; a voter of its name leaves in the same change.
//! 4. A learner that may not vote takes its name's place likewise: the old voter of its name leaves.
//!
//! Source: the shape is hashicorp/raft-autopilot's `CalculatePromotionsAndDemotions`.

use std::{collections::BTreeMap, time::Duration};

use crate::types::Membership;

/// A learner this many entries behind, or fewer, has caught up.
pub(crate) const MAX_LAG: u64 = 100;

/// How one member is doing, as the leader knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    /// The last entry known to be on it.
    pub(crate) matched: Option<u64>,
    /// How long ago it answered.
    pub(crate) ack_age: Option<Duration>,
}

/// What the leader sees.
pub(crate) struct View<'a> {
    pub(crate) leader: u64,
    pub(crate) membership: &'a Membership,
    pub(crate) progress: &'a BTreeMap<u64, Progress>,
    pub(crate) last_log: u64,
    /// A member that answered this recently is there.
    pub(crate) fresh: Duration,
}

/// One membership change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Leave the joint configuration.
    FinishJoint,
    /// Remove a learner that another node of its name has taken over from.
    DropLearner(u64),
    /// Make a learner a voter and remove the voters it replaces.
    Promote { id: u64, replaces: Vec<u64> },
    /// Remove voters whose name now belongs to a node that does not vote.
    RemoveVoters(Vec<u64>),
}

/// The next action, if any.
pub(crate) fn plan(view: &View<'_>) -> Option<Action> {
    if view.membership.get_joint_config().len() > 1 {
        return Some(Action::FinishJoint);
    }
    superseded_learner(view)
        .map(Action::DropLearner)
        .or_else(|| learners(view).find_map(|id| take_place(view, id)))
}

fn learners<'a>(view: &'a View<'_>) -> impl Iterator<Item = u64> + 'a {
    view.membership.learner_ids()
}

fn name<'a>(view: &'a View<'_>, id: u64) -> Option<&'a str> {
    view.membership.get_node(&id).map(|info| info.name.as_str())
}

fn superseded_learner(view: &View<'_>) -> Option<u64> {
    learners(view).find(|id| {
        let own = name(view, *id);
        view.membership
            .nodes()
            .any(|(other, info)| other > id && Some(info.name.as_str()) == own)
    })
}

fn take_place(view: &View<'_>, id: u64) -> Option<Action> {
    if !caught_up(view, id) {
        return None;
    }
    let info = view.membership.get_node(&id)?;
    let replaces: Vec<u64> = view
        .membership
        .voter_ids()
        .filter(|voter| *voter < id && *voter != view.leader)
        .filter(|voter| name(view, *voter) == Some(&info.name))
        .collect();
    if !info.non_voter {
        return Some(Action::Promote { id, replaces });
    }
    (!replaces.is_empty()).then_some(Action::RemoveVoters(replaces))
}

fn caught_up(view: &View<'_>, id: u64) -> bool {
    let Some(progress) = view.progress.get(&id) else {
        return false;
    };
    let near = progress
        .matched
        .is_some_and(|matched| matched.saturating_add(MAX_LAG) >= view.last_log);
    near && progress.ack_age.is_some_and(|age| age <= view.fresh)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::types::PeerInfo;

    const FRESH: Duration = Duration::from_secs(1);

    type Case = (
        &'static str,
        &'static [&'static [u64]],
        Vec<Node>,
        Option<Action>,
    );

    struct Node(u64, &'static str, bool, Option<u64>, u64);

    /// Voters' ids, then every node: id, name, non-voter, matched, age of its answer in ms.
    fn planned(configs: &[&[u64]], nodes: &[Node]) -> Option<Action> {
        let configs: Vec<BTreeSet<u64>> = configs
            .iter()
            .map(|ids| ids.iter().copied().collect())
            .collect();
        let members: BTreeMap<u64, PeerInfo> = nodes
            .iter()
            .map(|Node(id, name, non_voter, ..)| {
                let info = PeerInfo {
                    name: (*name).to_owned(),
                    non_voter: *non_voter,
                    ..PeerInfo::default()
                };
                (*id, info)
            })
            .collect();
        let progress = nodes
            .iter()
            .map(|Node(id, .., matched, age)| {
                let progress = Progress {
                    matched: *matched,
                    ack_age: matched.map(|_| Duration::from_millis(*age)),
                };
                (*id, progress)
            })
            .collect();
        plan(&View {
            leader: 1,
            membership: &Membership::new(configs, members).unwrap(),
            progress: &progress,
            last_log: 1000,
            fresh: FRESH,
        })
    }

    #[test]
    fn one_change_at_a_time() {
        use Action::*;
        let promote = |id, replaces: &[u64]| {
            Some(Promote {
                id,
                replaces: replaces.to_vec(),
            })
        };
        let one = || Node(1, "a", false, None, 0);
        let two = || Node(2, "b", false, Some(1000), 10);
        let cases: Vec<Case> = vec![
            ("nothing to do", &[&[1, 2]], vec![one(), two()], None),
            (
                "joint",
                &[&[1], &[1, 2]],
                vec![one(), two()],
                Some(FinishJoint),
            ),
            ("caught up", &[&[1]], vec![one(), two()], promote(2, &[])),
            (
                "behind",
                &[&[1]],
                vec![one(), Node(2, "b", false, Some(899), 10)],
                None,
            ),
            (
                "just near enough",
                &[&[1]],
                vec![one(), Node(2, "b", false, Some(900), 10)],
                promote(2, &[]),
            ),
            (
                "silent",
                &[&[1]],
                vec![one(), Node(2, "b", false, Some(1000), 1001)],
                None,
            ),
            (
                "never heard of",
                &[&[1]],
                vec![one(), Node(2, "b", false, None, 0)],
                None,
            ),
            (
                "may not vote",
                &[&[1]],
                vec![one(), Node(2, "b", true, Some(1000), 10)],
                None,
            ),
            (
                "a wiped voter comes back",
                &[&[1, 2]],
                vec![one(), two(), Node(7, "b", false, Some(1000), 10)],
                promote(7, &[2]),
            ),
            (
                "a wiped voter comes back without a vote",
                &[&[1, 2]],
                vec![one(), two(), Node(7, "b", true, Some(1000), 10)],
                Some(RemoveVoters(vec![2])),
            ),
            (
                "but its old self stays until it has caught up",
                &[&[1, 2]],
                vec![one(), two(), Node(7, "b", false, Some(1), 10)],
                None,
            ),
            (
                "a second join before the first came up",
                &[&[1]],
                vec![
                    one(),
                    Node(5, "b", false, None, 0),
                    Node(7, "b", false, None, 0),
                ],
                Some(DropLearner(5)),
            ),
            (
                "a learner older than the voter of its name",
                &[&[1, 7]],
                vec![
                    one(),
                    Node(5, "b", false, Some(1000), 10),
                    Node(7, "b", false, Some(1000), 10),
                ],
                Some(DropLearner(5)),
            ),
            (
                "the leader does not replace itself",
                &[&[1]],
                vec![one(), Node(7, "a", false, Some(1000), 10)],
                promote(7, &[]),
            ),
        ];
        for (what, configs, nodes, want) in cases {
            assert_eq!(planned(configs, &nodes), want, "{what}");
        }
    }
}

//! Tables of what is done when, and properties over random clusters.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::{upgrade::version_of, *};
use crate::types::PeerInfo;

const FRESH: Duration = Duration::from_secs(1);
const LONG: Duration = Duration::from_secs(100_000);

/// A member in a test: well, stable, of version 1.0.0, in no zone, unless changed.
#[derive(Clone, Debug)]
struct Node {
    id: u64,
    info: PeerInfo,
    matched: Option<u64>,
    ack_age: Option<Duration>,
    healthy_for: Option<Duration>,
}

fn node(id: u64, name: &str) -> Node {
    Node {
        id,
        info: PeerInfo {
            name: name.to_owned(),
            version: "1.0.0".to_owned(),
            ..PeerInfo::default()
        },
        matched: Some(1000),
        ack_age: Some(Duration::from_millis(10)),
        healthy_for: Some(Duration::from_secs(60)),
    }
}

impl Node {
    fn non_voter(mut self) -> Self {
        self.info.non_voter = true;
        self
    }

    fn ineligible(mut self) -> Self {
        self.info.leader_ineligible = true;
        self
    }

    fn at(mut self, matched: u64) -> Self {
        self.matched = Some(matched);
        self
    }

    fn version(mut self, version: &str) -> Self {
        self.info.version = version.to_owned();
        self
    }

    fn zone(mut self, zone: &str) -> Self {
        self.info.redundancy_zone = zone.to_owned();
        self
    }

    fn silent_for(mut self, age: Duration) -> Self {
        self.ack_age = Some(age);
        self.healthy_for = None;
        self
    }

    fn never_heard_of(mut self) -> Self {
        (self.matched, self.ack_age, self.healthy_for) = (None, None, None);
        self
    }

    fn healthy_for(mut self, seconds: u64) -> Self {
        self.healthy_for = Some(Duration::from_secs(seconds));
        self
    }
}

/// Led by node 1 for long, with the default settings.
fn view(configs: &[&[u64]], nodes: &[Node]) -> View {
    let configs = configs.iter().map(|ids| ids.iter().copied().collect());
    let infos: BTreeMap<u64, PeerInfo> = nodes
        .iter()
        .map(|node| (node.id, node.info.clone()))
        .collect();
    let progress = nodes
        .iter()
        .map(|node| {
            let progress = Progress {
                matched: node.matched,
                ack_age: node.ack_age,
                healthy_for: node.healthy_for,
                unhealthy_for: None,
            };
            (node.id, progress)
        })
        .collect();
    View {
        leader: 1,
        membership: Membership::new(configs.collect(), infos).unwrap(),
        progress,
        last_log: 1000,
        fresh: FRESH,
        leader_age: LONG,
        defaults: Autopilot::default(),
        autopilot: Some(Autopilot::default()),
        may_transfer: true,
        is_chosen: false,
    }
}

fn planned(configs: &[&[u64]], nodes: &[Node]) -> Option<Action> {
    plan(&view(configs, nodes))
}

fn promote(id: u64, replaces: &[u64]) -> Option<Action> {
    Some(Action::Promote {
        id,
        replaces: replaces.to_vec(),
    })
}

fn reshape(promote: &[u64], demote: &[u64]) -> Option<Action> {
    Some(Action::Reshape {
        promote: promote.to_vec(),
        demote: demote.to_vec(),
    })
}

#[test]
fn one_change_at_a_time() {
    use Action::*;
    let (one, two) = (|| node(1, "a"), || node(2, "b"));
    let silent = Duration::from_millis(1001);
    type Case = (
        &'static str,
        &'static [&'static [u64]],
        Vec<Node>,
        Option<Action>,
    );
    let cases: Vec<Case> = vec![
        ("nothing to do", &[&[1, 2]], vec![one(), two()], None),
        (
            "joint",
            &[&[1], &[1, 2]],
            vec![one(), two()],
            Some(FinishJoint),
        ),
        ("caught up", &[&[1]], vec![one(), two()], promote(2, &[])),
        ("behind", &[&[1]], vec![one(), two().at(899)], None),
        (
            "just near enough",
            &[&[1]],
            vec![one(), two().at(900)],
            promote(2, &[]),
        ),
        (
            "silent",
            &[&[1]],
            vec![one(), two().silent_for(silent)],
            None,
        ),
        (
            "never heard of",
            &[&[1]],
            vec![one(), two().never_heard_of()],
            None,
        ),
        (
            "may not vote",
            &[&[1]],
            vec![one(), two().non_voter()],
            None,
        ),
        (
            "a wiped voter comes back",
            &[&[1, 2]],
            vec![one(), two(), node(7, "b")],
            promote(7, &[2]),
        ),
        (
            "a wiped voter comes back without a vote",
            &[&[1, 2]],
            vec![one(), two(), node(7, "b").non_voter()],
            Some(RemoveVoters(vec![2])),
        ),
        (
            "but its old self stays until it has caught up",
            &[&[1, 2]],
            vec![one(), two(), node(7, "b").at(1)],
            None,
        ),
        (
            "a second join before the first came up",
            &[&[1]],
            vec![
                one(),
                node(5, "b").never_heard_of(),
                node(7, "b").never_heard_of(),
            ],
            Some(DropLearner(5)),
        ),
        (
            "a learner older than the voter of its name",
            &[&[1, 7]],
            vec![one(), node(5, "b"), node(7, "b")],
            Some(DropLearner(5)),
        ),
        (
            "the leader does not replace itself",
            &[&[1]],
            vec![one(), node(7, "a")],
            promote(7, &[]),
        ),
        (
            "a voter marked as a non-voter",
            &[&[1, 2, 3]],
            vec![one(), two().non_voter(), node(3, "c")],
            reshape(&[], &[2]),
        ),
        (
            "but not while its vote is needed",
            &[&[1, 2, 3]],
            vec![one(), two().non_voter(), node(3, "c").silent_for(LONG)],
            None,
        ),
        (
            "the leader marked as a non-voter gives leadership away first",
            &[&[1, 2, 3]],
            vec![one().non_voter(), two(), node(3, "c")],
            Some(Transfer(3)),
        ),
    ];
    for (what, configs, nodes, want) in cases {
        assert_eq!(planned(configs, &nodes), want, "{what}");
    }
}

#[test]
fn a_fourth_node_must_be_stable_first() {
    let nodes = |seconds| {
        [
            node(1, "a"),
            node(2, "b"),
            node(3, "c"),
            node(4, "d").healthy_for(seconds),
        ]
    };
    let three: &[&[u64]] = &[&[1, 2, 3]];
    assert_eq!(planned(three, &nodes(9)), None);
    assert_eq!(planned(three, &nodes(10)), promote(4, &[]));
    // A leader younger than that cannot tell.
    let mut young = view(three, &nodes(9));
    young.leader_age = Duration::from_secs(11);
    assert_eq!(plan(&young), promote(4, &[]));
    // Without redundancy nobody waits.
    let two = [node(1, "a"), node(2, "b"), node(3, "c").healthy_for(0)];
    assert_eq!(planned(&[&[1, 2]], &two), promote(3, &[]));
}

/// Under a leader that is older than the time after which a node is dead, and has not heard of it yet.
#[test]
fn a_node_that_has_just_joined_is_not_dead() {
    let nodes = [
        node(1, "a"),
        node(2, "b"),
        node(3, "c"),
        node(4, "d").never_heard_of(),
    ];
    let mut view = view(&[&[1, 2, 3]], &nodes);
    let settings = Autopilot {
        cleanup_dead_servers: true,
        min_quorum: 3,
        ..Autopilot::default()
    };
    let limit = settings.dead_server_last_contact_threshold;
    view.autopilot = Some(settings);
    let mut watched_for = |time| {
        view.progress.entry(4).or_default().unhealthy_for = Some(time);
        plan(&view)
    };
    assert_eq!(watched_for(Duration::ZERO), None);
    assert_eq!(watched_for(limit), None);
    let removed = Action::RemoveDead {
        id: 4,
        voter: false,
    };
    assert_eq!(watched_for(limit + FRESH), Some(removed));
}

#[test]
fn silent_nodes_are_removed_if_the_operator_wants_that() {
    let day = Duration::from_secs(24 * 3600);
    let dead = |id, name| node(id, name).silent_for(day + FRESH);
    let removed = |id, voter| Some(Action::RemoveDead { id, voter });
    let nodes = |fourth: Node| vec![node(1, "a"), node(2, "b"), node(3, "c"), fourth];
    let four: &[u64] = &[1, 2, 3, 4];
    let three: &[u64] = &[1, 2, 3];
    type Case<'a> = (&'static str, &'a [u64], Vec<Node>, u64, Option<Action>);
    let cases: Vec<Case<'_>> = vec![
        (
            "a dead voter",
            four,
            nodes(dead(4, "d")),
            3,
            removed(4, true),
        ),
        (
            "a dead learner",
            three,
            nodes(dead(4, "d")),
            3,
            removed(4, false),
        ),
        (
            "min_quorum",
            three,
            vec![node(1, "a"), node(2, "b"), dead(3, "c")],
            3,
            None,
        ),
        (
            "not for long",
            four,
            nodes(node(4, "d").silent_for(day)),
            3,
            None,
        ),
        (
            "never heard of",
            four,
            nodes(node(4, "d").never_heard_of()),
            3,
            removed(4, true),
        ),
        (
            "the rest has no quorum",
            &[1, 2, 3, 4],
            vec![
                node(1, "a"),
                node(2, "b").silent_for(LONG / 2),
                node(3, "c").silent_for(LONG / 2),
                dead(4, "d"),
            ],
            3,
            None,
        ),
    ];
    for (what, voters, nodes, min_quorum, want) in cases {
        let mut view = view(&[voters], &nodes);
        assert_eq!(plan(&view), None, "{what}: it is off by default");
        let settings = Autopilot {
            cleanup_dead_servers: true,
            min_quorum,
            ..Autopilot::default()
        };
        view.autopilot = Some(settings);
        assert_eq!(plan(&view), want, "{what}");
        if want.is_some() {
            view.leader_age = day;
            let early = plan(&view);
            let known = what != "never heard of";
            assert_eq!(early.is_some(), known, "{what}: to a new leader");
        }
    }
}

#[test]
fn a_new_version_takes_over_when_there_are_enough_of_it() {
    let old = |id, name| node(id, name);
    let new = |id, name| node(id, name).version("1.1.0");
    let three: &[&[u64]] = &[&[1, 2, 3]];
    let mut nodes = vec![
        old(1, "a"),
        old(2, "b"),
        old(3, "c"),
        new(4, "d"),
        new(5, "e"),
    ];
    let status = |view: &View| look_at_versions(view).status;
    assert_eq!(planned(three, &nodes), None, "two of three");
    assert_eq!(status(&view(three, &nodes)), "await-new-voters");
    nodes.push(new(6, "f").healthy_for(9));
    assert_eq!(planned(three, &nodes), None, "one is not stable");
    nodes.pop();
    nodes.push(new(6, "f"));
    let all = reshape(&[4, 5, 6], &[1, 2, 3]);
    assert_eq!(planned(three, &nodes), all);
    assert_eq!(status(&view(three, &nodes)), "promoting");
    // Before the operator's settings are known, and if they forbid it.
    let mut other = view(three, &nodes);
    other.autopilot = None;
    assert_eq!(plan(&other), None);
    other.autopilot = Some(Autopilot {
        disable_upgrade_migration: true,
        ..Autopilot::default()
    });
    assert_eq!(plan(&other), promote(4, &[]));
    assert_eq!(status(&other), "disabled");
    // Afterwards leadership follows, and the old ones wait to be removed.
    let after: &[&[u64]] = &[&[4, 5, 6]];
    assert_eq!(planned(after, &nodes), Some(Action::Transfer(6)));
    assert_eq!(status(&view(after, &nodes)), "leader-transfer");
    let mut led = view(after, &nodes);
    led.leader = 6;
    assert_eq!((plan(&led), status(&led)), (None, "await-server-removal"));
}

#[test]
fn an_upgrade_in_place_changes_no_votes() {
    let three: &[&[u64]] = &[&[1, 2, 3]];
    let nodes = [
        node(1, "a"),
        node(2, "b").version("1.1.0"),
        node(3, "c").version("1.1.0"),
    ];
    // Leadership goes to the newer ones, once they are steady.
    assert_eq!(planned(three, &nodes), Some(Action::Transfer(3)));
    let fresh = [nodes[0].clone(), nodes[1].clone().healthy_for(9)];
    assert_eq!(planned(&[&[1, 2]], &fresh), None);
    // A node that was wiped on the way gets its vote back.
    let wiped = [
        node(1, "a"),
        node(2, "b").version("1.1.0").silent_for(LONG / 2),
        node(3, "c"),
        node(9, "b").version("1.1.0").healthy_for(0),
    ];
    assert_eq!(planned(three, &wiped), promote(9, &[2]));
}

#[test]
fn an_older_node_gets_no_vote_beside_newer_ones_unless_it_is_needed() {
    let new = |id, name| node(id, name).version("2.0.0");
    let three = [new(1, "a"), new(2, "b"), new(3, "c"), node(4, "d")];
    assert_eq!(planned(&[&[1, 2, 3]], &three), None);
    assert_eq!(
        planned(&[&[1, 2]], &[new(1, "a"), new(2, "b"), node(4, "d")]),
        promote(4, &[])
    );
}

#[test]
fn the_operators_word_for_a_version_counts() {
    let mut info = PeerInfo {
        version: "1.0.0".to_owned(),
        ..PeerInfo::default()
    };
    for (named, want) in [
        ("", "1.0.0"),
        ("2.0.0-rc.1", "2.0.0-rc.1"),
        ("1.2.3+build", "1.2.3+build"),
    ] {
        info.upgrade_version = named.to_owned();
        assert_eq!(version_of(&info).unwrap().to_string(), want);
    }
    info.upgrade_version = "tuesday".to_owned();
    assert_eq!(version_of(&info), None);
}

#[test]
fn of_a_zone_one_votes() {
    let day = Duration::from_secs(24 * 3600);
    let three: &[&[u64]] = &[&[1, 2, 3]];
    let base = || {
        vec![
            node(1, "a1").zone("a"),
            node(2, "b1").zone("b"),
            node(3, "c1").zone("c"),
        ]
    };
    let with = |more: Node| [base(), vec![more]].concat();
    let standby = || node(4, "b2").zone("b");
    assert_eq!(planned(three, &with(standby())), None, "stands by");
    assert_eq!(
        planned(three, &with(node(4, "d1").zone("d"))),
        promote(4, &[]),
        "a zone of its own"
    );
    assert_eq!(
        planned(three, &with(node(4, "x"))),
        promote(4, &[]),
        "in no zone"
    );
    let mut failed = with(standby());
    failed[1] = node(2, "b1").zone("b").silent_for(Duration::from_secs(11));
    assert_eq!(
        planned(three, &failed),
        reshape(&[4], &[2]),
        "takes the place of its zone's voter"
    );
    failed[2] = node(3, "c1").zone("c").silent_for(day);
    assert_eq!(
        planned(three, &failed),
        reshape(&[4], &[2]),
        "two of three answer then"
    );
    // One vote too many, but never fewer than three.
    assert_eq!(
        planned(&[&[1, 2, 3, 4]], &with(standby())),
        reshape(&[], &[4])
    );
    let crowd = [
        node(1, "a1").zone("a"),
        node(2, "a2").zone("a"),
        node(3, "a3").zone("a"),
    ];
    assert_eq!(planned(three, &crowd), None);
    assert_eq!(planned(&[&[1, 2]], &crowd), promote(3, &[]));
}

#[test]
fn leadership_goes_where_it_should_be() {
    let three: &[&[u64]] = &[&[1, 2, 3]];
    let ineligible = [
        node(1, "a").ineligible(),
        node(2, "b").at(990),
        node(3, "c").ineligible(),
    ];
    assert_eq!(planned(three, &ineligible), Some(Action::Transfer(2)));
    let nobody = [node(1, "a").ineligible(), node(2, "b").ineligible()];
    assert_eq!(planned(&[&[1, 2]], &nobody), None);
    let behind = [node(1, "a").ineligible(), node(2, "b").at(0).healthy_for(0)];
    let mut far = view(&[&[1, 2]], &behind);
    far.last_log = 5000;
    assert_eq!(plan(&far), None);
    let newer = [
        node(1, "a"),
        node(2, "b").version("1.0.1"),
        node(3, "c").version("1.0.10"),
    ];
    assert_eq!(planned(three, &newer), Some(Action::Transfer(3)));
    let mut chosen = view(three, &newer);
    chosen.is_chosen = true;
    assert_eq!(plan(&chosen), None, "an operator wants it so");
    let mut early = view(three, &newer);
    early.may_transfer = false;
    assert_eq!(plan(&early), None, "not again so soon");
}

#[test]
fn a_named_successor_that_another_one_forestalled_is_told() {
    let view = view(&[&[1, 2, 3]], &[node(1, "a"), node(2, "b"), node(3, "c")]);
    let named = Successor::Named("b".to_owned());
    for (wanted, leader, told) in [
        (&named, 2, false),
        (&named, 3, true),
        (&Successor::Best, 3, false),
        (&Successor::Anybody, 3, false),
    ] {
        let outcome = taken_over(&view, wanted, 2, leader);
        assert_eq!(outcome.is_err(), told, "{wanted:?} {leader}");
    }
    let error = taken_over(&view, &named, 2, 3).unwrap_err();
    assert!(
        error.to_string().contains("`c` leads now, not `b`"),
        "{error}"
    );
}

#[test]
fn a_named_successor_is_looked_at_closely() {
    let nodes = [
        node(1, "a"),
        node(2, "b"),
        node(3, "c").ineligible(),
        node(4, "d").silent_for(FRESH * 2),
        node(5, "e").at(0),
        node(6, "f"),
    ];
    let mut view = view(&[&[1, 2, 3, 4, 5]], &nodes);
    view.last_log = 1001;
    for (name, want) in [
        ("b", "Ok(2)"),
        ("a", "Err(LeadsAlready(\"a\"))"),
        ("c", "Err(Ineligible(\"c\"))"),
        ("d", "Err(Silent(\"d\"))"),
        ("e", "Err(Behind { name: \"e\", lag: 1001 })"),
        ("f", "Err(NotVoter(\"f\"))"),
        ("g", "Err(Unknown(\"g\"))"),
    ] {
        let got = successor(&view, &Successor::Named(name.to_owned()), &[]);
        assert_eq!(format!("{got:?}"), want, "{name}");
    }
    let best = |tried: &[u64]| successor(&view, &Successor::Best, tried).ok();
    assert_eq!((best(&[]), best(&[2])), (Some(2), None));
    assert_eq!(successor(&view, &Successor::Anybody, &[2]).ok(), Some(3));
}

#[test]
fn what_would_lose_the_quorum_is_refused() {
    let nodes = [
        node(1, "a"),
        node(2, "b"),
        node(3, "c").silent_for(LONG),
        node(4, "d"),
    ];
    let three = view(&[&[1, 2, 3]], &nodes);
    for (ids, ok) in [
        (&[3][..], true),
        (&[2], false),
        (&[4], true),
        (&[1, 2, 3], false),
    ] {
        assert_eq!(three.may_lose(ids).is_ok(), ok, "{ids:?}");
    }
    let two = view(&[&[1, 2]], &nodes);
    assert!(two.may_lose(&[2]).is_ok(), "one voter is a quorum of one");
}

// ---- properties ---------------------------------------------------------------------------------------------------

fn any_node() -> impl Strategy<Value = Node> {
    let age = prop_oneof![
        6 => Just(Some(0)),
        1 => Just(Some(30)),
        1 => Just(Some(200_000)),
        1 => Just(None),
    ];
    let version = prop_oneof![3 => Just("1.0.0"), 2 => Just("1.1.0"), 1 => Just("2.0.0")];
    (
        0u8..8,
        version,
        prop_oneof![2 => Just(""), 1 => Just("x"), 1 => Just("y")],
        any::<[bool; 2]>(),
        age,
        prop_oneof![4 => Just(1000u64), 1 => Just(0)],
    )
        .prop_map(|(name, version, zone, [rare_a, rare_b], age, matched)| {
            let mut made = node(0, &format!("n{name}"))
                .version(version)
                .zone(zone)
                .at(matched);
            made.info.non_voter = rare_a && rare_b && name == 0;
            made.info.leader_ineligible = rare_a && name % 3 == 0;
            match age {
                Some(0) => made,
                Some(seconds) => made.silent_for(Duration::from_secs(seconds)),
                None => made.never_heard_of(),
            }
        })
}

/// A leader and up to eleven others, some of whom vote; a quorum answers.
fn any_view() -> impl Strategy<Value = View> {
    (
        proptest::collection::vec((any_node(), any::<bool>()), 1..12),
        any::<[bool; 3]>(),
        prop_oneof![Just(5u64), Just(300_000)],
    )
        .prop_map(|(nodes, [cleanup, no_migration, loaded], leader_age)| {
            let mut all = Vec::new();
            let mut voters = vec![1];
            for (number, (mut node, votes)) in nodes.into_iter().enumerate() {
                node.id = number as u64 + 1;
                if node.id == 1 {
                    node.info.name = "leader".to_owned();
                    node = node.at(1000);
                    node.ack_age = Some(Duration::ZERO);
                } else if votes {
                    voters.push(node.id);
                }
                all.push(node);
            }
            let mut view = view(&[&voters], &all);
            view.leader_age = Duration::from_secs(leader_age);
            view.autopilot = loaded.then(|| Autopilot {
                cleanup_dead_servers: cleanup,
                min_quorum: 3,
                disable_upgrade_migration: no_migration,
                ..Autopilot::default()
            });
            view
        })
        .prop_filter("a leader without a quorum does nothing", |view| {
            view.is_quorate(&view.voters())
        })
}

/// What the action leaves behind, as the executor would have it.
fn carried_out(view: &View, action: &Action) -> View {
    let mut voters = view.voters();
    let mut nodes: BTreeMap<u64, PeerInfo> = view
        .membership
        .nodes()
        .map(|(id, info)| (*id, info.clone()))
        .collect();
    let mut after = view.clone();
    let mut drop_all = |ids: &[u64], voters: &mut BTreeSet<u64>, stay: bool| {
        for id in ids {
            voters.remove(id);
            if !stay {
                nodes.remove(id);
            }
        }
    };
    match action {
        Action::FinishJoint => {}
        Action::DropLearner(id) | Action::RemoveDead { id, .. } => {
            drop_all(&[*id], &mut voters, false);
        }
        Action::Promote { id, replaces } => {
            voters.insert(*id);
            drop_all(replaces, &mut voters, false);
        }
        Action::RemoveVoters(ids) => drop_all(ids, &mut voters, false),
        Action::Reshape { promote, demote } => {
            voters.extend(promote);
            drop_all(demote, &mut voters, true);
        }
        Action::Transfer(to) => {
            // The old leader goes on as a follower that is well.
            let old = after.progress.entry(after.leader).or_default();
            *old = Progress {
                matched: Some(after.last_log),
                ack_age: Some(Duration::ZERO),
                healthy_for: Some(LONG),
                unhealthy_for: None,
            };
            after.leader = *to;
        }
    }
    after.membership = Membership::new(vec![voters], nodes).unwrap();
    after
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn every_action_is_safe_and_they_come_to_an_end(view in any_view()) {
        let mut view = view;
        for step in 0.. {
            prop_assert!(step < 60, "no end: {:?}", plan(&view));
            let Some(action) = plan(&view) else {
                break;
            };
            prop_assert_eq!(plan(&view), Some(action.clone()), "the same view, the same action");
            let before = view.voters();
            let after = carried_out(&view, &action);
            let voters = after.voters();
            prop_assert!(!voters.is_empty());
            prop_assert!(after.info(view.leader).is_some(), "{:?} removes the leader", action);
            if view.is_quorate(&before) {
                prop_assert!(after.is_quorate(&voters), "{:?} loses the quorum", action);
            }
            if let Action::RemoveDead { voter: true, .. } = action {
                prop_assert!(voters.len() >= 3, "{:?} goes below min_quorum", action);
            }
            if let Action::Transfer(to) = action {
                prop_assert!(before.contains(&to) && view.answers(to));
                let (own, other) = (view.info(view.leader).unwrap(), view.info(to).unwrap());
                let must = own.leader_ineligible || own.non_voter || !before.contains(&view.leader);
                prop_assert!(must || newer(other, own));
                prop_assert!(!other.leader_ineligible);
            }
            view = after;
        }
    }
}

//! One node: outcomes, request ids, restarts.

use std::time::{Duration, Instant};

use bytes::Bytes;
use strongroom_raft::{
    Command, Expect, Identity, InitializeError, LogContent, Op, OpenError, Outcome, ProposeError,
    StateError, Stores,
};

use crate::harness::{CLUSTER, check, put, solo, soon, until_ready};

#[tokio::test(flavor = "multi_thread")]
async fn a_single_node_keeps_what_it_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let raft = solo(dir.path()).await;
    assert!(raft.is_pristine());
    raft.initialize().await.unwrap();
    until_ready(&raft).await;
    assert!(matches!(
        raft.initialize().await,
        Err(InitializeError::NotPristine)
    ));
    let first = raft.propose(put("k", "v1"), soon()).await.unwrap();
    let second = raft.propose(put("k", "v2"), soon()).await.unwrap();
    assert!(second.index > first.index);
    let state = raft.state();
    let expected = Some((second.index, Bytes::from_static(b"v2")));
    assert_eq!(state.get(b"k").unwrap(), expected);
    assert_eq!(state.put_count(), 2);
    raft.shutdown().await;
    raft.shutdown().await;
    assert!(matches!(state.get(b"k"), Err(StateError::Closed)));

    let started = Instant::now();
    let raft = solo(dir.path()).await;
    until_ready(&raft).await;
    let took = started.elapsed();
    assert!(took < Duration::from_secs(2), "restart took {took:?}");
    assert_eq!(raft.state().get(b"k").unwrap(), expected);
    assert_eq!(raft.state().put_count(), 2);
    assert!(!raft.is_pristine());
    let index = raft.read_index(soon()).await.unwrap();
    assert!(index >= second.index);
    raft.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_request_changes_nothing_and_gets_the_first_outcome() {
    let dir = tempfile::tempdir().unwrap();
    let raft = solo(dir.path()).await;
    raft.initialize().await.unwrap();
    until_ready(&raft).await;
    let mut request = put("k", "first");
    request.request_id = [7; 16];
    let first = raft.propose(request.clone(), soon()).await.unwrap();
    raft.propose(put("k", "later"), soon()).await.unwrap();
    assert_eq!(raft.propose(request.clone(), soon()).await.unwrap(), first);
    // A failed check is an outcome too, and is remembered as such.
    let mut failing = Command {
        request_id: [8; 16],
        ops: vec![check("k", Expect::Absent)],
        ..Command::default()
    };
    let failed = raft.propose(failing.clone(), soon()).await.unwrap();
    assert_eq!(failed.outcome, Outcome::CheckFailed { op: 0 });
    failing.ops.clear();
    assert_eq!(raft.propose(failing, soon()).await.unwrap(), failed);
    raft.shutdown().await;

    let raft = solo(dir.path()).await;
    until_ready(&raft).await;
    assert_eq!(raft.propose(request, soon()).await.unwrap(), first);
    let (_, value) = raft.state().get(b"k").unwrap().unwrap();
    assert_eq!(value, "later");
    assert_eq!(raft.state().put_count(), 2);
    raft.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_check_rejects_the_whole_command() {
    let dir = tempfile::tempdir().unwrap();
    let raft = solo(dir.path()).await;
    raft.initialize().await.unwrap();
    until_ready(&raft).await;
    let first = raft.propose(put("a", "1"), soon()).await.unwrap();
    let command = |checks: Vec<Op>, value: &str| {
        let mut command = put("b", value);
        command.ops.extend(checks);
        command
    };
    for (checks, want) in [
        (
            vec![check("a", Expect::Absent)],
            Outcome::CheckFailed { op: 1 },
        ),
        (
            vec![
                check("b", Expect::Absent),
                check("a", Expect::ModIndex(first.index + 1)),
            ],
            Outcome::CheckFailed { op: 2 },
        ),
        (
            vec![
                check("b", Expect::Absent),
                check("a", Expect::ModIndex(first.index)),
            ],
            Outcome::Applied,
        ),
        (
            vec![check("b", Expect::Absent)],
            Outcome::CheckFailed { op: 1 },
        ),
    ] {
        let applied = raft.propose(command(checks, "x"), soon()).await.unwrap();
        assert_eq!(applied.outcome, want);
    }
    let delete = Command {
        ops: vec![Op::Delete {
            key: Bytes::from_static(b"b"),
        }],
        ..Command::default()
    };
    raft.propose(delete, soon()).await.unwrap();
    assert_eq!(raft.state().get(b"b").unwrap(), None);
    raft.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_written_is_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let raft = solo(dir.path()).await;
    let pristine = raft.propose(put("k", "v"), soon()).await;
    assert!(
        matches!(pristine, Err(ProposeError::NotLeader { leader: None })),
        "{pristine:?}"
    );
    raft.initialize().await.unwrap();
    until_ready(&raft).await;
    let big = "x".repeat(1 << 20);
    let large = raft.propose(put("k", &big), soon()).await;
    assert!(
        matches!(large, Err(ProposeError::TooLarge { .. })),
        "{large:?}"
    );
    let fits = raft.propose(put("k", &big[..1_000_000]), soon()).await;
    assert!(fits.is_ok(), "{fits:?}");
    let late = raft.propose(put("k", "v"), Instant::now()).await;
    assert!(matches!(late, Err(ProposeError::Busy)), "{late:?}");
    raft.shutdown().await;
    let closed = raft.propose(put("k", "v"), soon()).await;
    assert!(
        matches!(closed, Err(ProposeError::NotLeader { .. })),
        "{closed:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_listed_by_prefix_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let raft = solo(dir.path()).await;
    raft.initialize().await.unwrap();
    until_ready(&raft).await;
    for key in ["a/1", "a/2", "a/2/x", "a/3", "b/1"] {
        raft.propose(put(key, ""), soon()).await.unwrap();
    }
    let state = raft.state();
    for (prefix, after, limit, want) in [
        ("a/", None, 10, vec!["a/1", "a/2", "a/2/x", "a/3"]),
        ("a/", None, 2, vec!["a/1", "a/2"]),
        ("a/", Some("a/2"), 10, vec!["a/2/x", "a/3"]),
        ("a/", Some("a/3"), 10, vec![]),
        ("a/", Some("A"), 1, vec!["a/1"]),
        ("", None, 1, vec!["a/1"]),
        ("c", None, 10, vec![]),
    ] {
        let found = state
            .keys(prefix.as_bytes(), after.map(str::as_bytes), limit)
            .unwrap();
        assert_eq!(found, want, "{prefix} {after:?} {limit}");
    }
    raft.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_directory_is_one_nodes_and_one_processs() {
    let dir = tempfile::tempdir().unwrap();
    let raft = solo(dir.path()).await;
    raft.initialize().await.unwrap();
    until_ready(&raft).await;
    raft.propose(put("k", "v"), soon()).await.unwrap();
    let own = Identity::load(dir.path()).unwrap().unwrap();
    let locked = Stores::open(dir.path(), &own);
    assert!(
        matches!(locked, Err(OpenError::Locked { .. })),
        "{locked:?}"
    );
    let locked = Stores::open_read_only(dir.path());
    assert!(
        matches!(locked, Err(OpenError::Locked { .. })),
        "{locked:?}"
    );
    raft.shutdown().await;
    for other in [
        Identity {
            raft_id: 2,
            ..own.clone()
        },
        Identity {
            cluster_id: [1; 16],
            ..own.clone()
        },
    ] {
        let foreign = Stores::open(dir.path(), &other);
        assert!(
            matches!(foreign, Err(OpenError::Foreign { .. })),
            "{foreign:?}"
        );
    }
    Stores::open(dir.path(), &own).unwrap().close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_nodes_stores_can_be_inspected() {
    let dir = tempfile::tempdir().unwrap();
    let raft = solo(dir.path()).await;
    raft.initialize().await.unwrap();
    until_ready(&raft).await;
    let applied = raft.propose(put("k", "v"), soon()).await.unwrap();
    raft.shutdown().await;
    let stores = Stores::open_read_only(dir.path()).unwrap();
    let log: Vec<_> = stores.log().unwrap().collect::<Result<_, _>>().unwrap();
    assert!(matches!(log[0].content, LogContent::Membership(_)));
    let row = log.iter().find(|row| row.index == applied.index).unwrap();
    let LogContent::Command(command) = &row.content else {
        panic!("{row:?}");
    };
    // The leader has put the time in.
    assert_eq!(command.ops, put("k", "v").ops);
    let state: Vec<_> = stores.state().unwrap().collect::<Result<_, _>>().unwrap();
    let row = state.iter().find(|row| row.family == "kv").unwrap();
    assert_eq!(
        (&row.key[..], row.mod_index, &row.value[..]),
        (&b"k"[..], applied.index, &b"v"[..])
    );
    drop(stores);
    let missing = Stores::open_read_only(&dir.path().join("nowhere"));
    assert!(
        matches!(missing, Err(OpenError::Read { .. })),
        "{missing:?}"
    );
    assert_eq!(
        Identity::load(dir.path()).unwrap().unwrap().cluster_id,
        CLUSTER
    );
}

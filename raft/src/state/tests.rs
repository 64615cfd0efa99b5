use openraft::{EntryPayload, storage::RaftStateMachine};

use super::*;
use crate::{
    command::{Command, Op},
    log::LogStore,
    stores::Stores,
    types::{Entry, log_id},
};

fn identity(raft_id: u64) -> Identity {
    Identity {
        cluster_id: [2; 16],
        raft_id,
        name: "n".to_owned(),
    }
}

fn put(index: u64, key: &'static str) -> Entry {
    let command = Command {
        ops: vec![Op::Put {
            key: key.into(),
            value: Bytes::from_static(b"value"),
        }],
        ..Command::default()
    };
    Entry {
        log_id: log_id(1, 1, index),
        payload: EntryPayload::Normal(command.encode()),
    }
}

async fn apply(stores: &Stores, entries: Vec<Entry>) {
    let mut machine = Machine::new(stores.state(), stores.log.clone());
    let items = entries.into_iter().map(|entry| Ok((entry, None)));
    machine
        .apply(futures_util::stream::iter(items))
        .await
        .unwrap();
}

async fn append(log: &LogStore, entries: Vec<Entry>) {
    use openraft::storage::{RaftLogStorage, RaftLogStorageExt};
    let mut log = log.clone();
    let vote = crate::types::Vote {
        leader_id: log_id(1, 1, 0).leader_id,
        committed: true,
    };
    RaftLogStorage::save_vote(&mut log, &vote).await.unwrap();
    log.blocking_append(entries).await.unwrap();
}

#[tokio::test]
async fn a_state_ahead_of_its_log_or_beside_it_is_refused() {
    // The log lost its tail; the log holds another entry where the state stands.
    for (logged, why) in [
        (vec![put(0, "a")], "the log ends at entry 0"),
        (
            vec![
                put(0, "a"),
                Entry {
                    log_id: log_id(1, 2, 1),
                    ..put(1, "b")
                },
            ],
            "not the one that was applied",
        ),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let stores = Stores::open(dir.path(), &identity(1)).unwrap();
        append(&stores.log, logged).await;
        apply(&stores, vec![put(0, "a"), put(1, "b")]).await;
        stores.close().await;
        let error = Stores::open(dir.path(), &identity(1)).unwrap_err();
        assert!(error.to_string().contains(why), "{error}");
        assert!(error.to_string().contains("rejoins"), "{error}");
    }
}

#[tokio::test]
async fn a_snapshot_moves_the_state_to_another_node() {
    use openraft::RaftSnapshotBuilder;
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let source = Stores::open(here.path(), &identity(1)).unwrap();
    apply(&source, vec![put(0, "a"), put(1, "b")]).await;
    let mut machine = Machine::new(source.state(), source.log.clone());
    let mut builder = machine.get_snapshot_builder().await;
    let snapshot = builder.build_snapshot().await.unwrap();
    apply(&source, vec![put(2, "c")]).await;

    let target = Stores::open(there.path(), &identity(2)).unwrap();
    apply(&target, vec![put(0, "z")]).await;
    let mut installer = Machine::new(target.state(), target.log.clone());
    installer
        .install_snapshot(&snapshot.meta, snapshot.snapshot)
        .await
        .unwrap();
    let state = target.state();
    assert_eq!(state.applied(), 1);
    assert_eq!(state.put_count(), 2);
    assert!(state.get(b"b").unwrap().is_some());
    assert!(state.get(b"z").unwrap().is_none() && state.get(b"c").unwrap().is_none());
    assert_eq!(
        current_generation(&there.path().join("state")).unwrap(),
        Some(2)
    );
    assert!(!there.path().join("state/gen-1").exists());
    state.close();
    // It is the second node's own state now.
    drop(State::open(&there.path().join("state"), &identity(2)).unwrap());
    source.close().await;
    target.close().await;
}

#[tokio::test]
async fn a_snapshot_of_another_cluster_is_refused() {
    use openraft::RaftSnapshotBuilder;
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let source = Stores::open(here.path(), &identity(1)).unwrap();
    apply(&source, vec![put(0, "a")]).await;
    let mut machine = Machine::new(source.state(), source.log.clone());
    let snapshot = machine
        .get_snapshot_builder()
        .await
        .build_snapshot()
        .await
        .unwrap();
    let other = Identity {
        cluster_id: [3; 16],
        ..identity(2)
    };
    let target = Stores::open(there.path(), &other).unwrap();
    let mut installer = Machine::new(target.state(), target.log.clone());
    let refused = installer
        .install_snapshot(&snapshot.meta, snapshot.snapshot)
        .await;
    assert!(refused.unwrap_err().to_string().contains("another cluster"));
    assert_eq!(target.state().applied(), 0);
    assert_eq!(
        current_generation(&there.path().join("state")).unwrap(),
        Some(1)
    );
    source.close().await;
    target.close().await;
}

#[test]
fn unknown_layouts_and_damaged_pointers_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let state = State::open(dir.path(), &identity(1)).unwrap();
    state.close();
    std::fs::write(dir.path().join(CURRENT_FILE), "gen-one\n").unwrap();
    let damaged = State::open(dir.path(), &identity(1));
    assert!(
        matches!(damaged, Err(OpenError::Damaged { .. })),
        "{damaged:?}"
    );
    set_current(dir.path(), 1).unwrap();
    let db = rocks::open(Kind::State, &generation_dir(dir.path(), 1)).unwrap();
    let mut value = keys::format_value(&[2; 16], 1);
    value[3] = 9;
    db.put_cf(cf(&db, CF_META).unwrap(), META_FORMAT, value)
        .unwrap();
    drop(db);
    let unknown = State::open(dir.path(), &identity(1));
    assert!(
        matches!(unknown, Err(OpenError::UnknownFormat { format: 9, .. })),
        "{unknown:?}"
    );
}

#[test]
fn an_outcome_survives_and_nothing_else_is_taken_for_one() {
    for outcome in [Outcome::Applied, Outcome::CheckFailed { op: 77 }] {
        let applied = Applied { index: 12, outcome };
        let stored = encode_applied(&applied);
        assert_eq!(decode_applied(&stored).unwrap(), applied);
        for len in 0..stored.len() {
            assert!(decode_applied(&stored[..len]).is_err());
        }
        assert!(decode_applied(&[stored, vec![0]].concat()).is_err());
    }
    assert!(decode_applied(&[0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0]).is_err());
}

/// Stores whose log syncs only when told to, and with this result.
fn with_syncs(dir: &Path) -> (Stores, std::sync::mpsc::Sender<Result<(), String>>) {
    let (tx, rx) = std::sync::mpsc::channel();
    let stores = Stores::open_with(dir, &identity(1), |path, identity| {
        LogStore::open_with(path, identity, |_| {
            Box::new(move || rx.recv().unwrap_or(Ok(())))
        })
    });
    (stores.unwrap(), tx)
}

#[tokio::test]
async fn nothing_is_applied_before_it_is_durable_here() {
    use openraft::storage::{IOFlushed, RaftLogStorage};
    let dir = tempfile::tempdir().unwrap();
    let (stores, syncs) = with_syncs(dir.path());
    let mut log = stores.log.clone();
    RaftLogStorage::append(&mut log, [put(0, "a")], IOFlushed::noop())
        .await
        .unwrap();
    // Committed by others, as far as openraft is concerned; not on this disk yet.
    let mut machine = Machine::new(stores.state(), stores.log.clone());
    let applying = tokio::spawn(async move {
        machine
            .apply(futures_util::stream::iter([Ok((put(0, "a"), None))]))
            .await
    });
    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    assert!(!applying.is_finished());
    assert!(stores.state().get(b"a").unwrap().is_none());
    syncs.send(Ok(())).unwrap();
    applying.await.unwrap().unwrap();
    assert!(stores.state().get(b"a").unwrap().is_some());
    drop(syncs);
    stores.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_sync_acknowledges_nothing_and_ends_the_node() {
    use crate::{Options, PeerInfo, Raft};
    let dir = tempfile::tempdir().unwrap();
    let (stores, syncs) = with_syncs(dir.path());
    let options = Options {
        identity: identity(1),
        me: PeerInfo::default(),
        multiplier: 1,
        max_entry_size: 1 << 20,
    };
    let raft = Raft::start(stores, options, None).await.unwrap();
    // Enough good syncs to be elected, and no more.
    for _ in 0..20 {
        syncs.send(Ok(())).unwrap();
    }
    raft.initialize().await.unwrap();
    let mut role = raft.watch();
    drop(role.wait_for(|role| role.is_ready_leader).await.unwrap());
    let soon = || std::time::Instant::now() + std::time::Duration::from_secs(5);
    for _ in 0..40 {
        syncs.send(Err("the disk is gone".to_owned())).unwrap();
    }
    let failed = loop {
        let command = Command {
            ops: vec![Op::Put {
                key: Bytes::from_static(b"k"),
                value: Bytes::new(),
            }],
            ..Command::default()
        };
        match raft.propose(command, soon()).await {
            // One of the good syncs that were left.
            Ok(_) => continue,
            Err(error) => break error,
        }
    };
    assert!(
        matches!(
            failed,
            crate::ProposeError::Unknown | crate::ProposeError::Fatal(_)
        ),
        "{failed:?}"
    );
    let why = tokio::time::timeout(std::time::Duration::from_secs(5), raft.fatal()).await;
    assert!(why.unwrap().contains("the disk is gone"));
    drop(syncs);
    raft.shutdown().await;
}

use openraft::{EntryPayload, storage::RaftStateMachine};

use super::*;
use crate::{
    command::{Command, Op},
    log::LogStore,
    restore::RestoreStep,
    stores::Stores,
    types::{Entry, log_id},
};

pub(crate) fn identity(raft_id: u64) -> Identity {
    Identity {
        cluster_id: [2; 16],
        raft_id,
        name: "n".to_owned(),
    }
}

pub(crate) fn put(index: u64, key: &'static str) -> Entry {
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

pub(crate) async fn apply(stores: &Stores, entries: Vec<Entry>) {
    let mut machine = Machine::new(stores.state(), stores.log.clone());
    let items = entries.into_iter().map(|entry| Ok((entry, None)));
    machine
        .apply(futures_util::stream::iter(items))
        .await
        .unwrap();
}

pub(crate) async fn append(log: &LogStore, entries: Vec<Entry>) {
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
    // Nobody waits for the old generation's readers.
    while there.path().join("state/gen-1").exists() {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    state.close();
    // It is the second node's own state now.
    drop(State::open(there.path(), &identity(2)).unwrap());
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

/// A snapshot of the live state, as the node takes them.
fn take(stores: &Stores) -> std::sync::Arc<snapshot::Kept> {
    snapshot::build(&stores.state()).unwrap()
}

#[tokio::test]
async fn the_newest_snapshot_is_kept_and_another_while_somebody_uses_it() {
    let gone = async |path: &Path| {
        while path.exists() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    let dir = tempfile::tempdir().unwrap();
    let stores = Stores::open(dir.path(), &identity(1)).unwrap();
    let mut taken = Vec::new();
    for index in 0..3 {
        append(&stores.log, vec![put(index, "a")]).await;
        apply(&stores, vec![put(index, "a")]).await;
        taken.push(take(&stores));
    }
    // Nothing new: the same one.
    assert_eq!(take(&stores).path, taken[2].path);
    assert!(taken.iter().all(|kept| kept.path.join("CURRENT").exists()));
    let streamed = taken.remove(1);
    let others: Vec<_> = taken.drain(..).map(|kept| kept.path.clone()).collect();
    gone(&others[0]).await;
    assert!(streamed.path.exists() && others[1].exists());
    let path = streamed.path.clone();
    drop(streamed);
    gone(&path).await;
    // It is found again, and what a crash left is not taken for one.
    let root = dir.path().join("snapshots");
    std::fs::create_dir(root.join("building")).unwrap();
    std::fs::create_dir(root.join("99-1-1")).unwrap();
    std::fs::create_dir(root.join("88-1-1")).unwrap();
    std::fs::copy(others[1].join("META"), root.join("88-1-1/META")).unwrap();
    stores.close().await;
    let stores = Stores::open(dir.path(), &identity(1)).unwrap();
    let found = stores.state().snapshots.newest().unwrap();
    assert_eq!((found.index(), &found.path), (2, &others[1]));
    assert_eq!(std::fs::read_dir(&root).unwrap().count(), 1);
    stores.close().await;
}

#[tokio::test]
async fn a_start_finishes_an_installation_and_a_log_that_ends_before_it() {
    use openraft::storage::{RaftLogStorage, RaftLogStorageExt};
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let source = Stores::open(here.path(), &identity(1)).unwrap();
    apply(&source, vec![put(0, "a"), put(1, "b"), put(2, "c")]).await;
    let kept = take(&source);

    // An entry that was never committed, of a later leader than the snapshot's last.
    let target = Stores::open(there.path(), &identity(2)).unwrap();
    let stray = Entry {
        log_id: log_id(5, 2, 0),
        ..put(0, "z")
    };
    let mut log = target.log.clone();
    let vote = crate::types::Vote {
        leader_id: log_id(6, 1, 0).leader_id,
        committed: true,
    };
    RaftLogStorage::save_vote(&mut log, &vote).await.unwrap();
    log.blocking_append([stray]).await.unwrap();
    drop(log);
    target.close().await;
    // Killed when the received snapshot was kept, before it became the state.
    let copy = there
        .path()
        .join("snapshots")
        .join(kept.path.file_name().unwrap());
    std::fs::create_dir_all(&copy).unwrap();
    for file in std::fs::read_dir(&kept.path).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), copy.join(file.file_name())).unwrap();
    }
    std::fs::create_dir_all(there.path().join("state/gen-2")).unwrap();
    std::fs::create_dir_all(there.path().join("recv")).unwrap();
    for _ in 0..2 {
        let target = Stores::open(there.path(), &identity(2)).unwrap();
        let end = Some(log_id(1, 1, 2));
        assert_eq!((target.log.last(), target.log.purged()), (end, end));
        assert_eq!(target.state().applied(), 2);
        assert!(target.state().get(b"c").unwrap().is_some());
        assert!(target.state().get(b"z").unwrap().is_none());
        assert!(!there.path().join("recv").exists());
        target.close().await;
    }
    // Only what an installation has brought may be ahead of the log.
    let target = Stores::open(there.path(), &identity(2)).unwrap();
    apply(&target, vec![put(3, "d")]).await;
    target.close().await;
    let error = Stores::open(there.path(), &identity(2)).unwrap_err();
    assert!(
        error.to_string().contains("the log ends at entry 2"),
        "{error}"
    );
    source.close().await;
}

#[tokio::test]
async fn readers_never_see_less_than_the_position_says_while_snapshots_are_installed() {
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let source = Stores::open(here.path(), &identity(1)).unwrap();
    let target = Stores::open(there.path(), &identity(2)).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let readers: Vec<_> = (0..2)
        .map(|_| {
            let (state, stop) = (target.state(), Arc::clone(&stop));
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let position = state.applied();
                    let (written, _) = state.get(b"a").unwrap().unwrap_or_default();
                    let index = state.mod_index(b"a").unwrap().unwrap_or(0);
                    assert!(written >= position && index >= position);
                }
            })
        })
        .collect();
    let mut installer = Machine::new(target.state(), target.log.clone());
    for index in 0..12 {
        apply(&source, vec![put(index, "a")]).await;
        let snapshot = snapshot::snapshot_of(take(&source));
        installer
            .install_snapshot(&snapshot.meta, snapshot.snapshot)
            .await
            .unwrap();
    }
    stop.store(true, Ordering::Relaxed);
    for reader in readers {
        reader.join().unwrap();
    }
    assert_eq!(target.state().applied(), 11);
    source.close().await;
    target.close().await;
}

#[tokio::test]
async fn a_state_behind_a_purged_log_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let stores = Stores::open(dir.path(), &identity(1)).unwrap();
    let entries = vec![put(0, "a"), put(1, "b"), put(2, "c")];
    append(&stores.log, entries.clone()).await;
    apply(&stores, entries[..1].to_vec()).await;
    stores.log.purge(log_id(1, 1, 1)).unwrap();
    stores.close().await;
    let error = Stores::open(dir.path(), &identity(1)).unwrap_err();
    assert!(
        error.to_string().contains("begins after entry 1"),
        "{error}"
    );
}

#[test]
fn unknown_layouts_and_damaged_pointers_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let state = State::open(dir.path(), &identity(1)).unwrap();
    state.close();
    let inner = dir.path().join(STATE_DIR);
    std::fs::write(inner.join(CURRENT_FILE), "gen-one\n").unwrap();
    let damaged = State::open(dir.path(), &identity(1));
    assert!(
        matches!(damaged, Err(OpenError::Damaged { .. })),
        "{damaged:?}"
    );
    set_current(&inner, 1).unwrap();
    let db = rocks::open(Kind::State, &generation_dir(&inner, 1)).unwrap();
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

/// What an operator sees who starts the former version again after an upgrade.
#[test]
fn a_state_that_a_later_version_has_added_to_says_so() {
    let dir = tempfile::tempdir().unwrap();
    State::open(dir.path(), &identity(1)).unwrap().close();
    let path = generation_dir(&dir.path().join(STATE_DIR), 1);
    let there = rocksdb::DB::list_cf(&rocksdb::Options::default(), &path).unwrap();
    let mut db = rocksdb::DB::open_cf(&rocksdb::Options::default(), &path, there).unwrap();
    db.create_cf("kv-of-tomorrow", &rocksdb::Options::default())
        .unwrap();
    drop(db);
    let newer = State::open(dir.path(), &identity(1));
    assert!(matches!(newer, Err(OpenError::Newer { .. })), "{newer:?}");
}

#[tokio::test]
async fn outcomes_survive_a_restart_and_so_do_those_of_the_first_layout() {
    let dir = tempfile::tempdir().unwrap();
    let request = |index: u64, id: u8| {
        let command = Command {
            request_id: [id; 16],
            ..Command::default()
        };
        Entry {
            log_id: log_id(1, 1, index),
            payload: EntryPayload::Normal(command.encode()),
        }
    };
    let stores = Stores::open(dir.path(), &identity(1)).unwrap();
    let entries = || (0..5).map(|index| request(index, index as u8 + 1));
    append(&stores.log, entries().collect()).await;
    apply(&stores, entries().collect()).await;
    let known = |stores: &Stores, id: u8| {
        let live = stores.state.live.load();
        let mut outcomes = lock(&live.as_ref().unwrap().outcomes);
        let found = outcomes.get(&live.as_ref().unwrap().db, &[id; 16]);
        found.unwrap().map(|found| found.applied.index)
    };
    assert_eq!(known(&stores, 5), Some(4));
    {
        // Entry 3 as an early version has left it.
        let db = stores.state.db().unwrap();
        let meta = cf(&db, CF_META).unwrap();
        let outcome = [&3u64.to_be_bytes()[..], &[1, 0, 0, 0, 9]].concat();
        db.put_cf_opt(meta, keys::request(&[4; 16]), outcome, &without_wal())
            .unwrap();
        db.put_cf_opt(meta, keys::request_at(3), [4; 16], &without_wal())
            .unwrap();
    }
    stores.close().await;
    for _ in 0..2 {
        let stores = Stores::open(dir.path(), &identity(1)).unwrap();
        for id in 1..=5 {
            assert_eq!(known(&stores, id), Some(u64::from(id) - 1));
        }
        assert_eq!(known(&stores, 6), None);
        let db = stores.state.db().unwrap();
        let old = db.get_cf(cf(&db, CF_META).unwrap(), keys::request(&[4; 16]));
        assert_eq!(old.unwrap(), None);
        drop(db);
        stores.close().await;
    }
}

#[tokio::test]
async fn a_panic_while_applying_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let stores = Stores::open(dir.path(), &identity(1)).unwrap();
    let mut machine = Machine::new(stores.state(), stores.log.clone());
    let entries = futures_util::stream::poll_fn(|_| -> std::task::Poll<Option<_>> {
        panic!("ordered by the test")
    });
    let error = machine.apply(entries).await.unwrap_err();
    assert!(error.to_string().contains("panicked"), "{error}");
    stores.close().await;
}

#[tokio::test]
async fn a_row_that_is_kept_is_told_of_every_write() {
    let dir = tempfile::tempdir().unwrap();
    let stores = Stores::open(dir.path(), &identity(1)).unwrap();
    let state = stores.state();
    assert_eq!(state.mod_index(b"a").unwrap(), None);
    apply(&stores, vec![put(0, "a"), put(1, "b")]).await;
    assert_eq!(state.mod_index(b"a").unwrap(), Some(0));
    assert_eq!(state.mod_index(b"b").unwrap(), Some(1));
    apply(&stores, vec![put(2, "a")]).await;
    assert_eq!(state.mod_index(b"a").unwrap(), Some(2));
    let delete = Command {
        ops: vec![Op::Delete {
            key: Bytes::from_static(b"a"),
        }],
        ..Command::default()
    };
    let entry = Entry {
        log_id: log_id(1, 1, 3),
        payload: EntryPayload::Normal(delete.encode()),
    };
    apply(&stores, vec![entry]).await;
    assert_eq!(state.mod_index(b"a").unwrap(), None);
    stores.close().await;
}

#[tokio::test]
async fn while_a_batch_is_written_its_rows_are_as_the_database_has_them() {
    let dir = tempfile::tempdir().unwrap();
    let stores = Stores::open(dir.path(), &identity(1)).unwrap();
    let state = stores.state();
    apply(&stores, vec![put(0, "kept"), put(1, "other")]).await;
    assert_eq!(state.mod_index(b"kept").unwrap(), Some(0));
    let generation = state.generation().unwrap();
    let here = |key: &str| match generation.rows.mod_index(key.as_bytes()) {
        Look::Here(index) => index,
        Look::Elsewhere(_) => None,
    };
    assert_eq!((here("kept"), here("other")), (Some(0), None));
    let mut changes = Changes::default();
    for key in ["kept", "other"] {
        changes.list.push(Change::Put {
            family: CF_KV,
            key: key.into(),
            mod_index: 7,
            value: Bytes::new(),
        });
    }
    let writing = generation.rows.begin(&changes.list, CF_KV, false);
    assert_eq!(state.mod_index(b"kept").unwrap(), Some(0));
    assert_eq!(state.mod_index(b"other").unwrap(), Some(1));
    let family = cf(&generation.db, CF_KV).unwrap();
    for key in ["kept", "other"] {
        let value = 7_u64.to_be_bytes();
        let written = generation.db.put_cf_opt(family, key, value, &without_wal());
        written.unwrap();
        assert_eq!(state.mod_index(key.as_bytes()).unwrap(), Some(7));
        assert_eq!(state.get(key.as_bytes()).unwrap().unwrap().0, 7);
    }
    assert_eq!((here("kept"), here("other")), (None, None));
    generation.rows.end(&changes.list, CF_KV, writing);
    assert_eq!((here("kept"), here("other")), (Some(7), None));
    assert_eq!(state.get(b"kept").unwrap(), Some((7, Bytes::new())));
    assert_eq!(state.mod_index(b"other").unwrap(), Some(7));
    assert_eq!(here("other"), Some(7));
    drop(generation);
    stores.close().await;
}

#[tokio::test]
async fn a_row_is_never_behind_the_database_nor_ahead_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let stores = Stores::open(dir.path(), &identity(1)).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let readers: Vec<_> = (0..2)
        .map(|_| {
            let (state, stop) = (stores.state(), Arc::clone(&stop));
            std::thread::spawn(move || {
                let live = state.generation().unwrap();
                let database = || {
                    let stored = super::stored(&live.db, CF_KV, b"a").unwrap();
                    index_in(stored.as_deref()).unwrap().unwrap_or(0)
                };
                while !stop.load(Ordering::Relaxed) {
                    let before = database();
                    let index = state.mod_index(b"a").unwrap().unwrap_or(0);
                    let between = database();
                    let (read, _) = state.get(b"a").unwrap().unwrap_or_default();
                    let after = database();
                    assert!(before <= index && index <= between);
                    assert!(between <= read && read <= after);
                }
            })
        })
        .collect();
    for index in 0..5_000 {
        apply(&stores, vec![put(index, "a")]).await;
    }
    stop.store(true, Ordering::Relaxed);
    for reader in readers {
        reader.join().unwrap();
    }
    stores.close().await;
}

/// A leader's read index is made from it: what one reader has seen, the next one must wait for.
#[tokio::test]
async fn nothing_can_be_read_that_is_not_counted_as_readable() {
    let dir = tempfile::tempdir().unwrap();
    let stores = Stores::open(dir.path(), &identity(1)).unwrap();
    const COUNT: u64 = 3000;
    append(
        &stores.log,
        (0..COUNT).map(|index| put(index, "k")).collect(),
    )
    .await;
    let state = stores.state();
    let reading = std::thread::spawn(move || {
        loop {
            let seen = state.get(b"k").unwrap().map_or(0, |(index, _)| index);
            let (readable, applied) = (state.readable(), state.applied());
            assert!(seen <= readable, "entry {seen} was read, {readable} counts");
            if applied == COUNT - 1 {
                return;
            }
        }
    });
    for index in 0..COUNT {
        apply(&stores, vec![put(index, "k")]).await;
    }
    reading.join().unwrap();
    stores.close().await;
}

/// A command that only remembers: request `number`, proposed at this time.
fn request(index: u64, number: u64, ms: u64) -> Entry {
    let mut request_id = [1; 16];
    request_id[..8].copy_from_slice(&number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
    let command = Command {
        request_id,
        proposed_at_ms: ms,
        ..Command::default()
    };
    Entry {
        log_id: log_id(1, 1, index),
        payload: EntryPayload::Normal(command.encode()),
    }
}

fn window(index: u64) -> Entry {
    Entry {
        log_id: log_id(1, 1, index),
        payload: EntryPayload::Normal(Command::window()),
    }
}

/// Waits until requests are remembered by time.
pub(crate) async fn window_is_on(state: &State) {
    let mut position = state.position();
    let on = position.wait_for(|position| position.memory.window);
    let on = tokio::time::timeout(std::time::Duration::from_secs(20), on).await;
    on.expect("in time").expect("the state is open");
}

/// Rows of remembered requests on disk.
fn remembered(state: &State) -> usize {
    let db = state.db().unwrap();
    let items = db.iterator_cf(cf(&db, CF_META).unwrap(), IteratorMode::Start);
    items
        // `installed` is as long as such a key and begins like one.
        .filter(|item| {
            let index = keys::request_index(&item.as_ref().unwrap().0);
            index.is_some_and(|index| index < 1 << 40)
        })
        .count()
}

#[tokio::test]
async fn forgotten_requests_leave_the_disk_and_the_window_survives_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let stores = Stores::open(dir.path(), &identity(1)).unwrap();
    let (state, minute) = (stores.state(), 60_000);
    apply(&stores, (0..10).map(|i| request(i, i, minute)).collect()).await;
    apply(&stores, vec![window(10)]).await;
    assert_eq!(remembered(&state), 10);
    // Forty minutes of five hundred requests each.
    let mut index = 11;
    for batch in 0..40 {
        let entries = (0..500).map(|i| request(index + i, index + i, (batch + 1) * minute));
        apply(&stores, entries.collect()).await;
        index += 500;
    }
    // The ten from before hold by distance, and nothing behind them goes before they do.
    assert_eq!(remembered(&state), 20_010);
    let far = 70_000;
    for batch in 0..4 {
        let entries = (0..4096).map(|i| {
            let index = far + batch * 4096 + i;
            request(index, index, 40 * minute)
        });
        apply(&stores, entries.collect()).await;
    }
    // What is left: ten minutes' worth.
    let kept = remembered(&state);
    assert_eq!(kept, 5_500 + 4 * 4096);
    let memory = state.position().borrow().memory;
    assert_eq!((memory.window, memory.clock_ms), (true, 40 * minute));
    stores.close().await;

    let state = State::open(dir.path(), &identity(1)).unwrap();
    assert_eq!(state.position().borrow().memory, memory);
    let format = state
        .db()
        .unwrap()
        .get_cf(cf(&state.db().unwrap(), CF_META).unwrap(), META_FORMAT)
        .unwrap()
        .unwrap();
    assert_eq!(format[..4], keys::WINDOW_FORMAT.to_be_bytes());
}

#[tokio::test]
async fn a_state_that_is_dropped_is_closed() {
    let dir = tempfile::tempdir().unwrap();
    let stores = Stores::open(dir.path(), &identity(1)).unwrap();
    apply(&stores, vec![window(0)]).await;
    for batch in 0..10u64 {
        let entries = (0..4096).map(|i| request(batch * 4096 + i + 1, batch * 4096 + i + 1, 1));
        apply(&stores, entries.collect()).await;
    }
    stores.close().await;
    // Each start reads what is remembered, and is dropped before that is done.
    for _ in 0..5 {
        drop(State::open(dir.path(), &identity(1)).unwrap());
    }
}

#[tokio::test]
async fn the_window_goes_with_a_snapshot() {
    use openraft::RaftSnapshotBuilder;
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let source = Stores::open(here.path(), &identity(1)).unwrap();
    apply(&source, vec![window(0), request(1, 1, 5)]).await;
    let mut machine = Machine::new(source.state(), source.log.clone());
    let mut builder = machine.get_snapshot_builder().await;
    let snapshot = builder.build_snapshot().await.unwrap();
    let target = Stores::open(there.path(), &identity(2)).unwrap();
    let mut installer = Machine::new(target.state(), target.log.clone());
    installer
        .install_snapshot(&snapshot.meta, snapshot.snapshot)
        .await
        .unwrap();
    let memory = target.state().position().borrow().memory;
    assert_eq!((memory.window, memory.clock_ms), (true, 5));
    assert_eq!(remembered(&target.state()), 1);
    source.close().await;
    target.close().await;
    drop(State::open(there.path(), &identity(2)).unwrap());
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
        min_free_disk: Some(1),
        snapshots: crate::SnapshotOptions::default(),
        pace: crate::Pace::default(),
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

fn command(index: u64, ops: Vec<Op>, restores: u64) -> Entry {
    let command = Command {
        restores,
        ops,
        ..Command::default()
    };
    Entry {
        log_id: log_id(1, 1, index),
        payload: EntryPayload::Normal(command.encode()),
    }
}

fn rows(from: u32, count: u32) -> Vec<(Bytes, Bytes)> {
    let row = |n: u32| {
        let key = Bytes::from(format!("row-{n:08}"));
        (key, Bytes::from(vec![7; 2000]))
    };
    (from..from + count).map(row).collect()
}

/// The whole of a restore of `rows`, from log index `first` on.
fn restore(first: u64, id: [u8; 16], rows: Vec<(Bytes, Bytes)>) -> Vec<Entry> {
    let mut sum = crate::RowSum::default();
    rows.iter().for_each(|(key, value)| sum.add(key, value));
    let chunks: Vec<Vec<(Bytes, Bytes)>> = rows.chunks(100).map(<[_]>::to_vec).collect();
    let mut steps = vec![RestoreStep::Begin { id }];
    steps.extend(
        (0..)
            .zip(chunks)
            .map(|(seq, rows)| RestoreStep::Chunk { id, seq, rows }),
    );
    steps.push(RestoreStep::Commit {
        id,
        rows: sum.rows,
        checksum: sum.checksum,
        puts: 0,
    });
    let entry = |(index, step)| command(index, vec![Op::Restore(step)], 0);
    (first..).zip(steps).map(entry).collect()
}

fn all_keys(state: &State) -> Vec<Bytes> {
    state.keys(b"", None, 1 << 20).unwrap()
}

fn stored(state: &State, family: &str) -> usize {
    let db = state.db().unwrap();
    let family = cf(&db, family).unwrap();
    db.iterator_cf(family, IteratorMode::Start).count()
}

#[tokio::test]
async fn a_restore_that_follows_another_at_once_takes_nothing_from_its_readers() {
    let dir = tempfile::tempdir().unwrap();
    let stores = Stores::open(dir.path(), &identity(1)).unwrap();
    let state = stores.state();
    let first = restore(1, [9; 16], rows(0, 250));
    let second = 1 + first.len() as u64;
    let mut entries = [vec![put(0, "old")], first].concat();
    let next = restore(second, [8; 16], rows(500, 250));
    // All that a node gets that was away; but not the end of the second one.
    entries.extend_from_slice(&next[..3]);
    append(&stores.log, entries.clone()).await;
    apply(&stores, entries).await;
    assert_eq!((state.restores(), state.last_restore()), (1, Some([9; 16])));
    assert_eq!(state.staged_restore(), Some([8; 16]));
    assert_eq!(all_keys(&state).len(), 250);
    assert_eq!(stored(&state, CF_KV), 200, "what is staged");
    // Nor were files of that family deleted, which could have been those of what is staged.
    let generation = state.generation().unwrap();
    let leftovers = || generation.leftovers.load(Ordering::Relaxed);
    assert!(leftovers());
    let steps = [
        RestoreStep::Abort { id: [8; 16] },
        RestoreStep::Begin { id: [7; 16] },
    ];
    for (index, step, left) in [(second + 3, 0, true), (second + 4, 1, false)] {
        let entry = command(index, vec![Op::Restore(steps[step].clone())], 0);
        append(&stores.log, vec![entry.clone()]).await;
        apply(&stores, vec![entry]).await;
        assert_eq!(leftovers(), left);
    }
    drop(generation);
    stores.close().await;
}

#[tokio::test]
async fn a_restore_survives_restarts_at_every_step_and_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let mut stores = Stores::open(dir.path(), &identity(1)).unwrap();
    apply(&stores, vec![put(0, "old")]).await;
    let entries = restore(1, [9; 16], rows(0, 250));
    let last = entries.len();
    append(&stores.log, [vec![put(0, "old")], entries.clone()].concat()).await;
    for (at, entry) in entries.into_iter().enumerate() {
        assert_eq!(all_keys(&stores.state), [&b"old"[..]], "before step {at}");
        assert_eq!(stores.state.staged_restore(), (at > 0).then_some([9; 16]));
        apply(&stores, vec![entry]).await;
        stores.close().await;
        stores = Stores::open(dir.path(), &identity(1)).unwrap();
    }
    let state = stores.state();
    assert_eq!(all_keys(&state).len(), 250);
    assert_eq!((state.restores(), state.last_restore()), (1, Some([9; 16])));
    // A row has the index of its chunk.
    assert_eq!(state.get(b"row-00000000").unwrap().unwrap().0, 2);
    assert_eq!(state.get(b"row-00000249").unwrap().unwrap().0, 4);
    assert!(matches!(
        state.get_at(0, b"old"),
        Err(StateError::Superseded)
    ));
    assert_eq!(stored(&state, CF_KV), 1, "the old data is still there");
    // The next write takes the old data away, and is itself in the new.
    let put = Op::Put {
        key: Bytes::from_static(b"new"),
        value: Bytes::from_static(b"v"),
    };
    let index = 1 + last as u64;
    append(&stores.log, vec![command(index, vec![put.clone()], 1)]).await;
    apply(&stores, vec![command(index, vec![put], 1)]).await;
    assert_eq!(stored(&state, CF_KV), 0);
    assert_eq!(all_keys(&state).len(), 251);
    // Nor is it on the disk for long, however few files it was in.
    let live = state.generation().unwrap();
    let family = cf(&live.db, CF_KV).unwrap();
    let bytes = || {
        let size = live
            .db
            .property_int_value_cf(family, "rocksdb.total-sst-files-size");
        size.unwrap().unwrap()
    };
    let begun = std::time::Instant::now();
    while bytes() > 0 {
        assert!(begun.elapsed().as_secs() < 20, "{} bytes", bytes());
        tokio::task::yield_now().await;
    }
    drop(live);
    stores.close().await;
}

#[tokio::test]
async fn a_restore_clears_what_an_unfinished_one_has_left() {
    let dir = tempfile::tempdir().unwrap();
    let stores = Stores::open(dir.path(), &identity(1)).unwrap();
    let mut entries = restore(0, [1; 16], rows(1000, 300));
    entries.pop();
    let next = entries.len() as u64;
    entries.extend(restore(next, [2; 16], rows(0, 10)));
    append(&stores.log, entries.clone()).await;
    // In one batch, so that what is to be cleared is in the batch itself.
    apply(&stores, entries).await;
    let state = stores.state();
    assert_eq!(all_keys(&state).len(), 10);
    assert_eq!(state.last_restore(), Some([2; 16]));
    stores.close().await;
}

#[tokio::test]
async fn readers_see_the_old_data_or_the_new_and_never_less() {
    let dir = tempfile::tempdir().unwrap();
    let stores = Stores::open(dir.path(), &identity(1)).unwrap();
    let mut entries = restore(0, [0; 16], rows(0, 50));
    for id in 1..30u8 {
        let next = entries.len() as u64;
        entries.extend(restore(next, [id; 16], rows(0, 50)));
    }
    append(&stores.log, entries.clone()).await;
    let (first, rest) = entries.split_at(3);
    apply(&stores, first.to_vec()).await;
    let state = stores.state();
    let stop = Arc::new(AtomicBool::new(false));
    let reader = std::thread::spawn({
        let (state, stop) = (Arc::clone(&state), Arc::clone(&stop));
        move || {
            let mut reads = 0;
            while !stop.load(Ordering::Relaxed) {
                assert_eq!(all_keys(&state).len(), 50);
                assert!(state.get(b"row-00000007").unwrap().is_some());
                reads += 1;
            }
            reads
        }
    });
    // One by one, and as a node gets them that was away.
    let (single, together) = rest.split_at(45);
    for entries in single.chunks(1).chain(together.chunks(4)) {
        apply(&stores, entries.to_vec()).await;
    }
    stop.store(true, Ordering::Relaxed);
    assert!(reader.join().unwrap() > 0);
    assert_eq!(state.restores(), 30);
    stores.close().await;
}

#[tokio::test]
async fn a_held_checkpoint_stays_as_it_was_and_goes_when_it_is_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let stores = Stores::open(dir.path(), &identity(1)).unwrap();
    let entries = restore(2, [1; 16], rows(0, 5));
    append(
        &stores.log,
        [vec![put(0, "a"), put(1, "b")], entries.clone()].concat(),
    )
    .await;
    apply(&stores, vec![put(0, "a"), put(1, "b")]).await;
    let held = stores.state.checkpoint().unwrap();
    apply(&stores, entries).await;
    let after = stores.state.checkpoint().unwrap();
    let keys = |checkpoint: &Checkpoint| -> Vec<(Box<[u8]>, u64)> {
        let rows = checkpoint.rows().unwrap().map(|row| row.unwrap());
        rows.map(|(key, index, _)| (key, index)).collect()
    };
    assert_eq!(keys(&held), [(b"a"[..].into(), 0), (b"b"[..].into(), 1)]);
    assert_eq!((held.index(), held.term(), held.put_count()), (1, 1, 2));
    assert_eq!(keys(&after).len(), 5);
    drop((held, after));
    let left = |dir: &Path| std::fs::read_dir(dir.join("snapshots")).unwrap().count();
    assert_eq!(left(dir.path()), 0);
    // A process that is killed leaves it behind.
    std::mem::forget(stores.state.checkpoint().unwrap());
    stores.close().await;
    drop(Stores::open(dir.path(), &identity(1)).unwrap());
    assert_eq!(left(dir.path()), 0);
}

//! Damage at random places of a data directory, hundreds of times: the stores refuse it, or everything that was
//! acknowledged is there. Never less, never something else.
//!
//! Every case prints its seed when it fails: `STRONGROOM_TEST_SEED=N cargo nextest run -p strongroom-raft damage`.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use openraft::{
    EntryPayload,
    storage::{RaftLogReader, RaftLogStorage, RaftLogStorageExt, RaftStateMachine},
};

use crate::{
    command::{Command, Op},
    error::OpenError,
    identity::Identity,
    log::LogStore,
    records,
    state::Machine,
    stores::Stores,
    types::{Entry, LeaderId, Vote, log_id},
};

const CASES: u64 = 300;
const TERM: u64 = 4;
/// Entries applied and flushed to table files, log and state.
const FLUSHED: u64 = 40;
/// Entries in all; those after [`FLUSHED`] are in the log's WAL only.
const ENTRIES: u64 = 60;

/// A small generator of its own: the crate needs no random numbers elsewhere.
struct Random(u64);

impl Random {
    /// Below `bound`. Source: Vigna's splitmix64.
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % bound.max(1) as u64).unwrap()
    }
}

fn identity() -> Identity {
    Identity {
        cluster_id: [7; 16],
        raft_id: 5,
        name: "n".to_owned(),
    }
}

fn vote() -> Vote {
    Vote {
        leader_id: LeaderId {
            term: TERM,
            node_id: 1,
        },
        committed: true,
    }
}

fn key(index: u64) -> Bytes {
    // Written more than once each: an old value must not come back.
    format!("key-{:02}", index % 23).into()
}

fn value(index: u64) -> Bytes {
    vec![u8::try_from(index).unwrap(); 150].into()
}

fn entry(index: u64) -> Entry {
    let command = Command {
        ops: vec![Op::Put {
            key: key(index),
            value: value(index),
        }],
        ..Command::default()
    };
    Entry {
        log_id: log_id(TERM, 1, index),
        payload: EntryPayload::Normal(command.encode()),
    }
}

async fn write(stores: &Stores, from: u64, to: u64) {
    let mut log: LogStore = stores.log.clone();
    for index in from..to {
        log.blocking_append([entry(index)]).await.unwrap();
    }
    apply(stores, (from..to).map(entry).collect())
        .await
        .unwrap();
}

async fn apply(stores: &Stores, entries: Vec<Entry>) -> std::io::Result<()> {
    let mut machine = Machine::new(stores.state(), stores.log.clone());
    let items = entries.into_iter().map(|entry| Ok((entry, None)));
    machine.apply(futures_util::stream::iter(items)).await
}

/// A data directory as `kill -9` leaves it: table files, a WAL, and a state that is behind the log.
async fn make(dir: &Path, copy: &Path) {
    identity().save(dir).unwrap();
    let stores = Stores::open(dir, &identity()).unwrap();
    let mut log = stores.log.clone();
    RaftLogStorage::save_vote(&mut log, &vote()).await.unwrap();
    drop(log);
    write(&stores, 0, FLUSHED).await;
    stores.close().await;
    let stores = Stores::open(dir, &identity()).unwrap();
    write(&stores, FLUSHED, ENTRIES).await;
    copy_dir(dir, copy);
    stores.close().await;
}

fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for file in fs::read_dir(from).unwrap() {
        let (path, name) = file.map(|file| (file.path(), file.file_name())).unwrap();
        if path.is_dir() {
            copy_dir(&path, &to.join(name));
        } else {
            fs::copy(path, to.join(name)).unwrap();
        }
    }
}

/// Every file with something in it, but locks and RocksDB's own notes.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for file in fs::read_dir(dir).unwrap() {
        let path = file.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            found.extend(files(&path));
        } else if !name.starts_with("LOG") && fs::metadata(&path).unwrap().len() > 0 {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// What became of a damaged directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Outcome {
    Refused,
    ReadsFail,
    Whole,
}

/// Opens it: everything acknowledged is there, or an error says that it is not.
async fn open(dir: &Path, what: &str) -> Outcome {
    let identity = match Identity::load(dir) {
        // The name is compared with the configuration's by the server, and means nothing here.
        Ok(Some(identity)) => identity,
        Ok(None) | Err(_) => return Outcome::Refused,
    };
    let stores = match Stores::open(dir, &identity) {
        Ok(stores) => stores,
        Err(error) => {
            let text = error.to_string();
            assert!(text.contains(&*dir.to_string_lossy()), "{what}: {text}");
            assert!(!matches!(error, OpenError::Locked { .. }), "{what}: {text}");
            return Outcome::Refused;
        }
    };
    let outcome = look(&stores, what).await;
    stores.close().await;
    outcome
}

async fn look(stores: &Stores, what: &str) -> Outcome {
    let mut log = stores.log.clone();
    assert_eq!(log.last(), Some(log_id(TERM, 1, ENTRIES - 1)), "{what}");
    assert_eq!(log.read_vote().await.unwrap(), Some(vote()), "{what}");
    let Ok(entries) = log.try_get_log_entries(0..ENTRIES).await else {
        return Outcome::ReadsFail;
    };
    assert_eq!(
        entries,
        (0..ENTRIES).map(entry).collect::<Vec<_>>(),
        "{what}"
    );
    let state = stores.state();
    let next = state
        .position()
        .borrow()
        .applied
        .map_or(0, |id| id.index + 1);
    let missing = entries.into_iter().skip(usize::try_from(next).unwrap());
    if apply(stores, missing.collect()).await.is_err() {
        return Outcome::ReadsFail;
    }
    let newest: BTreeMap<Bytes, u64> = (0..ENTRIES).map(|index| (key(index), index)).collect();
    let mut outcome = Outcome::Whole;
    for (key, index) in &newest {
        match state.get(key) {
            Ok(found) => assert_eq!(found, Some((*index, value(*index))), "{what}: {key:?}"),
            Err(_) => outcome = Outcome::ReadsFail,
        }
    }
    match state.keys(b"key-", None, 1000) {
        Ok(found) => assert_eq!(found, newest.into_keys().collect::<Vec<_>>(), "{what}"),
        Err(_) => outcome = Outcome::ReadsFail,
    }
    outcome
}

fn damage(bytes: &mut Vec<u8>, random: &mut Random) -> String {
    let at = random.below(bytes.len());
    match random.below(5) {
        0 | 1 => {
            let bit = random.below(8);
            bytes[at] ^= 1 << bit;
            format!("bit {bit} of byte {at} flipped")
        }
        2 => {
            let length = 1 + random.below(64);
            let end = bytes.len().min(at + length);
            bytes[at..end].fill(0);
            format!("bytes {at} to {end} zeroed")
        }
        3 => {
            bytes.truncate(at);
            format!("cut off at byte {at}")
        }
        _ => {
            bytes[at..].fill(0);
            format!("zeroed from byte {at} on")
        }
    }
}

#[tokio::test]
async fn damage_is_refused_or_harmless() {
    let seed = std::env::var("STRONGROOM_TEST_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or_else(|| std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0));
    println!("seed {seed}");
    let (dir, good, scratch) = (
        tempfile::tempdir().unwrap(),
        tempfile::tempdir().unwrap(),
        tempfile::tempdir().unwrap(),
    );
    make(dir.path(), good.path()).await;
    let files = files(good.path());
    // Each kind of file as often as any other.
    let mut kinds: BTreeMap<String, Vec<&PathBuf>> = BTreeMap::new();
    for file in &files {
        kinds.entry(kind(file, good.path())).or_default().push(file);
    }
    let names: Vec<&String> = kinds.keys().collect();
    let mut outcomes: BTreeMap<(&str, Outcome), u32> = BTreeMap::new();
    let mut random = Random(seed);
    for case in 0..CASES {
        let name = names[random.below(names.len())];
        let file = kinds[name][random.below(kinds[name].len())];
        let place = scratch.path().join(case.to_string());
        copy_dir(good.path(), &place);
        let inside = file.strip_prefix(good.path()).unwrap();
        let mut bytes = fs::read(file).unwrap();
        let done = damage(&mut bytes, &mut random);
        fs::write(place.join(inside), &bytes).unwrap();
        let what = format!("seed {seed}, case {case}, {}: {done}", inside.display());
        let outcome = open(&place, &what).await;
        *outcomes.entry((name.as_str(), outcome)).or_default() += 1;
        fs::remove_dir_all(&place).unwrap();
    }
    println!("{outcomes:#?}");
    let noticed = |kind: &str| {
        outcomes
            .keys()
            .any(|(name, outcome)| *name == kind && *outcome != Outcome::Whole)
    };
    for kind in [
        "raft/log",
        "raft/sst",
        "raft/MANIFEST",
        "state/sst",
        "state/MANIFEST",
        "state/CURRENT",
        "node.json",
    ] {
        assert!(
            noticed(kind),
            "damage to {kind} was never noticed: {outcomes:#?}"
        );
    }
}

/// RocksDB would read such a file for ever.
#[tokio::test]
async fn a_record_of_a_recycled_log_is_refused() {
    let (dir, good, scratch) = (
        tempfile::tempdir().unwrap(),
        tempfile::tempdir().unwrap(),
        tempfile::tempdir().unwrap(),
    );
    make(dir.path(), good.path()).await;
    let mut tried = 0;
    for file in files(good.path()) {
        let kind = kind(&file, good.path());
        let is_log = ["raft/log", "raft/MANIFEST", "state/MANIFEST"].contains(&&*kind);
        let bytes = fs::read(&file).unwrap();
        let mut places = records::tests::places(&bytes);
        if !is_log || places.is_empty() {
            continue;
        }
        // Not every one: some, and the last.
        places.reverse();
        for place in places.into_iter().step_by(7) {
            let mut bytes = bytes.clone();
            bytes[place + 6] = 5;
            let copy = scratch.path().join(tried.to_string());
            copy_dir(good.path(), &copy);
            fs::write(copy.join(file.strip_prefix(good.path()).unwrap()), &bytes).unwrap();
            let identity = Identity::load(&copy).unwrap().unwrap();
            let error = Stores::open(&copy, &identity).unwrap_err();
            let text = error.to_string();
            assert!(
                text.contains("kind that is never written"),
                "{kind} {place}: {text}"
            );
            assert!(text.contains("rejoins"), "{text}");
            tried += 1;
        }
    }
    assert!(tried >= 6, "{tried}");
}

/// `raft/log`, `state/sst`, `raft/MANIFEST`, …
fn kind(file: &Path, root: &Path) -> String {
    let inside = file.strip_prefix(root).unwrap();
    let name = inside.file_name().unwrap().to_string_lossy().into_owned();
    let name = match file.extension() {
        Some(extension) if name != "node.json" => extension.to_string_lossy().into_owned(),
        _ => name.split('-').next().unwrap().to_owned(),
    };
    match inside.components().next() {
        Some(first) if inside.components().count() > 1 => {
            format!("{}/{name}", first.as_os_str().to_string_lossy())
        }
        _ => name,
    }
}

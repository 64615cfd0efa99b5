//! How the two RocksDB instances are opened, and the identity both carry.
//!
//! Invariants
//! - Recovery of the log only ever cuts a torn tail: never RocksDB's default mode, which opens without an error after
//!   dropping everything behind one flipped bit.
//! - A database of another node, another cluster or another layout is refused.

use std::{io, path::Path, sync::LazyLock};

use rocksdb::{
    BlockBasedOptions, Cache, ColumnFamily, ColumnFamilyDescriptor, DB, DBRecoveryMode, LogLevel,
    Options, ReadOptions,
};

use crate::{
    error::OpenError,
    identity::Identity,
    keys::{self, CF_KV, CF_KV_B, CF_LOG, CF_META, META_FORMAT},
    records,
};

/// Which of the two databases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Log,
    State,
}

impl Kind {
    fn column_families(self) -> &'static [&'static str] {
        match self {
            Self::Log => &[CF_LOG, CF_META],
            Self::State => &[CF_KV, CF_KV_B, CF_META],
        }
    }

    fn options(self) -> Options {
        let mut options = Options::default();
        options.set_paranoid_checks(true);
        options.set_avoid_unnecessary_blocking_io(true);
        options.set_max_open_files(512);
        options.set_keep_log_file_num(2);
        options.set_max_log_file_size(1 << 20);
        options.set_log_level(LogLevel::Warn);
        // Or a finished file's megabytes are written at once, and whoever syncs the log waits behind them.
        options.set_bytes_per_sync(1 << 20);
        // What is flushed is a whole number of batches, over all families.
        options.set_atomic_flush(true);
        // The state's WAL is never written.
        if self == Self::Log {
            options.set_wal_recovery_mode(DBRecoveryMode::TolerateCorruptedTailRecords);
            options.set_track_and_verify_wals_in_manifest(true);
            // Should `log/tables.rs` not keep up.
            options.set_max_total_wal_size(64 << 20);
        }
        options
    }

    fn descriptors(self) -> Vec<ColumnFamilyDescriptor> {
        self.column_families()
            .iter()
            .map(|name| {
                let mut options = Options::default();
                let buffer = match (self, *name) {
                    // Its newest entries are in memory a second time, to be sent and applied.
                    (Self::Log, CF_LOG) => 8 << 20,
                    (Self::State, CF_KV | CF_KV_B) => 16 << 20,
                    _ => 4 << 20,
                };
                options.set_write_buffer_size(buffer);
                options.set_level_zero_file_num_compaction_trigger(FLUSHED_FILES);
                options.set_level_zero_slowdown_writes_trigger(3 * FLUSHED_FILES);
                options.set_level_zero_stop_writes_trigger(5 * FLUSHED_FILES);
                options.set_block_based_table_factory(&table(self, name));
                ColumnFamilyDescriptor::new(*name, options)
            })
            .collect()
    }
}

/// So many flushed files are merged into the rest at once. The rest is written again for it, in part or as a whole: fewer times, the
/// more there is to merge. A reader may look into the filter of each.
pub(crate) const FLUSHED_FILES: i32 = 12;

/// Blocks read from files: one cache for the whole process, or each column family of each database has its own.
static BLOCKS: LazyLock<Cache> = LazyLock::new(|| Cache::new_lru_cache(BLOCK_CACHE));
/// For listings, the log's catching up and bookkeeping; rows are kept by themselves (`state/rows.rs`). What is not in memory is one
/// call to the kernel away, which caches the files.
const BLOCK_CACHE: usize = 8 << 20;

/// For reading what will not be read again soon: other blocks stay in the cache.
pub(crate) fn once() -> ReadOptions {
    let mut once = ReadOptions::default();
    once.fill_cache(false);
    once
}

/// For reading one row, which is kept by itself or not at all. Made once: every request reads.
pub(crate) fn row() -> &'static ReadOptions {
    static ROW: LazyLock<ReadOptions> = LazyLock::new(once);
    &ROW
}

fn table(kind: Kind, family: &str) -> BlockBasedOptions {
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(&BLOCKS);
    // Read by key; the log and the remembered outcomes are read in ranges.
    if matches!((kind, family), (Kind::State, CF_KV | CF_KV_B)) {
        table.set_bloom_filter(10.0, false);
    }
    table
}

/// Opens database `kind` at `path`, creating it when there is none.
pub(crate) fn open(kind: Kind, path: &Path) -> Result<DB, OpenError> {
    records::check(path)?;
    let mut options = kind.options();
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    DB::open_cf_descriptors(&options, path, kind.descriptors())
        .map_err(|error| open_error(path, error))
}

/// Opens an existing database without changing a byte of it.
///
/// A family that a newer version has added is missing in an older database.
pub(crate) fn open_read_only(kind: Kind, path: &Path) -> Result<DB, OpenError> {
    records::check(path)?;
    let options = kind.options();
    let there = DB::list_cf(&options, path).map_err(|error| open_error(path, error))?;
    let known = kind
        .descriptors()
        .into_iter()
        .filter(|family| there.iter().any(|name| name == family.name()));
    DB::open_cf_descriptors_read_only(&options, path, known, false)
        .map_err(|error| open_error(path, error))
}

fn open_error(path: &Path, source: rocksdb::Error) -> OpenError {
    // No version takes families away, so one that this program does not name is one that a later version has added.
    if source.as_ref().contains("Column families not opened") {
        return OpenError::Newer {
            path: path.to_owned(),
            why: source.to_string(),
        };
    }
    // A file that RocksDB knows of and does not find is no less a loss than one that does not check.
    let is_gone = source.as_ref().contains("No such file");
    if source.kind() == rocksdb::ErrorKind::Corruption || is_gone {
        return OpenError::Damaged {
            path: path.to_owned(),
            why: source.to_string(),
        };
    }
    OpenError::Database {
        path: path.to_owned(),
        source,
    }
}

/// What one of the two databases takes up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DatabaseSize {
    /// Table files on disk, bytes.
    pub files: u64,
    /// Write-ahead log on disk, bytes.
    pub wal: u64,
    /// Written and not in table files yet, bytes of memory.
    pub memory: u64,
    /// Keys, as RocksDB estimates them.
    pub keys: u64,
}

/// Asks RocksDB; a number it does not give counts as 0.
pub(crate) fn size(kind: Kind, db: &DB) -> DatabaseSize {
    let sum = |property: &str| {
        let families = kind.column_families().iter();
        families
            .filter_map(|name| db.cf_handle(name))
            .filter_map(|family| db.property_int_value_cf(family, property).ok().flatten())
            .sum()
    };
    DatabaseSize {
        files: sum("rocksdb.total-sst-files-size"),
        wal: wal_size(db.path()),
        memory: sum("rocksdb.cur-size-all-mem-tables"),
        keys: sum("rocksdb.estimate-num-keys"),
    }
}

/// RocksDB has no figure for it. A file that goes away meanwhile counts no more.
fn wal_size(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter(|entry| records::is_wal(&entry.path()))
        .filter_map(|entry| entry.metadata().ok())
        .map(|found| found.len())
        .sum()
}

/// What an operator can do about an error of RocksDB's, to be put behind its text.
pub(crate) fn advice(error: &rocksdb::Error) -> &'static str {
    // RocksDB tells it by words only.
    if error.as_ref().contains("No space left") {
        "; make room on the disk and start the node again: nothing that was acknowledged is lost"
    } else {
        ""
    }
}

/// Makes sure that the database is this node's. A new one (no format key) is claimed by the caller.
///
/// `Ok(false)`: it has no format key yet.
pub(crate) fn check_identity(
    kind: Kind,
    db: &DB,
    path: &Path,
    identity: &Identity,
) -> Result<bool, OpenError> {
    let found = cf(db, CF_META)
        .and_then(|meta| db.get_cf(meta, META_FORMAT).map_err(io::Error::other))
        .map_err(|source| OpenError::Read {
            path: path.to_owned(),
            source,
        })?;
    let Some(found) = found else {
        return Ok(false);
    };
    let Some((format, owner)) = found.split_first_chunk::<4>() else {
        return Err(OpenError::Damaged {
            path: path.to_owned(),
            why: "its format key is malformed".to_owned(),
        });
    };
    let format = u32::from_be_bytes(*format);
    let known = match kind {
        Kind::Log => format == keys::FORMAT,
        Kind::State => matches!(format, keys::FORMAT | keys::WINDOW_FORMAT),
    };
    if !known {
        return Err(OpenError::UnknownFormat {
            path: path.to_owned(),
            format,
        });
    }
    let expected = keys::format_value(&identity.cluster_id, identity.raft_id);
    if expected.split_first_chunk::<4>().map(|(_, rest)| rest) != Some(owner) {
        return Err(OpenError::Foreign {
            path: path.to_owned(),
        });
    }
    Ok(true)
}

/// A column family's handle; every family is created at open, so its absence is an error like any other.
pub(crate) fn cf<'db>(db: &'db DB, name: &str) -> io::Result<&'db ColumnFamily> {
    db.cf_handle(name)
        .ok_or_else(|| io::Error::other(format!("column family `{name}` is missing")))
}

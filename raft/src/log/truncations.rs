//! One row for each truncation that is not in table files yet, so that none is lost behind a later one, however little that cut.
//!
//! In: the number of a truncation, in its own batch. Out: at the next start, whether all are there.
//!
//! Layout: row `truncation` + number u64 BE, empty. Row `truncated`, `from u64 BE | upto u64 BE`: numbers behind `from`, up to `upto`,
//! have a row each; earlier ones are in table files, with their own checksums. Versions that know nothing of these rows only count
//! (row `truncations`): when that has gone on behind `upto`, they have written last, and the rows say nothing.

use std::{io, ops::RangeInclusive};

use rocksdb::{ColumnFamily, DB, Direction, IteratorMode, WriteBatch};

use crate::{
    keys::{self, CF_META, META_TRUNCATED, be_u64},
    rocks::cf,
};

/// Which truncations have a row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Truncations {
    from: u64,
    upto: u64,
}

impl Truncations {
    fn numbers(self) -> RangeInclusive<u64> {
        self.from.saturating_add(1)..=self.upto
    }

    /// Adds truncation `number`, the next one.
    pub(super) fn add(&mut self, number: u64, meta: &ColumnFamily, batch: &mut WriteBatch) {
        self.upto = number;
        batch.put_cf(meta, keys::truncation(number), []);
        self.put(meta, batch);
    }

    /// Everything up to truncation `number` is in table files.
    pub(super) fn forget(&mut self, number: u64, meta: &ColumnFamily, batch: &mut WriteBatch) {
        for moved in self.numbers().take_while(|moved| *moved <= number) {
            batch.delete_cf(meta, keys::truncation(moved));
        }
        self.from = self.from.max(number);
        self.upto = self.upto.max(number);
        self.put(meta, batch);
    }

    /// All `count` of them are in table files: deletes every row there is, also what other versions have left.
    pub(super) fn begin(&mut self, db: &DB, count: u64, batch: &mut WriteBatch) -> io::Result<()> {
        let meta = cf(db, CF_META)?;
        let start = keys::truncation(0);
        for row in db.iterator_cf(meta, IteratorMode::From(&start, Direction::Forward)) {
            let (key, _) = row.map_err(io::Error::other)?;
            if key.len() != start.len() || !key.starts_with(b"truncation") {
                break;
            }
            batch.delete_cf(meta, key);
        }
        (self.from, self.upto) = (count, count);
        self.put(meta, batch);
        Ok(())
    }

    fn put(self, meta: &ColumnFamily, batch: &mut WriteBatch) {
        let row = [self.from, self.upto].map(u64::to_be_bytes).concat();
        batch.put_cf(meta, META_TRUNCATED, row);
    }

    fn decode(row: &[u8]) -> Option<Self> {
        let (from, upto) = row.split_at_checked(8)?;
        let (from, upto) = (be_u64(from)?, be_u64(upto)?);
        Some(Self { from, upto })
    }

    /// What is there, if it is all there should be after `count` truncations.
    ///
    /// # Errors
    /// When a row is missing, or the range malformed or ahead of `count`.
    pub(super) fn recover(db: &DB, count: u64) -> io::Result<Self> {
        let meta = cf(db, CF_META)?;
        let row = db.get_cf(meta, META_TRUNCATED).map_err(io::Error::other)?;
        let known = row
            .map(|row| {
                Self::decode(&row)
                    .filter(|rows| rows.from <= rows.upto && rows.upto <= count)
                    .ok_or_else(|| io::Error::other("`truncated` is malformed"))
            })
            .transpose()?
            .filter(|rows| rows.upto == count);
        let Some(rows) = known else {
            return Ok(Self {
                from: count,
                upto: count,
            });
        };
        let start = keys::truncation(*rows.numbers().start());
        let mut there = db.iterator_cf(meta, IteratorMode::From(&start, Direction::Forward));
        for number in rows.numbers() {
            let found = there.next().transpose().map_err(io::Error::other)?;
            if found.is_none_or(|(key, _)| *key != keys::truncation(number)) {
                return Err(io::Error::other(format!(
                    "the log's truncation {number} of {count} is missing"
                )));
            }
        }
        Ok(rows)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::rocks::{self, Kind};

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(row in proptest::collection::vec(any::<u8>(), 0..20)) {
            prop_assert_eq!(Truncations::decode(&row).is_some(), row.len() == 16);
        }
    }

    /// Numbers 1 to 9; those up to 4 are in table files.
    fn written(dir: &std::path::Path) -> (DB, Truncations) {
        let db = rocks::open(Kind::Log, dir).unwrap();
        let (meta, mut batch) = (cf(&db, CF_META).unwrap(), WriteBatch::default());
        let mut rows = Truncations::default();
        for number in 1..=9 {
            rows.add(number, meta, &mut batch);
            if number == 7 {
                rows.forget(4, meta, &mut batch);
            }
        }
        db.write(batch).unwrap();
        (db, rows)
    }

    #[test]
    fn what_is_there_is_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let (db, mut rows) = written(dir.path());
        assert_eq!(rows, Truncations { from: 4, upto: 9 });
        assert_eq!(Truncations::recover(&db, 9).unwrap(), rows);
        // Others have counted on, without rows.
        let others = Truncations { from: 11, upto: 11 };
        assert_eq!(Truncations::recover(&db, 11).unwrap(), others);
        assert!(Truncations::recover(&db, 8).is_err());

        let meta = cf(&db, CF_META).unwrap();
        let left = || {
            let there = |number: &u64| {
                let row = db.get_cf(meta, keys::truncation(*number));
                row.unwrap().is_some()
            };
            (0..20).filter(there).collect::<Vec<_>>()
        };
        let mut batch = WriteBatch::default();
        rows.forget(7, meta, &mut batch);
        let others = [&b"truncations"[..], b"vote"];
        others.iter().for_each(|key| batch.put_cf(meta, key, b""));
        db.write(batch).unwrap();
        assert_eq!(
            Truncations::recover(&db, 9).unwrap(),
            Truncations { from: 7, upto: 9 }
        );
        assert_eq!(left(), [8, 9]);
        let mut batch = WriteBatch::default();
        rows.begin(&db, 12, &mut batch).unwrap();
        db.write(batch).unwrap();
        assert_eq!(
            Truncations::recover(&db, 12).unwrap(),
            Truncations { from: 12, upto: 12 }
        );
        assert_eq!(left(), [0; 0]);
        for key in others {
            assert!(db.get_cf(meta, key).unwrap().is_some());
        }
    }

    #[test]
    fn each_one_that_is_missing_is_missed() {
        for number in 1..=9 {
            let dir = tempfile::tempdir().unwrap();
            let (db, _) = written(dir.path());
            db.delete_cf(cf(&db, CF_META).unwrap(), keys::truncation(number))
                .unwrap();
            let found = Truncations::recover(&db, 9);
            assert_eq!(found.is_err(), number > 4, "{number}: {found:?}");
        }
    }
}

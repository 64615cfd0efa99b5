//! `state.bin`: every key of the state with its value, in key order.
//!
//! ```text
//! "SRGROWS1"
//! row:     0x01 | key length u32 BE | value length u32 BE | mod_index u64 BE | key | value
//! trailer: 0x02 | number of rows u64 BE | checksum u32 BE (RowSum)
//! ```
//! In and out: opaque keys and bytes. Values and names are ciphertext already; nothing here needs a key.
//!
//! Invariants
//! - Keys ascend strictly, so that no key comes twice.
//! - Without its trailer a stream is cut off, whatever came before.
//! - Reading takes memory for one row, whatever a stream claims.

use std::io::{self, Read, Write};

use strongroom_raft::RowSum;

const MAGIC: &[u8; 8] = b"SRGROWS1";
const ROW: u8 = 1;
const TRAILER: u8 = 2;
const ROW_HEAD: usize = 16;
/// Far more than a name can be.
const MAX_KEY: u32 = 64 << 10;
/// As much as the log takes in one entry.
const MAX_VALUE: u32 = 4 << 20;

/// One key of the state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) key: Vec<u8>,
    /// Log index of the last write, in the cluster that wrote the snapshot.
    pub(crate) mod_index: u64,
    pub(crate) value: Vec<u8>,
}

/// Why bytes are not the rows of a state.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RowsError {
    #[error("reading the rows failed")]
    Io(#[from] io::Error),
    #[error("it was not written by Strongroom, or by a newer version")]
    Foreign,
    #[error("the rows are damaged: {0}")]
    Damaged(&'static str),
}

/// Length of the stream that [`Writer`] makes of rows with these lengths.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Length(pub(crate) u64);

impl Length {
    /// Of no row at all.
    pub(crate) fn empty() -> Self {
        Self((MAGIC.len() + 1 + 8 + 4) as u64)
    }

    /// One more row.
    pub(crate) fn add(&mut self, key: &[u8], value: &[u8]) {
        self.0 += (1 + ROW_HEAD + key.len() + value.len()) as u64;
    }
}

/// Writes rows.
pub(crate) struct Writer<W> {
    out: W,
    sum: RowSum,
}

impl<W: Write> Writer<W> {
    pub(crate) fn new(mut out: W) -> io::Result<Self> {
        out.write_all(MAGIC)?;
        Ok(Self {
            out,
            sum: RowSum::default(),
        })
    }

    pub(crate) fn row(&mut self, key: &[u8], mod_index: u64, value: &[u8]) -> io::Result<()> {
        let too_long = |_| io::Error::other("a row is too long for a snapshot");
        let key_len = u32::try_from(key.len()).map_err(too_long)?;
        let value_len = u32::try_from(value.len()).map_err(too_long)?;
        if key_len > MAX_KEY || value_len > MAX_VALUE {
            return Err(io::Error::other("a row is too long for a snapshot"));
        }
        self.out.write_all(&[ROW])?;
        self.out.write_all(&key_len.to_be_bytes())?;
        self.out.write_all(&value_len.to_be_bytes())?;
        self.out.write_all(&mod_index.to_be_bytes())?;
        self.out.write_all(key)?;
        self.out.write_all(value)?;
        self.sum.add(key, value);
        Ok(())
    }

    /// Writes the trailer.
    pub(crate) fn finish(mut self) -> io::Result<RowSum> {
        self.out.write_all(&[TRAILER])?;
        self.out.write_all(&self.sum.rows.to_be_bytes())?;
        self.out.write_all(&self.sum.checksum.to_be_bytes())?;
        Ok(self.sum)
    }
}

/// Reads what [`Writer`] wrote.
pub(crate) struct Reader<R> {
    input: R,
    sum: RowSum,
    last: Option<Vec<u8>>,
    done: bool,
}

impl<R: Read> Reader<R> {
    pub(crate) fn new(mut input: R) -> Result<Self, RowsError> {
        let mut magic = [0; 8];
        read(&mut input, &mut magic)?;
        if magic != *MAGIC {
            return Err(RowsError::Foreign);
        }
        Ok(Self {
            input,
            sum: RowSum::default(),
            last: None,
            done: false,
        })
    }

    /// The next row; `None` after the last one, when the trailer has been read and fits.
    pub(crate) fn next(&mut self) -> Result<Option<Row>, RowsError> {
        if self.done {
            return Ok(None);
        }
        let mut tag = [0];
        read(&mut self.input, &mut tag)?;
        match tag {
            [ROW] => self.row().map(Some),
            [TRAILER] => self.trailer().map(|()| None),
            _ => Err(RowsError::Damaged("a row of unknown kind")),
        }
    }

    /// Count and checksum of the rows so far.
    pub(crate) fn sum(&self) -> RowSum {
        self.sum
    }

    fn row(&mut self) -> Result<Row, RowsError> {
        let key_len = u32::from_be_bytes(self.array()?);
        let value_len = u32::from_be_bytes(self.array()?);
        let mod_index = u64::from_be_bytes(self.array()?);
        if key_len > MAX_KEY || value_len > MAX_VALUE {
            return Err(RowsError::Damaged("a row is too long"));
        }
        let row = Row {
            key: self.bytes(key_len)?,
            mod_index,
            value: self.bytes(value_len)?,
        };
        if self.last.as_ref().is_some_and(|last| *last >= row.key) {
            return Err(RowsError::Damaged("the keys are not in order"));
        }
        self.last = Some(row.key.clone());
        self.sum.add(&row.key, &row.value);
        Ok(row)
    }

    fn trailer(&mut self) -> Result<(), RowsError> {
        let sum = RowSum {
            rows: u64::from_be_bytes(self.array()?),
            checksum: u32::from_be_bytes(self.array()?),
        };
        if sum != self.sum {
            return Err(RowsError::Damaged("the checksum does not fit"));
        }
        if self.input.read(&mut [0])? != 0 {
            return Err(RowsError::Damaged("something follows the last row"));
        }
        self.done = true;
        Ok(())
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], RowsError> {
        let mut array = [0; N];
        read(&mut self.input, &mut array)?;
        Ok(array)
    }

    fn bytes(&mut self, len: u32) -> Result<Vec<u8>, RowsError> {
        let mut bytes = Vec::new();
        let read = (&mut self.input)
            .take(u64::from(len))
            .read_to_end(&mut bytes)?;
        if read as u64 != u64::from(len) {
            return Err(RowsError::Damaged("it is cut off"));
        }
        Ok(bytes)
    }
}

fn read(input: &mut impl Read, out: &mut [u8]) -> Result<(), RowsError> {
    match input.read_exact(out) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            Err(RowsError::Damaged("it is cut off"))
        }
        other => Ok(other?),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(crate) fn written(rows: &[Row]) -> Vec<u8> {
        let mut out = Vec::new();
        let mut writer = Writer::new(&mut out).unwrap();
        for row in rows {
            writer.row(&row.key, row.mod_index, &row.value).unwrap();
        }
        writer.finish().unwrap();
        out
    }

    fn read_all(bytes: &[u8]) -> Result<Vec<Row>, RowsError> {
        let mut reader = Reader::new(bytes)?;
        let mut rows = Vec::new();
        while let Some(row) = reader.next()? {
            rows.push(row);
        }
        Ok(rows)
    }

    fn any_rows() -> impl Strategy<Value = Vec<Row>> {
        let bytes = || proptest::collection::vec(any::<u8>(), 0..20);
        proptest::collection::btree_map(bytes(), (any::<u64>(), bytes()), 0..6).prop_map(|rows| {
            let row = |(key, (mod_index, value))| Row {
                key,
                mod_index,
                value,
            };
            rows.into_iter().map(row).collect()
        })
    }

    proptest! {
        #[test]
        fn rows_survive_and_their_length_is_known_before(rows in any_rows()) {
            let bytes = written(&rows);
            let mut length = Length::empty();
            rows.iter().for_each(|row| length.add(&row.key, &row.value));
            prop_assert_eq!(length.0, bytes.len() as u64);
            prop_assert_eq!(read_all(&bytes).unwrap(), rows);
        }

        #[test]
        fn a_cut_is_refused_and_so_is_more(rows in any_rows(), at: prop::sample::Index) {
            let mut bytes = written(&rows);
            let at = at.index(bytes.len());
            prop_assert!(read_all(&bytes[..at]).is_err());
            bytes.push(0);
            prop_assert!(read_all(&bytes).is_err());
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = read_all(&bytes);
            let _ = read_all(&[&MAGIC[..], &bytes].concat());
        }
    }

    #[test]
    fn a_key_that_comes_twice_is_refused() {
        let row = |key: &str| Row {
            key: key.into(),
            ..Row::default()
        };
        assert!(read_all(&written(&[row("a"), row("b")])).is_ok());
        for rows in [[row("a"), row("a")], [row("b"), row("a")]] {
            let error = read_all(&written(&rows)).unwrap_err();
            assert!(matches!(error, RowsError::Damaged(_)), "{error}");
        }
    }

    #[test]
    fn a_claimed_length_takes_no_memory() {
        let mut bytes = MAGIC.to_vec();
        bytes.push(ROW);
        bytes.extend(u32::MAX.to_be_bytes());
        bytes.extend([0; 20]);
        assert!(matches!(read_all(&bytes), Err(RowsError::Damaged(_))));
    }
}

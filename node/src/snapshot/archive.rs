//! The snapshot file: gzip around a tar of `meta.json`, `state.bin`, `SHA256SUMS` and `SHA256SUMS.sealed`.
//!
//! In: rows of a state and facts about them, or bytes from anywhere. Out: the file, or its rows once more.
//!
//! Invariants
//! - Memory does not grow with the data: rows are streamed both ways.
//! - What is read is whole: the gzip checksum, both SHA-256 sums, the rows' own trailer and the end of the tar are
//!   verified before [`read`] returns.
//! - Nothing in it is plaintext: rows are ciphertext, `meta.json` holds facts that are plain on every disk.
//!
//! The layout and names are Vault's, so that its tools can save the file; what is in `state.bin` is our own.

use std::io::{self, Read, Write};

use flate2::{Compression, read::GzDecoder, write::GzEncoder};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use strongroom_raft::RowSum;
use tar::{Builder, EntryType, Header};

use super::rows::{self, Row, RowsError};

/// Raised when an older version could not read the file.
const FORMAT: u32 = 1;
const META: &str = "meta.json";
const STATE: &str = "state.bin";
const SUMS: &str = "SHA256SUMS";
const SEALED: &str = "SHA256SUMS.sealed";
/// What the sealed sums are bound to.
pub(crate) const SUMS_PATH: &str = "core/snapshot/SHA256SUMS";
/// Largest `meta.json`, and largest file of sums.
const MAX_SMALL: u64 = 1 << 20;
/// Ciphertext does not compress: gzip is only the form that tools expect.
const LEVEL: Compression = Compression::none();

/// `meta.json`: the first fields are those of Vault and Consul.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct Meta {
    /// Version of this very description, as Raft libraries count.
    pub(crate) version: u32,
    /// Names the snapshot.
    #[serde(rename = "ID")]
    pub(crate) id: String,
    /// Log index the state is at.
    pub(crate) index: u64,
    /// Term of that entry.
    pub(crate) term: u64,
    /// Who was in the cluster; for people.
    pub(crate) configuration: Configuration,
    /// Log index of that configuration.
    pub(crate) configuration_index: u64,
    /// Bytes of `state.bin`.
    pub(crate) size: u64,
    /// What Vault's snapshots do not have.
    pub(crate) strongroom: Own,
}

/// Members of the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct Configuration {
    pub(crate) servers: Vec<Server>,
}

/// One member.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct Server {
    /// 0: votes; 1: does not.
    pub(crate) suffrage: u32,
    #[serde(rename = "ID")]
    pub(crate) id: String,
    pub(crate) address: String,
}

/// What is our own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Own {
    /// 0: not a snapshot of ours.
    pub(crate) format: u32,
    /// Version of the software.
    pub(crate) software: String,
    /// RFC 3339.
    pub(crate) created: String,
    pub(crate) cluster_id: String,
    pub(crate) cluster_name: String,
    /// `pkcs11`.
    pub(crate) seal_type: String,
    /// Labels and fingerprints of the HSM keys, so that one can tell which HSM is needed.
    pub(crate) seal_keys: Vec<SealKeyName>,
    pub(crate) rows: u64,
    /// Writes that the barrier keys' use was counted at.
    pub(crate) puts: u64,
}

/// How an HSM key is known.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct SealKeyName {
    pub(crate) version: u32,
    pub(crate) label: String,
    pub(crate) fingerprint: String,
}

impl Meta {
    /// Marks it as of this version.
    pub(crate) fn stamp(mut self) -> Self {
        self.version = 1;
        self.strongroom.format = FORMAT;
        self
    }
}

/// Why bytes are not a snapshot, or not one that can be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ArchiveError {
    #[error("failed to decompress snapshot: gzip: invalid header")]
    NotGzip,
    #[error("failed to read snapshot file: it is cut off or damaged")]
    Broken(#[source] io::Error),
    #[error("failed to read snapshot file: {0}")]
    Layout(String),
    #[error(
        "failed to read snapshot file: it is not a snapshot of Strongroom; those of Vault and OpenBao cannot be used"
    )]
    Foreign,
    #[error(
        "failed to read snapshot file: it has format {0}, this version knows {FORMAT}; use a newer version"
    )]
    Format(u32),
    #[error("failed to read snapshot file: {0}")]
    Rows(#[source] RowsError),
    #[error("failed checking integrity of snapshot: hash check failed for {0:?}")]
    Hash(&'static str),
    /// What the caller did with a row failed.
    #[error("the snapshot could not be used")]
    Caller(#[source] io::Error),
}

impl From<RowsError> for ArchiveError {
    fn from(error: RowsError) -> Self {
        match error {
            RowsError::Io(error) => Self::Broken(error),
            RowsError::Foreign => Self::Foreign,
            error @ RowsError::Damaged(_) => Self::Rows(error),
        }
    }
}

/// A snapshot that has been read to its end and is whole.
#[derive(Clone, Debug)]
pub(crate) struct Whole {
    pub(crate) meta: Meta,
    /// Content of `SHA256SUMS`; it fits.
    pub(crate) sums: Vec<u8>,
    /// The same, encrypted by the HSM of who wrote the snapshot; not verified here.
    pub(crate) sealed: Vec<u8>,
    pub(crate) rows: RowSum,
}

/// Takes one row after the other: key, log index of its last write, value.
pub(crate) type PutRow<'a> = dyn FnMut(&[u8], u64, &[u8]) -> io::Result<()> + 'a;

/// Writes a snapshot of `size` bytes of rows (see [`rows::Length`]), which `each` hands out one after the other; `seal`
/// encrypts the sums.
pub(crate) fn write<W: Write>(
    out: W,
    meta: &Meta,
    each: impl FnOnce(&mut PutRow<'_>) -> io::Result<()>,
    seal: impl FnOnce(&[u8]) -> io::Result<Vec<u8>>,
) -> io::Result<W> {
    let mut tar = Builder::new(GzEncoder::new(out, LEVEL));
    let meta_json = serde_json::to_vec(meta)?;
    tar.append(&header(META, meta_json.len() as u64)?, &meta_json[..])?;

    // The builder wants to read; rows are written. So the entry is written by hand: header, content, padding.
    tar.get_mut()
        .write_all(header(STATE, meta.size)?.as_bytes())?;
    let (written, state_sum) = write_rows(tar.get_mut(), each)?;
    if written != meta.size {
        return Err(io::Error::other("the rows are not what was counted"));
    }
    let padding = usize::try_from(written.next_multiple_of(512) - written).unwrap_or(0);
    tar.get_mut()
        .write_all([0; 512].get(..padding).unwrap_or_default())?;

    let sums = sums(&Sha256::digest(&meta_json), &state_sum);
    tar.append(&header(SUMS, sums.len() as u64)?, &sums[..])?;
    let sealed = seal(&sums)?;
    tar.append(&header(SEALED, sealed.len() as u64)?, &sealed[..])?;
    tar.into_inner()?.finish()
}

/// Bytes written, and their SHA-256.
fn write_rows(
    out: impl Write,
    each: impl FnOnce(&mut PutRow<'_>) -> io::Result<()>,
) -> io::Result<(u64, Vec<u8>)> {
    let mut state = Summed::new(io::BufWriter::with_capacity(256 << 10, out));
    let mut writer = rows::Writer::new(&mut state)?;
    each(&mut |key, mod_index, value| writer.row(key, mod_index, value))?;
    writer.finish()?;
    state.flush()?;
    Ok((state.len, state.hash.finalize().to_vec()))
}

fn header(name: &str, size: u64) -> io::Result<Header> {
    let mut header = Header::new_ustar();
    header.set_path(name)?;
    header.set_size(size);
    header.set_mode(0o600);
    header.set_mtime(0);
    header.set_entry_type(EntryType::Regular);
    header.set_cksum();
    Ok(header)
}

fn sums(meta: &[u8], state: &[u8]) -> Vec<u8> {
    let line = |sum: &[u8], name: &str| format!("{}  {name}\n", hex::encode(sum));
    format!("{}{}", line(meta, META), line(state, STATE)).into_bytes()
}

/// Reads a snapshot to its end, calling `each` for every row.
///
/// Rows that `each` has got are worth nothing before this returns.
///
/// # Errors
/// See [`ArchiveError`]; `Caller` for an error of `each`.
pub(crate) fn read(
    input: impl Read,
    mut each: impl FnMut(&Meta, Row) -> io::Result<()>,
) -> Result<Whole, ArchiveError> {
    let mut input = io::BufReader::with_capacity(256 << 10, input);
    is_gzip(&mut input)?;
    let mut tar = tar::Archive::new(GzDecoder::new(input));
    // Raw: extensions of the format could claim memory, and nothing we write needs them.
    let mut entries = tar.entries().map_err(ArchiveError::Broken)?.raw(true);

    let meta_json = small(&mut entries, META)?;
    let meta: Meta = serde_json::from_slice(&meta_json)
        .map_err(|_| ArchiveError::Layout(format!("{META} does not parse")))?;
    match meta.strongroom.format {
        FORMAT => {}
        0 => return Err(ArchiveError::Foreign),
        newer => return Err(ArchiveError::Format(newer)),
    }

    let (rows, state_sum) = {
        let mut state = Summed::new(next(&mut entries, STATE)?);
        let mut reader = rows::Reader::new(&mut state)?;
        while let Some(row) = reader.next()? {
            each(&meta, row).map_err(ArchiveError::Caller)?;
        }
        (reader.sum(), state.hash.finalize())
    };

    let given = small(&mut entries, SUMS)?;
    let sealed = small(&mut entries, SEALED)?;
    if let Some(more) = entries.next() {
        more.map_err(ArchiveError::Broken)?;
        return Err(ArchiveError::Layout("it holds more files".to_owned()));
    }
    conclude(tar.into_inner())?;
    let expected = sums(&Sha256::digest(&meta_json), &state_sum);
    if given != expected {
        let meta_line = format!("{}  {META}", hex::encode(Sha256::digest(&meta_json)));
        let meta_fits = given
            .split(|byte| *byte == b'\n')
            .any(|line| line == meta_line.as_bytes());
        return Err(ArchiveError::Hash(if meta_fits { STATE } else { META }));
    }
    Ok(Whole {
        meta,
        sums: given,
        sealed,
        rows,
    })
}

fn is_gzip(input: &mut impl io::BufRead) -> Result<(), ArchiveError> {
    let start = input.fill_buf().map_err(ArchiveError::Broken)?;
    if start.starts_with(&[0x1f, 0x8b]) {
        Ok(())
    } else {
        Err(ArchiveError::NotGzip)
    }
}

/// The next file, which must be `name`.
fn next<'a, R: Read + 'a>(
    entries: &mut impl Iterator<Item = io::Result<tar::Entry<'a, R>>>,
    name: &'static str,
) -> Result<tar::Entry<'a, R>, ArchiveError> {
    let entry = entries
        .next()
        .ok_or_else(|| ArchiveError::Layout(format!("{name} is missing")))?
        .map_err(ArchiveError::Broken)?;
    if *entry.path_bytes() != *name.as_bytes() {
        return Err(if name == META {
            ArchiveError::Foreign
        } else {
            ArchiveError::Layout(format!("{name} is not where it should be"))
        });
    }
    Ok(entry)
}

fn small<'a, R: Read + 'a>(
    entries: &mut impl Iterator<Item = io::Result<tar::Entry<'a, R>>>,
    name: &'static str,
) -> Result<Vec<u8>, ArchiveError> {
    let entry = next(entries, name)?;
    let size = entry.size();
    if size > MAX_SMALL {
        return Err(ArchiveError::Layout(format!("{name} is too large")));
    }
    let mut content = Vec::new();
    entry
        .take(MAX_SMALL)
        .read_to_end(&mut content)
        .map_err(ArchiveError::Broken)?;
    if content.len() as u64 != size {
        return Err(ArchiveError::Broken(io::ErrorKind::UnexpectedEof.into()));
    }
    Ok(content)
}

/// Reads on to the end of the gzip stream, whose checksum is verified there; only the tar's own padding may follow.
fn conclude(mut gzip: impl Read) -> Result<(), ArchiveError> {
    let mut rest = Vec::new();
    (&mut gzip)
        .take(MAX_SMALL)
        .read_to_end(&mut rest)
        .map_err(ArchiveError::Broken)?;
    if rest.len() as u64 == MAX_SMALL || rest.iter().any(|byte| *byte != 0) {
        return Err(ArchiveError::Layout("something follows it".to_owned()));
    }
    Ok(())
}

/// Passes bytes through, and remembers how many and their SHA-256.
struct Summed<T> {
    inner: T,
    hash: Sha256,
    len: u64,
}

impl<T> Summed<T> {
    fn new(inner: T) -> Self {
        Self {
            inner,
            hash: Sha256::new(),
            len: 0,
        }
    }

    fn note(&mut self, bytes: &[u8]) {
        self.hash.update(bytes);
        self.len += bytes.len() as u64;
    }
}

impl<T: Write> Write for Summed<T> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.note(bytes.get(..written).unwrap_or_default());
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl<T: Read> Read for Summed<T> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(out)?;
        self.note(out.get(..read).unwrap_or_default());
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn row(n: u64) -> Row {
        Row {
            key: format!("key-{n:04}").into_bytes(),
            mod_index: n,
            value: vec![u8::try_from(n % 251).unwrap(); 100],
        }
    }

    /// A snapshot of `count` rows, "sealed" by turning its sums around.
    fn snapshot(count: u64) -> Vec<u8> {
        let mut length = rows::Length::empty();
        (0..count)
            .map(row)
            .for_each(|row| length.add(&row.key, &row.value));
        let meta = Meta {
            id: "2-9-1".to_owned(),
            index: 9,
            size: length.0,
            ..Meta::default()
        };
        let each = |put: &mut PutRow<'_>| {
            (0..count)
                .map(row)
                .try_for_each(|row| put(&row.key, row.mod_index, &row.value))
        };
        let seal = |sums: &[u8]| Ok(sums.iter().rev().copied().collect());
        write(Vec::new(), &meta.stamp(), each, seal).unwrap()
    }

    fn read_all(bytes: &[u8]) -> Result<(Whole, Vec<Row>), ArchiveError> {
        let mut rows = Vec::new();
        let whole = read(bytes, |_, row| {
            rows.push(row);
            Ok(())
        })?;
        Ok((whole, rows))
    }

    #[test]
    fn a_snapshot_is_read_as_it_was_written() {
        for count in [0, 1, 3000] {
            let (whole, rows) = read_all(&snapshot(count)).unwrap();
            assert_eq!(rows, (0..count).map(row).collect::<Vec<_>>());
            assert_eq!(whole.rows.rows, count);
            assert_eq!((whole.meta.index, whole.meta.version), (9, 1));
            let turned: Vec<u8> = whole.sealed.iter().rev().copied().collect();
            assert_eq!(turned, whole.sums);
        }
    }

    #[test]
    fn the_file_is_what_other_tools_expect() {
        let bytes = snapshot(3);
        let mut tar = tar::Archive::new(GzDecoder::new(&bytes[..]));
        let names: Vec<String> = tar
            .entries()
            .unwrap()
            .map(|entry| entry.unwrap().path().unwrap().display().to_string())
            .collect();
        assert_eq!(names, [META, STATE, SUMS, SEALED]);
    }

    #[test]
    fn every_cut_is_refused() {
        let bytes = snapshot(20);
        for at in 0..bytes.len() {
            assert!(read_all(&bytes[..at]).is_err(), "cut at {at}");
        }
    }

    /// A few bits mean nothing: times and names in the gzip header, padding before a stored block.
    #[test]
    fn a_flipped_bit_is_refused_or_changes_nothing() {
        let bytes = snapshot(20);
        let (whole, rows) = read_all(&bytes).unwrap();
        let mut refused = 0;
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 1 << (at % 8);
            match read_all(&bad) {
                Err(_) => refused += 1,
                Ok((found, found_rows)) => {
                    assert_eq!(found_rows, rows, "flip at {at}");
                    assert_eq!(found.meta, whole.meta, "flip at {at}");
                    assert_eq!(found.sums, whole.sums, "flip at {at}");
                    assert_eq!(found.sealed, whole.sealed, "flip at {at}");
                }
            }
        }
        assert!(refused > bytes.len() - 50, "{refused} of {}", bytes.len());
    }

    #[test]
    fn other_files_are_told_apart() {
        let gz = |content: &[u8]| {
            let mut gzip = GzEncoder::new(Vec::new(), LEVEL);
            gzip.write_all(content).unwrap();
            gzip.finish().unwrap()
        };
        let tar = |name: &str, content: &[u8]| {
            let mut tar = Builder::new(Vec::new());
            tar.append(&header(name, content.len() as u64).unwrap(), content)
                .unwrap();
            tar.into_inner().unwrap()
        };
        for (bytes, want) in [
            (b"no gzip".to_vec(), "gzip: invalid header"),
            (Vec::new(), "gzip: invalid header"),
            (gz(b"short"), "cut off or damaged"),
            (gz(&tar("other", b"")), "not a snapshot of Strongroom"),
            (gz(&tar(META, b"{}")), "not a snapshot of Strongroom"),
            (gz(&tar(META, b"[")), "does not parse"),
            (
                gz(&tar(META, br#"{"Strongroom":{"format":9}}"#)),
                "it has format 9",
            ),
            (
                gz(&tar(META, br#"{"Strongroom":{"format":1}}"#)),
                "state.bin is missing",
            ),
        ] {
            let error = read_all(&bytes).unwrap_err().to_string();
            assert!(error.contains(want), "{error}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
            let _ = read_all(&bytes);
            let mut gzip = GzEncoder::new(Vec::new(), LEVEL);
            gzip.write_all(&bytes).unwrap();
            let _ = read_all(&gzip.finish().unwrap());
        }
    }
}

//! `operator storage inspect`: what is at rest in a stopped node's data directory, byte for byte.
//!
//! In: a data directory. Out: every stored key with its layer, length and a hex view; then the log entries that are
//! newer than anything in the state (after a crash they are applied at the next start). Nothing is decrypted, changed
//! or replayed.

use std::{
    io::{self, Write},
    path::Path,
    process::ExitCode,
};

use serde_json::json;
use strongroom_raft::{LogContent, Op, OpenError, ReadOnlyStores, Stores};
use strongroom_seal::inspect::{KeyName, ValueLayer, describe, describe_key};

/// Family of the replicated keys; the other one is Raft's own bookkeeping.
const REPLICATED: &str = "kv";

/// Why a data directory could not be shown.
#[derive(Debug, thiserror::Error)]
enum InspectError {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("reading the data failed")]
    Read(#[from] io::Error),
}

/// Prints the contents of `path`. 0: shown; 1: the directory is in use, damaged or none.
pub(crate) fn run(path: &Path, json: bool) -> ExitCode {
    let mut out = io::BufWriter::new(io::stdout().lock());
    let shown = Stores::open_read_only(path)
        .map_err(InspectError::from)
        .and_then(|stores| {
            if json {
                show_json(&stores, &mut out)
            } else {
                show_text(&stores, &mut out)
            }
        })
        .and_then(|()| Ok(out.flush()?));
    match shown {
        Ok(()) => ExitCode::SUCCESS,
        // The reader, `head` for one, has seen enough.
        Err(InspectError::Read(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("Error: {}", crate::server::chain(&error));
            ExitCode::FAILURE
        }
    }
}

/// One stored value, described.
struct Row {
    /// Where it was found: `state` or `log`.
    place: &'static str,
    key: Vec<u8>,
    name: String,
    layer: String,
    index: u64,
    value: Vec<u8>,
}

impl Row {
    fn new(place: &'static str, key: &[u8], index: u64, value: &[u8]) -> Self {
        Self {
            place,
            key: key.to_vec(),
            name: key_text(key),
            layer: layer_text(value),
            index,
            value: value.to_vec(),
        }
    }
}

/// Calls `each` for every row; memory stays constant whatever the size of the data.
fn rows(
    stores: &ReadOnlyStores,
    mut each: impl FnMut(Row) -> Result<(), InspectError>,
) -> Result<(), InspectError> {
    let mut newest = 0;
    for row in stores.state()? {
        let row = row?;
        if row.family != REPLICATED {
            continue;
        }
        newest = newest.max(row.mod_index);
        each(Row::new("state", &row.key, row.mod_index, &row.value))?;
    }
    for entry in stores.log()? {
        let entry = entry?;
        let LogContent::Command(command) = entry.content else {
            continue;
        };
        if entry.index <= newest {
            continue;
        }
        for op in command.ops {
            if let Op::Put { key, value } = op {
                each(Row::new("log", &key, entry.index, &value))?;
            }
        }
    }
    Ok(())
}

fn show_text(stores: &ReadOnlyStores, out: &mut impl Write) -> Result<(), InspectError> {
    let (mut state, mut log) = (0_u64, 0_u64);
    rows(stores, |row| {
        *if row.place == "state" {
            &mut state
        } else {
            &mut log
        } += 1;
        writeln!(
            out,
            "{}\n  layer    {}\n  length   {} bytes\n  written  log entry {}{}",
            row.name,
            row.layer,
            row.value.len(),
            row.index,
            if row.place == "log" {
                ", not yet in the state"
            } else {
                ""
            },
        )?;
        hex_view(&row.value, out)?;
        Ok(writeln!(out)?)
    })?;
    writeln!(
        out,
        "{state} keys in the state, {log} newer writes in the log"
    )?;
    Ok(())
}

fn show_json(stores: &ReadOnlyStores, out: &mut impl Write) -> Result<(), InspectError> {
    let mut separator = "[\n";
    rows(stores, |row| {
        let object = json!({
            "place": row.place,
            "key": row.name,
            "key_hex": hex::encode(&row.key),
            "layer": row.layer,
            "length": row.value.len(),
            "log_index": row.index,
            "value_hex": hex::encode(&row.value),
        });
        write!(out, "{separator}{object}")?;
        separator = ",\n";
        Ok(())
    })?;
    if separator == "[\n" {
        write!(out, "[")?;
    }
    writeln!(out, "\n]")?;
    Ok(())
}

fn key_text(key: &[u8]) -> String {
    match describe_key(key) {
        KeyName::Core(name) => name,
        KeyName::Encrypted(lengths) => {
            let lengths: Vec<String> = lengths.iter().map(ToString::to_string).collect();
            format!(
                "encrypted name {} (segments of {} bytes)",
                hex::encode(key),
                lengths.join(", ")
            )
        }
        KeyName::Unknown => format!("unknown key {}", hex::encode(key)),
    }
}

fn layer_text(value: &[u8]) -> String {
    match describe(value) {
        ValueLayer::Barrier {
            term,
            plaintext_len,
        } => format!("barrier, term {term} ({plaintext_len} bytes inside)"),
        ValueLayer::SealWrapped {
            suite,
            key_version,
            dek_id,
            inner_len,
        } => format!(
            "seal-wrapped by HSM key {key_version}, suite {suite}, data key {} ({inner_len} bytes of barrier \
             ciphertext inside)",
            hex::encode(dek_id)
        ),
        ValueLayer::HsmWhole {
            suite,
            key_version,
            ciphertext_len,
        } => format!(
            "encrypted in the HSM by key {key_version}, suite {suite} ({ciphertext_len} bytes)"
        ),
        ValueLayer::UnknownWrapped => {
            "seal-wrapped in a form this version does not know".to_owned()
        }
        ValueLayer::Plain => "plain core".to_owned(),
    }
}

/// Offset, sixteen bytes, and what of them is printable, as `hexdump -C` shows it.
fn hex_view(value: &[u8], out: &mut impl Write) -> io::Result<()> {
    for (line, bytes) in value.chunks(16).enumerate() {
        let hex: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let printable: String = bytes
            .iter()
            .map(|byte| match byte {
                0x20..=0x7e => char::from(*byte),
                _ => '.',
            })
            .collect();
        writeln!(
            out,
            "  {:08x}  {:<47}  |{printable}|",
            line * 16,
            hex.join(" ")
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hex_view_shows_offset_bytes_and_text() {
        let mut out = Vec::new();
        hex_view(b"\x00Strongroom \xff holds", &mut out).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "  00000000  00 53 74 72 6f 6e 67 72 6f 6f 6d 20 ff 20 68 6f  |.Strongroom . ho|\n  \
             00000010  6c 64 73                                         |lds|\n"
        );
    }

    #[test]
    fn a_directory_that_is_no_data_directory_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(
            format!("{:?}", run(dir.path(), false)),
            format!("{:?}", ExitCode::FAILURE)
        );
    }
}

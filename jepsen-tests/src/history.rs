//! What clients saw of a set of registers, as it is kept and handed on.
//!
//! One operation is a read, a write of a value that nothing else writes, or a delete. Kept as JSON lines in Jepsen's form:
//! one line for each call (`invoke`) and one for each answer (`ok`, or `info` when the outcome is not known), in the
//! order of time, so that other checkers can judge the same history.
//!
//! Invariants
//! - Absent is a value, -1 in the file: a checker that takes a read of nothing for a read that failed does not see that
//!   everything is lost.
//! - An operation that certainly was not carried out, and a read without an answer, are not recorded.

use std::{
    collections::{BTreeMap, HashMap},
    io::{self, BufRead, Write},
};

use serde_json::{Value, json};

/// Value of a register that has never been written, or was deleted.
pub const ABSENT: u64 = 0;

/// What was done to a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Wrote a value that nothing else writes; never [`ABSENT`].
    Write(u64),
    /// Removed whatever was there.
    Delete,
    /// Read this value.
    Read(u64),
}

/// One operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Op {
    /// Which client. After an operation of unknown outcome a client goes on under another number.
    pub process: u64,
    /// Which register.
    pub key: usize,
    /// What was done.
    pub action: Action,
    /// Nanoseconds from the start of the history to just before the first byte was sent; more than 0.
    pub start: u64,
    /// Nanoseconds to just after the last byte of the answer was read; `None` for a change without a clear answer: it
    /// may take effect at any later time, or never.
    pub end: Option<u64>,
}

/// The operations on each register.
#[must_use]
pub fn by_key(ops: &[Op]) -> BTreeMap<usize, Vec<Op>> {
    let mut registers: BTreeMap<usize, Vec<Op>> = BTreeMap::new();
    for op in ops {
        registers.entry(op.key).or_default().push(*op);
    }
    registers
}

/// Writes the history, one event a line, in the order of time.
///
/// # Errors
/// As the writer.
pub fn write_lines(ops: &[Op], to: &mut impl Write) -> io::Result<()> {
    let mut events: Vec<(u64, bool, &Op)> = Vec::with_capacity(ops.len() * 2);
    for op in ops {
        events.push((op.start, false, op));
        events.push((op.end.unwrap_or(u64::MAX), true, op));
    }
    // Of a call and an answer at the same moment the call comes first: they overlap.
    events.sort_by_key(|(time, answer, _)| (*time, *answer));
    let last = ops
        .iter()
        .filter_map(|op| op.end)
        .chain(ops.iter().map(|op| op.start))
        .max()
        .unwrap_or_default();
    for (index, (time, answer, op)) in events.into_iter().enumerate() {
        let (f, value) = match op.action {
            Action::Write(value) => ("write", json!(value)),
            Action::Delete => ("delete", Value::Null),
            Action::Read(_) if !answer => ("read", Value::Null),
            Action::Read(ABSENT) => ("read", json!(-1)),
            Action::Read(value) => ("read", json!(value)),
        };
        let kind = match (answer, op.end) {
            (false, _) => "invoke",
            (true, Some(_)) => "ok",
            (true, None) => "info",
        };
        let line = json!({
            "index": index, "time": time.min(last + 1), "process": op.process, "type": kind, "f": f,
            "key": op.key, "value": value,
        });
        writeln!(to, "{line}")?;
    }
    Ok(())
}

/// Reads what [`write_lines`] has written.
///
/// # Errors
/// `InvalidData`, with the line's number, for anything that is no such history.
pub fn read_lines(from: impl BufRead) -> io::Result<Vec<Op>> {
    let mut ops: Vec<Op> = Vec::new();
    let mut under_way: HashMap<u64, usize> = HashMap::new();
    for (at, line) in from.lines().enumerate() {
        let line: Value = serde_json::from_str(&line?).map_err(|error| malformed(at, &error))?;
        let number = |name: &str| {
            line[name]
                .as_u64()
                .ok_or_else(|| malformed(at, &format!("no number {name}")))
        };
        let process = number("process")?;
        match line["type"].as_str() {
            Some("invoke") => {
                let action = match line["f"].as_str() {
                    Some("write") => Action::Write(number("value")?),
                    Some("delete") => Action::Delete,
                    Some("read") => Action::Read(ABSENT),
                    _ => return Err(malformed(at, &"an unknown f")),
                };
                if under_way.insert(process, ops.len()).is_some() {
                    return Err(malformed(at, &"two operations of one process at once"));
                }
                ops.push(Op {
                    process,
                    key: usize::try_from(number("key")?).map_err(|error| malformed(at, &error))?,
                    action,
                    start: number("time")?,
                    end: None,
                });
            }
            Some(kind @ ("ok" | "info")) => {
                let op = under_way
                    .remove(&process)
                    .and_then(|op| ops.get_mut(op))
                    .ok_or_else(|| malformed(at, &"an answer to nothing"))?;
                if kind == "ok" {
                    op.end = Some(number("time")?);
                    if let Action::Read(value) = &mut op.action {
                        *value = if line["value"] == -1 {
                            ABSENT
                        } else {
                            number("value")?
                        };
                    }
                }
            }
            _ => return Err(malformed(at, &"an unknown type")),
        }
    }
    Ok(ops)
}

fn malformed(at: usize, why: &dyn std::fmt::Display) -> io::Error {
    let line = at + 1;
    io::Error::new(io::ErrorKind::InvalidData, format!("line {line}: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_back_as_they_were() {
        let op = |process, action, start, end| Op {
            process,
            key: 3,
            action,
            start,
            end,
        };
        let ops = [
            op(0, Action::Write(7), 1, Some(5)),
            op(1, Action::Read(ABSENT), 2, Some(3)),
            op(2, Action::Delete, 4, None),
            op(1, Action::Read(7), 6, Some(9)),
            op(0, Action::Write(8), 7, None),
        ];
        let mut file = Vec::new();
        write_lines(&ops, &mut file).unwrap();
        let text = String::from_utf8(file.clone()).unwrap();
        assert!(text.contains("\"value\":-1"), "absent is a value:\n{text}");
        assert_eq!(read_lines(file.as_slice()).unwrap(), ops);
    }

    #[test]
    fn what_is_no_history_is_refused() {
        for text in [
            "x",
            "{}",
            r#"{"process":1,"type":"ok","f":"read","key":0,"value":1,"time":2}"#,
            r#"{"process":1,"type":"invoke","f":"jump","key":0,"value":1,"time":2}"#,
            r#"{"process":1,"type":"invoke","f":"write","key":0,"value":null,"time":2}"#,
        ] {
            assert!(read_lines(text.as_bytes()).is_err(), "{text}");
        }
    }
}

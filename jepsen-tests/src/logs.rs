//! What a node may say about itself: nothing at WARN or ERROR that a test did not expect, and never a panic.

use std::{fs, path::Path};

/// What nodes log that start together and join one another: each may be asked before it is ready.
pub const STARTING: &[&str] = &[
    "joining:",
    "no connection to a member",
    "a membership change did not work out",
];

/// What a node logs, besides, when other nodes stop and start.
pub const NODES_AWAY: &[&str] = &[
    "joining:",
    "no connection to a member",
    "a membership change did not work out",
    "leadership was not handed over",
    "it was elected meanwhile",
];

/// What a node logs while its HSM is away or does not fit.
pub const HSM_AWAY: &[&str] = &["HSM"];

/// What any node may log on a machine whose disk hangs for a second.
const SLOW_DISK: &str = "this node should not lead";

/// Lines of `log` at WARN or ERROR that hold none of `allowed`, and every line about a panic.
#[must_use]
pub fn surprises(log: &Path, allowed: &[&str]) -> Vec<String> {
    let text = String::from_utf8_lossy(&fs::read(log).unwrap_or_default()).into_owned();
    text.lines()
        .filter(|line| is_surprise(line, allowed))
        .map(str::to_owned)
        .collect()
}

/// Lines of `log` about a panic.
#[must_use]
pub fn panics(log: &Path) -> Vec<String> {
    let text = String::from_utf8_lossy(&fs::read(log).unwrap_or_default()).into_owned();
    text.lines()
        .filter(|line| is_panic(line))
        .map(str::to_owned)
        .collect()
}

fn is_panic(line: &str) -> bool {
    line.contains("panicked") || line.contains("stack backtrace")
}

fn is_surprise(line: &str, allowed: &[&str]) -> bool {
    if is_panic(line) {
        return true;
    }
    let mut words = line.split_whitespace().take(3);
    let bad = words.any(|word| matches!(word.trim_matches(['[', ']']), "WARN" | "ERROR"));
    bad && !line.contains(SLOW_DISK) && !allowed.iter().any(|ok| line.contains(ok))
}

/// The last lines of `log`, for a person.
#[must_use]
pub fn tail(log: &Path, lines: usize) -> String {
    let text = String::from_utf8_lossy(&fs::read(log).unwrap_or_default()).into_owned();
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_expected_warnings_pass() {
        for (line, allowed, surprise) in [
            (
                "2026-11-23T21:00:00Z  INFO strongroom: the node serves",
                &[][..],
                false,
            ),
            ("2026-11-23T21:00:00Z  WARN strongroom: odd", &[], true),
            (
                "2026-11-23T21:00:00Z  WARN strongroom: odd",
                &["odd"],
                false,
            ),
            ("2026-11-23T21:00:00Z ERROR strongroom: bad", &["odd"], true),
            (
                "2026-11-23T21:00:00.123Z [ERROR] strongroom: bad",
                &[],
                true,
            ),
            (
                "thread 'main' panicked at src/main.rs:1:1",
                &["thread"],
                true,
            ),
            (
                "2026-11-23T21:00:00Z  INFO strongroom: an ERROR in the text",
                &[],
                false,
            ),
        ] {
            assert_eq!(is_surprise(line, allowed), surprise, "{line}");
        }
    }
}

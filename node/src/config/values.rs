//! Scalars as Vault accepts them: booleans and numbers also in quotes, durations as `30s`, `1h30m`, `1d` or seconds.

use std::time::Duration;

/// Longest duration taken: a hundred years. Keeps sums with it in range.
const MAX_SECONDS: f64 = 100.0 * 366.0 * 86_400.0;

/// A boolean as Go's `strconv.ParseBool` reads it; the empty text is false.
pub(crate) fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "" | "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// A duration: digits alone are seconds, else a sum of numbers with units (`ns`, `us`, `ms`, `s`, `m`, `h`, `d`).
/// Negative and absurdly long ones are refused.
pub(crate) fn parse_duration(text: &str) -> Option<Duration> {
    let text = text.trim();
    if text.is_empty() {
        return None;
    }
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        return seconds(text.parse().ok()?);
    }
    let mut rest = text;
    let mut total = 0.0;
    while !rest.is_empty() {
        let digits = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(rest.len());
        let (number, tail) = rest.split_at(digits);
        let unit_end = tail
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_end);
        let number: f64 = number.parse().ok()?;
        total += number * unit_seconds(unit)?;
        rest = tail;
    }
    seconds(total)
}

fn unit_seconds(unit: &str) -> Option<f64> {
    Some(match unit {
        "ns" => 1e-9,
        "us" | "µs" | "μs" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        "d" => 86_400.0,
        _ => return None,
    })
}

fn seconds(value: f64) -> Option<Duration> {
    (value <= MAX_SECONDS)
        .then(|| Duration::try_from_secs_f64(value).ok())
        .flatten()
}

/// Bytes from hex, with or without `0x`; at least one.
pub(super) fn parse_hex(text: &str) -> Option<Vec<u8>> {
    let digits = text
        .strip_prefix("0x")
        .or_else(|| text.strip_prefix("0X"))
        .unwrap_or(text);
    hex::decode(digits).ok().filter(|bytes| !bytes.is_empty())
}

/// An unsigned number, decimal or `0x…`.
pub(super) fn parse_number(text: &str) -> Option<u64> {
    let text = text.trim();
    match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

/// The candidate that `word` was probably meant to be.
pub(super) fn nearest<'a>(word: &str, candidates: &[&'a str]) -> Option<&'a str> {
    let word = word.to_ascii_lowercase().replace('-', "_");
    let allowed = word.chars().count().div_ceil(3).min(3);
    candidates
        .iter()
        .map(|candidate| (distance(&word, candidate), *candidate))
        .filter(|(distance, _)| *distance <= allowed)
        .min()
        .map(|(_, candidate)| candidate)
}

/// Levenshtein's distance.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut next = vec![i + 1];
        for (to, pair) in b.iter().zip(row.windows(2)) {
            let &[diagonal, above] = pair else { continue };
            let left = next.last().copied().unwrap_or(usize::MAX);
            let change = diagonal + usize::from(from != *to);
            next.push(change.min(above + 1).min(left.saturating_add(1)));
        }
        row = next;
    }
    row.last().copied().unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, want) in [
            ("30", Some(30_000)),
            ("30s", Some(30_000)),
            ("1h", Some(3_600_000)),
            ("1h30m", Some(5_400_000)),
            ("1.5h", Some(5_400_000)),
            ("250ms", Some(250)),
            ("2d", Some(172_800_000)),
            ("0", Some(0)),
            ("", None),
            ("-5s", None),
            ("5", Some(5_000)),
            ("5 s", None),
            ("s", None),
            ("1x", None),
            ("1s2", None),
            ("1..5s", None),
            ("99999999999999999999h", None),
        ] {
            let got = parse_duration(text).map(|d| d.as_millis());
            assert_eq!(got, want, "{text:?}");
        }
    }

    #[test]
    fn booleans_and_numbers() {
        for (text, want) in [
            ("true", Some(true)),
            ("1", Some(true)),
            ("F", Some(false)),
            ("", Some(false)),
            ("yes", None),
        ] {
            assert_eq!(parse_bool(text), want, "{text:?}");
        }
        for (text, want) in [
            ("12", Some(12)),
            ("0x1f", Some(31)),
            ("-1", None),
            ("1.5", None),
            ("", None),
        ] {
            assert_eq!(parse_number(text), want, "{text:?}");
        }
        for (text, want) in [
            ("0x33ff", Some(vec![0x33, 0xff])),
            ("ab", Some(vec![0xab])),
            ("0x", None),
            ("abc", None),
            ("zz", None),
        ] {
            assert_eq!(parse_hex(text), want, "{text:?}");
        }
    }

    #[test]
    fn suggestions() {
        let known = ["address", "cluster_address", "tls_disable", "ui"];
        for (word, want) in [
            ("adress", Some("address")),
            ("tls_disabled", Some("tls_disable")),
            ("TLS-Disable", Some("tls_disable")),
            ("uj", Some("ui")),
            ("nothing_like_it", None),
        ] {
            assert_eq!(nearest(word, &known), want, "{word}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics(text in "[0-9.a-zµ-]{0,30}|.{0,30}", other in ".{0,10}") {
            let _ = (parse_duration(&text), parse_bool(&text), parse_number(&text), parse_hex(&text));
            let _ = nearest(&text, &[&other]);
        }
    }
}

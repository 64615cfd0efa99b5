//! Durations as Vault's clients write them: a number of seconds, or `1h30m`, `45s`, `7d`.

use std::{fmt::Write as _, time::Duration};

use serde_json::Value;

/// Seconds in `value`, `None` if it is no duration.
#[must_use]
pub fn seconds(value: &Value) -> Option<u64> {
    match value {
        Value::Number(number) => number.as_u64(),
        Value::String(text) => parse(text),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    }
}

/// Seconds in `text`; parts add up, milliseconds and smaller round down.
#[must_use]
pub fn parse(text: &str) -> Option<u64> {
    let text = text.trim();
    if let Ok(seconds) = text.parse::<u64>() {
        return Some(seconds);
    }
    if text.is_empty() {
        return None;
    }
    let mut rest = text;
    let mut nanos: u128 = 0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let (number, tail) = rest.split_at(digits);
        let unit_len = tail
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_len);
        let unit: u128 = match unit {
            "ns" => 1,
            "us" | "µs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            "d" => 86_400_000_000_000,
            _ => return None,
        };
        let number: u64 = number.parse().ok()?;
        nanos = nanos.checked_add(u128::from(number).checked_mul(unit)?)?;
        rest = tail;
    }
    u64::try_from(nanos / 1_000_000_000).ok()
}

/// A duration as Go prints it: `24h0m0s`, `1.5s`, `5.04ms`, `0s`.
#[must_use]
pub fn go(duration: Duration) -> String {
    let nanos = duration.as_nanos();
    match nanos {
        0 => return "0s".to_owned(),
        1..1_000 => return format!("{nanos}ns"),
        1_000..1_000_000 => return format!("{}µs", decimal(nanos, 1_000)),
        1_000_000..1_000_000_000 => return format!("{}ms", decimal(nanos, 1_000_000)),
        _ => {}
    }
    let (hours, rest) = (nanos / 3_600_000_000_000, nanos % 3_600_000_000_000);
    let (minutes, rest) = (rest / 60_000_000_000, rest % 60_000_000_000);
    let mut text = String::new();
    // Writing to a String cannot fail.
    if hours > 0 {
        let _ = write!(text, "{hours}h");
    }
    if hours > 0 || minutes > 0 {
        let _ = write!(text, "{minutes}m");
    }
    let _ = write!(text, "{}s", decimal(rest, 1_000_000_000));
    text
}

/// `value / unit` with as many digits as it takes; `unit` is a power of ten.
fn decimal(value: u128, unit: u128) -> String {
    let (whole, fraction) = (value / unit, value % unit);
    if fraction == 0 {
        return whole.to_string();
    }
    let width = unit.ilog10() as usize;
    let digits = format!("{fraction:0width$}");
    format!("{whole}.{}", digits.trim_end_matches('0'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_as_go_does() {
        for (nanos, want) in [
            (0, "0s"),
            (1, "1ns"),
            (1_500, "1.5µs"),
            (5_041_773, "5.041773ms"),
            (999_000_000, "999ms"),
            (2_005_054_482, "2.005054482s"),
            (10_000_000_000, "10s"),
            (120_000_000_000, "2m0s"),
            (3_723_000_000_000, "1h2m3s"),
            (86_400_000_000_000, "24h0m0s"),
        ] {
            assert_eq!(go(Duration::from_nanos(nanos)), want);
        }
    }

    #[test]
    fn reads_what_clients_send() {
        for (text, want) in [
            ("0", Some(0)),
            ("3600", Some(3600)),
            ("0s", Some(0)),
            ("30s", Some(30)),
            ("1h30m", Some(5400)),
            ("768h0m0s", Some(2_764_800)),
            ("7d", Some(604_800)),
            ("1500ms", Some(1)),
            ("", None),
            ("h", None),
            ("1x", None),
            ("-1s", None),
            ("1h-3m", None),
            ("99999999999999999999h", None),
        ] {
            assert_eq!(parse(text), want, "{text:?}");
        }
    }
}

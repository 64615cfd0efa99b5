//! Wall time: the one place that reads it.
//!
//! Everything that must agree between nodes is chosen by the leader from here and travels in the command.

use std::time::{SystemTime, UNIX_EPOCH};

/// Milliseconds since the Unix epoch; 0 for a clock set before it.
#[expect(
    clippy::disallowed_methods,
    reason = "the one place that reads wall time"
)]
pub(crate) fn now_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX))
}

/// RFC 3339 form of a time in milliseconds since the Unix epoch, UTC.
pub(crate) fn rfc3339(ms: u64) -> String {
    let ms = i64::try_from(ms).unwrap_or(i64::MAX);
    jiff::Timestamp::from_millisecond(ms).map_or_else(|_| String::new(), |t| t.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_as_rfc3339() {
        for (ms, want) in [
            (0, "1970-01-01T00:00:00Z"),
            (1_795_455_635_159, "2026-11-23T17:40:35.159Z"),
        ] {
            assert_eq!(rfc3339(ms), want);
        }
    }
}

//! The two forms of `sys/metrics`: Prometheus's text format, and JSON as go-metrics writes it.

use std::{collections::BTreeMap, fmt::Write as _};

use serde_json::{Value, json};

use super::{
    Gauge, REGISTRY, Series,
    registry::{Distribution, Reading},
};

/// Vault's name of what is counted under ours; times are milliseconds there.
const ALIASES: &[(&str, &str, f64)] = &[
    (
        "strongroom.http_request_seconds",
        "vault.core.handle_request",
        1000.0,
    ),
    ("strongroom.commit_seconds", "vault.raft.commitTime", 1000.0),
    (
        "strongroom.log_sync_seconds",
        "vault.raft.leader.dispatchLog",
        1000.0,
    ),
    ("strongroom.apply_seconds", "vault.raft.fsm.apply", 1000.0),
    (
        "strongroom.apply_seconds",
        "vault.raft.fsm.applyBatch",
        1000.0,
    ),
    (
        "strongroom.apply_entries",
        "vault.raft.fsm.applyBatchNum",
        1.0,
    ),
    (
        "strongroom.leader_contact_seconds",
        "vault.raft.leader.lastContact",
        1000.0,
    ),
];
/// Vault's name of a counter, and ours with the labels it must have.
const COUNTER_ALIASES: &[(&str, &str, &str)] = &[
    ("strongroom.log_entries_total", "", "vault.raft.apply"),
    (
        "strongroom.role_changes_total",
        "leader",
        "vault.raft.state.leader",
    ),
    (
        "strongroom.role_changes_total",
        "follower",
        "vault.raft.state.follower",
    ),
    (
        "strongroom.role_changes_total",
        "none",
        "vault.raft.transition.heartbeat_timeout",
    ),
];
/// Powers of two that times are counted up to: 8 µs to 64 s.
const TIMES: std::ops::RangeInclusive<i32> = -17..=6;
/// The same for everything else.
const NUMBERS: std::ops::RangeInclusive<i32> = 0..=16;
const QUANTILES: [(&str, f64); 3] = [("0.5", 0.5), ("0.9", 0.9), ("0.99", 0.99)];

/// How names begin and what is beside them: the `telemetry` stanza.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Naming {
    /// Stands for `vault`.
    pub(crate) prefix: String,
    /// Label `host` of everything, if wanted.
    pub(crate) host: Option<String>,
}

impl Naming {
    fn series(&self, series: &Series) -> Series {
        let mut series = series.clone();
        if let Some(rest) = series.name.strip_prefix("vault.") {
            series.name = format!("{}.{rest}", self.prefix);
        }
        if let Some(host) = &self.host {
            series.labels.push(("host".to_owned(), host.clone()));
        }
        series
    }
}

/// Under which labels several series of ours are one of Vault's.
fn aliases(reading: &Reading) -> BTreeMap<&'static str, (Distribution, f64)> {
    let mut all: BTreeMap<&'static str, (Distribution, f64)> = BTreeMap::new();
    for (ours, vaults, scale) in ALIASES {
        for (series, distribution) in &reading.distributions {
            if series.name == *ours {
                let (sum, _) = all
                    .entry(vaults)
                    .or_insert((Distribution::default(), *scale));
                *sum = sum.plus(distribution);
            }
        }
    }
    all
}

fn counter_aliases(reading: &Reading) -> BTreeMap<&'static str, u64> {
    let mut all = BTreeMap::new();
    for (ours, label, vaults) in COUNTER_ALIASES {
        for (series, count) in &reading.counters {
            let fits = label.is_empty() || series.labels.iter().any(|(_, value)| value == label);
            if series.name == *ours && fits {
                *all.entry(*vaults).or_insert(0) += count;
            }
        }
    }
    all
}

fn bare(name: &str) -> Series {
    Series {
        name: name.to_owned(),
        labels: Vec::new(),
    }
}

/// One family in Prometheus's format: its lines, under one heading.
struct Family {
    kind: &'static str,
    help: String,
    lines: Vec<String>,
}

struct Page<'a> {
    naming: &'a Naming,
    families: BTreeMap<String, Family>,
}

impl Page<'_> {
    /// Adds a line for `series`; `suffix` stands behind its name, `extra` is one more label.
    fn line(
        &mut self,
        kind: &'static str,
        help: &str,
        series: &Series,
        suffix: &str,
        extra: Option<(&str, &str)>,
        value: f64,
    ) {
        let series = self.naming.series(series);
        let name = prometheus_name(&series.name);
        let mut labels = String::new();
        let own = series.labels.iter().map(|(k, v)| (k.as_str(), v.as_str()));
        for (key, text) in own.chain(extra) {
            let separator = if labels.is_empty() { "" } else { "," };
            // Writing to a String cannot fail.
            let _ = write!(
                labels,
                "{separator}{}=\"{}\"",
                prometheus_name(key),
                escape(text)
            );
        }
        let labels = if labels.is_empty() {
            labels
        } else {
            format!("{{{labels}}}")
        };
        let family = self.families.entry(name.clone()).or_insert_with(|| Family {
            kind,
            help: help.replace('\n', " "),
            lines: Vec::new(),
        });
        family
            .lines
            .push(format!("{name}{suffix}{labels} {}", number(value)));
    }

    fn finish(self) -> String {
        let mut page = String::new();
        for (name, family) in self.families {
            let help = if family.help.is_empty() {
                &name
            } else {
                &family.help
            };
            // Writing to a String cannot fail.
            let _ = writeln!(page, "# HELP {name} {help}");
            let _ = writeln!(page, "# TYPE {name} {}", family.kind);
            for line in family.lines {
                page.push_str(&line);
                page.push('\n');
            }
        }
        page
    }
}

/// Letters, digits and underscores.
fn prometheus_name(name: &str) -> String {
    let fits = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
    name.chars().map(fits).collect()
}

fn escape(text: &str) -> String {
    text.replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

fn number(value: f64) -> String {
    if value.is_nan() {
        "NaN".to_owned()
    } else {
        value.to_string()
    }
}

#[expect(clippy::cast_precision_loss, reason = "shown to people")]
fn float(count: u64) -> f64 {
    count as f64
}

/// Everything in Prometheus's text format, version 0.0.4.
pub(crate) fn prometheus(gauges: &[Gauge], naming: &Naming, now_ms: u64) -> String {
    let reading = REGISTRY.read(now_ms);
    let oldest = REGISTRY.oldest().unwrap_or_default();
    let help = |name: &str| REGISTRY.help(name).unwrap_or_default();
    prometheus_page(gauges, naming, &reading, &oldest, help)
}

fn prometheus_page(
    gauges: &[Gauge],
    naming: &Naming,
    reading: &Reading,
    oldest: &Reading,
    help: impl Fn(&str) -> String,
) -> String {
    let mut page = Page {
        naming,
        families: BTreeMap::new(),
    };
    for gauge in gauges {
        let kind = if gauge.series.name.ends_with("_total") {
            "counter"
        } else {
            "gauge"
        };
        page.line(kind, gauge.help, &gauge.series, "", None, gauge.value);
    }
    for (series, value) in &reading.gauges {
        page.line("gauge", &help(&series.name), series, "", None, *value);
    }
    for (series, count) in &reading.counters {
        let text = help(&series.name);
        page.line("counter", &text, series, "", None, float(*count));
    }
    for (name, count) in counter_aliases(reading) {
        page.line("counter", "", &bare(name), "", None, float(count));
    }
    for (series, distribution) in &reading.distributions {
        histogram(&mut page, &help(&series.name), series, distribution);
    }
    let before = aliases(oldest);
    for (name, (distribution, scale)) in aliases(reading) {
        let lately = distribution.since(before.get(name).map(|(earlier, _)| earlier));
        summary(&mut page, name, &distribution, &lately, scale);
    }
    page.finish()
}

fn histogram(page: &mut Page<'_>, help: &str, series: &Series, distribution: &Distribution) {
    let kind = "histogram";
    let powers = if series.name.ends_with("_seconds") {
        TIMES
    } else {
        NUMBERS
    };
    for power in powers {
        let limit = 2f64.powi(power);
        let upto = float(distribution.upto(limit));
        let le = limit.to_string();
        page.line(kind, help, series, "_bucket", Some(("le", &le)), upto);
    }
    let count = float(distribution.count);
    page.line(kind, help, series, "_bucket", Some(("le", "+Inf")), count);
    page.line(kind, help, series, "_sum", None, distribution.sum);
    page.line(kind, help, series, "_count", None, count);
}

/// As go-metrics shows it: quantiles of the last minute, sum and count of all.
fn summary(page: &mut Page<'_>, name: &str, all: &Distribution, lately: &Distribution, scale: f64) {
    let (kind, series) = ("summary", bare(name));
    for (label, share) in QUANTILES {
        let value = lately
            .quantile(share)
            .map_or(f64::NAN, |value| value * scale);
        page.line(kind, "", &series, "", Some(("quantile", label)), value);
    }
    page.line(kind, "", &series, "_sum", None, all.sum * scale);
    page.line(kind, "", &series, "_count", None, float(all.count));
}

/// The last whole interval as go-metrics' JSON.
pub(crate) fn json(gauges: &[Gauge], naming: &Naming, now_ms: u64) -> Value {
    let (begin, end) = REGISTRY.last_interval().unwrap_or_else(|| {
        // The first interval has not ended: what there is since the start.
        (Reading::default(), REGISTRY.read(now_ms))
    });
    json_page(gauges, naming, &begin, &end)
}

fn json_page(gauges: &[Gauge], naming: &Naming, begin: &Reading, end: &Reading) -> Value {
    let labels = |series: &Series| -> Value {
        let pairs = series.labels.iter();
        pairs
            .map(|(key, value)| (key.clone(), Value::from(value.as_str())))
            .collect::<serde_json::Map<_, _>>()
            .into()
    };
    let taken = gauges.iter().map(|gauge| (&gauge.series, gauge.value));
    let kept = end.gauges.iter().map(|(series, value)| (series, *value));
    let all_gauges: Vec<Value> = taken
        .chain(kept)
        .map(|(series, value)| {
            let series = naming.series(series);
            json!({ "Name": series.name, "Value": value, "Labels": labels(&series) })
        })
        .collect();
    let seconds = float(end.at_ms.saturating_sub(begin.at_ms)).max(1.0) / 1000.0;
    let counter_before = counter_aliases(begin);
    let aliased = counter_aliases(end).into_iter().map(|(name, count)| {
        let before = counter_before.get(name).copied().unwrap_or(0);
        (bare(name), count.saturating_sub(before))
    });
    let own = end.counters.iter().map(|(series, count)| {
        let before = begin.counters.get(series).copied().unwrap_or(0);
        (series.clone(), count.saturating_sub(before))
    });
    let counters: Vec<Value> = own
        .chain(aliased)
        .filter(|(_, count)| *count > 0)
        .map(|(series, count)| {
            let series = naming.series(&series);
            let sum = float(count);
            json!({
                "Name": series.name, "Count": count, "Rate": sum / seconds, "Sum": sum,
                "Min": 1, "Max": 1, "Mean": 1, "Stddev": 0, "Labels": labels(&series),
            })
        })
        .collect();
    let before = aliases(begin);
    let aliased = aliases(end).into_iter().map(|(name, (all, scale))| {
        let came = all.since(before.get(name).map(|(earlier, _)| earlier));
        (bare(name), came, scale)
    });
    let own = end.distributions.iter().map(|(series, all)| {
        let came = all.since(begin.distributions.get(series));
        (series.clone(), came, 1.0)
    });
    let samples: Vec<Value> = own
        .chain(aliased)
        .filter(|(_, came, _)| came.count > 0)
        .map(|(series, came, scale)| {
            let series = naming.series(&series);
            let (mean, deviation) = came.spread();
            let quantile = |share| came.quantile(share).unwrap_or(0.0) * scale;
            json!({
                "Name": series.name, "Count": came.count, "Rate": came.sum * scale / seconds,
                "Sum": came.sum * scale, "Min": quantile(0.0), "Max": quantile(1.0),
                "Mean": mean * scale, "Stddev": deviation * scale, "Labels": labels(&series),
            })
        })
        .collect();
    json!({
        "Timestamp": timestamp(begin.at_ms),
        "Gauges": all_gauges,
        "Points": [],
        "Counters": counters,
        "Samples": samples,
    })
}

/// As Go prints a time: `2026-11-25 13:01:10 +0000 UTC`.
fn timestamp(ms: u64) -> String {
    let text = crate::clock::rfc3339(ms / 1000 * 1000);
    let (date, time) = text.split_once('T').unwrap_or((&text, ""));
    format!("{date} {} +0000 UTC", time.trim_end_matches('Z'))
}

#[cfg(test)]
mod tests {
    use metrics::{Key, Metadata, Recorder as _};

    use super::{
        super::registry::{Listener, Registry},
        *,
    };

    fn naming(host: Option<&str>) -> Naming {
        Naming {
            prefix: "vault".to_owned(),
            host: host.map(str::to_owned),
        }
    }

    /// Two commits, one request, one gauge.
    fn reading() -> Reading {
        let registry: &'static Registry = Box::leak(Box::default());
        let listener = Listener(registry);
        let metadata = Metadata::new("", metrics::Level::INFO, None);
        let times = Key::from_name("strongroom.commit_seconds");
        let times = listener.register_histogram(&times, &metadata);
        times.record(0.25);
        times.record(2.0);
        let key = Key::from_parts("strongroom.refused_total", &[("why", "a\"b")]);
        listener.register_counter(&key, &metadata).increment(3);
        registry.read(10_000)
    }

    fn gauge() -> Gauge {
        Gauge {
            series: bare("vault.core.unsealed"),
            value: 1.0,
            help: "1 while the node is unsealed",
        }
    }

    #[test]
    fn prometheus_gets_histograms_of_ours_and_summaries_of_vaults() {
        let page = prometheus_page(
            &[gauge()],
            &naming(None),
            &reading(),
            &Reading::default(),
            |_| "words".to_owned(),
        );
        for line in [
            "# HELP vault_core_unsealed 1 while the node is unsealed",
            "# TYPE vault_core_unsealed gauge",
            "vault_core_unsealed 1",
            "# TYPE strongroom_commit_seconds histogram",
            "strongroom_commit_seconds_bucket{le=\"0.125\"} 0",
            "strongroom_commit_seconds_bucket{le=\"0.25\"} 1",
            "strongroom_commit_seconds_bucket{le=\"2\"} 2",
            "strongroom_commit_seconds_bucket{le=\"+Inf\"} 2",
            "strongroom_commit_seconds_sum 2.25",
            "strongroom_commit_seconds_count 2",
            "# TYPE vault_raft_commitTime summary",
            "vault_raft_commitTime{quantile=\"0.5\"} 250",
            "vault_raft_commitTime{quantile=\"0.99\"} 2000",
            "vault_raft_commitTime_sum 2250",
            "vault_raft_commitTime_count 2",
            "strongroom_refused_total{why=\"a\\\"b\"} 3",
        ] {
            assert!(page.lines().any(|l| l == line), "{line}\n{page}");
        }
        let types = page.lines().filter(|l| l.starts_with("# TYPE"));
        let mut names: Vec<_> = types.collect();
        let all = names.len();
        names.dedup();
        assert_eq!(names.len(), all, "each family has one heading");
    }

    #[test]
    fn json_is_go_metrics() {
        let page = json_page(
            &[gauge()],
            &naming(Some("h")),
            &Reading::default(),
            &reading(),
        );
        assert_eq!(page["Timestamp"], "1970-01-01 00:00:00 +0000 UTC");
        assert_eq!(
            page["Gauges"][0],
            json!({"Name": "vault.core.unsealed", "Value": 1.0, "Labels": {"host": "h"}})
        );
        let samples = page["Samples"].as_array().unwrap();
        let commits = samples
            .iter()
            .find(|s| s["Name"] == "vault.raft.commitTime");
        let commits = commits.unwrap();
        assert_eq!(commits["Count"], 2);
        assert_eq!(commits["Sum"], 2250.0);
        assert_eq!(commits["Mean"], 1125.0);
        assert_eq!(commits["Max"], 2000.0);
        let refused = &page["Counters"][0];
        assert_eq!(refused["Count"], 3);
        assert_eq!(refused["Labels"]["why"], "a\"b");
    }

    #[test]
    fn another_prefix_stands_for_vaults() {
        let naming = Naming {
            prefix: "bank".to_owned(),
            host: None,
        };
        for (name, want) in [
            ("vault.core.active", "bank.core.active"),
            ("strongroom.x", "strongroom.x"),
        ] {
            assert_eq!(naming.series(&bare(name)).name, want);
        }
    }
}

//! `telemetry`, at the top and in a listener.

use std::time::Duration;

use strongroom_api::MetricsAccess;

use super::{known, report::Report, section::Section};

/// `telemetry` at the top.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Telemetry {
    /// Whether `sys/metrics` speaks Prometheus's format: a retention time of zero turns it off.
    pub(crate) prometheus: bool,
    /// First part of the names that are Vault's.
    pub(crate) metrics_prefix: String,
    /// Every series carries the machine's name.
    pub(crate) enable_hostname_label: bool,
}

impl Default for Telemetry {
    fn default() -> Self {
        Self {
            prometheus: true,
            metrics_prefix: "vault".to_owned(),
            enable_hostname_label: false,
        }
    }
}

/// The one `telemetry` block; without it everything is as Vault's defaults have it.
pub(super) fn check(top: &mut Section, report: &mut Report) -> Telemetry {
    let mut telemetry = Telemetry::default();
    let mut blocks = top.take_blocks("telemetry", report).into_iter();
    let Some(block) = blocks.next() else {
        return telemetry;
    };
    for extra in blocks {
        report.problem(&extra.at, "telemetry is configured twice");
    }
    let mut section = Section::new("telemetry", block.at, block.value);
    if let Some(retention) = section.take_duration("prometheus_retention_time", report) {
        // How long a series outlives its last change: here for as long as the process, so only "not at all" counts.
        telemetry.prometheus = retention.value > Duration::ZERO;
    }
    if let Some(prefix) = section.take_string("metrics_prefix", report) {
        let fits = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if prefix.value.chars().all(fits) {
            telemetry.metrics_prefix = prefix.value;
        } else {
            report.problem(
                &prefix.at,
                "telemetry: metrics_prefix may hold letters, digits and underscores only",
            );
        }
    }
    telemetry.enable_hostname_label = section
        .take_bool("enable_hostname_label", report)
        .unwrap_or(false);
    let at = section.at.clone();
    if section.take_bool("disable_hostname", report) == Some(false) {
        report.warn(
            &at,
            "telemetry: disable_hostname = false has no effect: names never hold the machine's; set \
             enable_hostname_label",
        );
    }
    section.finish(known::TELEMETRY, report);
    telemetry
}

/// `telemetry` in a listener.
pub(super) fn listener(listener: &mut Section, report: &mut Report) -> MetricsAccess {
    let mut access = MetricsAccess::default();
    for block in listener.take_blocks("telemetry", report) {
        let title = format!("{}: telemetry", listener.title);
        let mut section = Section::new(title, block.at, block.value);
        let open = section.take_bool("unauthenticated_metrics_access", report);
        let closed = section.take_bool("disallow_metrics", report);
        if open == Some(true) && closed == Some(true) {
            report.problem(
                &section.at,
                format!(
                    "{}: unauthenticated_metrics_access and disallow_metrics exclude each other",
                    section.title
                ),
            );
        } else if closed == Some(true) {
            access = MetricsAccess::Nobody;
        } else if open == Some(true) {
            access = MetricsAccess::Everybody;
        }
        section.finish(&[], report);
    }
    access
}

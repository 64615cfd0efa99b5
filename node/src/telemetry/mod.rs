//! The node's figures for its operator: `sys/metrics`.
//!
//! What counts as it happens comes through the `metrics` facade into the [`registry`]; what is a fact of the moment
//! (indexes, roles, sizes) is gathered when somebody asks. Names are Vault's where Vault has the thing, so that its
//! dashboards work (`vault.…`, summaries in milliseconds), and ours otherwise (`strongroom.…`, histograms in seconds).

mod gather;
mod registry;
mod show;

use std::{sync::LazyLock, time::Duration};

use self::registry::{Listener, Registry};
pub(crate) use self::{
    gather::{Gauge, gather},
    registry::Series,
    show::{Naming, json, prometheus},
};
use crate::clock;

/// Length of an interval, as in go-metrics.
const INTERVAL: Duration = Duration::from_secs(10);

static REGISTRY: LazyLock<Registry> = LazyLock::new(Registry::default);

/// Starts counting: before anything that counts, or its counts go nowhere.
pub(crate) fn install() {
    if metrics::set_global_recorder(Listener(&REGISTRY)).is_err() {
        tracing::error!("metrics have two listeners");
    }
}

/// Ends intervals for as long as it is polled.
pub(crate) async fn run() {
    let mut ticks = tokio::time::interval(INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        REGISTRY.end_interval(clock::now_ms());
    }
}

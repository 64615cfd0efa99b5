//! Where counters, gauges and distributions of the whole process are kept: atomics, found by a map only when they are
//! registered and when they are shown.
//!
//! Invariants
//! - Recording takes no lock and no memory.
//! - The number of series is bounded by [`MAX_SERIES`]; what comes after is not counted.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use metrics::{
    Counter, Gauge, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder, SharedString, Unit,
};

/// Series that are kept; the code registers a few dozen.
const MAX_SERIES: usize = 1024;
/// Quarters of a power of two, from 2^-24 (60 ns in seconds) to 2^32.
const BUCKETS: usize = 56 * 4;
/// Of a float: bits above the two highest of its fraction, at 2^-24.
const FIRST: u64 = (1023 - 24) << 2;
/// Ends of intervals that are remembered: a minute, as go-metrics does.
const INTERVALS: usize = 6;

/// Name and labels of a series; the name is dotted.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Series {
    pub(crate) name: String,
    pub(crate) labels: Vec<(String, String)>,
}

impl Series {
    fn of(key: &Key) -> Self {
        let label = |label: &metrics::Label| (label.key().to_owned(), label.value().to_owned());
        Self {
            name: key.name().to_owned(),
            labels: key.labels().map(label).collect(),
        }
    }
}

/// A distribution: counts by size, so that quantiles are known to within a quarter of a power of two.
struct Buckets {
    counts: [AtomicU64; BUCKETS],
    /// Bits of a float.
    sum: AtomicU64,
}

impl Default for Buckets {
    fn default() -> Self {
        Self {
            counts: std::array::from_fn(|_| AtomicU64::new(0)),
            sum: AtomicU64::new(0),
        }
    }
}

/// Bucket `i` holds what is above the bound of `i - 1` and not above its own.
fn bucket(value: f64) -> usize {
    if value.is_nan() || value <= 0.0 {
        return 0;
    }
    let place = (value.to_bits() - 1) >> 50;
    usize::try_from(place.saturating_sub(FIRST)).map_or(BUCKETS - 1, |i| i.min(BUCKETS - 1))
}

/// The largest value of bucket `i`.
fn bound(i: usize) -> f64 {
    f64::from_bits((FIRST + i as u64 + 1) << 50)
}

impl HistogramFn for Buckets {
    fn record(&self, value: f64) {
        if let Some(count) = self.counts.get(bucket(value)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        let add = |sum: u64| Some((f64::from_bits(sum) + value).to_bits());
        // It always succeeds: the function gives a value for every sum.
        let _ = self
            .sum
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
    }
}

/// A distribution at one moment, or what came between two.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Distribution {
    counts: Vec<u64>,
    pub(crate) count: u64,
    pub(crate) sum: f64,
}

impl Distribution {
    fn read(buckets: &Buckets) -> Self {
        let counts: Vec<u64> = buckets
            .counts
            .iter()
            .map(|count| count.load(Ordering::Relaxed))
            .collect();
        Self {
            count: counts.iter().sum(),
            counts,
            sum: f64::from_bits(buckets.sum.load(Ordering::Relaxed)),
        }
    }

    /// What has come since `earlier`.
    pub(crate) fn since(&self, earlier: Option<&Self>) -> Self {
        let Some(earlier) = earlier else {
            return self.clone();
        };
        let pairs = self.counts.iter().zip(&earlier.counts);
        Self {
            counts: pairs.map(|(now, then)| now.saturating_sub(*then)).collect(),
            count: self.count.saturating_sub(earlier.count),
            sum: (self.sum - earlier.sum).max(0.0),
        }
    }

    /// Both together.
    pub(crate) fn plus(&self, other: &Self) -> Self {
        if self.counts.is_empty() {
            return other.clone();
        }
        let pairs = self.counts.iter().zip(&other.counts);
        Self {
            counts: pairs.map(|(a, b)| a + b).collect(),
            count: self.count + other.count,
            sum: self.sum + other.sum,
        }
    }

    /// How many were not above `limit`, which must be a bound: a power of two is.
    pub(crate) fn upto(&self, limit: f64) -> u64 {
        let inside = self.counts.iter().take(bucket(limit) + 1);
        inside.sum()
    }

    /// The value that `share` of all are not above; `None` without any.
    pub(crate) fn quantile(&self, share: f64) -> Option<f64> {
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "counts of samples"
        )]
        let wanted = ((self.count as f64 * share).ceil() as u64).max(1);
        let mut seen = 0;
        for (i, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= wanted {
                return Some(bound(i));
            }
        }
        None
    }

    /// Mean and standard deviation; the latter as close as the buckets tell.
    pub(crate) fn spread(&self) -> (f64, f64) {
        if self.count == 0 {
            return (0.0, 0.0);
        }
        #[expect(clippy::cast_precision_loss, reason = "counts of samples")]
        let (total, weight) = (self.count as f64, |count: u64| count as f64);
        let mean = self.sum / total;
        let square = |(i, count): (usize, &u64)| (bound(i) - mean).powi(2) * weight(*count);
        let squares: f64 = self.counts.iter().enumerate().map(square).sum();
        (mean, (squares / total).sqrt())
    }
}

/// Everything counted, at one moment.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reading {
    /// Milliseconds since the Unix epoch.
    pub(crate) at_ms: u64,
    pub(crate) counters: BTreeMap<Series, u64>,
    pub(crate) gauges: BTreeMap<Series, f64>,
    pub(crate) distributions: BTreeMap<Series, Distribution>,
}

/// See the module.
#[derive(Default)]
pub(crate) struct Registry {
    counters: Mutex<BTreeMap<Series, Arc<AtomicU64>>>,
    gauges: Mutex<BTreeMap<Series, Arc<AtomicU64>>>,
    distributions: Mutex<BTreeMap<Series, Arc<Buckets>>>,
    help: Mutex<BTreeMap<String, String>>,
    past: Mutex<VecDeque<Reading>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The one that is kept under `key`; `None` when there are too many.
fn find<T: Default>(all: &Mutex<BTreeMap<Series, Arc<T>>>, key: &Key) -> Option<Arc<T>> {
    let mut all = lock(all);
    let series = Series::of(key);
    if all.len() >= MAX_SERIES && !all.contains_key(&series) {
        return None;
    }
    Some(Arc::clone(all.entry(series).or_default()))
}

impl Registry {
    /// Everything as it is now.
    pub(crate) fn read(&self, now_ms: u64) -> Reading {
        let value = |atomic: &Arc<AtomicU64>| atomic.load(Ordering::Relaxed);
        let counters = lock(&self.counters);
        let gauges = lock(&self.gauges);
        let distributions = lock(&self.distributions);
        Reading {
            at_ms: now_ms,
            counters: counters
                .iter()
                .map(|(s, c)| (s.clone(), value(c)))
                .collect(),
            gauges: gauges
                .iter()
                .map(|(s, g)| (s.clone(), f64::from_bits(value(g))))
                .collect(),
            distributions: distributions
                .iter()
                .map(|(s, d)| (s.clone(), Distribution::read(d)))
                .collect(),
        }
    }

    /// Ends an interval.
    pub(crate) fn end_interval(&self, now_ms: u64) {
        let reading = self.read(now_ms);
        let mut past = lock(&self.past);
        past.push_back(reading);
        while past.len() > INTERVALS + 1 {
            past.pop_front();
        }
    }

    /// Begin and end of the last whole interval.
    pub(crate) fn last_interval(&self) -> Option<(Reading, Reading)> {
        let past = lock(&self.past);
        let end = past.back()?.clone();
        let begin = past.len().checked_sub(2).and_then(|i| past.get(i));
        Some((begin.cloned().unwrap_or_default(), end))
    }

    /// The oldest reading that is remembered.
    pub(crate) fn oldest(&self) -> Option<Reading> {
        lock(&self.past).front().cloned()
    }

    /// What a series is, in words.
    pub(crate) fn help(&self, name: &str) -> Option<String> {
        lock(&self.help).get(name).cloned()
    }

    fn describe(&self, name: &KeyName, text: &SharedString) {
        let mut help = lock(&self.help);
        if help.len() < MAX_SERIES {
            help.insert(name.as_str().to_owned(), text.to_string());
        }
    }
}

/// The `metrics` facade's listener on a [`Registry`] that lives as long as the process.
pub(crate) struct Listener(pub(crate) &'static Registry);

impl Recorder for Listener {
    fn describe_counter(&self, key: KeyName, _unit: Option<Unit>, text: SharedString) {
        self.0.describe(&key, &text);
    }

    fn describe_gauge(&self, key: KeyName, _unit: Option<Unit>, text: SharedString) {
        self.0.describe(&key, &text);
    }

    fn describe_histogram(&self, key: KeyName, _unit: Option<Unit>, text: SharedString) {
        self.0.describe(&key, &text);
    }

    fn register_counter(&self, key: &Key, _metadata: &Metadata<'_>) -> Counter {
        find(&self.0.counters, key).map_or_else(Counter::noop, Counter::from_arc)
    }

    fn register_gauge(&self, key: &Key, _metadata: &Metadata<'_>) -> Gauge {
        find(&self.0.gauges, key).map_or_else(Gauge::noop, Gauge::from_arc)
    }

    fn register_histogram(&self, key: &Key, _metadata: &Metadata<'_>) -> Histogram {
        find(&self.0.distributions, key).map_or_else(Histogram::noop, Histogram::from_arc)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn distribution(values: &[f64]) -> Distribution {
        let buckets = Buckets::default();
        values.iter().for_each(|value| buckets.record(*value));
        Distribution::read(&buckets)
    }

    #[test]
    fn a_bucket_holds_what_its_bounds_say() {
        for value in [1e-7, 0.000_3, 0.5, 1.0, 1.1, 4.0, 5.0, 1000.0, 65536.0] {
            let i = bucket(value);
            assert!(value <= bound(i), "{value}");
            assert!(i == 0 || value > bound(i - 1), "{value}");
        }
        for (value, want) in [
            (0.0, 0),
            (-1.0, 0),
            (f64::NAN, 0),
            (f64::INFINITY, BUCKETS - 1),
        ] {
            assert_eq!(bucket(value), want, "{value}");
        }
    }

    #[test]
    fn quantiles_are_right_to_a_quarter_of_a_power_of_two() {
        let values: Vec<f64> = (1..=1000).map(f64::from).collect();
        let all = distribution(&values);
        for (share, want) in [(0.5, 500.0), (0.9, 900.0), (0.99, 990.0), (1.0, 1000.0)] {
            let got = all.quantile(share).unwrap();
            assert!((want..=want * 1.25).contains(&got), "{share}: {got}");
        }
        assert_eq!(all.upto(4.0), 4);
        assert_eq!((all.count, all.sum), (1000, 500_500.0));
        assert_eq!(distribution(&[]).quantile(0.5), None);
    }

    #[test]
    fn an_interval_holds_what_came_in_it() {
        let registry: &'static Registry = Box::leak(Box::default());
        let listener = Listener(registry);
        let (key, metadata) = (
            Key::from_name("a"),
            Metadata::new("", metrics::Level::INFO, None),
        );
        let times = listener.register_histogram(&key, &metadata);
        let number = listener.register_counter(&key, &metadata);
        for (interval, values) in [vec![1.0], vec![2.0, 4.0], vec![]].iter().enumerate() {
            values.iter().for_each(|value| times.record(*value));
            number.increment(values.len() as u64);
            registry.end_interval(interval as u64);
            let (begin, end) = registry.last_interval().unwrap();
            let series = Series {
                name: "a".to_owned(),
                labels: Vec::new(),
            };
            let came = end.distributions[&series].since(begin.distributions.get(&series));
            assert_eq!(came.count, values.len() as u64);
            assert!((came.sum - values.iter().sum::<f64>()).abs() < 1e-9);
        }
        for interval in 3..30 {
            registry.end_interval(interval);
        }
        assert_eq!(registry.oldest().unwrap().at_ms, 29 - INTERVALS as u64);
    }

    #[test]
    fn the_number_of_series_is_bounded() {
        let registry: &'static Registry = Box::leak(Box::default());
        let listener = Listener(registry);
        let metadata = Metadata::new("", metrics::Level::INFO, None);
        for number in 0..2 * MAX_SERIES {
            let key = Key::from_name(format!("n{number}"));
            listener.register_counter(&key, &metadata).increment(1);
        }
        assert_eq!(registry.read(0).counters.len(), MAX_SERIES);
    }
}

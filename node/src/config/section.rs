//! One block of settings, read key by key.
//!
//! Every `take_*` reports what does not fit and gives `None`, so that a check runs to its end and all mistakes come
//! out at once. [`Section::finish`] then judges what nobody asked for: known to Vault and not needed (warning) or
//! known to nobody (mistake).

use std::time::Duration;

use zeroize::Zeroizing;

use super::{
    report::{Origin, Report},
    syntax::{Entry, Node, Value},
    values::{nearest, parse_bool, parse_duration, parse_number},
};

/// A value and where it came from.
#[derive(Clone, Debug)]
pub(super) struct Located<T> {
    pub(super) value: T,
    pub(super) at: Origin,
}

impl<T> Located<T> {
    pub(super) fn new(value: T, at: Origin) -> Self {
        Self { value, at }
    }
}

/// A block being read.
pub(super) struct Section {
    /// For messages, e.g. `listener "tcp"`; empty for the top level.
    pub(super) title: String,
    pub(super) at: Origin,
    entries: Vec<Entry>,
    asked: Vec<&'static str>,
}

/// A block with its label, as in `listener "tcp" { … }`.
pub(super) struct Labelled {
    pub(super) label: String,
    pub(super) at: Origin,
    pub(super) entries: Vec<Entry>,
}

impl Section {
    pub(super) fn new(title: impl Into<String>, at: Origin, entries: Vec<Entry>) -> Self {
        Self {
            title: title.into(),
            at,
            entries,
            asked: Vec::new(),
        }
    }

    /// `title.key`, for messages.
    fn name(&self, key: &str) -> String {
        if self.title.is_empty() {
            key.to_owned()
        } else {
            format!("{}: {key}", self.title)
        }
    }

    /// Removes every entry called `key`.
    pub(super) fn take_all(&mut self, key: &'static str) -> Vec<Entry> {
        self.asked.push(key);
        let (taken, kept) = std::mem::take(&mut self.entries)
            .into_iter()
            .partition(|entry| entry.name == key);
        self.entries = kept;
        taken
    }

    /// Removes the one entry called `key`; a second one is a mistake. `null` counts as absent.
    pub(super) fn take(&mut self, key: &'static str, report: &mut Report) -> Option<Entry> {
        let mut found = self.take_all(key).into_iter();
        let first = found.next();
        for again in found {
            report.problem(&again.at, format!("{} is set twice", self.name(key)));
        }
        first.filter(|entry| !matches!(entry.node.value, Value::Null))
    }

    fn mismatch(&self, key: &str, node: &Node, wanted: &str, report: &mut Report) {
        report.problem(
            &node.at,
            format!(
                "{} must be {wanted}, not {}",
                self.name(key),
                node.value.kind()
            ),
        );
    }

    /// A text; numbers and booleans count as what was written.
    pub(super) fn take_text(
        &mut self,
        key: &'static str,
        report: &mut Report,
    ) -> Option<Located<Zeroizing<String>>> {
        let Entry { node, .. } = self.take(key, report)?;
        match node.value {
            Value::Text(text) => Some(Located::new(text, node.at)),
            Value::Number(number) => Some(Located::new(Zeroizing::new(number), node.at)),
            Value::Bool(boolean) => {
                Some(Located::new(Zeroizing::new(boolean.to_string()), node.at))
            }
            Value::Null | Value::List(_) | Value::Table(_) => {
                self.mismatch(key, &node, "a string", report);
                None
            }
        }
    }

    /// A text that is no secret and, when given, not empty: the empty one counts as absent.
    pub(super) fn take_string(
        &mut self,
        key: &'static str,
        report: &mut Report,
    ) -> Option<Located<String>> {
        self.take_text(key, report)
            .map(|text| Located::new((*text.value).clone(), text.at))
            .filter(|text| !text.value.is_empty())
    }

    /// Takes a scalar and parses its text.
    fn take_parsed<T>(
        &mut self,
        key: &'static str,
        wanted: &str,
        parse: impl Fn(&str) -> Option<T>,
        report: &mut Report,
    ) -> Option<Located<T>> {
        let text = self.take_text(key, report)?;
        let parsed = parse(&text.value);
        if parsed.is_none() {
            report.problem(&text.at, format!("{} must be {wanted}", self.name(key)));
        }
        Some(Located::new(parsed?, text.at))
    }

    /// A boolean; also `"true"`, `1` and what else Go takes.
    pub(super) fn take_bool(&mut self, key: &'static str, report: &mut Report) -> Option<bool> {
        self.take_parsed(key, "true or false", parse_bool, report)
            .map(|found| found.value)
    }

    /// A whole number within `range`.
    pub(super) fn take_number(
        &mut self,
        key: &'static str,
        range: std::ops::RangeInclusive<u64>,
        report: &mut Report,
    ) -> Option<u64> {
        let wanted = if *range.end() == u64::MAX {
            format!("a whole number of at least {}", range.start())
        } else {
            format!("a whole number from {} to {}", range.start(), range.end())
        };
        let parse = |text: &str| parse_number(text).filter(|number| range.contains(number));
        self.take_parsed(key, &wanted, parse, report)
            .map(|found| found.value)
    }

    /// A duration; a bare number is seconds.
    pub(super) fn take_duration(
        &mut self,
        key: &'static str,
        report: &mut Report,
    ) -> Option<Located<Duration>> {
        self.take_parsed(
            key,
            "a duration such as \"30s\" or \"1h\"",
            parse_duration,
            report,
        )
    }

    /// Settings that are checked for form and then do nothing, each with a warning that says so.
    pub(super) fn without_effect(
        &mut self,
        keys: &[&'static str],
        why: &str,
        read: fn(&mut Self, &'static str, &mut Report) -> Option<Origin>,
        report: &mut Report,
    ) {
        for key in keys {
            if let Some(at) = read(self, key, report) {
                let name = self.name(key);
                report.warn(&at, format!("{name} has no effect: {why}"));
            }
        }
    }

    /// Every block called `key` that has no label, as `retry_join { … }` or a JSON list of objects.
    pub(super) fn take_blocks(
        &mut self,
        key: &'static str,
        report: &mut Report,
    ) -> Vec<Located<Vec<Entry>>> {
        let mut found = Vec::new();
        for entry in self.take_all(key) {
            for node in flatten(entry.node) {
                match node.value {
                    Value::Table(entries) => found.push(Located::new(entries, node.at)),
                    Value::Null => {}
                    Value::Bool(_) | Value::Number(_) | Value::Text(_) | Value::List(_) => {
                        self.mismatch(key, &node, "a block", report);
                    }
                }
            }
        }
        found
    }

    /// Every block called `key` that has one label, as `listener "tcp" { … }`; `type = "tcp"` inside does too.
    pub(super) fn take_labelled(
        &mut self,
        key: &'static str,
        report: &mut Report,
    ) -> Vec<Labelled> {
        let mut found = Vec::new();
        for block in self.take_blocks(key, report) {
            let Located {
                value: mut entries,
                at,
            } = block;
            let named = entries.iter().position(|entry| {
                entry.name == "type" && matches!(entry.node.value, Value::Text(_))
            });
            if let Some(position) = named {
                let kind = entries.remove(position);
                if let Value::Text(label) = kind.node.value {
                    found.push(Labelled {
                        label: (*label).clone(),
                        at,
                        entries,
                    });
                }
                continue;
            }
            if entries.is_empty() {
                report.problem(&at, format!("{key} needs a type: {key} \"…\" {{ … }}"));
            }
            for inner in entries {
                labelled(key, inner, &mut found, report);
            }
        }
        found
    }

    /// Judges what nobody asked for.
    pub(super) fn finish(self, known: &[(&'static str, &str)], report: &mut Report) {
        let mut candidates = self.asked.clone();
        candidates.extend(known.iter().map(|(name, _)| *name));
        for entry in &self.entries {
            if let Some((_, why)) = known.iter().find(|(name, _)| *name == entry.name) {
                report.warn(
                    &entry.at,
                    format!("{} has no effect: {why}", self.name(&entry.name)),
                );
                continue;
            }
            let hint = nearest(&entry.name, &candidates)
                .map(|name| format!("; did you mean {name}?"))
                .unwrap_or_default();
            report.problem(
                &entry.at,
                format!("{} is not a known setting{hint}", self.name(&entry.name)),
            );
        }
    }
}

fn labelled(key: &str, inner: Entry, found: &mut Vec<Labelled>, report: &mut Report) {
    for node in flatten(inner.node) {
        match node.value {
            Value::Table(entries) => found.push(Labelled {
                label: inner.name.clone(),
                at: inner.at.clone(),
                entries,
            }),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::Text(_) | Value::List(_) => {
                report.problem(
                    &inner.at,
                    format!("{key} needs a type in front of its settings: {key} \"…\" {{ … }}"),
                );
            }
        }
    }
}

/// The elements of a list, lists in it included; a single value is a list of one.
fn flatten(node: Node) -> Vec<Node> {
    match node.value {
        Value::List(items) => items.into_iter().flat_map(flatten).collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Text(_) | Value::Table(_) => {
            vec![node]
        }
    }
}

//! How results look: tables, JSON and YAML as Vault prints them.

use serde::{Serialize, Serializer, ser::SerializeMap as _};
use serde_json::Value;

/// Between two columns.
const GAP: &str = "    ";
/// For a cell with nothing in it.
const EMPTY: &str = "n/a";

/// A form of output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// For people.
    Table,
    /// Indented by two.
    Json,
    /// Block style.
    Yaml,
}

impl Format {
    /// By the name of `-format`, any case.
    pub(crate) fn parse(name: &str) -> Option<Self> {
        match name.to_ascii_lowercase().as_str() {
            "table" => Some(Self::Table),
            "json" => Some(Self::Json),
            "yaml" | "yml" => Some(Self::Yaml),
            _ => None,
        }
    }
}

/// A JSON object that keeps the order it was made in.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Ordered(pub(crate) Vec<(String, Node)>);

/// A field of an [`Ordered`]: any JSON, or another one that keeps its order.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub(crate) enum Node {
    /// Sorted, as Go prints maps.
    Plain(Value),
    /// In its own order, as Go prints structures.
    Ordered(Ordered),
}

impl Ordered {
    /// The fields `names` of `object` in this order, absent ones left out.
    pub(crate) fn pick(object: &Value, names: &[&str]) -> Self {
        let found = names.iter().filter_map(|name| {
            let value = object.get(name)?;
            Some(((*name).to_owned(), Node::Plain(value.clone())))
        });
        Self(found.collect())
    }

    /// Adds a field.
    pub(crate) fn push(&mut self, name: &str, value: impl Into<Value>) {
        self.0.push((name.to_owned(), Node::Plain(value.into())));
    }

    /// Adds a field that keeps its order.
    pub(crate) fn push_ordered(&mut self, name: &str, value: Ordered) {
        self.0.push((name.to_owned(), Node::Ordered(value)));
    }

    /// Puts the fields of the object `name`, if it is one, into the order of `names`.
    pub(crate) fn arrange(&mut self, name: &str, names: &[&str]) {
        for (field, node) in &mut self.0 {
            if let Node::Plain(value) = node
                && field == name
                && value.is_object()
            {
                *node = Node::Ordered(Self::pick(value, names));
            }
        }
    }
}

impl Serialize for Ordered {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, value) in &self.0 {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

/// `value` as JSON or YAML, with a line break at the end.
pub(crate) fn structured<T: Serialize>(value: &T, format: Format) -> String {
    // Serialising what came from JSON, or strings under string keys, cannot fail.
    match format {
        Format::Yaml => {
            let mut text = String::new();
            let tree = serde_json::to_value(value).unwrap_or_default();
            yaml(&tree, 0, false, &mut text);
            text
        }
        Format::Json | Format::Table => {
            let mut text = serde_json::to_string_pretty(value).unwrap_or_default();
            text.push('\n');
            text
        }
    }
}

/// Rows under a heading: the first row names the columns.
pub(crate) fn table(rows: &[Vec<String>]) -> String {
    let Some(header) = rows.first() else {
        return String::new();
    };
    let rule = header
        .iter()
        .map(|name| "-".repeat(name.chars().count()))
        .collect();
    let mut all = vec![header.clone(), rule];
    all.extend(rows.iter().skip(1).cloned());
    columns(&all)
}

/// Rows in columns, no heading.
pub(crate) fn columns(rows: &[Vec<String>]) -> String {
    let cell = |text: &str| {
        if text.is_empty() {
            EMPTY.to_owned()
        } else {
            text.to_owned()
        }
    };
    let rows: Vec<Vec<String>> = rows
        .iter()
        .map(|row| row.iter().map(|text| cell(text)).collect())
        .collect();
    let width = |column: usize| {
        rows.iter()
            .filter_map(|row| row.get(column))
            .map(|text| text.chars().count())
            .max()
            .unwrap_or(0)
    };
    let most = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..most).map(width).collect();
    let mut text = String::new();
    for row in &rows {
        let padded: Vec<String> = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:<width$}"))
            .collect();
        text.push_str(padded.join(GAP).trim_end());
        text.push('\n');
    }
    text
}

/// Two columns under `Key` and `Value`.
pub(crate) fn key_values(pairs: &[(String, String)]) -> String {
    let mut rows = vec![vec!["Key".to_owned(), "Value".to_owned()]];
    rows.extend(
        pairs
            .iter()
            .map(|(key, value)| vec![key.clone(), value.clone()]),
    );
    table(&rows)
}

/// A heading between equal signs, about as wide as `width` characters.
pub(crate) fn heading(title: &str, width: usize) -> String {
    let signs = match width.checked_sub(title.chars().count() + 2) {
        None | Some(0) => 4,
        Some(signs) => signs,
    };
    let side = "=".repeat(signs.div_ceil(2));
    format!("{side} {title} {side}\n")
}

/// A value as Go prints it in a table: `map[a:1 b:x]`, `[1 2]`, `<nil>`.
pub(crate) fn plain(value: &Value) -> String {
    match value {
        Value::Null => "<nil>".to_owned(),
        Value::Bool(value) => value.to_string(),
        Value::Number(value) => value.to_string(),
        Value::String(value) => value.clone(),
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(plain).collect();
            format!("[{}]", items.join(" "))
        }
        Value::Object(fields) => {
            // serde_json may keep insertion order; Go sorts.
            let mut fields: Vec<(&String, &Value)> = fields.iter().collect();
            fields.sort_by_key(|(name, _)| *name);
            let fields: Vec<String> = fields
                .iter()
                .map(|(name, value)| format!("{name}:{}", plain(value)))
                .collect();
            format!("map[{}]", fields.join(" "))
        }
    }
}

/// Seconds as Vault shows them: `768h`, `1h30m`, `45s`, `0s`.
pub(crate) fn human_seconds(seconds: i64) -> String {
    if seconds <= 0 {
        return "0s".to_owned();
    }
    let parts = [
        (seconds / 3600, "h"),
        (seconds / 60 % 60, "m"),
        (seconds % 60, "s"),
    ];
    // Zeros in front and at the end are left out, in between they stay.
    let first = parts.iter().position(|(n, _)| *n != 0).unwrap_or(2);
    let last = parts.iter().rposition(|(n, _)| *n != 0).unwrap_or(2);
    parts
        .iter()
        .take(last + 1)
        .skip(first)
        .map(|(n, unit)| format!("{n}{unit}"))
        .collect()
}

/// Block-style YAML. `in_list`: the first line continues a dash.
fn yaml(value: &Value, depth: usize, in_list: bool, text: &mut String) {
    let indent = "  ".repeat(depth);
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            let mut fields: Vec<(&String, &Value)> = fields.iter().collect();
            fields.sort_by_key(|(name, _)| *name);
            for (at, (name, value)) in fields.into_iter().enumerate() {
                if at > 0 || !in_list {
                    text.push_str(&indent);
                }
                text.push_str(&yaml_text(name));
                text.push(':');
                yaml_below(value, depth, text);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            for (at, item) in items.iter().enumerate() {
                if at > 0 || !in_list {
                    text.push_str(&indent);
                }
                text.push_str("- ");
                yaml(item, depth + 1, true, text);
            }
        }
        Value::Null
        | Value::Bool(_)
        | Value::Number(_)
        | Value::String(_)
        | Value::Array(_)
        | Value::Object(_) => {
            text.push_str(&yaml_scalar(value));
            text.push('\n');
        }
    }
}

fn yaml_below(value: &Value, depth: usize, text: &mut String) {
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            text.push('\n');
            yaml(value, depth + 1, false, text);
        }
        // As Go's encoder does, a list under a key is not indented further.
        Value::Array(items) if !items.is_empty() => {
            text.push('\n');
            yaml(value, depth, false, text);
        }
        Value::Null
        | Value::Bool(_)
        | Value::Number(_)
        | Value::String(_)
        | Value::Array(_)
        | Value::Object(_) => {
            text.push(' ');
            text.push_str(&yaml_scalar(value));
            text.push('\n');
        }
    }
}

fn yaml_scalar(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(value) => value.to_string(),
        Value::Number(value) => value.to_string(),
        Value::String(value) => yaml_text(value),
        Value::Array(_) => "[]".to_owned(),
        Value::Object(_) => "{}".to_owned(),
    }
}

/// Bare only when no reader could take it for anything else; else in JSON's quotes, which YAML reads as such.
fn yaml_text(text: &str) -> String {
    let starts_plain = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/');
    let all_plain = text
        .chars()
        .all(|c| c.is_ascii_alphanumeric() || "-_./+=@,: ".contains(c));
    let is_word = matches!(
        text.to_ascii_lowercase().as_str(),
        "true" | "false" | "yes" | "no" | "on" | "off" | "null" | "y" | "n"
    );
    // A colon before a space or at the end would make it a key.
    let is_key = text.contains(": ") || text.ends_with(':');
    if starts_plain && all_plain && !is_word && !is_key && !text.ends_with(' ') {
        text.to_owned()
    } else {
        Value::from(text).to_string()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn tables() {
        let rows = [["Path", "Type"], ["cubbyhole/", "cubbyhole"], ["kv/", ""]]
            .map(|row| row.map(str::to_owned).to_vec());
        assert_eq!(
            table(&rows),
            "Path          Type\n----          ----\ncubbyhole/    cubbyhole\nkv/           n/a\n"
        );
        assert_eq!(table(&[]), "");
    }

    #[test]
    fn headings() {
        for (title, width, want) in [
            ("Data", 17, "====== Data ======\n"),
            ("Metadata", 24, "======= Metadata =======\n"),
            ("Secret Path", 14, "= Secret Path =\n"),
            ("Data", 3, "== Data ==\n"),
        ] {
            assert_eq!(heading(title, width), want);
        }
    }

    #[test]
    fn values_as_go_prints_them() {
        for (value, want) in [
            (json!(null), "<nil>"),
            (json!({"b": [1, "x"], "a": {}}), "map[a:map[] b:[1 x]]"),
            (json!(true), "true"),
            (json!("x y"), "x y"),
        ] {
            assert_eq!(plain(&value), want);
        }
    }

    #[test]
    fn durations() {
        for (seconds, want) in [
            (2_764_800, "768h"),
            (5400, "1h30m"),
            (45, "45s"),
            (3605, "1h0m5s"),
            (60, "1m"),
            (0, "0s"),
        ] {
            assert_eq!(human_seconds(seconds), want);
        }
    }

    #[test]
    fn yaml_blocks() {
        let value = json!({"b": {"x": [], "z": "2026-01-01T00:00:00Z"}, "a": [1, {"k": "v", "l": null}], "t": "true", "u": "http://h:1/", "v": "a: b"});
        assert_eq!(
            structured(&value, Format::Yaml),
            "a:\n- 1\n- k: v\n  l: null\nb:\n  x: []\n  z: \"2026-01-01T00:00:00Z\"\nt: \"true\"\nu: http://h:1/\nv: \"a: b\"\n"
        );
    }

    #[test]
    fn order_is_kept() {
        let picked = Ordered::pick(&json!({"a": 1, "b": 2}), &["b", "c", "a"]);
        assert_eq!(
            structured(&picked, Format::Json),
            "{\n  \"b\": 2,\n  \"a\": 1\n}\n"
        );
    }
}

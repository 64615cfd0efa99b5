//! `key=value` arguments of `write` and `kv put`.
//!
//! `k=v`, `k=@file`, `k=-` (standard input), `@file.json`, `-` (JSON from standard input), `k=\@v` for a value that
//! starts with an at sign. A key given twice becomes a list.

use std::io::Read;

use serde_json::{Map, Value};

/// Values larger than this are not taken.
const MAX_INPUT: u64 = 64 << 20;

/// The object that `args` describe.
///
/// # Errors
/// A sentence for the caller, in Vault's words.
pub(crate) fn parse(args: &[String], input: &mut dyn Read) -> Result<Map<String, Value>, String> {
    let mut data = Map::new();
    let mut input = Input {
        input,
        taken: false,
    };
    for arg in args {
        if arg == "-" {
            merge_json(&mut data, &input.take(arg)?, arg)?;
        } else if let Some(path) = arg.strip_prefix('@') {
            merge_json(&mut data, &file(path, arg)?, arg)?;
        } else {
            let (key, value) = pair(arg, &mut input)?;
            add(&mut data, key, value);
        }
    }
    Ok(data)
}

struct Input<'a> {
    input: &'a mut dyn Read,
    taken: bool,
}

impl Input<'_> {
    fn take(&mut self, arg: &str) -> Result<String, String> {
        if std::mem::replace(&mut self.taken, true) {
            return Err(format!(
                "invalid key/value pair {arg:?}: standard input can be read only once"
            ));
        }
        let mut text = String::new();
        let read = self.input.take(MAX_INPUT).read_to_string(&mut text);
        read.map_err(|error| format!("invalid key/value pair {arg:?}: {error}"))?;
        Ok(text)
    }
}

fn file(path: &str, arg: &str) -> Result<String, String> {
    let mut text = String::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(MAX_INPUT).read_to_string(&mut text))
        .map_err(|error| {
            format!("invalid key/value pair {arg:?}: error reading file: {path}: {error}")
        })?;
    Ok(text)
}

fn merge_json(data: &mut Map<String, Value>, text: &str, arg: &str) -> Result<(), String> {
    match serde_json::from_str(text) {
        Ok(Value::Object(object)) => {
            data.extend(object);
            Ok(())
        }
        Ok(_) => Err(format!(
            "invalid key/value pair {arg:?}: the JSON must be an object"
        )),
        Err(error) => Err(format!("invalid key/value pair {arg:?}: {error}")),
    }
}

fn pair(arg: &str, input: &mut Input<'_>) -> Result<(String, String), String> {
    let Some((key, value)) = arg.split_once('=') else {
        return Err(format!(
            "invalid key/value pair {arg:?}: format must be key=value"
        ));
    };
    let value = if value == "-" {
        input.take(arg)?
    } else if let Some(path) = value.strip_prefix('@') {
        file(path, arg)?
    } else {
        value
            .strip_prefix("\\@")
            .map_or_else(|| value.to_owned(), |rest| format!("@{rest}"))
    };
    Ok((key.to_owned(), value))
}

fn add(data: &mut Map<String, Value>, key: String, value: String) {
    match data.get_mut(&key) {
        None => {
            data.insert(key, Value::from(value));
        }
        Some(Value::Array(items)) => items.push(Value::from(value)),
        Some(first) => *first = Value::from(vec![first.take(), Value::from(value)]),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(args: &[&str], input: &str) -> Result<Value, String> {
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        parse(&args, &mut input.as_bytes()).map(Value::Object)
    }

    #[test]
    fn pairs() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f.json");
        std::fs::write(&path, "{\"j\": [1]}").unwrap();
        let path = path.display();
        for (args, input, want) in [
            (
                vec!["a=b", "c=d=e", "f="],
                "",
                json!({"a": "b", "c": "d=e", "f": ""}),
            ),
            (vec!["a=1", "a=2", "a=3"], "", json!({"a": ["1", "2", "3"]})),
            (vec!["a=-"], "from input\n", json!({"a": "from input\n"})),
            (vec!["-"], "{\"x\": {\"y\": 1}}", json!({"x": {"y": 1}})),
            (vec!["a=\\@x"], "", json!({"a": "@x"})),
            (
                vec![&format!("a=@{path}")],
                "",
                json!({"a": "{\"j\": [1]}"}),
            ),
            (
                vec![&format!("@{path}"), "k=v"],
                "",
                json!({"j": [1], "k": "v"}),
            ),
        ] {
            assert_eq!(read(&args, input).unwrap(), want, "{args:?}");
        }
    }

    #[test]
    fn mistakes() {
        for (args, input, want) in [
            (
                vec!["foo"],
                "",
                "invalid key/value pair \"foo\": format must be key=value",
            ),
            (
                vec!["a=@/nonexistent"],
                "",
                "error reading file: /nonexistent",
            ),
            (vec!["-"], "[1]", "must be an object"),
            (vec!["-"], "{", "invalid key/value pair \"-\""),
            (vec!["a=-", "b=-"], "x", "only once"),
        ] {
            let error = read(&args, input).unwrap_err();
            assert!(error.contains(want), "{args:?}: {error}");
        }
    }
}

//! Command-line flags as Vault's users type them.
//!
//! One dash or two, `-name=value` or `-name value`, switches alone or as `-name=false`. Flags end at the first argument
//! that is none, or after `--`; a lone `-` is an argument (it stands for standard input).
//!
//! Source: the rules of Go's `flag` package.

use std::collections::HashMap;

use crate::config::parse_bool;

/// What a flag takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Takes {
    /// Nothing: present or not.
    Switch,
    /// One value; the last one counts.
    One,
    /// A value each time it is given.
    Many,
    /// A whole number.
    Number,
}

/// One flag.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flag {
    /// Without dashes.
    pub(crate) name: &'static str,
    /// What it takes.
    pub(crate) takes: Takes,
    /// What the value is called in the help; empty for a switch.
    pub(crate) value: &'static str,
    /// For the help, one paragraph.
    pub(crate) help: &'static str,
}

/// Why the command line could not be understood; the texts are Go's.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FlagError {
    /// The help was asked for.
    #[error("help")]
    Help,
    /// No such flag.
    #[error("flag provided but not defined: -{0}")]
    Unknown(String),
    /// The value is missing.
    #[error("flag needs an argument: -{0}")]
    NoValue(String),
    /// A switch or number with something else.
    #[error("invalid value {value:?} for flag -{name}: parse error")]
    BadValue {
        /// The flag.
        name: String,
        /// What was given.
        value: String,
    },
    /// Nothing but dashes.
    #[error("bad flag syntax: {0}")]
    Syntax(String),
}

/// What was given.
#[derive(Debug, Default)]
pub(crate) struct Given {
    values: HashMap<&'static str, Vec<String>>,
    /// What follows the flags.
    pub(crate) args: Vec<String>,
}

/// Reads `words` by the flags of a command.
///
/// # Errors
/// The first word that does not fit.
pub(crate) fn parse(known: &[&[Flag]], words: &[String]) -> Result<Given, FlagError> {
    let mut given = Given::default();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let Some(body) = dashed(word)? else {
            if word != "--" {
                given.args.push(word.clone());
            }
            given.args.extend(words.cloned());
            break;
        };
        let (name, inline) = match body.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (body, None),
        };
        if matches!(name, "h" | "help") {
            return Err(FlagError::Help);
        }
        let flag = known
            .iter()
            .flat_map(|flags| flags.iter())
            .find(|flag| flag.name == name)
            .ok_or_else(|| FlagError::Unknown(name.to_owned()))?;
        let value = match (flag.takes, inline) {
            (Takes::Switch, None) => "true".to_owned(),
            (_, Some(value)) => value,
            (Takes::One | Takes::Many | Takes::Number, None) => words
                .next()
                .cloned()
                .ok_or_else(|| FlagError::NoValue(name.to_owned()))?,
        };
        let fits = match flag.takes {
            Takes::Switch => parse_bool(&value).is_some(),
            Takes::Number => value.parse::<i64>().is_ok(),
            Takes::One | Takes::Many => true,
        };
        if !fits {
            let name = name.to_owned();
            return Err(FlagError::BadValue { name, value });
        }
        given.values.entry(flag.name).or_default().push(value);
    }
    Ok(given)
}

/// The word without its dashes, `None` if it is an argument.
fn dashed(word: &str) -> Result<Option<&str>, FlagError> {
    let Some(body) = word.strip_prefix('-') else {
        return Ok(None);
    };
    if body.is_empty() || body == "-" {
        return Ok(None);
    }
    let body = body.strip_prefix('-').unwrap_or(body);
    if body.is_empty() || body.starts_with(['-', '=']) {
        return Err(FlagError::Syntax(word.to_owned()));
    }
    Ok(Some(body))
}

impl Given {
    /// The last value of a flag.
    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        self.values
            .get(name)
            .and_then(|values| values.last())
            .map(String::as_str)
    }

    /// Every value of a flag.
    pub(crate) fn all(&self, name: &str) -> &[String] {
        self.values.get(name).map_or(&[], Vec::as_slice)
    }

    /// Whether a switch is on.
    pub(crate) fn on(&self, name: &str) -> bool {
        self.text(name).and_then(parse_bool).unwrap_or(false)
    }

    /// A number.
    pub(crate) fn number(&self, name: &str) -> Option<i64> {
        self.text(name).and_then(|value| value.parse().ok())
    }

    /// The arguments, if there are as many as there must be.
    ///
    /// # Errors
    /// Vault's sentence about their number.
    pub(crate) fn exactly<const N: usize>(&self) -> Result<[&str; N], String> {
        let args: Vec<&str> = self.args.iter().map(String::as_str).collect();
        let got = args.len();
        args.try_into().map_err(|_| {
            let few_or_many = if got < N { "Not enough" } else { "Too many" };
            format!("{few_or_many} arguments (expected {N}, got {got})")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLAGS: &[Flag] = &[
        Flag {
            name: "path",
            takes: Takes::One,
            value: "string",
            help: "",
        },
        Flag {
            name: "options",
            takes: Takes::Many,
            value: "key=value",
            help: "",
        },
        Flag {
            name: "force",
            takes: Takes::Switch,
            value: "",
            help: "",
        },
        Flag {
            name: "version",
            takes: Takes::Number,
            value: "int",
            help: "",
        },
    ];

    fn read(line: &str) -> Result<Given, FlagError> {
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        parse(&[FLAGS], &words)
    }

    #[test]
    fn spellings() {
        for line in [
            "-path=x a",
            "--path=x a",
            "-path x a",
            "--path x a",
            "-path=y -path=x a",
        ] {
            let given = read(line).unwrap();
            assert_eq!(given.text("path"), Some("x"), "{line}");
            assert_eq!(given.args, ["a"], "{line}");
        }
        let given = read("-options a=1 --options=b=2 -force -version=2 -- -path").unwrap();
        assert_eq!(given.all("options"), ["a=1", "b=2"]);
        assert!(given.on("force"));
        assert_eq!(given.number("version"), Some(2));
        assert_eq!(given.args, ["-path"]);
        assert!(!read("-force=false").unwrap().on("force"));
        assert_eq!(read("a -force").unwrap().args, ["a", "-force"]);
        assert_eq!(read("- -force").unwrap().args, ["-", "-force"]);
        assert_eq!(read("-path=").unwrap().text("path"), Some(""));
    }

    #[test]
    fn mistakes() {
        for (line, want) in [
            ("-nope", "flag provided but not defined: -nope"),
            ("-path", "flag needs an argument: -path"),
            (
                "-force=2",
                "invalid value \"2\" for flag -force: parse error",
            ),
            (
                "-version=two",
                "invalid value \"two\" for flag -version: parse error",
            ),
            ("---path=x", "bad flag syntax: ---path=x"),
            ("-=x", "bad flag syntax: -=x"),
            ("-path=x --help", "help"),
            ("-h", "help"),
        ] {
            assert_eq!(read(line).unwrap_err().to_string(), want, "{line}");
        }
    }

    #[test]
    fn argument_counts() {
        for (line, want) in [
            ("a", Ok(["a"])),
            (
                "",
                Err("Not enough arguments (expected 1, got 0)".to_owned()),
            ),
            (
                "a b",
                Err("Too many arguments (expected 1, got 2)".to_owned()),
            ),
        ] {
            assert_eq!(read(line).unwrap().exactly::<1>(), want);
        }
    }

    proptest::proptest! {
        #[test]
        fn no_line_panics(line in "[-=a-z \\u{0}-\\u{ff}]{0,40}") {
            let _ = read(&line);
        }
    }
}

//! What is wrong or odd in a configuration, and where it stands.
//!
//! Invariant: no text here ever holds a value that may be secret; keys and places only.

use std::{fmt, sync::Arc};

/// Where a setting came from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Origin {
    /// A place in a file; line and column count from 1, columns in characters.
    Place {
        /// Position of the file among all that were read, so that reports come out in reading order.
        order: usize,
        /// The file as the operator named it.
        file: Arc<str>,
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
    },
    /// An environment variable.
    Env(String),
    /// Something that is missing from all of it.
    Whole,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Place {
                file, line, column, ..
            } => write!(f, "{file}:{line}:{column}"),
            Self::Env(name) => write!(f, "environment variable {name}"),
            Self::Whole => f.write_str("configuration"),
        }
    }
}

/// One mistake or warning.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Finding {
    /// Where.
    pub(crate) origin: Origin,
    /// What, in the operator's key names.
    pub(crate) what: String,
}

/// A finding that lets the node start.
pub(crate) type Warning = Finding;

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.origin, self.what)
    }
}

/// Every mistake of a configuration; one line each.
#[derive(Debug)]
pub(crate) struct ConfigError {
    /// The mistakes, in reading order.
    pub(crate) problems: Vec<Finding>,
    /// What was odd besides.
    pub(crate) warnings: Vec<Warning>,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, problem) in self.problems.iter().enumerate() {
            if at > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}

/// Collects findings while a configuration is checked.
#[derive(Debug, Default)]
pub(super) struct Report {
    pub(super) problems: Vec<Finding>,
    pub(super) warnings: Vec<Finding>,
}

impl Report {
    pub(super) fn problem(&mut self, origin: &Origin, what: impl Into<String>) {
        self.problems.push(Finding {
            origin: origin.clone(),
            what: what.into(),
        });
    }

    pub(super) fn warn(&mut self, origin: &Origin, what: impl Into<String>) {
        self.warnings.push(Finding {
            origin: origin.clone(),
            what: what.into(),
        });
    }

    /// Puts both lists into reading order, each finding once.
    pub(super) fn sort(&mut self) {
        for list in [&mut self.problems, &mut self.warnings] {
            list.sort();
            list.dedup();
        }
    }
}

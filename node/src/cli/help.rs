//! The texts of `-h`.

use super::{
    api::HTTP_FLAGS,
    commands::{COMMANDS, Command, FIELD_FLAGS, FORMAT_FLAGS, Shared},
    flags::{Flag, Takes},
};

const WIDTH: usize = 80;
/// The commands that people need first.
const COMMON: &[&str] = &[
    "read", "write", "delete", "list", "login", "server", "status",
];

/// What groups are for.
const GROUPS: &[(&str, &str)] = &[
    ("kv", "Interact with the Key-Value storage"),
    ("operator", "Perform operator-specific tasks"),
    ("operator raft", "Interact with the Raft storage"),
    ("operator storage", "Look into stored data"),
    ("print", "Prints runtime configurations"),
    ("secrets", "Interact with secrets engines"),
];

/// Help of one command.
pub(crate) fn of_command(command: &Command) -> String {
    let words = command.path.join(" ");
    let usage = command.usage;
    let mut text = format!("Usage: strongroom {words} {usage}")
        .trim_end()
        .to_owned();
    text.push_str("\n\n");
    for paragraph in command.help.split('\n') {
        let indent = paragraph.len() - paragraph.trim_start().len();
        text.push_str(&wrap(paragraph.trim_start(), indent.max(2)));
    }
    let server = matches!(command.shared, Shared::Server | Shared::ServerAndField);
    let mut output: Vec<Flag> = Vec::new();
    if command.shared == Shared::ServerAndField {
        output.extend(FIELD_FLAGS);
    }
    if command.shared != Shared::Nothing {
        output.extend(FORMAT_FLAGS);
    }
    for (title, flags) in [
        ("HTTP Options", if server { HTTP_FLAGS } else { &[] }),
        ("Output Options", &output[..]),
        ("Command Options", command.own),
    ] {
        if !flags.is_empty() {
            text.push_str(&format!("\n{title}:\n"));
            flags.iter().for_each(|flag| text.push_str(&of_flag(flag)));
        }
    }
    text
}

fn of_flag(flag: &Flag) -> String {
    let value = match flag.takes {
        Takes::Switch => String::new(),
        Takes::One | Takes::Many | Takes::Number => format!("=<{}>", flag.value),
    };
    format!("\n  -{}{value}\n{}", flag.name, wrap(flag.help, 6))
}

/// Lines of at most [`WIDTH`] characters behind an indentation.
fn wrap(paragraph: &str, indent: usize) -> String {
    let space = " ".repeat(indent);
    let mut text = String::new();
    let mut line = String::new();
    for word in paragraph.split(' ') {
        if !line.is_empty() && indent + line.chars().count() + 1 + word.chars().count() > WIDTH {
            text.push_str(&format!("{space}{line}\n"));
            line.clear();
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    if line.is_empty() {
        text.push('\n');
    } else {
        text.push_str(&format!("{space}{line}\n"));
    }
    text
}

/// Help of a group of commands; no words mean all of them.
pub(crate) fn of_group(path: &[String]) -> String {
    let words = path.join(" ");
    if path.is_empty() {
        return format!(
            "Usage: strongroom <command> [args]\n\nCommon commands:\n{}\nOther commands:\n{}",
            listed(&entries(path, |name| COMMON.contains(&name))),
            listed(&entries(path, |name| !COMMON.contains(&name))),
        );
    }
    let about = group_synopsis(&words);
    format!(
        "Usage: strongroom {words} <subcommand> [options] [args]\n\n  {about}.\n\n  Please see the individual subcommand \
         help for detailed usage information.\n\nSubcommands:\n{}",
        listed(&entries(path, |_| true))
    )
}

fn group_synopsis(words: &str) -> &'static str {
    GROUPS
        .iter()
        .find(|(name, _)| *name == words)
        .map_or("", |(_, synopsis)| *synopsis)
}

/// The next words below `path`, each once, with what they are for.
fn entries(path: &[String], wanted: impl Fn(&str) -> bool) -> Vec<(&'static str, &'static str)> {
    let mut found: Vec<(&'static str, &'static str)> = Vec::new();
    for command in COMMANDS.iter().filter(|command| command.is_below(path)) {
        let Some(name) = command.path.get(path.len()) else {
            continue;
        };
        let is_leaf = command.path.len() == path.len() + 1;
        let synopsis = if is_leaf {
            command.synopsis
        } else {
            let mut words: Vec<&str> = path.iter().map(String::as_str).collect();
            words.push(name);
            group_synopsis(&words.join(" "))
        };
        if wanted(name) && !found.iter().any(|(known, _)| known == name) {
            found.push((name, synopsis));
        }
    }
    found
}

fn listed(entries: &[(&'static str, &'static str)]) -> String {
    let width = entries
        .iter()
        .map(|(name, _)| name.len())
        .max()
        .unwrap_or(0);
    entries
        .iter()
        .map(|(name, synopsis)| format!("    {name:<width$}    {synopsis}\n"))
        .collect()
}

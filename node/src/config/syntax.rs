//! HCL and JSON text into one tree that remembers where everything stands.
//!
//! In: the text of a file. Out: its entries. An HCL block `listener "tcp" { … }` and the JSON object
//! `"listener": {"tcp": {…}}` become the same tree, so that everything after this file knows only one language.
//!
//! Invariants
//! - Text of any content gives entries or problems, never a panic; both parsers bound their nesting.
//! - Texts are wiped on drop, since one of them may be the PIN.

use std::sync::Arc;

use hcl_edit::{
    Span as _,
    expr::{Expression, ObjectKey},
    structure::{Block, Body, Structure},
    template::{Element, Template},
};
use jsonc_parser::{
    CollectOptions, ParseOptions, ast,
    common::{Range, Ranged as _},
};
use zeroize::Zeroizing;

use super::report::{Origin, Report};

/// A file's text and name, for turning offsets into places.
pub(super) struct Source<'a> {
    pub(super) order: usize,
    pub(super) name: Arc<str>,
    pub(super) text: &'a str,
}

/// One `name = value`, or one block.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) at: Origin,
    pub(super) node: Node,
}

/// A value and its place.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) at: Origin,
    pub(super) value: Value,
}

/// What a setting may hold.
pub(super) enum Value {
    Null,
    Bool(bool),
    /// A number as written.
    Number(String),
    Text(Zeroizing<String>),
    List(Vec<Node>),
    Table(Vec<Entry>),
}

/// Says the kind only: a text may be secret.
impl std::fmt::Debug for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.kind())
    }
}

impl Value {
    /// For messages: what it is.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "a boolean",
            Self::Number(_) => "a number",
            Self::Text(_) => "a string",
            Self::List(_) => "a list",
            Self::Table(_) => "a block",
        }
    }
}

impl Source<'_> {
    /// The place of a byte offset; past the end means the end.
    fn at(&self, offset: usize) -> Origin {
        let mut line = 1;
        let mut column = 1;
        for (at, c) in self.text.char_indices() {
            if at >= offset {
                break;
            }
            if c == '\n' {
                line += 1;
                column = 1;
            } else {
                column += 1;
            }
        }
        Origin::Place {
            order: self.order,
            file: Arc::clone(&self.name),
            line,
            column,
        }
    }

    fn span(&self, span: Option<std::ops::Range<usize>>) -> Origin {
        self.at(span.map_or(0, |span| span.start))
    }

    /// Whether the text is JSON: by name, or, as Vault has it, because it starts with a brace.
    fn is_json(&self) -> bool {
        self.name.ends_with(".json") || self.text.trim_start().starts_with('{')
    }
}

/// The entries of a file. What cannot be understood is reported and left out.
pub(super) fn parse(source: &Source<'_>, report: &mut Report) -> Vec<Entry> {
    if source.is_json() {
        parse_json(source, report)
    } else {
        parse_hcl(source, report)
    }
}

fn parse_hcl(source: &Source<'_>, report: &mut Report) -> Vec<Entry> {
    match hcl_edit::parser::parse_body(source.text) {
        Ok(body) => Hcl { source, report }.body(&body),
        Err(error) => {
            let at = source.at(error.location().offset());
            report.problem(&at, format!("not valid HCL: {}", one_line(error.message())));
            Vec::new()
        }
    }
}

fn one_line(message: &str) -> String {
    message.split_whitespace().collect::<Vec<_>>().join(" ")
}

struct Hcl<'a, 's> {
    source: &'a Source<'s>,
    report: &'a mut Report,
}

impl Hcl<'_, '_> {
    fn body(&mut self, body: &Body) -> Vec<Entry> {
        body.iter()
            .filter_map(|structure| match structure {
                Structure::Attribute(attribute) => {
                    let at = self.source.span(attribute.key.span());
                    Some(Entry {
                        name: attribute.key.as_str().to_owned(),
                        at,
                        node: self.node(&attribute.value)?,
                    })
                }
                Structure::Block(block) => Some(self.block(block)),
            })
            .collect()
    }

    fn block(&mut self, block: &Block) -> Entry {
        let at = self.source.span(block.ident.span());
        let mut value = Value::Table(self.body(&block.body));
        // Labels nest from the inside out: `a "b" {…}` is a = { b = {…} }.
        for label in block.labels.iter().rev() {
            let label_at = self.source.span(label.span());
            value = Value::Table(vec![Entry {
                name: label.as_str().to_owned(),
                at: label_at.clone(),
                node: Node {
                    at: label_at,
                    value,
                },
            }]);
        }
        Entry {
            name: block.ident.as_str().to_owned(),
            at: at.clone(),
            node: Node { at, value },
        }
    }

    fn node(&mut self, expression: &Expression) -> Option<Node> {
        let at = self.source.span(expression.span());
        let value = match expression {
            Expression::Null(_) => Value::Null,
            Expression::Bool(value) => Value::Bool(*value.value()),
            Expression::Number(number) => Value::Number(number.value().to_string()),
            Expression::String(text) => Value::Text(Zeroizing::new(text.value().clone())),
            Expression::StringTemplate(template) => self.literal(&at, template)?,
            Expression::HeredocTemplate(heredoc) => self.literal(&at, &heredoc.template)?,
            Expression::UnaryOp(_) => match negative(expression) {
                Some(number) => Value::Number(number),
                None => return self.unusable(&at),
            },
            Expression::Array(items) => {
                Value::List(items.iter().filter_map(|item| self.node(item)).collect())
            }
            Expression::Object(object) => {
                let mut entries = Vec::new();
                for (key, value) in object.iter() {
                    let key_at = self.source.span(key.span());
                    let Some(name) = object_key(key) else {
                        self.unusable(&key_at);
                        continue;
                    };
                    if let Some(node) = self.node(value.expr()) {
                        entries.push(Entry {
                            name,
                            at: key_at,
                            node,
                        });
                    }
                }
                Value::Table(entries)
            }
            Expression::Parenthesis(inner) => return self.node(inner.inner()),
            Expression::Variable(_)
            | Expression::Conditional(_)
            | Expression::FuncCall(_)
            | Expression::Traversal(_)
            | Expression::BinaryOp(_)
            | Expression::ForExpr(_) => return self.unusable(&at),
        };
        Some(Node { at, value })
    }

    /// Text that holds no interpolation.
    fn literal(&mut self, at: &Origin, template: &Template) -> Option<Value> {
        let mut text = Zeroizing::new(String::new());
        for element in template.iter() {
            match element {
                Element::Literal(literal) => text.push_str(literal.as_str()),
                Element::Interpolation(_) | Element::Directive(_) => {
                    self.report.problem(
                        at,
                        "${…} and %{…} are not expanded; write $${ or %%{ for the characters themselves",
                    );
                    return None;
                }
            }
        }
        Some(Value::Text(text))
    }

    fn unusable(&mut self, at: &Origin) -> Option<Node> {
        self.report.problem(
            at,
            "expressions are not supported here; write a string (in quotes), a number, true, false, a list or an object",
        );
        None
    }
}

fn negative(expression: &Expression) -> Option<String> {
    let Expression::UnaryOp(operation) = expression else {
        return None;
    };
    match (operation.operator.value(), &operation.expr) {
        (hcl_edit::expr::UnaryOperator::Neg, Expression::Number(number)) => {
            Some(format!("-{}", number.value()))
        }
        _ => None,
    }
}

fn object_key(key: &ObjectKey) -> Option<String> {
    match key {
        ObjectKey::Ident(ident) => Some(ident.as_str().to_owned()),
        ObjectKey::Expression(Expression::String(text)) => Some(text.value().clone()),
        ObjectKey::Expression(Expression::Variable(name)) => Some(name.as_str().to_owned()),
        ObjectKey::Expression(_) => None,
    }
}

fn parse_json(source: &Source<'_>, report: &mut Report) -> Vec<Entry> {
    let strict = ParseOptions {
        allow_comments: false,
        allow_loose_object_property_names: false,
        allow_trailing_commas: false,
        allow_missing_commas: false,
        allow_single_quoted_strings: false,
        allow_hexadecimal_numbers: false,
        ..ParseOptions::default()
    };
    let parsed = match jsonc_parser::parse_to_ast(source.text, &CollectOptions::default(), &strict)
    {
        Ok(parsed) => parsed,
        Err(error) => {
            let at = source.at(error.range().start);
            report.problem(&at, format!("not valid JSON: {}", error.kind()));
            return Vec::new();
        }
    };
    match parsed.value {
        Some(ast::Value::Object(object)) => json_entries(source, &object),
        Some(other) => {
            let at = source.at(other.range().start);
            report.problem(&at, "the file must hold one JSON object");
            Vec::new()
        }
        None => Vec::new(),
    }
}

fn json_entries(source: &Source<'_>, object: &ast::Object<'_>) -> Vec<Entry> {
    object
        .properties
        .iter()
        .map(|property| Entry {
            name: property.name.as_str().to_owned(),
            at: source.at(property.range.start),
            node: json_node(source, &property.value),
        })
        .collect()
}

fn json_node(source: &Source<'_>, value: &ast::Value<'_>) -> Node {
    let Range { start, .. } = value.range();
    let converted = match value {
        ast::Value::StringLit(text) => Value::Text(Zeroizing::new(text.value.to_string())),
        ast::Value::NumberLit(number) => Value::Number(number.value.to_owned()),
        ast::Value::BooleanLit(boolean) => Value::Bool(boolean.value),
        ast::Value::NullKeyword(_) => Value::Null,
        ast::Value::Object(object) => Value::Table(json_entries(source, object)),
        ast::Value::Array(array) => Value::List(
            array
                .elements
                .iter()
                .map(|element| json_node(source, element))
                .collect(),
        ),
    };
    Node {
        at: source.at(start),
        value: converted,
    }
}

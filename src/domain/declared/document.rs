//! A TOML text as a tree that knows its lines, and what is found wrong with it. Floor 0.

use std::{fmt, ops::Range};

use serde_json::{Map, Number, Value};
use toml::{
    Spanned,
    de::{DeString, DeTable, DeValue},
};

use super::super::json::MAX_JSON_DEPTH;

/// A key of the file with its place.
pub type Key<'a> = Spanned<DeString<'a>>;

/// A value of the file with its place.
pub type Node<'a> = Spanned<DeValue<'a>>;

/// What is wrong with a text, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The line, from 1.
    pub line: usize,
    /// The character in the line, from 1.
    pub column: usize,
    /// What is wrong and what would be right.
    pub text: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.line, self.column, self.text)
    }
}

/// Everything that is wrong with a text, in its order.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
pub struct WrongDeclaration {
    /// What is wrong; never empty.
    pub problems: Vec<Problem>,
}

impl WrongDeclaration {
    /// An error of the whole text, with its causes.
    pub(in crate::domain) fn of_whole(error: &dyn std::error::Error) -> Self {
        let causes = std::iter::successors(Some(error), |error| error.source());
        let text = causes.map(ToString::to_string).collect::<Vec<_>>();
        Self {
            problems: vec![Problem {
                line: 1,
                column: 1,
                text: text.join(": "),
            }],
        }
    }
}

/// Collects what is wrong with a text.
pub struct Problems<'a> {
    text: &'a str,
    found: Vec<(usize, String)>,
}

impl<'a> Problems<'a> {
    pub fn of(text: &'a str) -> Self {
        Self {
            text,
            found: Vec::new(),
        }
    }

    pub fn add(&mut self, place: Range<usize>, text: impl Into<String>) {
        self.found.push((place.start, text.into()));
    }

    pub fn count(&self) -> usize {
        self.found.len()
    }

    /// The line of a place, for a problem that points to another one.
    pub fn line(&self, place: &Range<usize>) -> usize {
        self.place(place.start).0
    }

    fn place(&self, at: usize) -> (usize, usize) {
        let before = &self.text[..self.text.floor_char_boundary(at)];
        let line = before.matches('\n').count() + 1;
        let column = before
            .rsplit('\n')
            .next()
            .map_or(0, |part| part.chars().count())
            + 1;
        (line, column)
    }

    pub fn finish(mut self) -> Result<(), WrongDeclaration> {
        if self.found.is_empty() {
            return Ok(());
        }
        self.found.sort();
        self.found.dedup();
        let problems = self
            .found
            .iter()
            .map(|(at, text)| {
                let (line, column) = self.place(*at);
                Problem {
                    line,
                    column,
                    text: text.clone(),
                }
            })
            .collect();
        Err(WrongDeclaration { problems })
    }

    /// The table that a value is; otherwise that is a problem.
    pub fn table<'n, 't>(&mut self, what: &str, node: &'n Node<'t>) -> Option<&'n DeTable<'t>> {
        let table = node.get_ref().as_table();
        if table.is_none() {
            self.must_be(what, "a table", node);
        }
        table
    }

    /// The text that a value is; otherwise that is a problem.
    pub fn text<'n>(&mut self, what: &str, node: &'n Node<'_>) -> Option<&'n str> {
        let text = node.get_ref().as_str();
        if text.is_none() {
            self.must_be(what, "a text", node);
        }
        text
    }

    pub fn must_be(&mut self, what: &str, right: &str, node: &Node<'_>) {
        let kind = kind_of(node.get_ref());
        self.add(node.span(), format!("{what} must be {right}, not {kind}"));
    }

    /// The value as JSON; what JSON does not have is a problem.
    pub fn json(&mut self, node: &Node<'_>) -> Option<Value> {
        self.json_at(node, MAX_JSON_DEPTH / 2)
    }

    fn json_at(&mut self, node: &Node<'_>, levels: usize) -> Option<Value> {
        if levels == 0 {
            let most = MAX_JSON_DEPTH / 2;
            self.add(
                node.span(),
                format!("lies too deep: {most} levels are allowed"),
            );
            return None;
        }
        match node.get_ref() {
            DeValue::String(text) if text.contains('\0') => {
                self.add(
                    node.span(),
                    "holds the character U+0000, which cannot be stored: leave it out",
                );
                None
            }
            DeValue::String(text) => Some(text.as_ref().into()),
            DeValue::Boolean(value) => Some((*value).into()),
            DeValue::Integer(number) => {
                let value = i64::from_str_radix(number.as_str(), number.radix());
                if value.is_err() {
                    self.add(node.span(), "must be a whole number from -2^63 to 2^63 - 1");
                }
                value.ok().map(Value::from)
            }
            DeValue::Float(number) => {
                let value = number.as_str().parse().ok().and_then(Number::from_f64);
                if value.is_none() {
                    self.add(
                        node.span(),
                        "must be a number that JSON can hold: not infinite, not nan",
                    );
                }
                value.map(Value::Number)
            }
            DeValue::Datetime(_) => {
                self.add(
                    node.span(),
                    "JSON has no instants: write it as a text, in quotes",
                );
                None
            }
            DeValue::Array(elements) => elements
                .iter()
                .map(|element| self.json_at(element, levels - 1))
                .collect(),
            DeValue::Table(table) => table
                .iter()
                .map(|(key, value)| {
                    Some((key.get_ref().to_string(), self.json_at(value, levels - 1)?))
                })
                .collect::<Option<Map<_, _>>>()
                .map(Value::Object),
        }
    }
}

/// What a value is, for people.
fn kind_of(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a text",
        DeValue::Integer(_) | DeValue::Float(_) => "a number",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "an instant",
        DeValue::Array(_) => "an array",
        DeValue::Table(_) => "a table",
    }
}

/// The place of the value to which keys and indices lead; where there is none, of the last one on the way.
pub fn locate(node: &Node<'_>, path: &[String]) -> Range<usize> {
    let Some((first, rest)) = path.split_first() else {
        return node.span();
    };
    let inner = match node.get_ref() {
        DeValue::Table(table) => table.get(first.as_str()),
        DeValue::Array(elements) => first
            .parse()
            .ok()
            .and_then(|index: usize| elements.get(index)),
        _ => None,
    };
    inner.map_or_else(|| node.span(), |inner| locate(inner, rest))
}

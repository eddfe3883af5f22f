//! What a schema finds wrong, in words that say what would be right. Floor 0.

use std::borrow::Cow;

use super::SchemaViolation;
use crate::domain::json::kind_of;
use jsonschema::{
    ValidationError,
    error::{TypeKind, ValidationErrorKind},
    paths::{Location, LocationSegment},
    types::JsonType,
};

/// A value of a client's is quoted up to so many characters.
const MAX_QUOTED_CHARS: usize = 60;
/// What the library says may quote, too.
const MAX_SAID_CHARS: usize = 300;
/// So many names or values are listed at most.
const MAX_LISTED: usize = 20;

pub(super) fn describe(error: &ValidationError<'_>) -> SchemaViolation {
    let mut path = path_of(error.instance_path());
    if let ValidationErrorKind::Required { property } = error.kind()
        && let Some(property) = property.as_str()
    {
        push_key(&mut path, property);
    }
    SchemaViolation {
        problem: problem_of(error),
        path,
    }
}

fn problem_of(error: &ValidationError<'_>) -> String {
    match error.kind() {
        ValidationErrorKind::Required { .. } => "must be given".to_owned(),
        ValidationErrorKind::Type { kind } => {
            let kinds: Vec<&str> = match kind {
                TypeKind::Single(kind) => vec![name_of(*kind)],
                TypeKind::Multiple(kinds) => kinds.iter().map(name_of).collect(),
            };
            let right = kinds.join(" or ");
            match kind_of(error.instance()) {
                "a number" if right == "a whole number" => "must be a whole number".to_owned(),
                actual => format!("must be {right}, not {actual}"),
            }
        }
        ValidationErrorKind::MinLength { limit } => {
            format!("must have at least {}", counted(*limit, "character"))
        }
        ValidationErrorKind::MaxLength { limit } => {
            format!("must have at most {}", counted(*limit, "character"))
        }
        ValidationErrorKind::MinItems { limit } => {
            format!("must have at least {}", counted(*limit, "element"))
        }
        ValidationErrorKind::MaxItems { limit } => {
            format!("must have at most {}", counted(*limit, "element"))
        }
        ValidationErrorKind::UniqueItems => "must not have the same element twice".to_owned(),
        ValidationErrorKind::Minimum { limit } => format!("must be at least {limit}"),
        ValidationErrorKind::Maximum { limit } => format!("must be at most {limit}"),
        ValidationErrorKind::ExclusiveMinimum { limit } => format!("must be above {limit}"),
        ValidationErrorKind::ExclusiveMaximum { limit } => format!("must be below {limit}"),
        ValidationErrorKind::MultipleOf { multiple_of } => {
            format!("must be a multiple of {multiple_of}")
        }
        ValidationErrorKind::Enum { options } => match options.as_array() {
            Some(options) => format!("must be one of {}", listed(options.iter())),
            None => said(error),
        },
        ValidationErrorKind::Constant { expected_value } => {
            format!(
                "must be {}",
                cut(&expected_value.to_string(), MAX_QUOTED_CHARS)
            )
        }
        ValidationErrorKind::Format { format } => format!("must have the format {format}"),
        ValidationErrorKind::Pattern { pattern } => format!("must match the pattern {pattern}"),
        ValidationErrorKind::AdditionalProperties { unexpected }
        | ValidationErrorKind::UnevaluatedProperties { unexpected } => {
            format!("must not have {}", listed(unexpected.iter()))
        }
        _ => said(error),
    }
}

/// What the library says itself.
fn said(error: &ValidationError<'_>) -> String {
    cut(&error.masked().to_string(), MAX_SAID_CHARS).into_owned()
}

fn name_of(kind: JsonType) -> &'static str {
    match kind {
        JsonType::Array => "an array",
        JsonType::Boolean => "true or false",
        JsonType::Integer => "a whole number",
        JsonType::Null => "null",
        JsonType::Number => "a number",
        JsonType::Object => "an object",
        JsonType::String => "a text",
    }
}

fn counted(count: u64, unit: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {unit}{plural}")
}

fn listed(values: impl ExactSizeIterator<Item = impl ToString>) -> String {
    let count = values.len();
    let mut list: Vec<String> = values
        .take(MAX_LISTED)
        .map(|value| cut(&value.to_string(), MAX_QUOTED_CHARS).into_owned())
        .collect();
    if count > MAX_LISTED {
        list.push("…".to_owned());
    }
    list.join(", ")
}

fn cut(text: &str, max_chars: usize) -> Cow<'_, str> {
    match text.char_indices().nth(max_chars) {
        Some((end, _)) => format!("{}…", &text[..end]).into(),
        None => text.into(),
    }
}

fn path_of(location: &Location) -> String {
    let mut path = String::new();
    for segment in location.segments() {
        match segment {
            LocationSegment::Property(key) => push_key(&mut path, &key),
            LocationSegment::Index(index) => path.push_str(&format!("[{index}]")),
        }
    }
    path
}

fn push_key(path: &mut String, key: &str) {
    if !path.is_empty() {
        path.push('.');
    }
    path.push_str(&cut(key, MAX_QUOTED_CHARS));
}

#[cfg(test)]
mod tests {
    use super::super::DataSchema;
    use serde_json::{Value, json};

    fn violations(schema: Value, data: Value) -> Vec<String> {
        let schema = DataSchema::compile(&schema).expect("a schema");
        match schema.check(&data) {
            Ok(()) => Vec::new(),
            Err(violations) => violations.iter().map(ToString::to_string).collect(),
        }
    }

    #[test]
    fn violations_say_where_they_are_and_what_would_be_right() {
        let schema = json!({
            "type": "object",
            "required": ["username"],
            "additionalProperties": false,
            "properties": {
                "username": { "type": "string", "minLength": 1 },
                "email": { "type": "string", "format": "email" },
                "age": { "type": "integer", "minimum": 0 },
                "role": { "enum": ["read", "write"] },
                "address": { "type": "object", "required": ["street"] },
                "tags": { "items": { "type": ["string", "null"], "pattern": "^[a-z]+$" } },
            },
        });
        for (data, expected) in [
            (json!([]), "must be an object, not an array"),
            (json!({}), "username must be given"),
            (
                json!({ "username": "" }),
                "username must have at least 1 character",
            ),
            (
                json!({ "username": 1 }),
                "username must be a text, not a number",
            ),
            (
                json!({ "username": "a", "email": "x" }),
                "email must have the format email",
            ),
            (
                json!({ "username": "a", "age": 1.5 }),
                "age must be a whole number",
            ),
            (
                json!({ "username": "a", "age": -1 }),
                "age must be at least 0",
            ),
            (
                json!({ "username": "a", "role": "admin" }),
                "role must be one of \"read\", \"write\"",
            ),
            (
                json!({ "username": "a", "address": {} }),
                "address.street must be given",
            ),
            (
                json!({ "username": "a", "tags": ["a", 2] }),
                "tags[1] must be null or a text, not a number",
            ),
            (
                json!({ "username": "a", "tags": ["A"] }),
                "tags[0] must match the pattern ^[a-z]+$",
            ),
            (
                json!({ "username": "a", "passwort": 1 }),
                "must not have passwort",
            ),
        ] {
            assert_eq!(
                violations(schema.clone(), data.clone()),
                [expected],
                "{data}"
            );
        }
        assert!(violations(schema, json!({ "username": "a", "tags": [null] })).is_empty());
    }

    #[test]
    fn what_a_client_sends_comes_back_shortened_only() {
        let long = "x".repeat(100_000);
        let schema = json!({ "additionalProperties": { "type": "string" }, "maxProperties": 2 });
        let found = violations(schema, json!({ long.clone(): 1 }));
        assert_eq!(found.len(), 1);
        assert!(found[0].len() < 200, "{}", found[0].len());
        let schema = json!({ "propertyNames": { "maxLength": 10 } });
        let found = violations(schema, json!({ long: 1 }));
        assert!(found[0].len() < 1000, "{}", found[0].len());
    }

    #[test]
    fn of_many_violations_some_are_told() {
        let schema = json!({ "items": { "type": "string" } });
        let numbers = |count| Value::Array(vec![json!(1); count]);
        assert_eq!(violations(schema.clone(), numbers(1_000)).len(), 10);
        assert_eq!(violations(schema, numbers(100_000)).len(), 1);
    }

    #[test]
    fn nothing_is_fetched_and_nothing_is_guessed() {
        for (schema, path) in [
            (json!({ "$ref": "http://localhost:1/schema.json" }), ""),
            (json!({ "$ref": "#/$defs/none" }), ""),
            (
                json!({ "properties": { "a": { "minLength": -1 } } }),
                "properties/a/minLength",
            ),
            (json!({ "pattern": "(?=a)" }), "pattern"),
            (json!({ "format": "emial" }), "format"),
        ] {
            let error = DataSchema::compile(&schema).expect_err("not a schema");
            assert_eq!(error.path.join("/"), path, "{error}");
        }
    }

    #[test]
    fn a_schema_that_refers_to_itself_comes_to_an_end() {
        let schema = json!({ "$ref": "#/$defs/a", "$defs": { "a": { "$ref": "#/$defs/a" } } });
        assert!(violations(schema, json!({})).is_empty());
    }
}

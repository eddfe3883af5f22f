//! The JSON Schema of a command's data: compiled once, and what it finds said in words that help. Floor 0.

mod violations;

use std::fmt;

use jsonschema::{Draft, PatternOptions, ValidationError, Validator, paths::LocationSegment};
use serde_json::Value;

/// So many violations are told at most.
const MAX_VIOLATIONS: usize = 10;
/// In a value of more values only the first violation is looked for.
const MAX_SEARCHED_VALUES: usize = 10_000;

/// A JSON Schema that is ready to check values.
pub struct DataSchema {
    validator: Validator,
}

impl DataSchema {
    /// Compiles a schema of JSON Schema 2020-12. Formats are checked; nothing is fetched, and a pattern may not look
    /// around or back.
    ///
    /// # Errors
    /// When it is none.
    pub fn compile(schema: &Value) -> Result<Self, SchemaError> {
        let validator = jsonschema::options()
            .with_draft(Draft::Draft202012)
            .should_validate_formats(true)
            .should_ignore_unknown_formats(false)
            // These patterns need time in proportion to the text, whatever somebody sends.
            .with_pattern_options(PatternOptions::regex())
            .offline()
            .build(schema)
            .map_err(|error| SchemaError::of(&error))?;
        Ok(Self { validator })
    }

    /// Checks a value.
    ///
    /// # Errors
    /// What is wrong with it: ten things at most.
    pub fn check(&self, value: &Value) -> Result<(), Vec<SchemaViolation>> {
        let Err(first) = self.validator.validate(value) else {
            return Ok(());
        };
        // All of them are made before the first is there, and each takes memory.
        let mut left = MAX_SEARCHED_VALUES;
        if !is_within(value, &mut left) {
            return Err(vec![violations::describe(&first)]);
        }
        let mut found: Vec<SchemaViolation> = self
            .validator
            .iter_errors(value)
            .map(|error| violations::describe(&error))
            .collect();
        // In an order that does not depend on the schema's own, which a database may not keep.
        found.sort_by_cached_key(SchemaViolation::to_string);
        found.dedup();
        found.truncate(MAX_VIOLATIONS);
        Err(found)
    }
}

/// Whether a value has at most so many values in it.
fn is_within(value: &Value, left: &mut usize) -> bool {
    let Some(rest) = left.checked_sub(1) else {
        return false;
    };
    *left = rest;
    match value {
        Value::Array(elements) => elements.iter().all(|element| is_within(element, left)),
        Value::Object(entries) => entries.values().all(|value| is_within(value, left)),
        _ => true,
    }
}

impl fmt::Debug for DataSchema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DataSchema").finish_non_exhaustive()
    }
}

/// Why a value is no JSON Schema that can be used, and where in it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("/{}: {problem}", .path.join("/"))]
pub struct SchemaError {
    /// The keys and indices that lead there.
    pub path: Vec<String>,
    /// What is wrong.
    pub problem: String,
}

impl SchemaError {
    fn of(error: &ValidationError<'_>) -> Self {
        let path: Vec<String> = error
            .instance_path()
            .segments()
            .map(|segment| match segment {
                LocationSegment::Property(key) => key.to_string(),
                LocationSegment::Index(index) => index.to_string(),
            })
            .collect();
        let problem = match path.last().map(String::as_str) {
            Some("pattern") => format!(
                "{} is no regular expression that can be used (without look-around and back-references)",
                error.instance()
            ),
            Some("format") => format!("there is no format {}", error.instance()),
            _ => error.to_string(),
        };
        Self { path, problem }
    }
}

/// One thing that is wrong with a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SchemaViolation {
    /// Where it is: `address.street`, `tags[2]`; empty for the whole value.
    pub path: String,
    /// What would be right.
    pub problem: String,
}

impl fmt::Display for SchemaViolation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.path.is_empty() {
            write!(f, "{} ", self.path)?;
        }
        f.write_str(&self.problem)
    }
}

//! The JSON Schema of a command's data: compiled once, and what it finds said in words that help. Floor 0.

use std::fmt;

use jsonschema::{PatternOptions, Validator};
use serde_json::Value;

/// So many violations are told at most.
const MAX_VIOLATIONS: usize = 10;

/// A JSON Schema that is ready to check values.
pub struct DataSchema {
    validator: Validator,
}

impl DataSchema {
    /// Compiles a schema. Nothing is fetched: a `$ref` to another document is refused.
    ///
    /// # Errors
    /// When it is no JSON Schema; the text says where and why.
    pub fn compile(schema: &Value) -> Result<Self, String> {
        let validator = jsonschema::options()
            // These patterns need time in proportion to the text, whatever somebody sends.
            .with_pattern_options(PatternOptions::regex())
            .offline()
            .build(schema)
            .map_err(|error| error.to_string())?;
        Ok(Self { validator })
    }

    /// Checks a value.
    ///
    /// # Errors
    /// What is wrong with it, [`MAX_VIOLATIONS`] at most.
    pub fn check(&self, value: &Value) -> Result<(), Vec<SchemaViolation>> {
        if self.validator.is_valid(value) {
            return Ok(());
        }
        Err(self
            .validator
            .iter_errors(value)
            .take(MAX_VIOLATIONS)
            .map(|error| SchemaViolation {
                path: error.instance_path().to_string(),
                problem: error.masked().to_string(),
            })
            .collect())
    }
}

impl fmt::Debug for DataSchema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DataSchema").finish_non_exhaustive()
    }
}

/// One thing that is wrong with a value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {problem}")]
pub struct SchemaViolation {
    /// Where it is.
    pub path: String,
    /// What would be right.
    pub problem: String,
}

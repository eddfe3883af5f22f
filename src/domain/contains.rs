//! Whether one JSON value contains another. Floor 0.

use serde_json::{Number, Value};

/// Whether `value` contains `contained`: an object every key with a value that contains the one given, an array for every
/// element one that contains it, whatever their order and number; anything else only what is equal to it. An array by itself
/// contains a text, number, truth value or null that is among its elements, too.
///
/// Source: PostgreSQL's documentation, "jsonb Containment and Existence" (the operator `@>`).
#[must_use]
pub fn contains(value: &Value, contained: &Value) -> bool {
    match (value, contained) {
        // Only at the top: deeper down an array contains no bare value.
        (Value::Array(elements), contained) if !is_container(contained) => {
            elements.iter().any(|element| equal(element, contained))
        }
        _ => contains_deep(value, contained),
    }
}

fn contains_deep(value: &Value, contained: &Value) -> bool {
    match (value, contained) {
        (Value::Object(fields), Value::Object(contained)) => {
            contained.iter().all(|(key, contained)| {
                let value = fields.get(key);
                value.is_some_and(|value| contains_deep(value, contained))
            })
        }
        (Value::Array(elements), Value::Array(contained)) => contained.iter().all(|contained| {
            elements
                .iter()
                .any(|element| contains_deep(element, contained))
        }),
        _ => equal(value, contained),
    }
}

fn is_container(value: &Value) -> bool {
    matches!(value, Value::Array(_) | Value::Object(_))
}

/// Whether two values that are no containers are equal; containers of different kinds never are.
fn equal(left: &Value, right: &Value) -> bool {
    match (left, right) {
        (Value::Number(left), Value::Number(right)) => equal_numbers(left, right),
        (left, right) => !is_container(left) && left == right,
    }
}

/// By value, whatever the spelling: a whole number is compared as such, also with one that is written as a fraction.
fn equal_numbers(left: &Number, right: &Number) -> bool {
    match (whole(left), whole(right)) {
        (Some(left), Some(right)) => left == right,
        (None, None) => left.as_f64() == right.as_f64(),
        _ => false,
    }
}

/// A number that is whole; those beyond 2^127 are compared as fractions.
fn whole(number: &Number) -> Option<i128> {
    const LIMIT: f64 = (1_u128 << 127) as f64;
    number.as_i128().or_else(|| {
        let float = number.as_f64()?;
        (float.fract() == 0.0 && float.abs() < LIMIT).then_some(float as i128)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{from_str, json};

    /// Those of PostgreSQL's documentation, and what lies at their edges; PostgreSQL itself is asked them too.
    const CASES: &str = include_str!("../../tests/containment.json");

    #[test]
    fn containment_is_that_of_postgresql() {
        let cases: Vec<(String, String, bool)> = from_str(CASES).unwrap();
        for (value, contained, expected) in cases {
            let (left, right) = (from_str(&value).unwrap(), from_str(&contained).unwrap());
            assert_eq!(contains(&left, &right), expected, "{value} @> {contained}");
        }
    }

    #[test]
    fn everything_contains_itself() {
        let value = json!({ "a": [1, [2, { "b": null }], "x"], "c": { "d": [[], {}] } });
        assert!(contains(&value, &value));
    }
}

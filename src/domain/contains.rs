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

    /// The cases of PostgreSQL's documentation, and what lies at their edges.
    pub(crate) const CASES: &[(&str, &str, bool)] = &[
        (r#""foo""#, r#""foo""#, true),
        ("[1, 2, 3]", "[1, 3]", true),
        ("[1, 2, 3]", "[3, 1]", true),
        ("[1, 2, 3]", "[1, 2, 2]", true),
        ("[1, 2]", "[1, 2, 3]", false),
        (
            r#"{"product": "PostgreSQL", "version": 9.4, "jsonb": true}"#,
            r#"{"version": 9.4}"#,
            true,
        ),
        ("[1, 2, [1, 3]]", "[1, 3]", false),
        ("[1, 2, [1, 3]]", "[[1, 3]]", true),
        ("[1, 2, [1, 3]]", "[[3]]", true),
        (r#"{"foo": {"bar": "baz"}}"#, r#"{"bar": "baz"}"#, false),
        (
            r#"{"foo": {"bar": "baz", "x": 1}}"#,
            r#"{"foo": {"bar": "baz"}}"#,
            true,
        ),
        (r#"{"foo": {"bar": "baz"}}"#, r#"{"foo": {}}"#, true),
        (r#"{"foo": {"bar": "baz"}}"#, "{}", true),
        (r#"["foo", "bar"]"#, r#""bar""#, true),
        (r#""bar""#, r#"["bar"]"#, false),
        ("[null]", "null", true),
        ("[[1]]", "1", false),
        (r#"{"a": [1, 2]}"#, r#"{"a": 1}"#, false),
        (r#"{"a": [1, 2]}"#, r#"{"a": [2]}"#, true),
        (
            r#"{"a": [{"b": 1, "c": 2}, {"b": 3}]}"#,
            r#"{"a": [{"b": 1}]}"#,
            true,
        ),
        (
            r#"{"a": [{"b": 1, "c": 2}, {"b": 3}]}"#,
            r#"{"a": [{"b": 1, "c": 3}]}"#,
            false,
        ),
        (r#"{"a": {}}"#, r#"{"a": []}"#, false),
        (r#"{"a": []}"#, r#"{"a": []}"#, true),
        (r#"{"a": [1]}"#, r#"{"a": []}"#, true),
        (r#"{"a": null}"#, r#"{"a": null}"#, true),
        ("{}", r#"{"a": null}"#, false),
        (r#"{"a": 1}"#, r#"{"a": 1.0}"#, true),
        (r#"{"a": 1e2}"#, r#"{"a": 100}"#, true),
        (r#"{"a": 1}"#, r#"{"a": "1"}"#, false),
        (r#"{"a": true}"#, r#"{"a": 1}"#, false),
        (
            r#"{"a": 9007199254740993}"#,
            r#"{"a": 9007199254740992}"#,
            false,
        ),
        (
            r#"{"a": 9007199254740993}"#,
            r#"{"a": 9007199254740992.0}"#,
            false,
        ),
        (r#"{"a": 0.1}"#, r#"{"a": 0.10}"#, true),
        (r#"{"a": "B"}"#, r#"{"a": "b"}"#, false),
        ("[]", "{}", false),
        ("{}", "[]", false),
        ("[{}]", "{}", false),
    ];

    #[test]
    fn containment_is_that_of_postgresql() {
        for (value, contained, expected) in CASES {
            let (left, right) = (from_str(value).unwrap(), from_str(contained).unwrap());
            assert_eq!(contains(&left, &right), *expected, "{value} @> {contained}");
        }
    }

    #[test]
    fn everything_contains_itself() {
        let value = json!({ "a": [1, [2, { "b": null }], "x"], "c": { "d": [[], {}] } });
        assert!(contains(&value, &value));
    }
}

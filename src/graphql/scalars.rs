//! The scalars of the API. Floor 6.

use async_graphql::{InputValueError, InputValueResult, Name, Number, Scalar, ScalarType, Value};
use uuid::Uuid;

use crate::domain::{
    Json, Position, Timestamp,
    json::{JsonError, JsonWriter, MAX_JSON_DEPTH},
};

/// A UUID in its hyphenated form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct UuidScalar(pub Uuid);

/// A UUID in its hyphenated form.
#[Scalar(name = "UUID")]
impl ScalarType for UuidScalar {
    fn parse(value: Value) -> InputValueResult<Self> {
        match &value {
            // Only the hyphenated form has this length; the braced and the urn ones are longer.
            Value::String(text) if text.len() == 36 => {
                Uuid::try_parse(text).map(Self).map_err(|_| not_a_uuid())
            }
            _ => Err(not_a_uuid()),
        }
    }

    fn is_valid(value: &Value) -> bool {
        matches!(value, Value::String(text) if text.len() == 36 && Uuid::try_parse(text).is_ok())
    }

    fn to_value(&self) -> Value {
        Value::String(self.0.to_string())
    }
}

fn not_a_uuid() -> InputValueError<UuidScalar> {
    InputValueError::custom(
        "expected a UUID in its hyphenated form, such as 0192d3f0-1111-7222-8333-444455556666",
    )
}

/// An instant in UTC, RFC 3339 with microseconds: 2026-01-31T12:00:00.000000Z.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DateTimeScalar(pub Timestamp);

/// An instant in UTC, RFC 3339 with microseconds: 2026-01-31T12:00:00.000000Z.
#[Scalar(name = "DateTime")]
impl ScalarType for DateTimeScalar {
    fn parse(value: Value) -> InputValueResult<Self> {
        let time = match &value {
            Value::String(text) => Timestamp::parse(text),
            _ => None,
        };
        time.map(Self).ok_or_else(|| {
            InputValueError::custom(
                "expected an instant as RFC 3339 says, such as 2026-01-31T12:00:00.000000Z",
            )
        })
    }

    fn is_valid(value: &Value) -> bool {
        matches!(value, Value::String(text) if Timestamp::parse(text).is_some())
    }

    fn to_value(&self) -> Value {
        Value::String(self.0.to_string())
    }
}

/// A whole number from 0 to 2^53 - 1, as a JSON number. As a position in a stream: 0 is before the first entry; entries count
/// 1, 2, 3 … without a gap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Long(pub i64);

/// A whole number from 0 to 2^53 - 1, as a JSON number. As a position in a stream: 0 is before the first entry; entries count
/// 1, 2, 3 … without a gap.
#[Scalar]
impl ScalarType for Long {
    fn parse(value: Value) -> InputValueResult<Self> {
        let number = match &value {
            Value::Number(number) => number.as_i64(),
            _ => None,
        };
        number
            .filter(|number| (0..=Position::MAX.0).contains(number))
            .map(Self)
            .ok_or_else(|| InputValueError::custom("expected a whole number from 0 to 2^53 - 1"))
    }

    fn is_valid(value: &Value) -> bool {
        matches!(value, Value::Number(number)
            if number.as_i64().is_some_and(|number| (0..=Position::MAX.0).contains(&number)))
    }

    fn to_value(&self) -> Value {
        Value::Number(Number::from(self.0))
    }
}

impl From<Position> for Long {
    fn from(position: Position) -> Self {
        Self(position.0)
    }
}

/// Any JSON value, sent and returned as JSON (never as a string that holds JSON). Numbers are 64-bit integers or doubles and come
/// back equal in value; object keys may come back in another order, of equal keys the last counts. Refused: numbers beyond a
/// double's range, lone surrogates, the character U+0000, more than 64 levels.
#[derive(Clone, Debug)]
pub struct JsonScalar(pub Json);

/// Any JSON value, sent and returned as JSON (never as a string that holds JSON). Numbers are 64-bit integers or doubles and come
/// back equal in value; object keys may come back in another order, of equal keys the last counts. Refused: numbers beyond a
/// double's range, lone surrogates, the character U+0000, more than 64 levels.
#[Scalar(name = "JSON")]
impl ScalarType for JsonScalar {
    fn parse(value: Value) -> InputValueResult<Self> {
        let mut writer = JsonWriter::default();
        match write(&mut writer, &value) {
            Ok(()) => Ok(Self(writer.finish())),
            Err(error) => Err(InputValueError::custom(format!("the value {error}"))),
        }
    }

    fn is_valid(value: &Value) -> bool {
        can_be_stored(value, 0)
    }

    fn to_value(&self) -> Value {
        super::json::raw(&self.0)
    }
}

/// What each scalar takes: the library's own errors say no more than its name.
pub(super) fn what_would_be_right(scalar: &str) -> Option<&'static str> {
    Some(match scalar {
        "UUID" => "a UUID in its hyphenated form, such as 0192d3f0-1111-7222-8333-444455556666",
        "DateTime" => "an instant as RFC 3339 says, such as 2026-01-31T12:00:00.000000Z",
        "Long" => "a whole number from 0 to 2^53 - 1",
        "JSON" => {
            "JSON with at most 64 levels of arrays and objects and without the character U+0000"
        }
        _ => return None,
    })
}

/// Whether [`write`] takes the value: asked before resolvers run, when the library still knows which argument it is.
fn can_be_stored(value: &Value, levels: usize) -> bool {
    let fits = levels < MAX_JSON_DEPTH;
    match value {
        Value::Null | Value::Boolean(_) | Value::Number(_) => true,
        Value::String(text) => !text.contains('\0'),
        Value::List(values) => fits && values.iter().all(|value| can_be_stored(value, levels + 1)),
        Value::Object(fields) => {
            let is_right = |(key, value): (&Name, &Value)| {
                !key.contains('\0') && can_be_stored(value, levels + 1)
            };
            fits && fields.iter().all(is_right)
        }
        Value::Enum(_) | Value::Binary(_) => false,
    }
}

fn write(writer: &mut JsonWriter, value: &Value) -> Result<(), JsonError> {
    match value {
        Value::Null => writer.null(),
        Value::Boolean(value) => writer.boolean(*value),
        Value::Number(value) => writer.number(value),
        Value::String(value) => writer.text(value)?,
        Value::List(values) => {
            writer.open('[')?;
            for value in values {
                write(writer, value)?;
            }
            writer.close(']');
        }
        Value::Object(fields) => {
            writer.open('{')?;
            for (key, value) in fields {
                writer.key(key)?;
                write(writer, value)?;
            }
            writer.close('}');
        }
        Value::Enum(_) | Value::Binary(_) => return Err(JsonError::NotJson),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<String, String> {
        let value = serde_json::from_str(text).map_err(|error| error.to_string())?;
        match JsonScalar::parse(value) {
            Ok(json) => Ok(json.0.as_str().to_owned()),
            Err(_) => Err("refused".to_owned()),
        }
    }

    #[test]
    fn json_comes_back_equal_in_value() {
        for text in [
            r#"{"b":[1,2.5,null,true,"ä\n"],"a":{}}"#,
            "18446744073709551615",
            "-9223372036854775808",
            "1e308",
            "\"x\"",
        ] {
            let back = parse(text).expect("it is stored");
            let (sent, stored) = (Json::stored(text.to_owned()), Json::stored(back));
            assert!(
                sent.same_value(&stored),
                "{text} became {}",
                stored.as_str()
            );
        }
    }

    #[test]
    fn of_equal_keys_the_last_counts() {
        assert_eq!(parse(r#"{"a":1,"a":2}"#), Ok(r#"{"a":2}"#.to_owned()));
    }

    #[test]
    fn a_key_that_a_library_gives_a_meaning_of_its_own_is_just_a_key() {
        let text = r#"{"$serde_json::private::RawValue":"[1]"}"#;
        assert_eq!(parse(text), Ok(text.to_owned()));
    }

    #[test]
    fn what_is_valid_is_what_can_be_parsed() {
        let nested = |levels: usize| format!("{}1{}", "[".repeat(levels), "]".repeat(levels));
        let objects =
            |levels: usize| format!("{}1{}", "{\"a\":".repeat(levels), "}".repeat(levels));
        let texts = [nested(64), nested(65), objects(64), objects(65)];
        for text in texts.iter().map(String::as_str).chain([
            r#"{"b":[1,2.5,null,true,"ä"]}"#,
            r#""\u0000""#,
            r#"{"a\u0000":1}"#,
            r#"[{"a":["\u0000"]}]"#,
        ]) {
            let value: Value = serde_json::from_str(text).expect("JSON");
            assert_eq!(
                JsonScalar::is_valid(&value),
                JsonScalar::parse(value).is_ok(),
                "{text}"
            );
        }
    }

    #[test]
    fn what_cannot_be_stored_is_refused() {
        assert!(parse(r#""\u0000""#).is_err());
        assert!(parse(r#""\ud800""#).is_err());
        assert!(parse("1e131071").is_err());
        assert!(parse(&format!("{}1{}", "[".repeat(65), "]".repeat(65))).is_err());
        assert!(parse(&format!("{}1{}", "[".repeat(64), "]".repeat(64))).is_ok());
    }
}

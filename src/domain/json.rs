//! JSON that is stored and passed through as text, checked once when it comes in. Floor 0.

use std::{cmp::Ordering, fmt, sync::Arc};

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Number, Value};

/// How deep arrays and objects may lie in each other.
pub const MAX_JSON_DEPTH: usize = 64;

/// Why a value is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JsonError {
    /// Arrays and objects lie too deep in each other.
    #[error(
        "has more than {MAX_JSON_DEPTH} levels of arrays and objects: {MAX_JSON_DEPTH} are allowed"
    )]
    TooDeep,
    /// A text holds the character U+0000.
    #[error("holds the character U+0000 in a text, which cannot be stored: leave it out")]
    Nul,
    /// It has too many bytes.
    #[error("has {bytes} bytes as JSON text: at most {limit} are allowed")]
    TooLarge {
        /// How many it has.
        bytes: usize,
        /// How many are allowed.
        limit: usize,
    },
    /// It is not JSON at all.
    #[error("is not JSON")]
    NotJson,
}

/// A JSON value as text: valid, at most [`MAX_JSON_DEPTH`] levels, without U+0000. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Json(Arc<str>);

impl Json {
    /// Takes a text that was checked before it was stored.
    #[must_use]
    pub fn stored(text: impl Into<Arc<str>>) -> Self {
        Self(text.into())
    }

    /// The empty object.
    #[must_use]
    pub fn empty_object() -> Self {
        Self("{}".into())
    }

    /// The value `null`.
    #[must_use]
    pub fn null() -> Self {
        Self("null".into())
    }

    /// The value as JSON text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is an object.
    #[must_use]
    pub fn is_object(&self) -> bool {
        self.0.trim_start().starts_with('{')
    }

    /// The value itself.
    ///
    /// # Errors
    /// When what is stored is not JSON.
    pub fn to_value(&self) -> Result<Value, JsonError> {
        serde_json::from_str(&self.0)
            .map(|Parsed(value)| value)
            .map_err(|_| JsonError::NotJson)
    }

    /// Writes a value as text.
    ///
    /// # Errors
    /// When it lies too deep or holds U+0000.
    pub fn of_value(value: &Value) -> Result<Self, JsonError> {
        let mut writer = JsonWriter::default();
        writer.any(value)?;
        Ok(writer.finish())
    }

    /// Whether both stand for the same value: the order of keys and the spelling of numbers do not count.
    #[must_use]
    pub fn same_value(&self, other: &Self) -> bool {
        if self.0 == other.0 {
            return true;
        }
        match (self.to_value(), other.to_value()) {
            (Ok(left), Ok(right)) => same(&left, &right),
            _ => false,
        }
    }
}

impl AsRef<[u8]> for Json {
    fn as_ref(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

/// A value that was read from JSON. The library's own way gives keys such as `$serde_json::private::RawValue` a meaning
/// of their own; here every key is just a key.
struct Parsed(Value);

impl<'de> Deserialize<'de> for Parsed {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ParsedVisitor).map(Self)
    }
}

struct ParsedVisitor;

impl<'de> Visitor<'de> for ParsedVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Value, A::Error> {
        let mut array = Vec::new();
        while let Some(Parsed(element)) = elements.next_element()? {
            array.push(element);
        }
        Ok(array.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some((key, Parsed(value))) = entries.next_entry::<String, _>()? {
            object.insert(key, value);
        }
        Ok(object.into())
    }
}

/// What a value is, for people: `a text`.
#[must_use]
pub fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

fn same(left: &Value, right: &Value) -> bool {
    match (left, right) {
        (Value::Number(left), Value::Number(right)) => same_number(left, right),
        (Value::Array(left), Value::Array(right)) => {
            left.len() == right.len()
                && left
                    .iter()
                    .zip(right)
                    .all(|(left, right)| same(left, right))
        }
        (Value::Object(left), Value::Object(right)) => {
            left.len() == right.len()
                && left
                    .iter()
                    .all(|(key, left)| right.get(key).is_some_and(|right| same(left, right)))
        }
        _ => left == right,
    }
}

/// Integers are compared as integers, so that two that differ only beyond 2^53 stay different.
fn same_number(left: &Number, right: &Number) -> bool {
    match (left.as_i128(), right.as_i128()) {
        (Some(left), Some(right)) => left == right,
        _ => match (left.as_f64(), right.as_f64()) {
            (Some(left), Some(right)) => left.partial_cmp(&right) == Some(Ordering::Equal),
            _ => false,
        },
    }
}

/// Writes one JSON value as text and refuses what cannot be stored.
#[derive(Debug, Default)]
pub struct JsonWriter {
    text: String,
    depth: usize,
    /// Whether the next value or key in the present array or object follows another one.
    follows: bool,
}

impl JsonWriter {
    /// Writes `null`.
    pub fn null(&mut self) {
        self.value("null");
    }

    /// Writes `true` or `false`.
    pub fn boolean(&mut self, value: bool) {
        self.value(if value { "true" } else { "false" });
    }

    /// Writes a number.
    pub fn number(&mut self, value: &Number) {
        self.value(&value.to_string());
    }

    /// Writes a text.
    ///
    /// # Errors
    /// When it holds U+0000.
    pub fn text(&mut self, value: &str) -> Result<(), JsonError> {
        self.separate();
        self.quoted(value)?;
        self.follows = true;
        Ok(())
    }

    /// Writes the key of the next value in an object.
    ///
    /// # Errors
    /// When it holds U+0000.
    pub fn key(&mut self, key: &str) -> Result<(), JsonError> {
        self.separate();
        self.quoted(key)?;
        self.text.push(':');
        self.follows = false;
        Ok(())
    }

    /// Writes any value.
    ///
    /// # Errors
    /// When it lies deeper than [`MAX_JSON_DEPTH`] or holds U+0000.
    pub fn any(&mut self, value: &Value) -> Result<(), JsonError> {
        match value {
            Value::Null => self.null(),
            Value::Bool(value) => self.boolean(*value),
            Value::Number(value) => self.number(value),
            Value::String(value) => self.text(value)?,
            Value::Array(elements) => {
                self.open('[')?;
                for element in elements {
                    self.any(element)?;
                }
                self.close(']');
            }
            Value::Object(entries) => {
                self.open('{')?;
                for (key, value) in entries {
                    self.key(key)?;
                    self.any(value)?;
                }
                self.close('}');
            }
        }
        Ok(())
    }

    /// Opens an array (`[`) or an object (`{`).
    ///
    /// # Errors
    /// When it lies deeper than [`MAX_JSON_DEPTH`].
    pub fn open(&mut self, bracket: char) -> Result<(), JsonError> {
        self.depth += 1;
        if self.depth > MAX_JSON_DEPTH {
            return Err(JsonError::TooDeep);
        }
        self.separate();
        self.text.push(bracket);
        self.follows = false;
        Ok(())
    }

    /// Closes the array (`]`) or object (`}`) that was opened last.
    pub fn close(&mut self, bracket: char) {
        self.depth -= 1;
        self.text.push(bracket);
        self.follows = true;
    }

    /// The value that was written.
    #[must_use]
    pub fn finish(self) -> Json {
        Json(self.text.into())
    }

    fn value(&mut self, text: &str) {
        self.separate();
        self.text.push_str(text);
        self.follows = true;
    }

    fn separate(&mut self) {
        if self.follows {
            self.text.push(',');
        }
    }

    fn quoted(&mut self, text: &str) -> Result<(), JsonError> {
        if text.bytes().any(|byte| byte == 0) {
            return Err(JsonError::Nul);
        }
        if text
            .bytes()
            .any(|byte| byte < 0x20 || byte == b'"' || byte == b'\\')
        {
            self.text
                .push_str(&serde_json::to_string(text).map_err(|_| JsonError::NotJson)?);
        } else {
            self.text.push('"');
            self.text.push_str(text);
            self.text.push('"');
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(text: &str) -> Json {
        Json::stored(text.to_owned())
    }

    #[test]
    fn values_are_the_same_whatever_their_keys_order_and_their_numbers_spelling() {
        assert!(json(r#"{"a":1,"b":[1.0,2e3]}"#).same_value(&json(r#"{"b":[1,2000],"a":1.0}"#)));
        assert!(!json(r#"{"a":1}"#).same_value(&json(r#"{"a":1,"b":null}"#)));
        assert!(!json("[1,2]").same_value(&json("[2,1]")));
    }

    #[test]
    fn a_key_that_the_library_gives_a_meaning_of_its_own_is_just_a_key() {
        let raw = json(r#"{"a":1,"$serde_json::private::RawValue":"[1]"}"#);
        assert!(raw.same_value(&json(r#"{"$serde_json::private::RawValue":"[1]","a":1.0}"#)));
        assert!(!json(r#"{"$serde_json::private::RawValue":"[1]"}"#).same_value(&json("[1]")));
    }

    #[test]
    fn integers_beyond_2_to_the_53_are_told_apart() {
        assert!(!json("9007199254740993").same_value(&json("9007199254740992")));
    }

    #[test]
    fn a_writer_separates_and_escapes() {
        let mut writer = JsonWriter::default();
        writer.open('{').expect("one level");
        writer.key("a\"").expect("a key");
        writer.open('[').expect("two levels");
        writer.null();
        writer.boolean(true);
        writer.text("x\ny").expect("a text");
        writer.close(']');
        writer.key("b").expect("a key");
        writer.number(&Number::from(7));
        writer.close('}');
        assert_eq!(
            writer.finish().as_str(),
            r#"{"a\"":[null,true,"x\ny"],"b":7}"#
        );
    }

    #[test]
    fn the_65th_level_and_the_character_nul_are_refused() {
        let mut writer = JsonWriter::default();
        for _ in 0..MAX_JSON_DEPTH {
            writer.open('[').expect("an allowed level");
        }
        assert_eq!(writer.open('['), Err(JsonError::TooDeep));
        assert_eq!(JsonWriter::default().text("a\0"), Err(JsonError::Nul));
    }
}

//! JSON text of plain objects. Floor 6.

use std::io::Write;

use async_graphql::Value;
use uuid::{Uuid, fmt::Hyphenated};

use crate::domain::{Json, Timestamp};

/// How much room a text begins with.
const ROOM_BYTES: usize = 1 << 10;

/// JSON text that is being written. Keys are GraphQL's names, which nothing in them has to be escaped of.
///
/// The methods answer `Some` where they are the last thing that a field needs.
#[derive(Debug, Default)]
pub(super) struct JsonText {
    bytes: Vec<u8>,
}

impl JsonText {
    /// Writes the key of the next value in an object.
    pub(super) fn key(&mut self, name: &str) {
        if self.bytes.last() != Some(&b'{') {
            self.bytes.push(b',');
        }
        self.bytes.push(b'"');
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.extend_from_slice(b"\":");
    }

    /// Writes an object; `None` where `write` gives up.
    pub(super) fn object(&mut self, write: impl FnOnce(&mut Self) -> Option<()>) -> Option<()> {
        self.bytes.push(b'{');
        write(self)?;
        self.bytes.push(b'}');
        Some(())
    }

    /// Writes a list; `None` where `write` gives up on an element.
    pub(super) fn list<T>(
        &mut self,
        elements: &[T],
        mut write: impl FnMut(&T, &mut Self) -> Option<()>,
    ) -> Option<()> {
        self.bytes.push(b'[');
        for (index, element) in elements.iter().enumerate() {
            if index == 1 {
                // The others will be about as large.
                self.bytes.reserve(self.bytes.len() * elements.len());
            } else if index == 0 {
                self.bytes.reserve(ROOM_BYTES);
            }
            if index > 0 {
                self.bytes.push(b',');
            }
            write(element, self)?;
        }
        self.bytes.push(b']');
        Some(())
    }

    /// Writes `null`.
    pub(super) fn null(&mut self) -> Option<()> {
        self.bytes.extend_from_slice(b"null");
        Some(())
    }

    /// Writes a value, or `null` where there is none.
    pub(super) fn optional<T>(
        &mut self,
        value: Option<T>,
        write: impl FnOnce(&mut Self, T) -> Option<()>,
    ) -> Option<()> {
        match value {
            Some(value) => write(self, value),
            None => self.null(),
        }
    }

    /// Writes `true` or `false`.
    pub(super) fn boolean(&mut self, value: bool) -> Option<()> {
        self.bytes
            .extend_from_slice(if value { b"true" } else { b"false" });
        Some(())
    }

    /// Writes a whole number.
    pub(super) fn number(&mut self, value: impl Into<i64>) -> Option<()> {
        write!(self.bytes, "{}", value.into()).ok()
    }

    /// Writes a text.
    pub(super) fn text(&mut self, value: &str) -> Option<()> {
        serde_json::to_writer(&mut self.bytes, value).ok()
    }

    /// Writes a UUID in its hyphenated form.
    pub(super) fn uuid(&mut self, value: Uuid) -> Option<()> {
        let mut buffer = [0; Hyphenated::LENGTH];
        let text = value.hyphenated().encode_lower(&mut buffer);
        self.quoted(text)
    }

    /// Writes an instant.
    pub(super) fn instant(&mut self, value: Timestamp) -> Option<()> {
        write!(self.bytes, "\"{value}\"").ok()
    }

    /// Writes JSON text as it is.
    pub(super) fn json(&mut self, value: &Json) -> Option<()> {
        self.bytes.extend_from_slice(value.as_str().as_bytes());
        Some(())
    }

    /// What was written, as a value that is JSON text already.
    pub(super) fn finish(self) -> Value {
        Value::Binary(self.bytes.into())
    }

    fn quoted(&mut self, text: &str) -> Option<()> {
        self.bytes.push(b'"');
        self.bytes.extend_from_slice(text.as_bytes());
        self.bytes.push(b'"');
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graphql::json::AsJson;

    #[test]
    fn what_is_written_is_json() {
        let mut text = JsonText::default();
        let written = text.list(&[-1, 2], |number, text| {
            text.object(|text| {
                text.key("number");
                text.number(*number)?;
                text.key("text");
                text.text("a \"b\"\n\u{1}ä")?;
                text.key("id");
                text.uuid(Uuid::from_u128(1))?;
                text.key("at");
                text.instant(Timestamp::from_micros(1))?;
                text.key("data");
                text.json(&Json::stored("{\"a\": 1.0}".to_owned()))?;
                text.key("none");
                text.null()?;
                text.key("is");
                text.boolean(true)
            })
        });
        assert_eq!(written, Some(()));
        let row = |number: i32| {
            format!(
                r#"{{"number":{number},"text":"a \"b\"\n\u0001ä","id":"00000000-0000-0000-0000-000000000001","at":"1970-01-01T00:00:00.000001Z","data":{{"a": 1.0}},"none":null,"is":true}}"#
            )
        };
        let answer = serde_json::to_string(&AsJson(&text.finish())).expect("JSON");
        assert_eq!(answer, format!("[{},{}]", row(-1), row(2)));
    }

    #[test]
    fn an_empty_object_and_an_empty_list_are_written() {
        let mut text = JsonText::default();
        assert_eq!(text.object(|_| Some(())), Some(()));
        assert_eq!(text.list::<u8>(&[], |_, _| None), Some(()));
        assert_eq!(text.bytes, b"{}[]");
    }
}

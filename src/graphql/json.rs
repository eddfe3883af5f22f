//! Answers as JSON. Event data goes through as the text that it is, and is never read. Floor 6.

use async_graphql::Value;
use bytes::Bytes;
use serde::{
    Serialize, Serializer,
    ser::{SerializeMap, SerializeSeq, SerializeStruct},
};

use crate::domain::Json;

/// The name by which a serializer of serde_json knows text that is JSON already.
///
/// Source: serde_json's `RawValue`.
const RAW_VALUE: &str = "$serde_json::private::RawValue";

/// JSON text as a value. No value that a client sends has this variant, so nothing else looks like it.
pub(super) fn raw(json: &Json) -> Value {
    Value::Binary(Bytes::from_owner(json.clone()))
}

/// A value of an answer that writes itself as JSON, with JSON text as it is.
#[derive(Clone, Copy, Debug)]
pub struct AsJson<'a>(pub &'a Value);

impl Serialize for AsJson<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Value::Binary(text) => {
                let text = std::str::from_utf8(text).map_err(serde::ser::Error::custom)?;
                let mut raw = serializer.serialize_struct(RAW_VALUE, 1)?;
                raw.serialize_field(RAW_VALUE, text)?;
                raw.end()
            }
            Value::List(values) => {
                let mut list = serializer.serialize_seq(Some(values.len()))?;
                for value in values {
                    list.serialize_element(&AsJson(value))?;
                }
                list.end()
            }
            Value::Object(fields) => {
                let mut object = serializer.serialize_map(Some(fields.len()))?;
                for (name, value) in fields {
                    object.serialize_entry(name.as_str(), &AsJson(value))?;
                }
                object.end()
            }
            other => other.serialize(serializer),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use async_graphql::{Name, value};

    #[test]
    fn raw_json_is_written_as_it_is_and_all_else_as_ever() {
        let mut answer = value!({ "a": [1, null, "x\"y"], "b": { "c": true } });
        let Value::Object(fields) = &mut answer else {
            panic!("an object")
        };
        fields.insert(
            Name::new("data"),
            raw(&Json::stored(r#"{"n": 1.50}"#.to_owned())),
        );
        let written = serde_json::to_string(&AsJson(&answer)).expect("JSON");
        assert_eq!(
            written,
            r#"{"a":[1,null,"x\"y"],"b":{"c":true},"data":{"n": 1.50}}"#
        );
    }
}

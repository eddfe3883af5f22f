//! A domain as data: what is stored of it, and its fingerprint. Floor 0.

use std::{fmt::Write as _, sync::Arc};

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::super::Decider;

/// The form of what is stored; a later form has another number.
const FORMAT: u32 = 1;

/// Describes the domain of these deciders: `aggregates`, by their types. What is declared is there with `commands` and
/// `events` as a domain file has them, with nothing left out; what is written in Rust has `written: true` and the names of
/// its commands and their events.
pub(super) fn describe<'a>(deciders: impl Iterator<Item = &'a Arc<dyn Decider>>) -> Value {
    let mut aggregates = Map::new();
    for decider in deciders {
        let mut described = decider
            .declaration()
            .unwrap_or_else(|| names(decider.as_ref()));
        if let Some(stream) = decider.publish_to() {
            described["publish_to"] = stream.as_str().into();
        }
        aggregates.insert(decider.aggregate_type().to_string(), described);
    }
    json!({ "format": FORMAT, "aggregates": aggregates })
}

fn names(decider: &dyn Decider) -> Value {
    let commands: Map<String, Value> = decider
        .commands()
        .into_iter()
        .map(|command| {
            let events: Vec<&str> = command
                .event_types
                .iter()
                .map(|event| event.as_str())
                .collect();
            (command.name.to_string(), json!({ "events": events }))
        })
        .collect();
    json!({ "written": true, "commands": commands })
}

/// The SHA-256 of a value in canonical form: without spaces, keys in the order of their bytes.
pub(super) fn fingerprint(content: &Value) -> String {
    let digest = Sha256::digest(canonical(content));
    digest.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn canonical(value: &Value) -> String {
    match value {
        Value::Object(entries) => {
            let mut entries: Vec<(&String, &Value)> = entries.iter().collect();
            entries.sort_unstable_by_key(|(key, _)| *key);
            let members: Vec<String> = entries
                .into_iter()
                .map(|(key, value)| format!("{}:{}", Value::from(key.as_str()), canonical(value)))
                .collect();
            format!("{{{}}}", members.join(","))
        }
        Value::Array(elements) => {
            let elements: Vec<String> = elements.iter().map(canonical).collect();
            format!("[{}]", elements.join(","))
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_of_keys_does_not_count_and_that_of_elements_does() {
        let one = json!({ "a": [1, 2], "b": { "c": "x", "d": null } });
        let same: Value =
            serde_json::from_str(r#"{"b":{"d":null,"c":"x"},"a":[1,2]}"#).expect("JSON");
        assert_eq!(fingerprint(&one), fingerprint(&same));
        assert_ne!(
            fingerprint(&one),
            fingerprint(&json!({ "a": [2, 1], "b": one["b"] }))
        );
        assert_eq!(fingerprint(&one).len(), 64);
    }
}

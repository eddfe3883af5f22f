//! JSON Merge Patch: how an event changes a state unless a domain says otherwise. Floor 0.
//!
//! Source: RFC 7396.

use serde_json::{Map, Value};

/// Merges `patch` into `target`: members that are null are removed, objects are merged, all else is replaced.
pub fn merge_patch(target: &mut Value, patch: Value) {
    let Value::Object(patch) = patch else {
        *target = patch;
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Value::Object(target) = target else {
        return;
    };
    // All at once: removing one after another moves what lies behind it each time.
    if patch.values().any(Value::is_null) && !target.is_empty() {
        target.retain(|key, _| patch.get(key).is_none_or(|value| !value.is_null()));
    }
    for (key, value) in patch {
        if !value.is_null() {
            merge_patch(target.entry(key).or_insert(Value::Null), value);
        }
    }
}

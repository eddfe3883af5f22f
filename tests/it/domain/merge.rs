//! JSON Merge Patch: RFC 7396's own table of examples, and random documents against a plain model.

use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::{Value, json};
use tidings::domain::merge::merge_patch;

fn merged(mut target: Value, patch: Value) -> Value {
    merge_patch(&mut target, patch);
    target
}

/// Source: RFC 7396, appendix A.
#[test]
fn the_examples_of_the_specification_hold() {
    for (original, patch, result) in [
        (json!({"a":"b"}), json!({"a":"c"}), json!({"a":"c"})),
        (json!({"a":"b"}), json!({"b":"c"}), json!({"a":"b","b":"c"})),
        (json!({"a":"b"}), json!({"a":null}), json!({})),
        (
            json!({"a":"b","b":"c"}),
            json!({"a":null}),
            json!({"b":"c"}),
        ),
        (json!({"a":["b"]}), json!({"a":"c"}), json!({"a":"c"})),
        (json!({"a":"c"}), json!({"a":["b"]}), json!({"a":["b"]})),
        (
            json!({"a":{"b":"c"}}),
            json!({"a":{"b":"d","c":null}}),
            json!({"a":{"b":"d"}}),
        ),
        (json!({"a":[{"b":"c"}]}), json!({"a":[1]}), json!({"a":[1]})),
        (json!(["a", "b"]), json!(["c", "d"]), json!(["c", "d"])),
        (json!({"a":"b"}), json!(["c"]), json!(["c"])),
        (json!({"a":"foo"}), json!(null), json!(null)),
        (json!({"a":"foo"}), json!("bar"), json!("bar")),
        (json!({"e":null}), json!({"a":1}), json!({"e":null,"a":1})),
        (json!([1, 2]), json!({"a":"b","c":null}), json!({"a":"b"})),
        (
            json!({}),
            json!({"a":{"bb":{"ccc":null}}}),
            json!({"a":{"bb":{}}}),
        ),
    ] {
        assert_eq!(
            merged(original.clone(), patch.clone()),
            result,
            "{original} and {patch}"
        );
    }
}

#[test]
fn the_order_of_what_stays_is_kept() {
    let target = json!({ "a": 1, "b": 2, "c": 3, "d": 4 });
    let result = merged(target, json!({ "b": null, "e": 5, "a": 0 }));
    assert_eq!(result.to_string(), r#"{"a":0,"c":3,"d":4,"e":5}"#);
}

#[test]
fn a_patch_that_removes_everything_takes_no_time_that_grows_with_its_square() {
    let target: Value = (0..200_000)
        .map(|no| (no.to_string(), json!(no)))
        .collect::<serde_json::Map<_, _>>()
        .into();
    let patch: Value = (0..200_000)
        .map(|no| (no.to_string(), Value::Null))
        .collect::<serde_json::Map<_, _>>()
        .into();
    let started = std::time::Instant::now();
    assert_eq!(merged(target, patch), json!({}));
    assert!(
        started.elapsed() < std::time::Duration::from_secs(5),
        "{:?}",
        started.elapsed()
    );
}

/// A document as a map of paths to leaves: an empty object and an array are leaves, too.
#[derive(Clone, Debug, PartialEq)]
enum Model {
    Leaf(Value),
    Object(BTreeMap<String, Model>),
}

impl Model {
    fn of(value: &Value) -> Self {
        match value {
            Value::Object(entries) => Self::Object(
                entries
                    .iter()
                    .map(|(key, value)| (key.clone(), Self::of(value)))
                    .collect(),
            ),
            leaf => Self::Leaf(leaf.clone()),
        }
    }

    /// The specification's pseudo code, word by word.
    fn patched(target: Option<Self>, patch: &Self) -> Self {
        let Self::Object(patch) = patch else {
            return patch.clone();
        };
        let mut members = match target {
            Some(Self::Object(members)) => members,
            _ => BTreeMap::new(),
        };
        for (name, value) in patch {
            if *value == Self::Leaf(Value::Null) {
                members.remove(name);
            } else {
                let member = members.remove(name);
                members.insert(name.clone(), Self::patched(member, value));
            }
        }
        Self::Object(members)
    }
}

pub(super) fn document() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (0..5_i64).prop_map(Value::from),
        "[ab]{0,2}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 40, 5, |inner| {
        prop_oneof![
            1 => proptest::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            4 => members(inner),
        ]
    })
}

/// An object of few keys, so that they meet.
pub(super) fn members(value: impl Strategy<Value = Value>) -> impl Strategy<Value = Value> {
    proptest::collection::vec(("[abcd]", value), 0..5)
        .prop_map(|members| Value::Object(members.into_iter().collect()))
}

proptest! {
    #[test]
    fn a_merge_does_what_the_model_does(target in document(), patch in document()) {
        let model = Model::patched(Some(Model::of(&target)), &Model::of(&patch));
        prop_assert_eq!(Model::of(&merged(target, patch)), model);
    }

    #[test]
    fn the_same_patch_again_changes_nothing(target in document(), patch in document()) {
        let once = merged(target, patch.clone());
        prop_assert_eq!(merged(once.clone(), patch), once);
    }
}

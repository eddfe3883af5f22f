//! Brings the fields of an answer into the order of the document, as the GraphQL specification asks for: the library
//! puts them down in the order in which they were ready. Floor 6.

use async_graphql::{
    Name, Value,
    parser::types::{ExecutableDocument, Selection, SelectionSet},
};
use indexmap::IndexMap;

/// Documents with more fields than this, fragments written out, are answered as they come.
const MAX_FIELDS: usize = 10_000;

/// The fields that an answer has, in their order.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Shape {
    fields: IndexMap<Name, Shape>,
    /// Whether a field in it, at any depth, is selected more than once.
    selects_twice: bool,
}

impl Shape {
    /// The shape of one operation's answer; `None` where it is too large.
    pub(super) fn of(document: &ExecutableDocument, operation: &SelectionSet) -> Option<Self> {
        let mut shape = Self::default();
        let mut room = MAX_FIELDS;
        shape.add(document, operation, &mut room, 0)?;
        Some(shape)
    }

    fn add(
        &mut self,
        document: &ExecutableDocument,
        set: &SelectionSet,
        room: &mut usize,
        depth: usize,
    ) -> Option<()> {
        // A cycle of fragments is refused by validation, which comes later.
        if depth > 100 {
            return None;
        }
        for selection in &set.items {
            *room = room.checked_sub(1)?;
            match &selection.node {
                Selection::Field(field) => {
                    let key = field.node.response_key().node.clone();
                    self.selects_twice |= self.fields.contains_key(&key);
                    let inner = self.fields.entry(key).or_default();
                    inner.add(document, &field.node.selection_set.node, room, depth + 1)?;
                    self.selects_twice |= inner.selects_twice;
                }
                Selection::FragmentSpread(spread) => {
                    if let Some(fragment) = document.fragments.get(&spread.node.fragment_name.node)
                    {
                        self.add(document, &fragment.node.selection_set.node, room, depth + 1)?;
                    }
                }
                Selection::InlineFragment(inline) => {
                    self.add(document, &inline.node.selection_set.node, room, depth + 1)?;
                }
            }
        }
        Some(())
    }

    /// Whether a field in it, at any depth, is selected more than once.
    pub(super) fn selects_twice(&self) -> bool {
        self.selects_twice
    }

    /// Puts the fields of a value into order, all the way down.
    pub(super) fn arrange(&self, value: &mut Value) {
        match value {
            Value::List(values) => values.iter_mut().for_each(|value| self.arrange(value)),
            Value::Object(fields) => {
                if !self.is_in_order(fields) {
                    let mut rest = std::mem::take(fields);
                    let present = self
                        .fields
                        .keys()
                        .filter_map(|key| rest.swap_remove_entry(key));
                    *fields = present.collect();
                    fields.extend(rest);
                }
                for (key, value) in fields {
                    if let Some(shape) = self
                        .fields
                        .get(key)
                        .filter(|shape| !shape.fields.is_empty())
                    {
                        shape.arrange(value);
                    }
                }
            }
            _ => {}
        }
    }

    fn is_in_order(&self, fields: &IndexMap<Name, Value>) -> bool {
        let mut expected = self.fields.keys();
        fields.keys().all(|key| expected.any(|name| name == key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use async_graphql::{parser::parse_query, parser::types::DocumentOperations, value};

    #[test]
    fn fields_come_in_the_order_of_the_document_through_fragments_and_lists() {
        let document = parse_query("{ a { x ...F } b: c { y } } fragment F on T { z ... { w } x }")
            .expect("a document");
        let DocumentOperations::Single(operation) = &document.operations else {
            panic!("one operation")
        };
        let shape =
            Shape::of(&document, &operation.node.selection_set.node).expect("a small document");
        let mut answer =
            value!({ "b": { "y": 1 }, "a": [{ "w": 4, "x": 2, "z": 3 }, { "z": 1, "x": 0 }] });
        shape.arrange(&mut answer);
        assert_eq!(
            serde_json::to_string(&answer).expect("JSON"),
            r#"{"a":[{"x":2,"z":3,"w":4},{"x":0,"z":1}],"b":{"y":1}}"#
        );
    }
}

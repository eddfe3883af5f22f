//! The short way to an answer: objects whose selected fields need nothing but the object itself. Floor 6.
//!
//! The library makes a future of every field and of every element of a list, which costs ten times what the fields do.
//! Here such an object is written down at once. Whatever needs more (a look-up, an argument, a directive) goes the
//! library's way, object by object, so both ways give the same answer.

use std::{borrow::Cow, collections::HashMap};

use async_graphql::{
    ContainerType, ContextSelectionSet, Name, OutputType, Positioned, ServerResult, Value,
    parser::types::{Field, FragmentDefinition, Selection, SelectionSet},
    registry::Registry,
};
use indexmap::IndexMap;

/// The fragments of a document.
pub(super) type Fragments = HashMap<Name, Positioned<FragmentDefinition>>;

/// An object that can tell some of its fields without waiting.
pub(super) trait Plain: ContainerType + Send + Sync {
    /// The value of a field; `None` where it has to be resolved.
    fn plain(&self, field: &Field, fragments: &Fragments) -> Option<Value>;
}

/// One object, the short way where that is possible.
#[derive(Clone)]
pub struct Node<T>(pub(super) T);

/// A list of objects, the short way where that is possible.
#[derive(Clone)]
pub struct Nodes<T>(pub(super) Vec<T>);

impl<T: Plain> OutputType for Node<T> {
    fn type_name() -> Cow<'static, str> {
        T::type_name()
    }

    fn create_type_info(registry: &mut Registry) -> String {
        T::create_type_info(registry)
    }

    async fn resolve(
        &self,
        ctx: &ContextSelectionSet<'_>,
        field: &Positioned<Field>,
    ) -> ServerResult<Value> {
        match object(&self.0, &ctx.item.node, &ctx.query_env.fragments) {
            Some(value) => Ok(value),
            None => self.0.resolve(ctx, field).await,
        }
    }
}

impl<T: Plain> OutputType for Nodes<T> {
    fn type_name() -> Cow<'static, str> {
        <Vec<T> as OutputType>::type_name()
    }

    fn qualified_type_name() -> String {
        <Vec<T> as OutputType>::qualified_type_name()
    }

    fn create_type_info(registry: &mut Registry) -> String {
        <Vec<T> as OutputType>::create_type_info(registry)
    }

    async fn resolve(
        &self,
        ctx: &ContextSelectionSet<'_>,
        field: &Positioned<Field>,
    ) -> ServerResult<Value> {
        let fragments = &ctx.query_env.fragments;
        let values: Option<Vec<Value>> = self
            .0
            .iter()
            .map(|node| object(node, &ctx.item.node, fragments))
            .collect();
        match values {
            Some(values) => Ok(Value::List(values)),
            None => self.0.resolve(ctx, field).await,
        }
    }
}

/// Writes an object down, if all of its selected fields are plain.
pub(super) fn object<T: Plain>(
    node: &T,
    selected: &SelectionSet,
    fragments: &Fragments,
) -> Option<Value> {
    let mut values = IndexMap::with_capacity(selected.items.len());
    fill(&mut values, node, selected, fragments)?;
    Some(Value::Object(values))
}

fn fill<T: Plain>(
    values: &mut IndexMap<Name, Value>,
    node: &T,
    selected: &SelectionSet,
    fragments: &Fragments,
) -> Option<()> {
    for selection in &selected.items {
        match &selection.node {
            Selection::Field(field) => {
                let field = &field.node;
                let key = &field.response_key().node;
                let is_leaf = field.selection_set.node.items.is_empty();
                if !field.directives.is_empty() || (!is_leaf && values.contains_key(key)) {
                    return None;
                }
                let value = match field.name.node.as_str() {
                    "__typename" => Value::String(T::type_name().into_owned()),
                    _ => node.plain(field, fragments)?,
                };
                values.insert(key.clone(), value);
            }
            Selection::FragmentSpread(spread) if spread.node.directives.is_empty() => {
                let fragment = &fragments.get(&spread.node.fragment_name.node)?.node;
                if *fragment.type_condition.node.on.node != *T::type_name()
                    || !fragment.directives.is_empty()
                {
                    return None;
                }
                fill(values, node, &fragment.selection_set.node, fragments)?;
            }
            Selection::InlineFragment(inline) if inline.node.directives.is_empty() => {
                let condition = inline.node.type_condition.as_ref();
                if condition.is_some_and(|condition| *condition.node.on.node != *T::type_name()) {
                    return None;
                }
                fill(values, node, &inline.node.selection_set.node, fragments)?;
            }
            _ => return None,
        }
    }
    Some(())
}

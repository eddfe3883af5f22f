//! The short way to an answer: objects whose selected fields need nothing but the object itself. Floor 6.
//!
//! The library makes a future of every field and of every element of a list, and a value of every one of them, which
//! costs ten times what the fields do. Here such an object is written as JSON text at once, and a list of them as one text.
//! Whatever needs more (a look-up, an argument, a directive) goes the library's way, so both ways give the same answer.

use std::{borrow::Cow, collections::HashMap};

use async_graphql::{
    ContainerType, ContextSelectionSet, Name, OutputType, Positioned, ServerResult, Value,
    parser::types::{Field, FragmentDefinition, Selection, SelectionSet},
    registry::Registry,
};

use super::text::JsonText;

/// The fragments of a document.
pub(super) type Fragments = HashMap<Name, Positioned<FragmentDefinition>>;

/// Whether an operation selects something twice in one object. The library puts both answers together, which it cannot do
/// with text.
#[derive(Clone, Copy, Debug)]
pub(super) struct SelectsTwice(pub(super) bool);

/// An object that can tell some of its fields without waiting.
pub(super) trait Plain: ContainerType + Send + Sync {
    /// Writes the value of a field; `None` where it has to be resolved, and then what was written is of no use.
    fn write(&self, field: &Field, fragments: &Fragments, text: &mut JsonText) -> Option<()>;
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
        match written(ctx, |selected, fragments, text| {
            write_object(&self.0, selected, fragments, text)
        }) {
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
        match written(ctx, |selected, fragments, text| {
            text.list(&self.0, |node, text| {
                write_object(node, selected, fragments, text)
            })
        }) {
            Some(value) => Ok(value),
            None => self.0.resolve(ctx, field).await,
        }
    }
}

/// What `write` writes, as a value; `None` where it cannot all be written.
fn written(
    ctx: &ContextSelectionSet<'_>,
    write: impl FnOnce(&SelectionSet, &Fragments, &mut JsonText) -> Option<()>,
) -> Option<Value> {
    if ctx.data_opt::<SelectsTwice>().is_none_or(|twice| twice.0) {
        return None;
    }
    let mut text = JsonText::default();
    write(&ctx.item.node, &ctx.query_env.fragments, &mut text)?;
    Some(text.finish())
}

/// Writes an object, if all of its selected fields are plain.
pub(super) fn write_object<T: Plain>(
    node: &T,
    selected: &SelectionSet,
    fragments: &Fragments,
    text: &mut JsonText,
) -> Option<()> {
    text.object(|text| write_fields(node, selected, fragments, text))
}

fn write_fields<T: Plain>(
    node: &T,
    selected: &SelectionSet,
    fragments: &Fragments,
    text: &mut JsonText,
) -> Option<()> {
    for selection in &selected.items {
        match &selection.node {
            Selection::Field(field) if field.node.directives.is_empty() => {
                let field = &field.node;
                text.key(&field.response_key().node);
                match field.name.node.as_str() {
                    "__typename" => text.text(&T::type_name())?,
                    _ => node.write(field, fragments, text)?,
                }
            }
            Selection::FragmentSpread(spread) if spread.node.directives.is_empty() => {
                let fragment = &fragments.get(&spread.node.fragment_name.node)?.node;
                if *fragment.type_condition.node.on.node != *T::type_name()
                    || !fragment.directives.is_empty()
                {
                    return None;
                }
                write_fields(node, &fragment.selection_set.node, fragments, text)?;
            }
            Selection::InlineFragment(inline) if inline.node.directives.is_empty() => {
                let condition = inline.node.type_condition.as_ref();
                if condition.is_some_and(|condition| *condition.node.on.node != *T::type_name()) {
                    return None;
                }
                write_fields(node, &inline.node.selection_set.node, fragments, text)?;
            }
            _ => return None,
        }
    }
    Some(())
}

//! Documents: parsed once, kept while they are used, and bounded before they are parsed. Floor 6.

use std::sync::Arc;

use async_graphql::{
    ServerError,
    parser::{
        parse_query,
        types::{
            DocumentOperations, ExecutableDocument, OperationDefinition, OperationType, Selection,
            SelectionSet,
        },
    },
};
use quick_cache::{Weighter, sync::Cache};

use super::order::Shape;

/// Directives on one field.
pub(super) const MAX_DIRECTIVES: usize = 8;
/// How deep brackets may lie in each other. The parser goes down into each, on the stack.
const MAX_BRACKETS: usize = 200;
/// Names, numbers, texts and brackets in a document: what it costs to parse. Many values belong into variables.
const MAX_WORDS: usize = 50_000;
/// What a document may select, fragments counted wherever they are spread: what it costs to check.
const MAX_SELECTIONS: usize = 5_000;
/// Documents above this size are not kept: they hold values, which belong into variables.
const MAX_KEPT_BYTES: usize = 16 << 10;
/// How much text of documents is kept. Parsed ones take some ten times as much.
const KEPT_BYTES: u64 = 1 << 20;
const EXPECTED_DOCUMENTS: usize = 1000;

/// A parsed document.
pub(super) struct Document {
    pub(super) parsed: ExecutableDocument,
    /// The shape of the answer, where there is one operation, as nearly always.
    shape: Option<Arc<Shape>>,
}

/// What would run of a document.
pub(super) struct Operation {
    pub(super) kind: OperationType,
    /// The shape of its answer; none for one that is too large.
    pub(super) shape: Option<Arc<Shape>>,
}

/// The documents that were parsed lately.
pub(super) struct Documents {
    parsed: Cache<String, Arc<Document>, TextBytes>,
}

#[derive(Clone)]
struct TextBytes;

impl Weighter<String, Arc<Document>> for TextBytes {
    fn weight(&self, text: &String, _: &Arc<Document>) -> u64 {
        u64::try_from(text.len()).unwrap_or(u64::MAX)
    }
}

impl Documents {
    pub(super) fn new() -> Self {
        Self {
            parsed: Cache::with_weighter(EXPECTED_DOCUMENTS, KEPT_BYTES, TextBytes),
        }
    }

    /// The document of a text.
    pub(super) fn parsed(&self, text: &str) -> Result<Arc<Document>, ServerError> {
        if let Some(document) = self.parsed.get(text) {
            return Ok(document);
        }
        check_text(text)?;
        let parsed = parse_query(text)?;
        check_selections(&parsed)?;
        let document = Arc::new(Document::new(parsed));
        if text.len() <= MAX_KEPT_BYTES {
            self.parsed.insert(text.to_owned(), document.clone());
        }
        Ok(document)
    }
}

impl Document {
    fn new(parsed: ExecutableDocument) -> Self {
        let shape = {
            let mut operations = parsed.operations.iter();
            match (operations.next(), operations.next()) {
                (Some((_, only)), None) => shape_of(&parsed, &only.node),
                _ => None,
            }
        };
        Self { parsed, shape }
    }

    /// The operation that would run.
    pub(super) fn operation(&self, name: Option<&str>) -> Result<Operation, ServerError> {
        let operation = operation_of(&self.parsed, name)?;
        let shape = self
            .shape
            .clone()
            .or_else(|| shape_of(&self.parsed, operation));
        Ok(Operation {
            kind: operation.ty,
            shape,
        })
    }
}

fn shape_of(document: &ExecutableDocument, operation: &OperationDefinition) -> Option<Arc<Shape>> {
    Shape::of(document, &operation.selection_set.node).map(Arc::new)
}

fn operation_of<'a>(
    document: &'a ExecutableDocument,
    name: Option<&str>,
) -> Result<&'a OperationDefinition, ServerError> {
    let operation = match (&document.operations, name) {
        (DocumentOperations::Single(operation), None) => operation,
        (DocumentOperations::Multiple(operations), None) if operations.len() == 1 => {
            match operations.values().next() {
                Some(operation) => operation,
                None => return Err(error("the document has no operation")),
            }
        }
        (DocumentOperations::Multiple(operations), Some(name)) => operations
            .get(name)
            .ok_or_else(|| error(&format!("the document has no operation named {name}")))?,
        (DocumentOperations::Multiple(_), None) => {
            return Err(error(
                "the document has several operations: say which one in operationName",
            ));
        }
        (DocumentOperations::Single(_), Some(name)) => {
            return Err(error(&format!(
                "the document has no operation named {name}"
            )));
        }
    };
    Ok(&operation.node)
}

fn error(message: &str) -> ServerError {
    ServerError::new(message, None)
}

/// Refuses a document with too much in it, or with brackets that lie too deep in each other, before the parser follows
/// them. What stands in texts and comments is passed over.
fn check_text(text: &str) -> Result<(), ServerError> {
    let bytes = text.as_bytes();
    let (mut depth, mut words, mut at) = (0_usize, 0_usize, 0_usize);
    let mut in_word = false;
    while let Some(&byte) = bytes.get(at) {
        let continues = in_word;
        in_word = byte.is_ascii_alphanumeric() || byte == b'_';
        match byte {
            b'{' | b'[' | b'(' => {
                words += 1;
                depth += 1;
                if depth > MAX_BRACKETS {
                    return Err(error(&format!(
                        "the document has more than {MAX_BRACKETS} brackets in each other"
                    )));
                }
            }
            b'}' | b']' | b')' => depth = depth.saturating_sub(1),
            b'#' => {
                at += bytes[at..]
                    .iter()
                    .take_while(|byte| **byte != b'\n')
                    .count()
            }
            b'"' => {
                words += 1;
                at = end_of_text(bytes, at);
            }
            _ if in_word && !continues => words += 1,
            _ => {}
        }
        if words > MAX_WORDS {
            return Err(error(&format!(
                "the document has more than {MAX_WORDS} names and values: put values into variables"
            )));
        }
        at += 1;
    }
    Ok(())
}

/// Refuses a document that selects too much. Validation goes through every operation and fragment, down into what it
/// spreads: a few lines of fragments that spread each other twice would keep it busy for ever.
fn check_selections(document: &ExecutableDocument) -> Result<(), ServerError> {
    let mut room = MAX_SELECTIONS;
    let operations = document.operations.iter();
    let operations = operations.map(|(_, operation)| &operation.node.selection_set.node);
    let fragments = document.fragments.values();
    let fragments = fragments.map(|fragment| &fragment.node.selection_set.node);
    for set in operations.chain(fragments) {
        // An operation or a fragment costs something by itself.
        let counted = room.checked_sub(1).and_then(|left| {
            room = left;
            count_selections(document, set, &mut room, 0)
        });
        if counted.is_none() {
            return Err(error(&format!(
                "the document selects more than {MAX_SELECTIONS} fields, those of a fragment counted wherever it is spread"
            )));
        }
    }
    Ok(())
}

fn count_selections(
    document: &ExecutableDocument,
    set: &SelectionSet,
    room: &mut usize,
    depth: usize,
) -> Option<()> {
    // What lies deeper is counted where its own fragment begins. A cycle is refused by validation.
    if depth > MAX_BRACKETS {
        return Some(());
    }
    for selection in &set.items {
        *room = room.checked_sub(1)?;
        let inner = match &selection.node {
            Selection::Field(field) => Some(&field.node.selection_set.node),
            Selection::InlineFragment(inline) => Some(&inline.node.selection_set.node),
            Selection::FragmentSpread(spread) => document
                .fragments
                .get(&spread.node.fragment_name.node)
                .map(|fragment| &fragment.node.selection_set.node),
        };
        if let Some(inner) = inner {
            count_selections(document, inner, room, depth + 1)?;
        }
    }
    Some(())
}

/// The last byte of the text that begins at `start`.
fn end_of_text(bytes: &[u8], start: usize) -> usize {
    let block = bytes[start..].starts_with(b"\"\"\"");
    let mut at = start + if block { 3 } else { 1 };
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b'\\' if !block => at += 1,
            b'\\' if bytes[at..].starts_with(b"\\\"\"\"") => at += 3,
            b'"' if !block => return at,
            b'"' if bytes[at..].starts_with(b"\"\"\"") => return at + 2,
            _ => {}
        }
        at += 1;
    }
    bytes.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn brackets_in_texts_and_comments_do_not_count() {
        let many = "[".repeat(1000);
        for text in [
            format!("{{ a(x: \"{many}\\\"{many}\") }}"),
            format!("{{ a(x: \"\"\"{many}\"\"\") }}"),
            format!("{{ a }} # {many}"),
        ] {
            assert!(check_text(&text).is_ok(), "{}", &text[..20]);
        }
    }

    #[test]
    fn a_document_that_would_exhaust_the_stack_is_refused() {
        assert!(check_text(&"{a".repeat(1_000_000)).is_err());
        assert!(check_text(&format!("{{ a(x: {}", "[".repeat(1_000_000))).is_err());
    }

    #[test]
    fn fragments_count_wherever_they_are_spread() {
        let doubling = |levels: usize| {
            let fragments: String = (0..levels)
                .map(|no| format!("fragment f{no} on Query {{ ...f{0} ...f{0} }} ", no + 1))
                .collect();
            format!("{{ ...f0 }} {fragments} fragment f{levels} on Query {{ a }}")
        };
        let check = |text: &str| check_selections(&parse_query(text).expect("a document"));
        assert!(check(&doubling(5)).is_ok());
        assert!(check(&doubling(40)).is_err());
        assert!(
            check("{ ...f } fragment f on Query { ...f }").is_ok(),
            "validation refuses it"
        );
        let aliases: String = (0..10_000).map(|no| format!("a{no}: a ")).collect();
        assert!(check(&format!("{{ {aliases} }}")).is_err());
    }

    #[test]
    fn a_document_with_too_many_words_is_refused_before_it_is_parsed() {
        assert!(check_text(&format!("{{ a(x: [{}]) }}", "1 ".repeat(1000))).is_ok());
        for word in ["1 ", "a ", "\"x\" ", "[] ", "a: b "] {
            let many = word.repeat(MAX_WORDS + 1);
            assert!(
                check_text(&format!("{{ a(x: [{many}]) }}")).is_err(),
                "{word}"
            );
        }
    }

    #[test]
    fn a_named_operation_has_to_be_there() {
        let document = parse_query("query A { a } mutation B { b }").expect("a document");
        assert_eq!(
            operation_of(&document, Some("B")).expect("it is there").ty,
            OperationType::Mutation
        );
        assert!(operation_of(&document, None).is_err());
        assert!(operation_of(&document, Some("C")).is_err());
    }
}

//! The JSON Schemas of a domain file: which keywords there are, and the definitions that schemas share. Floor 0.

use std::ops::Range;

use serde_json::{Map, Value, json};

use super::{
    document::{Node, Problems, locate},
    names::{Use, check, nearest},
};
use crate::domain::{DataSchema, schema::SchemaError};

/// Keywords whose value is a schema.
const OF_SCHEMA: &[&str] = &[
    "additionalProperties",
    "contains",
    "contentSchema",
    "else",
    "if",
    "items",
    "not",
    "propertyNames",
    "then",
    "unevaluatedItems",
    "unevaluatedProperties",
];
/// Keywords whose value is an array of schemas.
const OF_SCHEMAS: &[&str] = &["allOf", "anyOf", "oneOf", "prefixItems"];
/// Keywords whose value is an object of schemas.
const OF_NAMED_SCHEMAS: &[&str] = &["dependentSchemas", "patternProperties", "properties"];
/// Keywords whose value holds no schema.
const OF_OTHERS: &[&str] = &[
    "$comment",
    "const",
    "contentEncoding",
    "contentMediaType",
    "default",
    "dependentRequired",
    "deprecated",
    "description",
    "enum",
    "examples",
    "exclusiveMaximum",
    "exclusiveMinimum",
    "format",
    "maxContains",
    "maxItems",
    "maxLength",
    "maxProperties",
    "maximum",
    "minContains",
    "minItems",
    "minLength",
    "minProperties",
    "minimum",
    "multipleOf",
    "pattern",
    "readOnly",
    "required",
    "title",
    "type",
    "uniqueItems",
    "writeOnly",
];
const TYPES: &[&str] = &[
    "array", "boolean", "integer", "null", "number", "object", "string",
];
const REFERENCE: &str = "#/$defs/";

/// The definitions that the file's schemas share: its table `defs`.
#[derive(Default)]
pub struct Definitions<'n, 't> {
    table: Option<&'n Node<'t>>,
    schemas: Map<String, Value>,
}

impl<'n, 't> Definitions<'n, 't> {
    /// Reads the table `defs`, if there is one.
    pub fn read(table: Option<&'n Node<'t>>, problems: &mut Problems<'_>) -> Self {
        let Some(node) = table else {
            return Self::default();
        };
        let mut definitions = Self {
            table,
            schemas: Map::new(),
        };
        let Some(entries) = problems.table("`defs`", node) else {
            return definitions;
        };
        // The names first: definitions may refer to later ones.
        for (key, schema) in entries {
            if let Err(problem) = check(key.get_ref(), Use::Definition) {
                problems.add(key.span(), problem);
            }
            if let Some(schema) = problems.json(schema) {
                definitions
                    .schemas
                    .insert(key.get_ref().to_string(), schema);
            }
        }
        for (key, schema) in entries {
            if definitions.check_keywords(schema, problems) {
                let reference = json!({ "$ref": format!("{REFERENCE}{}", key.get_ref()) });
                definitions.compile(&reference, schema, problems);
            }
        }
        definitions
    }

    /// Reads the schema of a command's data. What it answers is whole: the definitions that it uses are in it.
    pub fn read_data_schema(&self, node: &Node<'_>, problems: &mut Problems<'_>) -> Option<Value> {
        let table = problems.table("`schema`", node)?;
        let of_object = table.get("type").is_none_or(|kind| {
            let is_object = kind.get_ref().as_str() == Some("object");
            if !is_object {
                problems.add(
                    kind.span(),
                    "a command's data is an object: `type` must be \"object\"",
                );
            }
            is_object
        });
        let schema = problems.json(node)?;
        if !self.check_keywords(node, problems) || !of_object {
            return None;
        }
        self.compile(&schema, node, problems)?;
        let Value::Object(mut whole) = self.with_definitions(&schema) else {
            return None;
        };
        if !whole.contains_key("type") {
            whole.shift_insert(0, "type".to_owned(), "object".into());
        }
        Some(Value::Object(whole))
    }

    /// Compiles a schema, only to see whether it can be.
    fn compile(&self, schema: &Value, node: &Node<'_>, problems: &mut Problems<'_>) -> Option<()> {
        let Err(SchemaError { path, problem }) =
            DataSchema::compile(&self.with_definitions(schema))
        else {
            return Some(());
        };
        let of_definition = path.first().is_some_and(|first| first == "$defs");
        let place: Range<usize> = match (of_definition, self.table) {
            (true, Some(definitions)) => locate(definitions, &path[1..]),
            _ => locate(node, &path),
        };
        let keyword = path
            .last()
            .map_or_else(String::new, |keyword| format!("`{keyword}`: "));
        problems.add(place, format!("{keyword}{problem}"));
        None
    }

    /// The schema together with the definitions that it uses, and those that these use.
    fn with_definitions(&self, schema: &Value) -> Value {
        let mut used: Vec<String> = Vec::new();
        let mut open = vec![schema];
        while let Some(schema) = open.pop() {
            for name in references(schema) {
                if let Some(definition) = self.schemas.get(name)
                    && !used.iter().any(|used| used == name)
                {
                    used.push(name.to_owned());
                    open.push(definition);
                }
            }
        }
        let mut whole = schema.clone();
        if let Value::Object(whole) = &mut whole
            && !used.is_empty()
        {
            let definitions = self
                .schemas
                .iter()
                .filter(|(name, _)| used.contains(name))
                .map(|(name, definition)| (name.clone(), definition.clone()))
                .collect();
            whole.insert("$defs".to_owned(), Value::Object(definitions));
        }
        whole
    }

    /// Finds keywords that there are not, and references to nothing, at every depth; whether all is right.
    fn check_keywords(&self, node: &Node<'_>, problems: &mut Problems<'_>) -> bool {
        let before = problems.count();
        self.check_schema(node, problems);
        problems.count() == before
    }

    fn check_schema(&self, node: &Node<'_>, problems: &mut Problems<'_>) {
        if node.get_ref().is_bool() {
            return;
        }
        let Some(table) = problems.table("a JSON Schema", node) else {
            return;
        };
        for (key, value) in table {
            let keyword = key.get_ref().as_ref();
            let quoted = format!("`{keyword}`");
            if OF_SCHEMA.contains(&keyword) {
                self.check_schema(value, problems);
            } else if OF_SCHEMAS.contains(&keyword) {
                match value.get_ref().as_array() {
                    Some(schemas) => schemas
                        .iter()
                        .for_each(|schema| self.check_schema(schema, problems)),
                    None => problems.must_be(&quoted, "an array of schemas", value),
                }
            } else if OF_NAMED_SCHEMAS.contains(&keyword) {
                for (_, schema) in problems.table(&quoted, value).into_iter().flatten() {
                    self.check_schema(schema, problems);
                }
            } else if keyword == "type" {
                check_types(value, problems);
            } else if keyword == "$ref" {
                self.check_reference(value, problems);
            } else if !OF_OTHERS.contains(&keyword) && !keyword.starts_with("x-") {
                problems.add(key.span(), unknown_keyword(keyword));
            }
        }
    }

    fn check_reference(&self, node: &Node<'_>, problems: &mut Problems<'_>) {
        let Some(reference) = problems.text("`$ref`", node) else {
            return;
        };
        let name = reference.strip_prefix(REFERENCE);
        if name.is_some_and(|name| self.schemas.contains_key(name)) {
            return;
        }
        let known = if self.schemas.is_empty() {
            "and there is no table [defs.NAME] in this file".to_owned()
        } else {
            let names: Vec<&str> = self.schemas.keys().map(String::as_str).collect();
            format!("where NAME is one of {}", names.join(", "))
        };
        let problem = format!("`$ref` must be \"{REFERENCE}NAME\", not \"{reference}\", {known}");
        problems.add(node.span(), problem);
    }
}

fn check_types(node: &Node<'_>, problems: &mut Problems<'_>) {
    let is_type = |node: &Node<'_>| {
        let text = node.get_ref().as_str();
        text.is_some_and(|text| TYPES.contains(&text))
    };
    let is_right = match node.get_ref().as_array() {
        Some(types) => types.iter().all(is_type),
        None => is_type(node),
    };
    if !is_right {
        let types = TYPES.join(", ");
        let problem = format!("`type` must be one of {types}, or an array of these");
        problems.add(node.span(), problem);
    }
}

fn unknown_keyword(keyword: &str) -> String {
    match keyword {
        "$defs" | "definitions" => {
            format!("`{keyword}`: give schemas that others share a table [defs.NAME] of the file")
        }
        "$schema" => "`$schema`: leave it out, schemas are read as JSON Schema 2020-12".to_owned(),
        _ => {
            let known = [
                OF_SCHEMA,
                OF_SCHEMAS,
                OF_NAMED_SCHEMAS,
                OF_OTHERS,
                &["$ref"],
            ];
            let right = nearest(keyword, known.into_iter().flatten().copied()).map_or_else(
                || "keywords of your own begin with x-".to_owned(),
                |meant| format!("perhaps {meant} is meant"),
            );
            format!("`{keyword}` is not a keyword of JSON Schema that can be used here: {right}")
        }
    }
}

/// The definitions that a schema names. Values that are no schemas may look like one; a definition too many does no harm.
fn references(schema: &Value) -> Vec<&str> {
    match schema {
        Value::Object(entries) => entries
            .iter()
            .flat_map(|(key, value)| match value {
                Value::String(text) if key == "$ref" => {
                    text.strip_prefix(REFERENCE).into_iter().collect()
                }
                _ => references(value),
            })
            .collect(),
        Value::Array(elements) => elements.iter().flat_map(references).collect(),
        _ => Vec::new(),
    }
}

//! The form of a domain file: aggregates with their commands and events. Floor 0.

use std::{collections::HashMap, ops::Range};

use indexmap::IndexMap;
use serde_json::{Value, json};
use toml::de::DeTable;

use super::{
    DeclaredAggregate, DeclaredCommand, Requires, StateChange,
    document::{Key, Node, Problems, WrongDeclaration, locate},
    names::{Use, check},
    schemas::Definitions,
    template::Template,
};
use crate::domain::{AggregateType, CommandType, EventType, StreamName};

const NO_AGGREGATE: &str = "no aggregate is declared: add a table such as [aggregates.user]";

/// Reads a domain file.
///
/// # Errors
/// Everything that is wrong with it, with its lines and what would be right.
pub fn parse(text: &str) -> Result<Vec<DeclaredAggregate>, WrongDeclaration> {
    let mut problems = Problems::of(text);
    let (root, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        for error in errors {
            problems.add(
                error.span().unwrap_or(0..0),
                format!("this is not TOML: {}", error.message()),
            );
        }
        problems.finish()?;
        return Ok(Vec::new());
    }
    let mut reader = Reader {
        problems,
        commands: HashMap::new(),
        made: HashMap::new(),
    };
    let aggregates = reader.root(root.get_ref());
    reader.problems.finish()?;
    Ok(aggregates)
}

struct Reader<'a> {
    problems: Problems<'a>,
    /// The commands so far, with their aggregates and places.
    commands: HashMap<String, (String, Range<usize>)>,
    /// The GraphQL types that names so far would make.
    made: HashMap<String, (Use, String)>,
}

impl Reader<'_> {
    fn root(&mut self, root: &DeTable<'_>) -> Vec<DeclaredAggregate> {
        self.refuse_unknown_keys(root, "a domain file", &["aggregates", "defs"]);
        let definitions = Definitions::read(root.get("defs"), &mut self.problems);
        for (key, _) in root
            .get("defs")
            .and_then(|defs| defs.get_ref().as_table())
            .into_iter()
            .flatten()
        {
            self.claim_types(key, Use::Definition);
        }
        let Some(node) = root.get("aggregates") else {
            // A wrong key is told already.
            if root.keys().all(|key| key.get_ref() == "defs") {
                self.problems.add(0..0, NO_AGGREGATE);
            }
            return Vec::new();
        };
        let Some(aggregates) = self.problems.table("`aggregates`", node) else {
            return Vec::new();
        };
        if aggregates.is_empty() {
            self.problems.add(node.span(), NO_AGGREGATE);
        }
        aggregates
            .iter()
            .filter_map(|(key, node)| self.aggregate(key, node, &definitions))
            .collect()
    }

    fn aggregate(
        &mut self,
        key: &Key<'_>,
        node: &Node<'_>,
        definitions: &Definitions<'_, '_>,
    ) -> Option<DeclaredAggregate> {
        let name = self.name(key, Use::Aggregate);
        let table = self
            .problems
            .table(&format!("the aggregate {}", key.get_ref()), node)?;
        self.refuse_unknown_keys(table, "an aggregate", &["publish_to", "commands", "events"]);
        let publish_to = table.get("publish_to").and_then(|node| {
            let text = self.problems.text("`publish_to`", node)?;
            match StreamName::new(text) {
                Ok(stream) => Some(stream),
                Err(error) => {
                    self.problems.add(
                        node.span(),
                        format!("`publish_to` is the name of a stream and {error}"),
                    );
                    None
                }
            }
        });
        let mut commands = IndexMap::new();
        for (key, node) in self.tables_in(table, "commands") {
            if let Some(command) = self.command(key, node, name, definitions) {
                commands.insert(command.name.clone(), command);
            }
        }
        let mut events = IndexMap::new();
        for (key, node) in self.tables_in(table, "events") {
            events.extend(self.event(key, node));
        }
        Some(DeclaredAggregate {
            aggregate_type: AggregateType::new(name?).ok()?,
            publish_to,
            commands,
            events,
        })
    }

    fn command(
        &mut self,
        key: &Key<'_>,
        node: &Node<'_>,
        aggregate: Option<&str>,
        definitions: &Definitions<'_, '_>,
    ) -> Option<DeclaredCommand> {
        let name = self.name(key, Use::Command);
        if let (Some(name), Some(aggregate)) = (name, aggregate) {
            if let Some((other, place)) = self.commands.get(name) {
                let line = self.problems.line(place);
                self.problems.add(
                    key.span(),
                    format!(
                        "the command {name} is declared for {other} in line {line} already: names of commands are unique \
                         over all aggregates"
                    ),
                );
            } else {
                self.commands
                    .insert(name.to_owned(), (aggregate.to_owned(), key.span()));
            }
        }
        let table = self
            .problems
            .table(&format!("the command {}", key.get_ref()), node)?;
        self.refuse_unknown_keys(table, "a command", &["event", "requires", "schema", "data"]);
        let event = match table.get("event") {
            Some(node) => {
                let event = self.problems.text("`event`", node)?;
                if let Err(problem) = check(event, Use::Event) {
                    self.problems.add(node.span(), problem);
                }
                EventType::new(event).ok()
            }
            None => {
                let name = key.get_ref();
                self.problems.add(
                    key.span(),
                    format!(
                        "the command {name} does not say which event it causes: add event = \"…\""
                    ),
                );
                None
            }
        };
        let requires = self
            .choice(table, "requires", &Requires::ALL)
            .unwrap_or_default();
        let schema = match table.get("schema") {
            Some(node) => definitions.read_data_schema(node, &mut self.problems),
            None => Some(json!({ "type": "object" })),
        };
        let data = table
            .get("data")
            .map(|node| self.template(node, schema.as_ref()));
        Some(DeclaredCommand {
            name: CommandType::new(name?).ok()?,
            event: event?,
            requires,
            schema: schema?,
            data: match data {
                Some(data) => Some(data?),
                None => None,
            },
        })
    }

    /// Reads how an event's data is made, and looks for what it takes in the schema.
    fn template(&mut self, node: &Node<'_>, schema: Option<&Value>) -> Option<(Value, Template)> {
        self.problems.table("`data`", node)?;
        let value = self.problems.json(node)?;
        let template = match Template::parse(&value) {
            Ok(template) => template,
            Err(error) => {
                self.problems.add(locate(node, &error.path), error.problem);
                return None;
            }
        };
        if let Some(known) = schema.and_then(known_properties) {
            for taken in template.taken() {
                if !known.contains(&taken) {
                    self.problems.add(
                        node.span(),
                        format!(
                            "`data` takes $.{taken}, which is not among the properties of the schema: {}",
                            known.join(", ")
                        ),
                    );
                }
            }
        }
        Some((value, template))
    }

    fn event(&mut self, key: &Key<'_>, node: &Node<'_>) -> Option<(EventType, StateChange)> {
        let name = self.name(key, Use::Event);
        let table = self
            .problems
            .table(&format!("the event {}", key.get_ref()), node)?;
        self.refuse_unknown_keys(table, "an event", &["state"]);
        let change = self
            .choice(table, "state", &StateChange::ALL)
            .unwrap_or_default();
        Some((EventType::new(name?).ok()?, change))
    }

    /// The one of some values that a key has.
    fn choice<T: Copy>(
        &mut self,
        table: &DeTable<'_>,
        key: &str,
        choices: &[(&'static str, T)],
    ) -> Option<T> {
        let node = table.get(key)?;
        let found = node
            .get_ref()
            .as_str()
            .and_then(|text| choices.iter().find(|(name, _)| *name == text));
        if found.is_none() {
            let names: Vec<String> = choices
                .iter()
                .map(|(name, _)| format!("\"{name}\""))
                .collect();
            self.problems.add(
                node.span(),
                format!("`{key}` must be one of {}", names.join(", ")),
            );
        }
        found.map(|(_, value)| *value)
    }

    /// The name that a key is.
    fn name<'k>(&mut self, key: &'k Key<'_>, used_for: Use) -> Option<&'k str> {
        let name = key.get_ref().as_ref();
        if let Err(problem) = check(name, used_for) {
            self.problems.add(key.span(), problem);
            return None;
        }
        self.claim_types(key, used_for);
        Some(name)
    }

    /// Names that would make the same GraphQL type are refused. An event may be one of several aggregates.
    fn claim_types(&mut self, key: &Key<'_>, used_for: Use) {
        let name = key.get_ref().as_ref();
        for made in used_for.types(name) {
            match self.made.get(&made) {
                Some((other_use, other)) if (*other_use, other.as_str()) != (used_for, name) => {
                    let (kind, other_kind) = (used_for.as_str(), other_use.as_str());
                    self.problems.add(
                        key.span(),
                        format!(
                            "the {kind} `{name}` and the {other_kind} `{other}` would both be the type {made} in an API: \
                             give one of them another name"
                        ),
                    );
                }
                _ => {
                    self.made.insert(made, (used_for, name.to_owned()));
                }
            }
        }
    }

    /// The entries of a table in a table; none where it is not there.
    fn tables_in<'n, 't>(
        &mut self,
        table: &'n DeTable<'t>,
        key: &str,
    ) -> impl Iterator<Item = (&'n Key<'t>, &'n Node<'t>)> + use<'n, 't> {
        table
            .get(key)
            .and_then(|node| self.problems.table(&format!("`{key}`"), node))
            .into_iter()
            .flatten()
    }

    fn refuse_unknown_keys(&mut self, table: &DeTable<'_>, what: &str, known: &[&str]) {
        for (key, _) in table {
            let name = key.get_ref().as_ref();
            if !known.contains(&name) {
                self.problems.add(
                    key.span(),
                    format!("unknown key `{name}`: {what} has {}", known.join(", ")),
                );
            }
        }
    }
}

/// The properties of a schema; `None` where others may be meant as well.
fn known_properties(schema: &Value) -> Option<Vec<&str>> {
    const OPEN: [&str; 8] = [
        "$ref",
        "allOf",
        "anyOf",
        "dependentSchemas",
        "if",
        "oneOf",
        "patternProperties",
        "not",
    ];
    let schema = schema.as_object()?;
    if OPEN.iter().any(|keyword| schema.contains_key(*keyword)) {
        return None;
    }
    let properties = schema.get("properties")?.as_object()?;
    Some(properties.keys().map(String::as_str).collect())
}

//! Each statement of PostgreSQL's functions that reads or writes a table that grows says in which partition: an engine that shards
//! then goes to one place. Read from the text of the functions, as it is installed.

use std::collections::{BTreeMap, BTreeSet};

use sea_orm::sqlx;

use crate::sharding::{NOT_GROWING, migrated};

/// Statements that go to several partitions, by their function: how many references to which table, and why.
const EXCEPTIONS: &[(&str, &str, usize, &str)] = &[
    (
        "process_command",
        "commands",
        1,
        "a command is looked up by its id alone, over all partitions at a time",
    ),
    (
        "process_command",
        "partition_locks",
        1,
        "which partitions there are",
    ),
    (
        "process_event",
        "events",
        1,
        "an event is looked up by its id alone, over all partitions at a time",
    ),
    (
        "process_event",
        "partition_locks",
        1,
        "which partitions there are",
    ),
    (
        "register_event_handler",
        "partition_locks",
        1,
        "a handler has a place in each partition",
    ),
    (
        "register_event_handler",
        "events",
        1,
        "the newest event of each partition, one after another: it begins behind it",
    ),
];

/// What stands in front of the name of a table, but for INSERT.
const BEFORE_TABLE: &[&str] = &[
    "from", "join", ",", "update", "using", "only", "table", "truncate",
];
/// What may stand behind it, where it has no other name.
const BEHIND_TABLE: &[&str] = &[
    "where",
    "set",
    "on",
    "order",
    "limit",
    "join",
    "left",
    "cross",
    "inner",
    "for",
    "group",
    "loop",
    "union",
    "using",
    "returning",
    "into",
    "then",
];

/// A reference to a table that grows, and what is wrong with it: nothing, or that its partition is not said.
#[derive(Debug, PartialEq)]
struct Reference {
    table: String,
    is_bound: bool,
}

/// The words and signs of a function's text, in small letters. Comments are left out, and literals are one sign each.
fn tokens(text: &str) -> Vec<String> {
    let mut tokens = Vec::new();
    let mut chars = text.chars().peekable();
    while let Some(char) = chars.next() {
        match char {
            '-' if chars.peek() == Some(&'-') => {
                while chars.next().is_some_and(|char| char != '\n') {}
            }
            '\'' => {
                while chars.next().is_some_and(|char| char != '\'') {}
                tokens.push("'".to_owned());
            }
            '"' => {
                let name = chars.by_ref().take_while(|char| *char != '"');
                tokens.push(name.collect());
            }
            _ if char.is_alphanumeric() || char == '_' => {
                let mut word = char.to_lowercase().to_string();
                while let Some(next) = chars.next_if(|char| char.is_alphanumeric() || *char == '_')
                {
                    word.extend(next.to_lowercase());
                }
                tokens.push(word);
            }
            _ if char.is_whitespace() => {}
            _ => tokens.push(char.to_string()),
        }
    }
    tokens
}

/// The references to some tables in a function's text. In a statement (up to its semicolon) a reference is bound where its name
/// has been compared with a parameter or a variable: `e.partition_no = p_partition_no`, once for each reference of that name; an
/// INSERT, where it writes the column.
fn references(text: &str, tables: &BTreeSet<String>) -> Vec<Reference> {
    let tokens = tokens(text);
    let mut found = Vec::new();
    for statement in tokens.split(|token| token == ";") {
        let word = |at: usize| statement.get(at).map_or("", String::as_str);
        let mut bound: BTreeMap<&str, usize> = BTreeMap::new();
        for at in 0..statement.len() {
            let value = word(at + 4);
            let is_value = value.starts_with("p_") || value.starts_with("v_");
            // A call or an array of several is no one value.
            let is_one = !matches!(word(at + 5), "(" | "[");
            if word(at + 1) == "."
                && word(at + 2) == "partition_no"
                && word(at + 3) == "="
                && is_value
                && is_one
            {
                *bound.entry(word(at)).or_default() += 1;
            }
        }
        for at in 1..statement.len() {
            if !tables.contains(word(at)) || word(at + 1) == "." {
                continue;
            }
            let is_insert = word(at - 1) == "into";
            if !is_insert && !BEFORE_TABLE.contains(&word(at - 1)) {
                continue;
            }
            let behind = if word(at + 1) == "as" { at + 2 } else { at + 1 };
            let is_bound = if is_insert {
                let columns = statement[at..].iter().skip_while(|token| *token != "(");
                columns
                    .take_while(|token| *token != ")")
                    .any(|token| token == "partition_no")
            } else {
                let is_named = word(behind).starts_with(char::is_alphabetic)
                    && !BEHIND_TABLE.contains(&word(behind));
                let name = if is_named { word(behind) } else { word(at) };
                match bound.get_mut(name) {
                    Some(left) if *left > 0 => {
                        *left -= 1;
                        true
                    }
                    _ => false,
                }
            };
            found.push(Reference {
                table: word(at).to_owned(),
                is_bound,
            });
        }
    }
    found
}

#[tokio::test]
async fn each_statement_on_a_table_that_grows_names_its_partition() {
    let (_database, mut connection) = migrated(1).await;
    let tables = "SELECT relname::text FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' \
         AND relname <> ALL ($1)";
    let tables: Vec<String> = sqlx::query_scalar(tables)
        .bind(NOT_GROWING)
        .fetch_all(&mut connection)
        .await
        .unwrap();
    let tables: BTreeSet<String> = tables.into_iter().collect();
    assert!(tables.contains("events") && tables.contains("deliveries"));
    // Forms with a key call those with an id.
    let functions = "SELECT proname::text, prosrc FROM pg_proc WHERE pronamespace = 'public'::regnamespace ORDER BY proname";
    let functions: Vec<(String, String)> = sqlx::query_as(functions)
        .fetch_all(&mut connection)
        .await
        .unwrap();
    let mut unbound: BTreeMap<(String, String), usize> = BTreeMap::new();
    let mut read: BTreeSet<String> = BTreeSet::new();
    for (function, text) in &functions {
        for reference in references(text, &tables) {
            read.insert(function.clone());
            if !reference.is_bound {
                *unbound
                    .entry((function.clone(), reference.table))
                    .or_default() += 1;
            }
        }
    }
    let expected: BTreeMap<(String, String), usize> = EXCEPTIONS
        .iter()
        .map(|(function, table, count, _)| (((*function).to_owned(), (*table).to_owned()), *count))
        .collect();
    assert_eq!(unbound, expected);
    for function in [
        "tidings_append_events",
        "tidings_append_entries",
        "tidings_save_read_models",
        "tidings_write_read_model",
        "tidings_publish_entries",
        "tidings_save_handler_steps",
        "tidings_run_sql_handler",
        "tidings_write_deliveries",
        "tidings_promote_deliveries",
        "tidings_due_deliveries",
        "tidings_next_delivery_ms",
        "tidings_is_held_back",
        "tidings_unfoldable_event",
    ] {
        assert!(read.contains(function), "{function} was looked at");
    }
}

#[test]
fn a_statement_that_does_not_name_its_partition_is_found() {
    let tables = BTreeSet::from(["events".to_owned(), "commands".to_owned()]);
    for (statement, expected) in [
        (
            "SELECT FROM events e WHERE e.partition_no = p_partition_no AND e.id = p_id",
            vec![true],
        ),
        (
            "SELECT FROM events WHERE events.partition_no = v_event.partition_no",
            vec![true],
        ),
        ("SELECT FROM events e WHERE e.id = p_id", vec![false]),
        (
            "SELECT FROM events e WHERE e.id = p_id; SELECT FROM commands e WHERE e.partition_no = p_partition_no",
            vec![false, true],
        ),
        (
            "SELECT FROM events e JOIN commands c ON c.id = e.id WHERE e.partition_no = p_partition_no",
            vec![true, false],
        ),
        (
            "SELECT FROM events k, LATERAL (SELECT FROM commands AS k) WHERE k.partition_no = p_partition_no",
            vec![true, false],
        ),
        (
            "SELECT FROM events e WHERE e.partition_no = ANY (p_partitions)",
            vec![false],
        ),
        (
            "SELECT FROM events e WHERE e.partition_no = c.partition_no",
            vec![false],
        ),
        (
            "SELECT FROM events e WHERE e.partition_no >= p_partition_no",
            vec![false],
        ),
        (
            "SELECT FROM events e -- WHERE e.partition_no = p_partition_no",
            vec![false],
        ),
        (
            "SELECT FROM other o, events e WHERE o.id = e.id",
            vec![false],
        ),
        ("SELECT 'FROM events' FROM other", vec![]),
        (
            "UPDATE commands c SET status = 'a' WHERE c.partition_no = p_partition_no",
            vec![true],
        ),
        ("UPDATE commands SET status = 'a'", vec![false]),
        ("DELETE FROM commands WHERE id = p_id", vec![false]),
        (
            "INSERT INTO commands AS c (partition_no, id) SELECT p_partition_no, v_id",
            vec![true],
        ),
        (
            "INSERT INTO commands (id) SELECT v_id FROM events e WHERE e.partition_no = p_partition_no",
            vec![false, true],
        ),
    ] {
        let found = references(statement, &tables);
        let found: Vec<bool> = found.iter().map(|reference| reference.is_bound).collect();
        assert_eq!(found, expected, "{statement}");
    }
}

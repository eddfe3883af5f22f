//! The floors of the code: a module imports only floors below its own, and modules on one floor do not import each
//! other. Read from the paths in `src/`, by a parser that knows no more of Rust than this takes.

use std::fmt;
use std::path::{Path, PathBuf};

/// Every module of `src/` with its floor. A new module gets its line here.
const FLOORS: [(&str, u8); 17] = [
    ("domain", 0),
    ("config", 1),
    ("store", 2),
    ("traces", 2),
    ("appender", 3),
    ("tail", 3),
    ("metrics", 3),
    ("states", 3),
    ("commands", 4),
    ("projections", 4),
    ("handlers", 4),
    ("transfer", 4),
    ("app", 5),
    ("graphql", 6),
    ("http", 7),
    ("cli", 8),
    ("main", 8),
];

/// Crates that may be named from some floors only: the lowest and the highest.
const CRATES: [(&str, &str, u8, u8); 9] = [
    ("sea_orm", "store/", 2, 2),
    ("sea_query", "store/", 2, 2),
    ("sqlx", "store/", 2, 2),
    ("entity", "store/", 2, 2),
    ("migration", "store/", 2, 2),
    ("opentelemetry", "traces/", 2, 2),
    ("opentelemetry_sdk", "traces/", 2, 2),
    ("prometheus", "metrics/", 3, 3),
    ("async_graphql", "graphql/ and above", 6, 8),
];

#[test]
fn modules_import_only_floors_below_their_own() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let files = rust_files(&root);
    assert!(!files.is_empty(), "there are sources in {}", root.display());
    let found: Vec<String> = files
        .iter()
        .flat_map(|file| {
            let text = std::fs::read_to_string(file).expect("sources can be read");
            let name = file
                .strip_prefix(&root)
                .expect("it lies in src/")
                .to_owned();
            violations(&name, &text)
                .into_iter()
                .map(move |violation| format!("src/{}: {violation}", name.display()))
        })
        .collect();
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

#[test]
fn an_import_from_a_higher_floor_is_found() {
    let text = "use std::sync::Arc;\nuse crate::{domain::EventId, graphql::{schema, Root}};";
    assert_eq!(
        found("store/events.rs", text),
        ["line 2: store (floor 2) imports graphql (floor 6)"]
    );
}

#[test]
fn an_import_between_modules_of_one_floor_is_found() {
    let text = "fn ring() { crate::tail::Doorbell::new() }";
    assert_eq!(
        found("appender/mod.rs", text),
        ["line 1: appender (floor 3) imports tail (floor 3)"]
    );
}

#[test]
fn an_import_by_super_is_found() {
    assert_eq!(
        found("config.rs", "use super::app;"),
        ["line 1: config (floor 1) imports app (floor 5)"]
    );
    assert_eq!(
        found(
            "store/backend/postgres.rs",
            "use super::super::super::tail::Tail;"
        ),
        ["line 1: store (floor 2) imports tail (floor 3)"]
    );
    assert_eq!(
        found(
            "store/backend/postgres.rs",
            "mod tests {\n use super::super::tail;\n}\nuse super::tail;"
        ),
        [""; 0]
    );
}

#[test]
fn a_crate_outside_of_its_floor_is_found() {
    assert_eq!(
        found("app.rs", "use sea_orm::DatabaseConnection;"),
        ["line 1: sea_orm belongs into store/ only"]
    );
    assert_eq!(
        found("domain/event.rs", "\nfn f(e: entity::events::Model) {}"),
        ["line 2: entity belongs into store/ only"]
    );
    assert_eq!(
        found("app.rs", "use async_graphql as gql;"),
        ["line 1: async_graphql belongs into graphql/ and above only"]
    );
}

#[test]
fn an_import_through_the_root_of_the_crate_is_found() {
    assert_eq!(
        found("store/mod.rs", "use crate::AppError;"),
        [
            "line 1: crate::AppError is reached through the root: name its module, and give a new module a floor here"
        ]
    );
}

#[test]
fn a_module_without_a_floor_is_found() {
    assert_eq!(
        found("helpers.rs", ""),
        ["line 0: helpers has no floor: give it one in tests/it/architecture.rs"]
    );
}

#[test]
fn what_is_allowed_is_not_found() {
    let text = r##"
        //! See crate::graphql.
        /* use crate::http; /* nested */ use crate::app; */
        use crate::store::{self, events::{append, graphql}};
        use crate::domain::*;
        pub(crate) mod inner { use super::Local; }
        const TEXT: &str = "use crate::http;";
        const RAW: &str = r#"crate::http"#;
        fn f<'a>(entity: &'a str, c: char) -> bool { c == '"' && crate::config::is_on(entity) && store::migration::x() }
    "##;
    assert_eq!(found("appender/mod.rs", text), [""; 0]);
    assert_eq!(
        found(
            "store/rows.rs",
            "use sea_orm::EntityTrait; use entity::events; use super::rows;"
        ),
        [""; 0]
    );
    assert_eq!(
        found(
            "graphql/events.rs",
            "use async_graphql::Object; use crate::app::App;"
        ),
        [""; 0]
    );
    assert_eq!(
        found(
            "main.rs",
            "use tidings::config::Config; mod cli; use crate::cli::run;"
        ),
        [""; 0]
    );
    assert_eq!(
        found(
            "lib.rs",
            "pub mod store; pub use crate::app::App; pub use domain::EventId;"
        ),
        [""; 0]
    );
}

/// What a file does against the floors.
struct Violation {
    line: usize,
    what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "line {}: {}", self.line, self.what)
    }
}

fn found(file: &str, text: &str) -> Vec<String> {
    violations(Path::new(file), text)
        .iter()
        .map(ToString::to_string)
        .collect()
}

fn floor_of(module: &str) -> Option<u8> {
    FLOORS
        .iter()
        .find(|(name, _)| *name == module)
        .map(|(_, floor)| *floor)
}

/// What the text of one file (its path given below `src/`) does against the floors.
fn violations(file: &Path, text: &str) -> Vec<Violation> {
    let path = module_path(file);
    // The root of the library only declares and re-exports.
    let Some(module) = path.first() else {
        return Vec::new();
    };
    let Some(floor) = floor_of(module) else {
        return vec![Violation {
            line: 0,
            what: format!("{module} has no floor: give it one in tests/it/architecture.rs"),
        }];
    };
    let tokens = tokens(text);
    let mut found = Vec::new();
    for import in imports(&path, &tokens) {
        let what = match floor_of(&import.name) {
            _ if import.name == *module => continue,
            Some(other) if other < floor || (floor == 8 && other == 8) => continue,
            Some(other) => format!(
                "{module} (floor {floor}) imports {} (floor {other})",
                import.name
            ),
            None if floor == 8 => continue,
            None => format!(
                "crate::{} is reached through the root: name its module, and give a new module a floor here",
                import.name
            ),
        };
        found.push(Violation {
            line: import.line,
            what,
        });
    }
    for (index, token) in tokens.iter().enumerate() {
        let rule = CRATES.iter().find(|(name, ..)| *name == token.text);
        let Some((name, place, lowest, highest)) = rule else {
            continue;
        };
        if (*lowest..=*highest).contains(&floor) {
            continue;
        }
        let before = index.checked_sub(1).map_or("", |index| &tokens[index].text);
        let after = tokens.get(index + 1).map_or("", |token| &token.text);
        if before != "::" && (after == "::" || before == "use") {
            found.push(Violation {
                line: token.line,
                what: format!("{name} belongs into {place} only"),
            });
        }
    }
    found
}

/// `store/backend/postgres.rs` is the module `store::backend::postgres`; `lib.rs` is the root, with no name at all.
fn module_path(file: &Path) -> Vec<String> {
    let mut path: Vec<String> = file
        .with_extension("")
        .iter()
        .map(|part| part.to_string_lossy().into_owned())
        .collect();
    if path
        .last()
        .is_some_and(|last| last == "mod" || (last == "lib" && path.len() == 1))
    {
        path.pop();
    }
    path
}

struct Import {
    name: String,
    line: usize,
}

/// The modules of this crate that the tokens name by a path from the root, whether by `crate`, `super` or the
/// library's own name.
fn imports(file: &[String], tokens: &[Token]) -> Vec<Import> {
    let mut found = Vec::new();
    let mut depth = 0;
    let mut inline_modules: Vec<usize> = Vec::new();
    let text = |index: usize| {
        tokens
            .get(index)
            .map_or("", |token: &Token| token.text.as_str())
    };
    let mut index = 0;
    while index < tokens.len() {
        match text(index) {
            "mod" if text(index + 2) == "{" => inline_modules.push(depth),
            "{" => depth += 1,
            "}" => {
                depth -= 1;
                if inline_modules.last() == Some(&depth) {
                    inline_modules.pop();
                }
            }
            start @ ("crate" | "tidings" | "super") if text(index + 1) == "::" => {
                let mut height = file.len() + inline_modules.len();
                if start != "super" {
                    height = 0;
                }
                while text(index) == "super" && text(index + 1) == "::" {
                    height = height.saturating_sub(1);
                    index += 2;
                }
                if start != "super" {
                    index += 2;
                }
                if height == 0 {
                    found.extend(named_at(tokens, index));
                }
                continue;
            }
            _ => {}
        }
        index += 1;
    }
    found
}

/// The first names of a path or of a group of paths.
fn named_at(tokens: &[Token], start: usize) -> Vec<Import> {
    let is_name = |token: &Token| {
        token
            .text
            .starts_with(|first: char| first.is_alphabetic() || first == '_')
    };
    let import = |token: &Token| Import {
        name: token.text.clone(),
        line: token.line,
    };
    let Some(first) = tokens.get(start) else {
        return Vec::new();
    };
    if first.text != "{" {
        return Some(first)
            .filter(|token| is_name(token))
            .map(import)
            .into_iter()
            .collect();
    }
    let mut found = Vec::new();
    let mut depth = 0;
    let mut begins = true;
    for token in &tokens[start..] {
        match token.text.as_str() {
            "{" => depth += 1,
            "}" => depth -= 1,
            "," => begins = true,
            "self" => begins = false,
            _ if depth == 1 && begins && is_name(token) => {
                found.push(import(token));
                begins = false;
            }
            _ => {}
        }
        if depth == 0 {
            break;
        }
    }
    found
}

struct Token {
    text: String,
    line: usize,
}

/// The names and marks of a Rust text, without its comments and literals.
fn tokens(text: &str) -> Vec<Token> {
    let chars: Vec<char> = text.chars().collect();
    let at = |index: usize| chars.get(index).copied().unwrap_or('\0');
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    let mut found = Vec::new();
    let mut line = 1;
    let mut index = 0;
    while index < chars.len() {
        let start = index;
        match at(index) {
            '/' if at(index + 1) == '/' => {
                while index < chars.len() && at(index) != '\n' {
                    index += 1;
                }
            }
            '/' if at(index + 1) == '*' => index = end_of_block_comment(&chars, index),
            '"' => index = end_of_string(&chars, index),
            // A character, unless it is a lifetime.
            '\'' if at(index + 1) == '\\' => {
                index += 3;
                while index < chars.len() && at(index) != '\'' {
                    index += 1;
                }
                index += 1;
            }
            '\'' if at(index + 2) == '\'' => index += 3,
            'r' | 'b' | 'c' if end_of_raw_string(&chars, index).is_some() => {
                index = end_of_raw_string(&chars, index).unwrap_or(index + 1);
            }
            first if is_part(first) => {
                while is_part(at(index)) {
                    index += 1;
                }
            }
            ':' if at(index + 1) == ':' => index += 2,
            _ => index += 1,
        }
        let token: String = chars[start..index.min(chars.len())].iter().collect();
        let lines = token.matches('\n').count();
        let is_code = !token.starts_with(['"', '\'', ' ', '\n'])
            && !token.starts_with("//")
            && !token.starts_with("/*");
        if is_code && !token.contains('"') {
            found.push(Token { text: token, line });
        }
        line += lines;
    }
    found
}

fn end_of_block_comment(chars: &[char], start: usize) -> usize {
    let mut depth = 0;
    let mut index = start;
    while index < chars.len() {
        match (chars[index], chars.get(index + 1)) {
            ('/', Some('*')) => {
                depth += 1;
                index += 1;
            }
            ('*', Some('/')) => {
                depth -= 1;
                index += 1;
            }
            _ => {}
        }
        index += 1;
        if depth == 0 {
            break;
        }
    }
    index
}

fn end_of_string(chars: &[char], start: usize) -> usize {
    let mut index = start + 1;
    while index < chars.len() && chars[index] != '"' {
        index += if chars[index] == '\\' { 2 } else { 1 };
    }
    index + 1
}

/// Where a raw string that begins here (`r"`, `r#"`, `br"`, …) ends; `None` where none begins.
fn end_of_raw_string(chars: &[char], start: usize) -> Option<usize> {
    let mut index = start;
    while matches!(chars.get(index), Some('b' | 'c')) && index == start {
        index += 1;
    }
    if chars.get(index) != Some(&'r') {
        return None;
    }
    let hashes = chars[index + 1..].iter().take_while(|c| **c == '#').count();
    index += 1 + hashes;
    if chars.get(index) != Some(&'"') {
        return None;
    }
    let end = |from: &usize| {
        chars[*from] == '"' && chars[from + 1..].iter().take_while(|c| **c == '#').count() >= hashes
    };
    let close = (index + 1..chars.len()).find(end)?;
    Some(close + 1 + hashes)
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder)
        .expect("src/ can be read")
        .flatten()
    {
        let path = entry.path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
    files
}

//! The cases of registrations.toml against register_event_handler and against the server's registerEventHandler, and names that
//! are made to do harm.

use std::sync::Arc;

use proptest::{prelude::*, strategy::ValueTree, test_runner::TestRunner};
use sea_orm::sqlx;
use serde::Deserialize;
use serde_json::json;
use tidings::{
    domain::{Event, HandlerFunction},
    handlers::{HandlerError, HandlerFunctions},
};

use super::{Refused, Sql, on_postgres, refused};
use crate::support::{
    client::{Client, Failure},
    in_process::{Database, Engine, TestServer},
};

on_postgres!(
    urls_put_together_by_chance_are_judged_alike,
    a_function_is_taken_by_sql_and_by_the_server_or_by_neither,
    names_that_are_made_to_do_harm_are_an_error_and_nothing_else,
);

const FUNCTIONS: &str = "CREATE SCHEMA elsewhere; CREATE TABLE notes (id uuid); \
     CREATE FUNCTION note(uuid, uuid, jsonb) RETURNS void LANGUAGE sql AS 'INSERT INTO notes VALUES ($1)'; \
     CREATE FUNCTION \"Note_2\"(uuid, uuid, jsonb) RETURNS void LANGUAGE sql AS 'SELECT'; \
     CREATE FUNCTION other_parameters(uuid, jsonb) RETURNS void LANGUAGE sql AS 'SELECT'";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    taken: Vec<String>,
    refused: Vec<Case>,
    by_the_server: Vec<Case>,
    by_sql: Vec<Case>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    function: String,
    says: String,
}

/// A text with each `{a*9}` written out.
fn written_out(text: &str) -> String {
    let mut parts = text.split('{');
    let mut whole = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let repeated = part.split_once('}').and_then(|(inner, rest)| {
            let (what, times) = inner.split_once('*')?;
            Some(what.repeat(times.parse().ok()?) + rest)
        });
        whole += &repeated.unwrap_or_else(|| format!("{{{part}"));
    }
    whole
}

struct Bench {
    client: Client,
    sql: Sql,
    _server: TestServer,
}

impl Bench {
    async fn of(partitions: u8, allow_private: bool) -> Self {
        let remember = |_: Arc<Event>| async { Ok::<_, HandlerError>(()) };
        let functions = HandlerFunctions::new().with("remember", remember).unwrap();
        let database = Arc::new(Database::make(Engine::Postgres));
        let server = TestServer::with_functions(database, functions, |config| {
            config.database.partitions = Some(partitions);
            config.background.enabled = false;
            config.handlers.allow_private = allow_private;
            config.handlers.webhook_secrets =
                vec!["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".parse().unwrap()];
        })
        .await;
        let mut sql = Sql::connect(&server).await;
        sql.run(FUNCTIONS).await.unwrap();
        Self {
            client: server.client(),
            sql,
            _server: server,
        }
    }

    async fn by_sql(&mut self, names: [&str; 3]) -> Result<(), Refused> {
        let query = sqlx::query("SELECT register_event_handler($1, $2, $3)");
        let query = query.bind(names[0]).bind(names[1]).bind(names[2]);
        let registered = query.execute(&mut self.sql.0).await;
        registered.map(drop).map_err(refused)
    }

    async fn by_the_server(&self, function: &str) -> Result<(), Failure> {
        let query = "mutation($input: RegisterEventHandlerInput!) { registerEventHandler(input: $input) { eventHandler { name } } }";
        let input = json!({ "name": "server", "eventTypes": ["seen"], "function": function });
        let registered = self.client.query(query, json!({ "input": input })).await;
        registered.map(drop)
    }

    /// What the handlers are, as the server reads them, and with which places; then all of it goes.
    async fn stored(&mut self) -> Vec<String> {
        let query = "{ eventHandlers { name function } }";
        let data = self.client.query(query, json!({})).await.unwrap();
        let handlers = data["eventHandlers"].as_array().unwrap().iter();
        let mut stored: Vec<String> = handlers
            .map(|handler| handler["function"].as_str().unwrap().to_owned())
            .collect();
        let places = "SELECT count(*) / (SELECT count(*) FROM partition_locks WHERE log = 'events') \
                      FROM checkpoints WHERE name LIKE 'handler:%'";
        let places = self.sql.value(places).await.unwrap().unwrap();
        assert_eq!(places, stored.len().to_string(), "{stored:?}");
        self.sql
            .run("DELETE FROM event_handlers; DELETE FROM checkpoints WHERE name LIKE 'handler:%'")
            .await
            .unwrap();
        stored.dedup();
        stored
    }

    /// All that stands in the database, and what the guide's tables hold.
    async fn all_there_is(&mut self) -> Vec<serde_json::Value> {
        let query = "SELECT relname, relkind FROM pg_class WHERE relnamespace = 'public'::regnamespace \
             UNION ALL SELECT oid::regprocedure::text, 'f' FROM pg_proc WHERE pronamespace = 'public'::regnamespace \
             UNION ALL SELECT rolname, 'u' FROM pg_roles WHERE rolname !~ '^(nobody|app)_' ORDER BY 1, 2";
        self.sql.rows(query).await
    }
}

fn says(says: &str, message: &str, what: &str) {
    assert!(
        message.contains(says),
        "{what:?}: {message:?} has no {says:?}"
    );
}

async fn a_function_is_taken_by_sql_and_by_the_server_or_by_neither(partitions: u8) {
    let file: File = toml::from_str(include_str!("registrations.toml")).unwrap();
    let mut bench = Bench::of(partitions, true).await;
    for function in &file.taken {
        let text = written_out(function);
        if let Err(refused) = bench.by_sql(["sql", "seen", &text]).await {
            panic!("{function:?} by SQL: {refused:?}");
        }
        if let Err(failure) = bench.by_the_server(&text).await {
            panic!("{function:?} by the server: {}", failure.message());
        }
        let stored = bench.stored().await;
        assert_eq!(stored.len(), 1, "{function:?} is {stored:?}");
    }
    let refused_by_sql = |case: &Case, refused: Result<(), Refused>| {
        let refused = refused.expect_err(&case.function);
        says(&case.says, &refused.message, &case.function);
        let begins = refused.message.starts_with("p_handler_function");
        assert!(begins, "{}", refused.message);
        let code = refused.code.as_str();
        let is_missing = refused.message.contains("the database has no function");
        assert_eq!(code, if is_missing { "42883" } else { "22023" });
    };
    let refused_by_the_server = |case: &Case, failure: Result<(), Failure>| {
        let failure = failure.expect_err(&case.function);
        says(&case.says, failure.message(), &case.function);
        assert_eq!(failure.code(), "BAD_USER_INPUT");
        assert_eq!(failure.extension("field"), "input.function");
    };
    for case in &file.refused {
        let text = written_out(&case.function);
        refused_by_sql(case, bench.by_sql(["sql", "seen", &text]).await);
        refused_by_the_server(case, bench.by_the_server(&text).await);
    }
    for case in &file.by_the_server {
        refused_by_sql(case, bench.by_sql(["sql", "seen", &case.function]).await);
        let taken = bench.by_the_server(&case.function).await;
        taken.unwrap_or_else(|failure| panic!("{:?}: {}", case.function, failure.message()));
        assert_eq!(bench.stored().await.len(), 1);
    }
    assert_eq!(bench.stored().await, [""; 0], "of what was refused");

    let mut bench = Bench::of(partitions, false).await;
    for case in &file.by_sql {
        refused_by_the_server(case, bench.by_the_server(&case.function).await);
        let taken = bench.by_sql(["sql", "seen", &case.function]).await;
        taken.unwrap_or_else(|refused| panic!("{:?}: {refused:?}", case.function));
        assert_eq!(bench.stored().await.len(), 1);
    }
}

/// What URLs are put together from. (Not what SQL cannot judge: other letters than those of ASCII in a host, and `xn--`.)
const PIECES: &[&str] = &[
    "http://",
    "https://",
    "hTTps://",
    "ftp://",
    "://",
    "a",
    "B",
    "c-",
    "_",
    "0",
    "1",
    "7",
    "08",
    "255",
    "256",
    "1.2.3.4",
    "0x",
    "ff",
    "example.com",
    "65535",
    "65536",
    "00080",
    "::",
    ":",
    ":80",
    ":0",
    "[",
    "]",
    "[::1]",
    "[2001:db8::",
    ".",
    "..",
    "-",
    "@",
    "#",
    "?",
    "/",
    "//",
    "/ä",
    "%41",
    "%",
    "'",
    "\"",
    "{",
    "}",
    "|",
    "^",
    "`",
    "<",
    ">",
    "$",
    "&",
    "*",
    "+",
    ",",
    ";",
    "=",
    "!",
    "~",
    "(",
    ")",
    " ",
    "\t",
    "\n",
    "\u{7f}",
    "\\",
];

async fn urls_put_together_by_chance_are_judged_alike(partitions: u8) {
    let mut bench = Bench::of(partitions, true).await;
    let pieces = |most| {
        let pieces = proptest::collection::vec(proptest::sample::select(PIECES), 0..most);
        pieces.prop_map(|pieces: Vec<&str>| pieces.concat())
    };
    // Whatever comes, and what is mostly a host and a port.
    let digits = "[0-9a-f:.]{1,20}";
    let urls = prop_oneof![
        (prop_oneof!["https://", ""], pieces(7)).prop_map(|(scheme, rest)| scheme + &rest),
        (pieces(4), "(:[0-9]{0,6})?").prop_map(|(host, port)| format!("http://{host}{port}/")),
        digits.prop_map(|address| format!("http://[{address}]/")),
        digits.prop_map(|address| format!("http://{address}/")),
        ("(::)?([0-9a-f]{1,4}:){0,8}(:?[0-9a-f]{1,5}|:|[0-9]{1,3}([.][0-9]{1,3}){2,3})?")
            .prop_map(|address| format!("http://[{address}]/")),
    ];
    let mut runner = TestRunner::deterministic();
    let urls: Vec<String> = (0..10_000)
        .map(|_| urls.new_tree(&mut runner).unwrap().current())
        .filter(|url| url.contains("://"))
        .collect();
    let query = "SELECT array_agg(tidings_url_problem(u) ORDER BY no) FROM unnest($1::text[]) WITH ORDINALITY AS k(u, no)";
    let by_sql: Vec<Option<String>> = sqlx::query_scalar(query)
        .bind(&urls)
        .fetch_one(&mut bench.sql.0)
        .await
        .unwrap();
    let mut taken = 0;
    for (url, by_sql) in urls.iter().zip(by_sql) {
        let by_the_server = HandlerFunction::parse(url)
            .err()
            .map(|error| error.to_string());
        let by_sql = by_sql.map(|problem| format!("is no URL that can be posted to: {problem}"));
        assert_eq!(by_sql, by_the_server, "{url:?}");
        taken += usize::from(by_sql.is_none());
    }
    assert!(
        (1000..9000).contains(&taken),
        "{taken} of {} are taken",
        urls.len()
    );
}

/// What is not to be in the name of a handler, of a type or of a function.
const HARMFUL: &[&str] = &[
    "'",
    "''",
    "'); DROP TABLE notes; --",
    "'; DROP TABLE notes; SELECT '",
    "note; DROP TABLE notes",
    "note(NULL, NULL, NULL); DROP TABLE notes; --",
    "\"",
    "\"note\"",
    "\\",
    "\\'; DROP TABLE notes; --",
    "a\\",
    "%I",
    "%s%s%n",
    "$1",
    "$$; DROP TABLE notes; $$",
    "$body$",
    "note/*",
    "note--\n",
    "..",
    "a..b",
    "../../etc/passwd",
    "public..note",
    " ",
    " note",
    "note ",
    "note\n",
    "note\0",
    "\0",
    "\u{7f}",
    "note\u{2028}",
    "note\u{a0}",
    "note；",
    "‘note’",
    "`note`",
    "<script>",
    "{}",
    "[]",
    "*",
    "?",
    "a,b",
    "a|b",
    "a&b",
    "a=b",
    "!",
    "~",
    "^",
    "note()",
];

async fn names_that_are_made_to_do_harm_are_an_error_and_nothing_else(partitions: u8) {
    let mut bench = Bench::of(partitions, true).await;
    let before = bench.all_there_is().await;
    let long = ["a".repeat(101), "a".repeat(100_000), "';".repeat(10_000)];
    let harmful = HARMFUL
        .iter()
        .copied()
        .chain(long.iter().map(String::as_str));
    let mut tried = 0;
    for harmful in harmful {
        for (names, parameter) in [
            ([harmful, "seen", "log"], "p_handler_name"),
            (["handler", harmful, "log"], "p_event_type"),
            (["handler", "seen", harmful], "p_handler_function"),
        ] {
            let refused = bench.by_sql(names).await.expect_err(harmful);
            let code = refused.code.as_str();
            match harmful.contains('\0') {
                // PostgreSQL takes no text with it.
                true => assert_eq!(code, "22021", "{names:?}: {refused:?}"),
                false => {
                    assert_eq!(code, "22023", "{names:?}: {refused:?}");
                    assert!(refused.message.starts_with(parameter), "{refused:?}");
                }
            }
            tried += 1;
        }
        let function = format!("sql:{harmful}");
        let refused = bench.by_sql(["handler", "seen", &function]).await;
        let code = refused.expect_err(harmful).code;
        assert!(
            matches!(code.as_str(), "22023" | "22021"),
            "{harmful:?}: {code}"
        );
    }
    assert_eq!(tried, 3 * (HARMFUL.len() + 3));
    assert_eq!(bench.stored().await, [""; 0]);
    assert_eq!(bench.all_there_is().await, before);
    assert!(bench.sql.rows("SELECT FROM notes").await.is_empty());
    // Names that are right are taken still.
    bench
        .by_sql(["send_mail-1", "a.b:c/d@e+1", "note"])
        .await
        .unwrap();
    assert_eq!(bench.stored().await, ["sql:note"]);
}

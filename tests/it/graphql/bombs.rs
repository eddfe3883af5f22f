//! Requests that are made to exhaust a server: refused quickly, while others are served. Against the real program, which
//! is ended after a test whatever it does.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{bad_user_input, brief, goes_on, post, stored};
use crate::support::{client::Client, server::TestServer};

/// How long the answer to a bomb may take, in a build without optimisations on a machine that does other work too.
const LIMIT: Duration = Duration::from_secs(5);

struct Ground {
    server: TestServer,
    _folder: tempfile::TempDir,
}

impl Ground {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}/tidings.db", folder.path().display());
        Self {
            server: TestServer::start(&url),
            _folder: folder,
        }
    }

    /// Sends a bomb, and meanwhile a query of somebody else. The answer to the bomb.
    async fn send(&self, body: String) -> Value {
        let url = self.server.url();
        let begun = Instant::now();
        let beginning: String = body.chars().take(100).collect();
        let bomb = tokio::spawn({
            let url = url.clone();
            async move { post(&url, body).await.1 }
        });
        let other = Client::new(&self.server);
        let served = tokio::time::timeout(LIMIT, other.query("{ server { version } }", json!({})));
        assert!(
            served.await.is_ok_and(|answer| answer.is_ok()),
            "others are served beside {beginning}"
        );
        let answer = tokio::time::timeout(LIMIT, bomb)
            .await
            .unwrap_or_else(|_| panic!("no answer in {LIMIT:?} to {beginning}"))
            .unwrap();
        let taken = begun.elapsed();
        assert!(taken < LIMIT, "{taken:?} for {beginning}");
        println!("{taken:?} for {beginning}");
        answer
    }

    async fn is_refused(&self, query: &str, variables: Value) {
        let before = stored(&self.server.url()).await;
        let body = json!({ "query": query, "variables": variables });
        let answer = self.send(body.to_string()).await;
        bad_user_input(&answer);
        assert!(
            answer.get("data").is_none_or(Value::is_null),
            "{}",
            brief(&answer)
        );
        assert!(answer.to_string().len() < 100_000, "the answer is short");
        assert_eq!(stored(&self.server.url()).await, before);
    }

    async fn is_answered(&self, query: &str, variables: Value) -> Value {
        let body = json!({ "query": query, "variables": variables });
        let answer = self.send(body.to_string()).await;
        assert!(answer.get("errors").is_none(), "{}", brief(&answer));
        answer["data"].clone()
    }

    async fn goes_on(&self) {
        goes_on(&self.server.url()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nested_selections_are_refused() {
    let ground = Ground::start();
    let nested = |levels: usize| {
        format!(
            "{{ events(first: 1) {{ nodes {{ id {} version {} }} }} }}",
            "aggregate { events(first: 1) {".repeat(levels),
            "} }".repeat(levels)
        )
    };
    ground.is_answered(&nested(5), json!({})).await;
    for levels in [8, 50, 90, 50_000] {
        ground.is_refused(&nested(levels), json!({})).await;
    }
    ground.goes_on().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_thousand_brackets_in_each_other_are_refused() {
    let ground = Ground::start();
    for query in [
        "{".repeat(100_000),
        "{a".repeat(100_000),
        format!("{}x{}", "{a".repeat(100_000), "}".repeat(100_000)),
        format!(
            "{{ stream(name: {}{}) {{ name }} }}",
            "[".repeat(100_000),
            "]".repeat(100_000)
        ),
        format!(
            "{{ stream(name: {}1{}) {{ name }} }}",
            "{a:".repeat(100_000),
            "}".repeat(100_000)
        ),
        format!(
            "query($x: {}Int{}) {{ server {{ version }} }}",
            "[".repeat(100_000),
            "]".repeat(100_000)
        ),
        format!(
            "query($x: {}Int{}) {{ server {{ version }} }}",
            "[".repeat(150),
            "]".repeat(150)
        ),
        "{ server ".to_owned() + &"@skip(if: ".repeat(100_000),
        format!(
            "{{ {} server {{ version }} {} }}",
            "... {".repeat(100_000),
            "}".repeat(100_000)
        ),
        "\"\"\"".repeat(100_001),
        "#".repeat(1_000_000),
    ] {
        ground.is_refused(&query, json!({})).await;
    }
    ground.goes_on().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nested_inline_fragments_are_refused_or_answered() {
    let ground = Ground::start();
    let query = format!(
        "{{ {} server {{ version }} {} }}",
        "... {".repeat(190),
        "}".repeat(190)
    );
    let body = json!({ "query": query });
    ground.send(body.to_string()).await;
    ground.goes_on().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deeply_nested_variables_are_refused() {
    let ground = Ground::start();
    for (open, close) in [("[", "]"), ("{\"a\":", "}"), ("[{\"a\":", "}]")] {
        for levels in [1000, 100_000] {
            let nested = format!("{}1{}", open.repeat(levels), close.repeat(levels));
            let body = format!(
                r#"{{"query":"query($x: JSON) {{ server {{ version }} }}","variables":{{"x":{nested}}}}}"#
            );
            bad_user_input(&ground.send(body).await);
            // Extensions are passed over.
            let body = format!(
                r#"{{"query":"{{ server {{ version }} }}","extensions":{{"x":{nested}}}}}"#
            );
            ground.send(body).await;
        }
    }
    ground.goes_on().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_aliases_are_refused() {
    let ground = Ground::start();
    for field in [
        "server { headCursor }",
        "__typename",
        "events(first: 1) { nodes { id } }",
        "aggregateId(key: \"a\")",
        "stream(name: \"a\") { name }",
        "__schema { types { name } }",
    ] {
        let aliases: String = (0..10_000).map(|no| format!("a{no}: {field} ")).collect();
        ground
            .is_refused(&format!("{{ {aliases} }}"), json!({}))
            .await;
    }
    let create = "createAggregate(input: { type: \"user\" }) { created }";
    let aliases: String = (0..10_000).map(|no| format!("a{no}: {create} ")).collect();
    ground
        .is_refused(&format!("mutation {{ {aliases} }}"), json!({}))
        .await;
    let aliases: String = (0..10_000).map(|no| format!("a{no}: version ")).collect();
    ground
        .is_refused(&format!("{{ server {{ {aliases} }} }}"), json!({}))
        .await;
    ground.goes_on().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_field_that_is_asked_for_ten_thousand_times_harms_nobody() {
    let ground = Ground::start();
    for field in ["version ", "...f "] {
        let query = format!(
            "{{ server {{ {} }} }} fragment f on Server {{ version }}",
            field.repeat(10_000)
        );
        ground.send(json!({ "query": query }).to_string()).await;
    }
    let query = format!("{{ {} }}", "server { version } ".repeat(10_000));
    ground.send(json!({ "query": query }).to_string()).await;
    ground.goes_on().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_in_lists_are_too_complex() {
    let ground = Ground::start();
    for query in [
        "{ events(first: 1000) { nodes { aggregate { events(first: 1000) { id } } } } }",
        "{ aggregates(first: 1000) { nodes { events(first: 1000) { id } } } }",
        "{ streams(first: 1000) { nodes { entries(first: 1000) { position } } } }",
        "{ events { nodes { aggregate { events { aggregate { events { id } } } } } } }",
        "{ events(first: 1000) { nodes { aggregate { a: state b: state c: state } } } }",
    ] {
        ground.is_refused(query, json!({})).await;
    }
    ground.goes_on().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fragments_that_grow_exponentially_are_refused() {
    let ground = Ground::start();
    for (levels, spreads) in [(20, 4), (30, 2), (200, 2), (5, 100)] {
        let fragments: String = (0..levels)
            .map(|no| {
                format!(
                    "fragment f{no} on Query {{ {} }} ",
                    format!("...f{} ", no + 1).repeat(spreads)
                )
            })
            .collect();
        let query = format!(
            "{{ ...f0 }} {fragments} fragment f{levels} on Query {{ server {{ version }} }}"
        );
        ground.is_refused(&query, json!({})).await;
        // The same with fields of their own on each level, so that nothing can be merged.
        let fragments: String = (0..levels)
            .map(|no| {
                let inside: String = (0..spreads)
                    .map(|spread| format!("x{no}_{spread}: server {{ version }} ...f{} ", no + 1))
                    .collect();
                format!("fragment f{no} on Query {{ {inside} }} ")
            })
            .collect();
        let query = format!(
            "{{ ...f0 }} {fragments} fragment f{levels} on Query {{ server {{ version }} }}"
        );
        ground.is_refused(&query, json!({})).await;
    }
    // On a type that leads back to itself.
    let fragments: String = (0..30)
        .map(|no| {
            format!(
                "fragment f{no} on Aggregate {{ ...f{} id ...f{} }} ",
                no + 1,
                no + 1
            )
        })
        .collect();
    let query = format!(
        "{{ aggregates(first: 1) {{ nodes {{ ...f0 }} }} }} {fragments} fragment f30 on Aggregate {{ id }}"
    );
    ground.is_refused(&query, json!({})).await;
    ground.goes_on().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fragments_that_lead_back_to_themselves_are_refused() {
    let ground = Ground::start();
    for query in [
        "{ ...a } fragment a on Query { ...a }",
        "{ ...a } fragment a on Query { server { version } ...b } fragment b on Query { ...c } fragment c on Query { ...a }",
        "{ aggregates { nodes { ...a } } } fragment a on Aggregate { id events(first: 1) { aggregate { ...a } } }",
        "{ server { version } } fragment a on Query { ...b } fragment b on Query { ...a }",
        "subscription { ...a } fragment a on Subscription { ...a }",
    ] {
        ground.is_refused(query, json!({})).await;
    }
    ground.goes_on().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_fragments_harm_nobody() {
    let ground = Ground::start();
    let chain: String = (0..10_000)
        .map(|no| format!("fragment f{no} on Query {{ ...f{} }} ", no + 1))
        .collect();
    let query = format!("{{ ...f0 }} {chain} fragment f10000 on Query {{ server {{ version }} }}");
    ground.is_refused(&query, json!({})).await;
    let unused: String = (0..10_000)
        .map(|no| format!("fragment f{no} on Query {{ server {{ version }} }} "))
        .collect();
    ground
        .is_refused(&format!("{{ server {{ version }} }} {unused}"), json!({}))
        .await;
    let spread: String = (0..10_000).map(|no| format!("...f{no} ")).collect();
    ground
        .send(json!({ "query": format!("{{ {spread} }} {unused}") }).to_string())
        .await;
    ground.goes_on().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn huge_lists_of_variables_harm_nobody() {
    let ground = Ground::start();
    let declared: String = (0..50_000).map(|no| format!("$v{no}: Int ")).collect();
    ground
        .is_refused(
            &format!("query({declared}) {{ server {{ version }} }}"),
            json!({}),
        )
        .await;
    let same = "$v: Int ".repeat(50_000);
    ground
        .is_refused(
            &format!("query({same}) {{ server {{ version }} }}"),
            json!({}),
        )
        .await;
    let given: serde_json::Map<String, Value> = (0..100_000)
        .map(|no| (format!("v{no}"), json!(no)))
        .collect();
    ground
        .is_answered("{ server { version } }", Value::Object(given))
        .await;
    let types = vec!["x"; 100_000];
    let query =
        "query($types: [String!]) { events(filter: { eventTypes: $types }) { nodes { id } } }";
    ground.is_refused(query, json!({ "types": types })).await;
    let query = "query($types: [String!]) { events(filter: { aggregateTypes: $types }) { nodes { id } } aggregates(types: $types) { nodes { id } } }";
    ground.is_refused(query, json!({ "types": types })).await;
    ground
        .is_answered(query, json!({ "types": &types[..1000] }))
        .await;
    let arguments = "name: \"a\" ".repeat(50_000);
    ground
        .is_refused(&format!("{{ stream({arguments}) {{ name }} }}"), json!({}))
        .await;
    ground.goes_on().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_operations_in_one_document_harm_nobody() {
    let ground = Ground::start();
    let operations: String = (0..10_000)
        .map(|no| format!("query O{no} {{ server {{ version }} }} "))
        .collect();
    ground.is_refused(&operations, json!({})).await;
    let body = json!({ "query": operations, "operationName": "O9999" });
    ground.send(body.to_string()).await;
    let same = "query O { server { version } } ".repeat(10_000);
    ground.is_refused(&same, json!({})).await;
    let anonymous = "{ server { version } } ".repeat(10_000);
    ground.is_refused(&anonymous, json!({})).await;
    ground.goes_on().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_directives_are_refused() {
    let ground = Ground::start();
    let directives = "@include(if: true) ".repeat(10_000);
    ground
        .is_refused(
            &format!("{{ server {{ version {directives} }} }}"),
            json!({}),
        )
        .await;
    let directives = "@nothing ".repeat(10_000);
    ground
        .is_refused(
            &format!("query {directives} {{ server {{ version }} }}"),
            json!({}),
        )
        .await;
    ground.goes_on().await;
}

/// As tools ask for it, to nine levels of types in types.
const INTROSPECTION: &str = "
query IntrospectionQuery {
  __schema {
    description
    queryType { name } mutationType { name } subscriptionType { name }
    types { ...FullType }
    directives { name description locations args { ...InputValue } }
  }
}
fragment FullType on __Type {
  kind name description specifiedByURL
  fields(includeDeprecated: true) { name description args { ...InputValue } type { ...TypeRef } isDeprecated deprecationReason }
  inputFields { ...InputValue }
  interfaces { ...TypeRef }
  enumValues(includeDeprecated: true) { name description isDeprecated deprecationReason }
  possibleTypes { ...TypeRef }
}
fragment InputValue on __InputValue { name description type { ...TypeRef } defaultValue }
fragment TypeRef on __Type {
  kind name ofType { kind name ofType { kind name ofType { kind name ofType { kind name ofType { kind name
    ofType { kind name ofType { kind name ofType { kind name ofType { kind name } } } } } } } } }
}";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn introspection_works_within_the_limits() {
    let ground = Ground::start();
    let data = ground.is_answered(INTROSPECTION, json!({})).await;
    let schema = &data["__schema"];
    assert_eq!(schema["queryType"]["name"], "Query");
    assert_eq!(schema["subscriptionType"]["name"], "Subscription");
    let types = schema["types"].as_array().unwrap();
    assert!(types.iter().any(|kind| kind["name"] == "Event"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn introspection_in_introspection_harms_nobody() {
    let ground = Ground::start();
    let step = "fields { type { ofType { ";
    for steps in [1, 2, 3, 4, 10] {
        let query = format!(
            "{{ __schema {{ types {{ {} name {} }} }} }}",
            step.repeat(steps),
            "} } } ".repeat(steps)
        );
        ground.send(json!({ "query": query }).to_string()).await;
    }
    ground.goes_on().await;
}

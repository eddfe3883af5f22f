//! Who may do what: each operation with each token, over HTTP and over websockets.

use serde_json::{Value, json};
use uuid::Uuid;

use super::PATIENCE;
use crate::support::{
    client::{Client, Failure, Socket, Step},
    in_process::TestServer,
};

async fn guarded() -> TestServer {
    TestServer::with(|config| {
        config.access.tokens = ["read=reader", "write=writer", "admin=boss"]
            .map(|token| token.parse().unwrap())
            .to_vec();
    })
    .await
}

/// Each query that there is.
const QUERIES: [&str; 16] = [
    "{ aggregateId(key: \"a\") }",
    "{ event(id: \"0192d3f0-1111-7222-8333-444455556666\") { id } }",
    "{ events { nodes { id } } }",
    "{ aggregate(id: \"0192d3f0-1111-7222-8333-444455556666\") { id } }",
    "{ aggregates { nodes { id } } }",
    "{ command(id: \"0192d3f0-1111-7222-8333-444455556666\") { id } }",
    "{ commands { nodes { id } } }",
    "{ commandTypes { name } }",
    "{ stream(name: \"a\") { name } }",
    "{ streams { nodes { name } } }",
    "{ readModel(aggregateId: \"0192d3f0-1111-7222-8333-444455556666\") { version } }",
    "{ readModels { nodes { version } } }",
    "{ projection { lagEvents } }",
    "{ eventHandlers { name lagEvents deliveries { nodes { id } } } }",
    "{ eventHandler(name: \"a\") { name } }",
    "{ server { version headCursor } }",
];

/// Each mutation that there is. Of processCommand there is nothing to process.
fn mutations() -> Vec<(&'static str, Value)> {
    let command = json!({ "aggregateId": Uuid::new_v4(), "type": "create_user", "data": { "username": "ada" } });
    let event = json!({ "aggregateId": Uuid::new_v4(), "aggregateType": "user", "type": "user_created", "data": {} });
    vec![
        (
            "mutation($input: CreateAggregateInput!) { createAggregate(input: $input) { created } }",
            json!({ "type": "user" }),
        ),
        (
            "mutation($input: AppendEventInput!) { appendEvent(input: $input) { duplicate } }",
            event.clone(),
        ),
        (
            "mutation($input: AppendEventsInput!) { appendEvents(input: $input) { events { id } } }",
            json!({ "events": [event] }),
        ),
        (
            "mutation($input: CreateCommandInput!) { executeCommand(input: $input) { command { id } } }",
            command.clone(),
        ),
        (
            "mutation($input: CreateCommandInput!) { createCommand(input: $input) { command { id } } }",
            command,
        ),
        (
            "mutation($input: ProcessCommandInput!) { processCommand(input: $input) { processed } }",
            json!({ "id": Uuid::new_v4() }),
        ),
        (
            "mutation($input: AppendToStreamInput!) { appendToStream(input: $input) { duplicate } }",
            json!({ "streamName": "a", "eventId": Uuid::new_v4(), "type": "x", "data": {} }),
        ),
        (
            "mutation($input: UpdateReadModelInput!) { updateReadModel(input: $input) { updated } }",
            json!({ "aggregateId": Uuid::new_v4(), "aggregateType": "user", "version": 1, "data": {} }),
        ),
    ]
}

/// What changes how the server works.
const ADMINISTRATION: [&str; 6] = [
    "mutation { rebuildReadModels(input: {}) { count } }",
    "mutation { registerEventHandler(input: { name: \"h\", function: \"log\" }) { eventHandler { id } } }",
    "mutation { setEventHandlerActive(input: { name: \"h\", isActive: false }) { eventHandler { id } } }",
    "mutation { processEvent(input: { eventId: \"0192d3f0-1111-7222-8333-444455556666\" }) { processed } }",
    "mutation { retryDeadDeliveries(input: { handlerName: \"h\" }) { count } }",
    "mutation { removeEventHandler(input: { name: \"h\" }) { removed } }",
];

/// Each subscription that there is; a place that there is not makes it answer at once.
const SUBSCRIPTIONS: [&str; 4] = [
    "subscription { streamEntries(streamName: \"nothing\", after: 1) { position } }",
    "subscription { events(progress: true) { cursor } }",
    "subscription { command(id: \"0192d3f0-1111-7222-8333-444455556666\") { id } }",
    "subscription { readModels(after: \"nowhere\") { cursor } }",
];

/// Whether a mutation got as far as its work: it did it, or what it names is not there.
fn may_be_done(code: Option<&str>) -> bool {
    matches!(code, None | Some("NOT_FOUND"))
}

/// What came of an operation: the code of its error, or none.
async fn over_http(client: &Client, query: &str, variables: Value) -> Option<String> {
    match client.query(query, variables).await {
        Ok(_) => None,
        Err(failure @ Failure::Errors(_)) => Some(failure.code().to_owned()),
        Err(Failure::Transport(text)) => panic!("{query}: {text}"),
    }
}

async fn over_websocket(client: &Client, query: &str, variables: Value) -> Option<String> {
    let mut subscription = client.subscribe(query, variables).await;
    let step = tokio::time::timeout(PATIENCE, subscription.next())
        .await
        .unwrap();
    let code = |error: &Value| Some(error["extensions"]["code"].as_str().unwrap().to_owned());
    match step {
        Step::Next(payload) if payload.get("errors").is_some() => code(&payload["errors"][0]),
        Step::Next(_) => None,
        Step::Errors(errors) => code(&errors[0]),
        step => panic!("{query}: {step:?}"),
    }
}

/// Which events, aggregates, commands, read models and streams there are.
async fn stored(client: &Client) -> Value {
    let query = "{ events { nodes { id } } aggregates { nodes { id } } commands { nodes { id } } readModels { nodes { version } } streams { nodes { name } } }";
    client.query(query, json!({})).await.unwrap()
}

#[tokio::test]
async fn every_role_may_read() {
    let server = guarded().await;
    for token in ["reader", "writer", "boss"] {
        let client = server.client().with_token(token);
        for query in QUERIES {
            assert_eq!(
                over_http(&client, query, json!({})).await,
                None,
                "{token}: {query}"
            );
            assert_eq!(
                over_websocket(&client, query, json!({})).await,
                None,
                "{token}: {query}"
            );
        }
        for query in SUBSCRIPTIONS {
            let code = over_websocket(&client, query, json!({})).await;
            assert_ne!(code.as_deref(), Some("FORBIDDEN"), "{token}: {query}");
        }
    }
}

#[tokio::test]
async fn a_reader_may_not_write() {
    let server = guarded().await;
    let client = server.client().with_token("reader");
    let before = stored(&client).await;
    for (query, input) in mutations() {
        let variables = json!({ "input": input });
        let code = over_http(&client, query, variables.clone()).await;
        assert_eq!(code.as_deref(), Some("FORBIDDEN"), "{query}");
        let code = over_websocket(&client, query, variables).await;
        assert_eq!(code.as_deref(), Some("FORBIDDEN"), "{query}");
    }
    assert_eq!(stored(&client).await, before);
}

#[tokio::test]
async fn writers_and_admins_may_write() {
    let server = guarded().await;
    for token in ["writer", "boss"] {
        let client = server.client().with_token(token);
        for (query, input) in mutations() {
            let variables = json!({ "input": input });
            let code = over_http(&client, query, variables).await;
            assert!(may_be_done(code.as_deref()), "{token}: {query}: {code:?}");
        }
        for (query, input) in mutations() {
            let variables = json!({ "input": input });
            let code = over_websocket(&client, query, variables).await;
            assert!(may_be_done(code.as_deref()), "{token}: {query}: {code:?}");
        }
    }
}

#[tokio::test]
async fn only_admins_may_change_how_the_server_works() {
    let server = guarded().await;
    for (token, expected) in [
        ("reader", Some("FORBIDDEN")),
        ("writer", Some("FORBIDDEN")),
        ("boss", None),
    ] {
        let client = server.client().with_token(token);
        for query in ADMINISTRATION {
            let code = over_http(&client, query, json!({})).await;
            assert_eq!(code.as_deref(), expected, "{token}: {query}");
        }
        for query in ADMINISTRATION {
            let code = over_websocket(&client, query, json!({})).await;
            assert_eq!(code.as_deref(), expected, "{token}: {query}");
        }
    }
}

#[tokio::test]
async fn nobody_may_do_anything() {
    let server = guarded().await;
    let reader = server.client().with_token("reader");
    let before = stored(&reader).await;
    let mut operations = mutations();
    operations.extend(QUERIES.map(|query| (query, json!({}))));
    operations.extend(SUBSCRIPTIONS.map(|query| (query, json!({}))));
    operations.extend(ADMINISTRATION.map(|query| (query, json!({}))));
    operations.push(("{ __typename }", json!({})));
    operations.push(("{ __schema { types { name } } }", json!({})));
    for client in [server.client(), server.client().with_token("nobody")] {
        for (query, input) in &operations {
            let answer = client.send(query, json!({ "input": input })).await.unwrap();
            assert_eq!(answer.status, 401, "{query}");
            let code = &answer.body["errors"][0]["extensions"]["code"];
            assert_eq!(code, "UNAUTHENTICATED", "{query}");
            assert!(answer.body.get("data").is_none_or(Value::is_null));
        }
    }
    assert_eq!(stored(&reader).await, before);
}

#[tokio::test]
async fn a_websocket_without_a_known_token_is_closed_before_its_first_operation() {
    let server = guarded().await;
    let reader = server.client().with_token("reader");
    let before = stored(&reader).await;
    for init in [
        json!({ "type": "connection_init" }),
        json!({ "type": "connection_init", "payload": { "authorization": "Bearer nobody" } }),
        json!({ "type": "connection_init", "payload": { "authorization": "reader" } }),
        json!({ "type": "connection_init", "payload": { "authorization": 7 } }),
    ] {
        let mut socket = Socket::open(&server.ws_url, "graphql-transport-ws", &[])
            .await
            .unwrap();
        socket.send(init.clone()).await;
        let (query, input) = mutations().remove(1);
        socket.start("1", query, json!({ "input": input })).await;
        let closed = tokio::time::timeout(PATIENCE, socket.receive())
            .await
            .unwrap();
        let Err(Step::Closed { code, .. }) = closed else {
            panic!("{init}: {closed:?}");
        };
        assert!([4401, 4403].contains(&code), "{init}: closed with {code}");
    }
    assert_eq!(stored(&reader).await, before);
}

#[tokio::test]
async fn one_field_that_is_forbidden_leaves_the_others_of_a_mutation_undone() {
    let server = guarded().await;
    let client = server.client().with_token("reader");
    let query = "mutation($a: CreateAggregateInput!) { one: createAggregate(input: $a) { created } other: createAggregate(input: $a) { created } }";
    let variables = json!({ "a": { "type": "user" } });
    let failure = client.query(query, variables).await.unwrap_err();
    assert_eq!(failure.code(), "FORBIDDEN", "{failure:?}");
    assert_eq!(stored(&client).await["aggregates"]["nodes"], json!([]));
}

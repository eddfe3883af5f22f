//! However it is asked for, an answer is the same: aliases, fragments, directives, and fields in the document's order.

use serde_json::{Value, json};
use uuid::Uuid;

use super::{APPEND, ask, event, with};
use crate::support::in_process::TestServer;

/// A server with three events of two aggregates and a stream entry; the ids of the aggregates.
async fn filled() -> (TestServer, [Uuid; 2]) {
    // Nothing but what is asked for here is to be in it, no published events either.
    let server = TestServer::with(|config| config.background.enabled = false).await;
    let ids = [Uuid::new_v4(), Uuid::new_v4()];
    for id in [ids[0], ids[1], ids[0]] {
        let input = with(event(), "aggregateId", json!(id));
        let input = with(input, "data", json!({ "version": 7, "id": null }));
        ask(&server.url, APPEND, json!({ "input": input })).await;
    }
    let query = r#"mutation { appendToStream(input: { streamName: "a", eventId: "0192d3f0-1111-7222-8333-444455556666", type: "x", data: [1] }) { duplicate } }"#;
    ask(&server.url, query, json!({})).await;
    (server, ids)
}

async fn data(server: &TestServer, query: &str) -> Value {
    let mut answer = ask(&server.url, query, json!({ "yes": true, "no": false })).await;
    assert!(answer.get("errors").is_none(), "{query}: {answer}");
    answer["data"].take()
}

#[tokio::test]
async fn aliases_rename_fields() {
    let (server, _) = filled().await;
    let plain = data(
        &server,
        "{ events { nodes { id version data aggregate { id version } } } }",
    )
    .await;
    let aliased = data(
        &server,
        "{ all: events { list: nodes { version: id id: version one: data two: data a: aggregate { id } b: aggregate { v: version } } } }",
    )
    .await;
    let plain = plain["events"]["nodes"].as_array().unwrap();
    let aliased = aliased["all"]["list"].as_array().unwrap();
    assert_eq!(plain.len(), 3);
    for (plain, aliased) in plain.iter().zip(aliased) {
        let expected = json!({
            "version": plain["id"], "id": plain["version"], "one": plain["data"], "two": plain["data"],
            "a": { "id": plain["aggregate"]["id"] }, "b": { "v": plain["aggregate"]["version"] },
        });
        assert_eq!(*aliased, expected);
    }
}

#[tokio::test]
async fn one_field_with_several_arguments_is_several_fields() {
    let (server, ids) = filled().await;
    let query = format!(
        r#"{{ aggregate(id: "{}") {{ old: events(first: 1) {{ version }} new: events(first: 1, order: NEWEST_FIRST) {{ version }} all: events {{ version }} }} }}"#,
        ids[0]
    );
    let found = data(&server, &query).await["aggregate"].take();
    assert_eq!(found["old"], json!([{ "version": 1 }]));
    assert_eq!(found["new"], json!([{ "version": 2 }]));
    assert_eq!(found["all"], json!([{ "version": 1 }, { "version": 2 }]));
}

#[tokio::test]
async fn fragments_answer_as_their_fields_do() {
    let (server, _) = filled().await;
    let fields = "id type version data aggregate { id type } createdAt";
    let expected = data(&server, &format!("{{ events {{ nodes {{ {fields} }} }} }}")).await;
    for query in [
        format!("{{ events {{ nodes {{ ...f }} }} }} fragment f on Event {{ {fields} }}"),
        format!("{{ events {{ nodes {{ ... on Event {{ {fields} }} }} }} }}"),
        format!("{{ events {{ nodes {{ ... {{ {fields} }} }} }} }}"),
        format!("{{ events {{ nodes {{ id ...f id ... {{ id version }} }} }} }} fragment f on Event {{ {fields} ...g }} fragment g on Event {{ id }}"),
        "{ events { nodes { ...f } } events { nodes { ...g } } } fragment f on Event { id type version aggregate { id } } fragment g on Event { version data aggregate { type } createdAt }".to_owned(),
        "{ ...q } fragment q on Query { events { ...c } } fragment c on EventConnection { nodes { id type version data } nodes { aggregate { id } aggregate { type } createdAt } }".to_owned(),
    ] {
        assert_eq!(data(&server, &query).await, expected, "{query}");
    }
}

#[tokio::test]
async fn what_is_selected_in_two_places_is_put_together() {
    let (server, _) = filled().await;
    let expected = data(
        &server,
        "{ events { nodes { id version } edges { cursor node { id type } } } }",
    )
    .await;
    for query in [
        "{ events { nodes { id } nodes { version } edges { cursor } edges { node { id } node { type } } } }",
        "{ events { nodes { id id version id } edges { cursor node { id } cursor node { type id } } } }",
        "{ ...a events { nodes { version } edges { node { type } } } } \
         fragment a on Query { events { nodes { id } edges { cursor node { id } } } }",
    ] {
        assert_eq!(data(&server, query).await, expected, "{query}");
    }
}

#[tokio::test]
async fn directives_leave_fields_out() {
    let (server, _) = filled().await;
    let expected = data(&server, "{ events { nodes { id aggregate { id } } } }").await;
    for nodes in [
        "id version @skip(if: $yes) aggregate { id type @include(if: $no) }",
        "id @include(if: $yes) aggregate @skip(if: $no) { id } data @include(if: $no)",
        "... @include(if: $yes) { id } ... @skip(if: $yes) { version } aggregate { id ... on Aggregate @include(if: $no) { version } }",
        "...f @include(if: $yes) ...g @skip(if: $yes) aggregate { id }",
    ] {
        let fragments = "fragment f on Event { id } fragment g on Event { version }";
        let fragments = if nodes.contains("...f") {
            fragments
        } else {
            ""
        };
        let query = format!(
            "query($yes: Boolean!, $no: Boolean!) {{ events {{ nodes {{ {nodes} }} nothing: nodes @include(if: $no) {{ id }} nothing: nodes @skip(if: $yes) {{ id }} }} }} {fragments}"
        );
        assert_eq!(data(&server, &query).await, expected, "{nodes}");
    }
}

#[tokio::test]
async fn each_object_says_its_type() {
    let (server, ids) = filled().await;
    let query = format!(
        r#"{{ __typename
            events(first: 1) {{ __typename edges {{ __typename node {{ kind: __typename aggregate {{ __typename events {{ __typename }} }} }} }} pageInfo {{ __typename }} }}
            aggregates(first: 1) {{ __typename nodes {{ __typename }} }}
            aggregate(id: "{}") {{ __typename }}
            streams {{ nodes {{ __typename entries {{ __typename position }} }} }}
            server {{ __typename }} }}"#,
        ids[1]
    );
    let found = data(&server, &query).await;
    let expected = json!({
        "__typename": "Query",
        "events": { "__typename": "EventConnection", "edges": [{ "__typename": "EventEdge", "node": { "kind": "Event", "aggregate": { "__typename": "Aggregate", "events": [{ "__typename": "Event" }, { "__typename": "Event" }] } } }], "pageInfo": { "__typename": "PageInfo" } },
        "aggregates": { "__typename": "AggregateConnection", "nodes": [{ "__typename": "Aggregate" }] },
        "aggregate": { "__typename": "Aggregate" },
        "streams": { "nodes": [{ "__typename": "Stream", "entries": [{ "__typename": "StreamEntry", "position": 1 }] }] },
        "server": { "__typename": "Server" },
    });
    assert_eq!(found, expected);
}

#[tokio::test]
async fn a_subscription_answers_as_a_query_does() {
    let (server, _) = filled().await;
    let plain = data(
        &server,
        "{ events { nodes { id version data aggregate { version } } } }",
    )
    .await;
    let plain = plain["events"]["nodes"].as_array().unwrap();
    for event in [
        "id version data aggregate { version }",
        "...f aggregate { ... { version } }",
        "x: id ... on Event { id version } data aggregate { version }",
    ] {
        let fragment = "fragment f on Event { id version data }";
        let fragment = if event.contains("...f") { fragment } else { "" };
        let query = format!(
            "subscription {{ update: events(after: \"\") {{ __typename caughtUp event {{ {event} }} }} }} {fragment}"
        );
        let mut subscription = server.client().subscribe(&query, json!({})).await;
        for (no, expected) in plain.iter().enumerate() {
            let mut update = subscription.next_data().await["update"].take();
            assert_eq!(update["__typename"], "EventUpdate");
            assert_eq!(update["caughtUp"], no == 2);
            update["event"].as_object_mut().unwrap().remove("x");
            assert_eq!(update["event"], *expected, "{event}");
        }
    }
}

#[tokio::test]
async fn fields_come_in_the_order_of_the_document() {
    let (server, _) = filled().await;
    let query = "{ server { startedAt version } streams { nodes { name } } events(first: 1) { pageInfo { endCursor hasNextPage } nodes { version aggregate { type id } id } } aggregateId(key: \"a\") }";
    let body = json!({ "query": query }).to_string();
    let request = reqwest::Client::new()
        .post(format!("{}/graphql", server.url))
        .header("content-type", "application/json")
        .body(body);
    let text = request.send().await.unwrap().text().await.unwrap();
    let places: Vec<usize> = [
        "server",
        "startedAt",
        "version",
        "streams",
        "nodes",
        "name",
        "events",
        "pageInfo",
        "endCursor",
        "hasNextPage",
        "nodes",
        "version",
        "aggregate",
        "type",
        "id",
        "id",
        "aggregateId",
    ]
    .iter()
    .scan(0, |from, key| {
        let key = format!("\"{key}\":");
        *from += text[*from..]
            .find(&key)
            .unwrap_or_else(|| panic!("{key} in order: {text}"))
            + key.len();
        Some(*from)
    })
    .collect();
    assert!(places.is_sorted());
}

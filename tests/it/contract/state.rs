//! The field `state` of an aggregate: now, at a version, at an instant.

use std::sync::Arc;

use serde_json::{Value, json};
use uuid::Uuid;

use super::{Contract, event, list, with};
use crate::support::{
    client::{Failure, Step},
    in_process::{Database, TestServer},
};

cases!(
    a_state_is_folded_from_the_events_by_the_domain,
    a_state_is_had_as_it_was_at_each_version,
    a_state_is_had_as_it_was_at_each_instant,
    wrong_places_of_a_state_are_refused,
    events_that_no_domain_declares_are_merged,
    an_event_that_cannot_be_folded_is_told_with_the_version_before_it,
    a_state_of_many_and_of_large_events_is_read_in_pages,
    states_of_a_list_are_had_together,
    what_one_answer_may_fold_is_bounded,
    each_answer_of_a_subscription_may_fold_as_much,
);

const STATE: &str = "query($id: UUID!, $version: Int, $at: DateTime) {
    aggregate(id: $id) { version state(atVersion: $version, at: $at) }
}";

async fn state(contract: &Contract, id: Uuid, place: Value) -> Value {
    let variables = with(place, json!({ "id": id }));
    contract.ask(STATE, variables).await["aggregate"]["state"].take()
}

async fn refused(contract: &Contract, id: Uuid, place: Value) -> Failure {
    let variables = with(place, json!({ "id": id }));
    contract.refused(STATE, variables).await
}

async fn append(contract: &Contract, id: Uuid, event_type: &str, data: Value) -> Value {
    let input = with(event(id), json!({ "type": event_type, "data": data }));
    contract.append(input).await["event"].take()
}

/// A user who was created, updated twice, deleted, and created again, with the state after each of the events.
async fn life(contract: &Contract) -> (Uuid, Vec<(Value, Value)>) {
    let id = Uuid::new_v4();
    let mut life = Vec::new();
    for (event_type, data, state) in [
        (
            "user_created",
            json!({ "username": "ada", "email": "a@b.de" }),
            json!({ "username": "ada", "email": "a@b.de" }),
        ),
        (
            "user_updated",
            json!({ "username": "ada.l" }),
            json!({ "username": "ada.l", "email": "a@b.de" }),
        ),
        (
            "user_updated",
            json!({ "email": null }),
            json!({ "username": "ada.l" }),
        ),
        ("user_deleted", json!({}), Value::Null),
        (
            "user_created",
            json!({ "username": "bob" }),
            json!({ "username": "bob" }),
        ),
    ] {
        life.push((append(contract, id, event_type, data).await, state));
    }
    (id, life)
}

async fn a_state_is_folded_from_the_events_by_the_domain(contract: Contract) {
    let id = Uuid::new_v4();
    let create = "mutation($input: CreateAggregateInput!) { createAggregate(input: $input) { aggregate { state } } }";
    let made = contract
        .ask(create, json!({ "input": { "id": id, "type": "user" } }))
        .await;
    assert_eq!(
        made["createAggregate"]["aggregate"]["state"],
        Value::Null,
        "before the first event"
    );

    let ada = json!({ "username": "ada" });
    append(&contract, id, "user_created", ada.clone()).await;
    assert_eq!(state(&contract, id, json!({})).await, ada);
    append(&contract, id, "user_deleted", json!({})).await;
    assert_eq!(state(&contract, id, json!({})).await, Value::Null);
    append(&contract, id, "user_seen", json!({ "page": 1 })).await;
    assert_eq!(state(&contract, id, json!({})).await, json!({ "page": 1 }));
}

async fn a_state_is_had_as_it_was_at_each_version(contract: Contract) {
    let (id, life) = life(&contract).await;
    assert_eq!(
        state(&contract, id, json!({ "version": 0 })).await,
        Value::Null
    );
    for (event, expected) in &life {
        let place = json!({ "version": event["version"] });
        assert_eq!(&state(&contract, id, place).await, expected);
    }
    // All of them in one operation.
    let fields: String = (0..=life.len())
        .map(|no| format!("v{no}: state(atVersion: {no}) "))
        .collect();
    let query = format!("query($id: UUID!) {{ aggregate(id: $id) {{ {fields} now: state }} }}");
    let data = contract.ask(&query, json!({ "id": id })).await;
    for (no, (_, expected)) in life.iter().enumerate() {
        assert_eq!(&data["aggregate"][format!("v{}", no + 1)], expected);
    }
    assert_eq!(data["aggregate"]["now"], life[4].1);
}

async fn a_state_is_had_as_it_was_at_each_instant(contract: Contract) {
    let (id, life) = life(&contract).await;
    let before = json!({ "at": "2001-01-01T00:00:00Z" });
    assert_eq!(state(&contract, id, before).await, Value::Null);
    let later = json!({ "at": "2999-01-01T00:00:00Z" });
    assert_eq!(state(&contract, id, later).await, life[4].1);
    for (event, _) in &life {
        let at = &event["createdAt"];
        // Two events may have the same instant.
        let last = life
            .iter()
            .rev()
            .find(|(event, _)| event["createdAt"].as_str() <= at.as_str());
        let expected = &last.unwrap().1;
        assert_eq!(&state(&contract, id, json!({ "at": at })).await, expected);
    }
}

async fn wrong_places_of_a_state_are_refused(contract: Contract) {
    let (id, life) = life(&contract).await;
    let both = json!({ "version": 1, "at": life[0].0["createdAt"] });
    let failure = refused(&contract, id, both).await;
    assert_eq!(failure.code(), "BAD_USER_INPUT");
    assert_eq!(failure.extension("field"), "at");

    let failure = refused(&contract, id, json!({ "version": -1 })).await;
    assert_eq!(failure.code(), "BAD_USER_INPUT");
    assert_eq!(failure.extension("field"), "atVersion");

    for above in [6, i32::MAX] {
        let failure = refused(&contract, id, json!({ "version": above })).await;
        assert_eq!(failure.code(), "PLACE_NOT_REACHED");
        assert_eq!(failure.extension("head"), 5);
    }
}

async fn events_that_no_domain_declares_are_merged(contract: Contract) {
    let id = Uuid::new_v4();
    for data in [
        json!({ "a": { "b": 1, "c": 2 } }),
        json!({ "a": { "b": null }, "d": [1] }),
    ] {
        let input = with(
            event(id),
            json!({ "aggregateType": "thing", "type": "changed", "data": data }),
        );
        contract.append(input).await;
    }
    assert_eq!(
        state(&contract, id, json!({})).await,
        json!({ "a": { "c": 2 }, "d": [1] })
    );
}

async fn an_event_that_cannot_be_folded_is_told_with_the_version_before_it(contract: Contract) {
    let id = Uuid::new_v4();
    append(&contract, id, "user_created", json!({ "username": "ada" })).await;
    append(&contract, id, "user_updated", json!([1, 2])).await;
    append(&contract, id, "user_updated", json!({ "email": "x" })).await;
    for place in [json!({}), json!({ "version": 2 }), json!({ "version": 3 })] {
        let failure = refused(&contract, id, place).await;
        assert_eq!(failure.code(), "READ_MODEL_FAULTED");
        assert_eq!(failure.extension("version"), 1);
        assert!(
            failure.message().contains("user_updated"),
            "{}",
            failure.message()
        );
    }
    let first = state(&contract, id, json!({ "version": 1 })).await;
    assert_eq!(first, json!({ "username": "ada" }));
}

async fn a_state_of_many_and_of_large_events_is_read_in_pages(contract: Contract) {
    let (many, large) = (contract.aggregate_in(0), contract.aggregate_in(1));
    for page in 0..3 {
        let events: Vec<Value> = (0..900)
            .map(|no| {
                let data = json!({ format!("key{}", no % 7): page * 900 + no, "last": no });
                with(event(many), json!({ "type": "user_seen", "data": data }))
            })
            .collect();
        contract.append_all(json!(events)).await;
    }
    for no in 0..12 {
        let text = char::from(b'a' + no).to_string().repeat(900_000);
        append(
            &contract,
            large,
            "user_updated",
            json!({ "text": text, format!("key{no}"): no }),
        )
        .await;
    }
    let query = "query($a: UUID!, $b: UUID!) { a: aggregate(id: $a) { state early: state(atVersion: 8) } b: aggregate(id: $b) { state } }";
    let data = contract.ask(query, json!({ "a": many, "b": large })).await;
    let expected: serde_json::Map<String, Value> = (0..900)
        .map(|no| (format!("key{}", no % 7), json!(1800 + no)))
        .chain([("last".to_owned(), json!(899))])
        .collect();
    assert_eq!(data["a"]["state"], Value::Object(expected));
    assert_eq!(data["a"]["early"]["key0"], 7);
    let state = &data["b"]["state"];
    assert_eq!(state["text"].as_str().unwrap(), "l".repeat(900_000));
    assert_eq!(state.as_object().unwrap().len(), 13);
}

async fn states_of_a_list_are_had_together(contract: Contract) {
    for id in contract.aggregates(40) {
        append(&contract, id, "user_created", json!({ "id": id })).await;
        append(&contract, id, "user_updated", json!({ "seen": true })).await;
    }
    // The statements of what runs beside would be counted too.
    let contract = contract
        .restarted(None, |config| config.background.enabled = false)
        .await;
    let statements = async |first: i32| {
        let before = contract.server.app.store().statements_read();
        let query = "query($first: Int!) { aggregates(first: $first) { nodes { id now: state first: state(atVersion: 1) } } }";
        let data = contract.ask(query, json!({ "first": first })).await;
        for node in list(data["aggregates"]["nodes"].clone()) {
            assert_eq!(node["first"], json!({ "id": node["id"] }));
            assert_eq!(node["now"], json!({ "id": node["id"], "seen": true }));
        }
        contract.server.app.store().statements_read() - before
    };
    // The server itself asks something every some seconds, and not twice at once.
    let few = statements(2).await.min(statements(2).await);
    let many = statements(40).await.min(statements(40).await);
    assert_eq!(few, many);
}

/// The same database, with a server that folds few events for an answer.
async fn with_limit(contract: Contract, limit: usize) -> Contract {
    let (engine, partitions) = (contract.engine, contract.partitions);
    let database: Arc<Database> = contract.server.stop().await;
    let server = TestServer::on(database, |config| config.limits.max_folded_events = limit).await;
    Contract {
        engine,
        partitions,
        client: server.client(),
        server,
    }
}

async fn what_one_answer_may_fold_is_bounded(contract: Contract) {
    let (id, life) = life(&contract).await;
    let other = Uuid::new_v4();
    for no in 0..6 {
        append(&contract, other, "user_updated", json!({ "no": no })).await;
    }
    let contract = with_limit(contract, 5).await;
    assert_eq!(state(&contract, id, json!({})).await, life[4].1);
    let at_four = state(&contract, other, json!({ "version": 4 })).await;
    assert_eq!(at_four, json!({ "no": 3 }));

    let is_refused = |failure: Failure| {
        assert_eq!(failure.code(), "BAD_USER_INPUT");
        let message = failure.message();
        assert!(
            message.contains("more than 5 events") && message.contains("--max-folded-events"),
            "{message}"
        );
    };
    is_refused(refused(&contract, other, json!({})).await);
    is_refused(refused(&contract, other, json!({ "at": "2999-01-01T00:00:00Z" })).await);
    // Several states of one aggregate are folded at once; those of several add up.
    let query = "query($id: UUID!) { aggregate(id: $id) { a: state b: state(atVersion: 3) c: state(at: \"2999-01-01T00:00:00Z\") } }";
    contract.ask(query, json!({ "id": id })).await;
    let query = "query($id: UUID!, $other: UUID!) { a: aggregate(id: $id) { state } b: aggregate(id: $other) { state(atVersion: 1) } }";
    is_refused(
        contract
            .refused(query, json!({ "id": id, "other": other }))
            .await,
    );
}

async fn each_answer_of_a_subscription_may_fold_as_much(contract: Contract) {
    let (id, life) = life(&contract).await;
    let contract = with_limit(contract, 5).await;
    let query = "subscription($id: UUID!) { events(filter: { aggregateId: $id }, after: \"\") { event { aggregate { state } } } }";
    let mut subscription = contract.client.subscribe(query, json!({ "id": id })).await;
    for _ in &life {
        let Step::Next(answer) = subscription.next().await else {
            panic!("each event has an answer");
        };
        assert_eq!(
            answer["data"]["events"]["event"]["aggregate"]["state"],
            life[4].1
        );
    }
}

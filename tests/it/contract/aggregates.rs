//! The queries aggregate, aggregates and aggregateId.

use serde_json::{Value, json};
use tidings::domain::{AggregateId, Cursor, Timestamp};
use uuid::Uuid;

use super::{Contract, event, list, pick, with};

cases!(
    an_aggregate_that_is_not_there_is_null,
    aggregates_are_listed_in_the_order_in_which_they_were_made,
    aggregates_of_some_types_are_listed,
    paging_gives_each_aggregate_once_in_both_orders,
    wrong_arguments_of_aggregates_are_refused,
    cursors_with_instants_that_none_was_given_out_with_are_refused,
    events_of_an_aggregate_go_on_behind_a_version_in_both_orders,
    wrong_arguments_of_its_events_are_refused,
    an_event_leads_to_its_aggregate_and_back,
    a_key_stands_for_one_id,
);

const LIST: &str =
    "query($types: [String!], $order: Order! = OLDEST_FIRST, $first: Int! = 100, $after: String) {
    aggregates(types: $types, order: $order, first: $first, after: $after) {
        edges { cursor node { id } } nodes { id type version createdAt }
        pageInfo { hasNextPage hasPreviousPage startCursor endCursor }
    }
}";

async fn page(contract: &Contract, arguments: Value) -> Value {
    contract.ask(LIST, arguments).await["aggregates"].take()
}

async fn ids(contract: &Contract, arguments: Value) -> Vec<Value> {
    pick(&list(page(contract, arguments).await["nodes"].take()), "id")
}

/// Makes aggregates of two types in turn, with an event or without; their ids in order.
async fn fill(contract: &Contract, count: u8) -> Vec<Value> {
    let create =
        "mutation($input: CreateAggregateInput!) { createAggregate(input: $input) { created } }";
    let mut ids = Vec::new();
    for (no, id) in contract.aggregates(count).into_iter().enumerate() {
        let kind = ["user", "order"][no % 2];
        if no % 3 == 0 {
            contract
                .ask(create, json!({ "input": { "id": id, "type": kind } }))
                .await;
        } else {
            contract
                .append(with(event(id), json!({ "aggregateType": kind })))
                .await;
        }
        ids.push(json!(id));
    }
    ids
}

async fn an_aggregate_that_is_not_there_is_null(contract: Contract) {
    fill(&contract, 3).await;
    assert_eq!(contract.aggregate(Uuid::new_v4()).await, Value::Null);
    assert_eq!(contract.aggregate(Uuid::nil()).await, Value::Null);
}

async fn aggregates_are_listed_in_the_order_in_which_they_were_made(contract: Contract) {
    assert!(ids(&contract, json!({})).await.is_empty());
    let made = fill(&contract, 10).await;
    assert_eq!(ids(&contract, json!({})).await, made);
    let mut newest = ids(&contract, json!({ "order": "NEWEST_FIRST" })).await;
    newest.reverse();
    assert_eq!(newest, made);
    // A new event does not move an old aggregate.
    let old = Uuid::parse_str(made[1].as_str().unwrap()).unwrap();
    contract
        .append(with(event(old), json!({ "aggregateType": "order" })))
        .await;
    assert_eq!(ids(&contract, json!({})).await, made);
}

async fn aggregates_of_some_types_are_listed(contract: Contract) {
    let made = fill(&contract, 10).await;
    let users: Vec<Value> = made.iter().step_by(2).cloned().collect();
    assert_eq!(ids(&contract, json!({ "types": ["user"] })).await, users);
    assert_eq!(
        ids(&contract, json!({ "types": ["user", "order"] })).await,
        made
    );
    assert_eq!(ids(&contract, json!({ "types": null })).await, made);
    assert!(ids(&contract, json!({ "types": ["x"] })).await.is_empty());
    let mut newest = ids(
        &contract,
        json!({ "types": ["user"], "order": "NEWEST_FIRST" }),
    )
    .await;
    newest.reverse();
    assert_eq!(newest, users);
}

async fn paging_gives_each_aggregate_once_in_both_orders(contract: Contract) {
    let made = fill(&contract, 13).await;
    for (order, first) in [
        ("OLDEST_FIRST", 1),
        ("OLDEST_FIRST", 4),
        ("OLDEST_FIRST", 13),
        ("NEWEST_FIRST", 1),
        ("NEWEST_FIRST", 5),
    ] {
        let mut found = Vec::new();
        let mut after = Value::Null;
        loop {
            let arguments = json!({ "order": order, "first": first, "after": after });
            let page = page(&contract, arguments).await;
            assert_eq!(page["pageInfo"]["hasPreviousPage"], !after.is_null());
            let edges = list(page["edges"].clone());
            assert_eq!(
                page["pageInfo"]["endCursor"],
                edges.last().unwrap()["cursor"]
            );
            found.extend(pick(&list(page["nodes"].clone()), "id"));
            after = page["pageInfo"]["endCursor"].clone();
            if page["pageInfo"]["hasNextPage"] == false {
                break;
            }
        }
        if order == "NEWEST_FIRST" {
            found.reverse();
        }
        assert_eq!(found, made, "pages of {first} in {order}");
        let behind = if order == "OLDEST_FIRST" {
            page(&contract, json!({ "after": after })).await
        } else {
            page(&contract, json!({ "after": after, "order": order })).await
        };
        assert_eq!(behind["nodes"], json!([]));
        assert_eq!(behind["pageInfo"]["hasNextPage"], false);
    }
    assert_eq!(ids(&contract, json!({ "after": "" })).await, made);
}

async fn wrong_arguments_of_aggregates_are_refused(contract: Contract) {
    fill(&contract, 3).await;
    let another = contract.another().await;
    fill(&another, 1).await;
    let foreign = page(&another, json!({})).await["pageInfo"]["endCursor"].take();
    for (arguments, field) in [
        (json!({ "first": 0 }), "first"),
        (json!({ "first": 1001 }), "first"),
        (json!({ "first": -1 }), "first"),
        (json!({ "after": "x" }), "after"),
        (json!({ "after": contract.head().await }), "after"),
        (json!({ "after": foreign }), "after"),
        (json!({ "types": ["user", ""] }), "types[1]"),
        (json!({ "types": ["x".repeat(101)] }), "types[0]"),
        (json!({ "types": ["\0"] }), "types[0]"),
    ] {
        let failure = contract.refused(LIST, arguments.clone()).await;
        assert_eq!(failure.code(), "BAD_USER_INPUT", "{arguments}: {failure:?}");
        assert_eq!(failure.extension("field"), field);
    }
}

async fn cursors_with_instants_that_none_was_given_out_with_are_refused(contract: Contract) {
    // The end of the year 9999, in microseconds after 1970.
    const LATEST: i64 = 253_402_300_799_999_999;
    let made = fill(&contract, 3).await;
    let store = contract.server.app.store();
    let cursor_at = |micros: i64| {
        let cursor = Cursor::Aggregates {
            created_at: Timestamp::from_micros(micros),
            id: AggregateId(Uuid::new_v4()),
        };
        cursor.encode(store.database_id(), store.partitions())
    };
    for micros in [-1, i64::MIN, i64::MIN + 1, LATEST + 1, i64::MAX] {
        for order in ["OLDEST_FIRST", "NEWEST_FIRST"] {
            let arguments = json!({ "after": cursor_at(micros), "order": order });
            let failure = contract.refused(LIST, arguments).await;
            assert_eq!(failure.code(), "BAD_USER_INPUT", "{micros}: {failure:?}");
            assert_eq!(failure.extension("field"), "after");
        }
    }
    let from_the_first = json!({ "after": cursor_at(0) });
    assert_eq!(ids(&contract, from_the_first).await, made);
    let behind_the_last = json!({ "after": cursor_at(LATEST) });
    assert!(ids(&contract, behind_the_last).await.is_empty());
}

async fn events_of_an_aggregate_go_on_behind_a_version_in_both_orders(contract: Contract) {
    let id = Uuid::new_v4();
    for _ in 0..10 {
        contract.append(event(id)).await;
    }
    contract.append(event(Uuid::new_v4())).await;
    let query = "query($id: UUID!, $after: Int, $first: Int! = 100, $order: Order! = OLDEST_FIRST) {
        aggregate(id: $id) { events(afterVersion: $after, first: $first, order: $order) { version aggregateId } }
    }";
    let versions = async |arguments: Value| {
        let data = contract
            .ask(query, with(arguments, json!({ "id": id })))
            .await;
        let events = list(data["aggregate"]["events"].clone());
        assert!(
            events
                .iter()
                .all(|event| event["aggregateId"] == id.to_string())
        );
        pick(&events, "version")
            .iter()
            .map(|version| version.as_i64().unwrap())
            .collect::<Vec<_>>()
    };
    let oldest =
        async |after: Value, first: i32| versions(json!({ "after": after, "first": first })).await;
    let newest = async |after: Value, first: i32| {
        versions(json!({ "after": after, "first": first, "order": "NEWEST_FIRST" })).await
    };
    assert_eq!(versions(json!({})).await, (1..=10).collect::<Vec<_>>());
    assert_eq!(oldest(Value::Null, 3).await, [1, 2, 3]);
    assert_eq!(oldest(json!(0), 3).await, [1, 2, 3]);
    assert_eq!(oldest(json!(8), 3).await, [9, 10]);
    assert!(oldest(json!(10), 3).await.is_empty());
    assert!(oldest(json!(i32::MAX), 1000).await.is_empty());
    assert_eq!(newest(Value::Null, 3).await, [10, 9, 8]);
    assert_eq!(newest(json!(8), 3).await, [7, 6, 5]);
    assert_eq!(newest(json!(2), 3).await, [1]);
    assert!(newest(json!(1), 3).await.is_empty());
    assert!(newest(json!(0), 3).await.is_empty());
    assert_eq!(newest(json!(i32::MAX), 2).await, [10, 9]);
}

async fn wrong_arguments_of_its_events_are_refused(contract: Contract) {
    let id = Uuid::new_v4();
    contract.append(event(id)).await;
    let query = "query($id: UUID!, $after: Int, $first: Int! = 100) {
        aggregate(id: $id) { events(afterVersion: $after, first: $first) { version } }
    }";
    for (after, first, field) in [
        (Value::Null, 0, "first"),
        (Value::Null, 1001, "first"),
        (json!(-1), 10, "afterVersion"),
    ] {
        let variables = json!({ "id": id, "after": after, "first": first });
        let failure = contract.refused(query, variables).await;
        assert_eq!(failure.code(), "BAD_USER_INPUT", "{failure:?}");
        assert_eq!(failure.extension("field"), field);
    }
}

async fn an_event_leads_to_its_aggregate_and_back(contract: Contract) {
    let ids = contract.aggregates(4);
    for id in &ids {
        contract.append(event(*id)).await;
        contract.append(event(*id)).await;
    }
    let query = "{ events { nodes { aggregateId version aggregate { id type version events(first: 1, order: NEWEST_FIRST) { version aggregateId } } } } }";
    let data = contract.ask(query, json!({})).await;
    let events = list(data["events"]["nodes"].clone());
    assert_eq!(events.len(), 8);
    for event in events {
        assert_eq!(event["aggregate"]["id"], event["aggregateId"]);
        assert_eq!(event["aggregate"]["type"], "user");
        assert_eq!(event["aggregate"]["version"], 2);
        assert_eq!(
            event["aggregate"]["events"],
            json!([{ "version": 2, "aggregateId": event["aggregateId"] }])
        );
    }
}

async fn a_key_stands_for_one_id(contract: Contract) {
    let query = "query($key: String!) { aggregateId(key: $key) }";
    let id_of = async |key: &str| {
        let data = contract.ask(query, json!({ "key": key })).await;
        Uuid::parse_str(data["aggregateId"].as_str().unwrap()).unwrap()
    };
    let id = Uuid::new_v4();
    assert_eq!(id_of(&id.to_string()).await, id);
    let user = id_of("user-123").await;
    assert_eq!(user.get_version_num(), 5);
    assert_eq!(id_of("user-123").await, user);
    assert_ne!(id_of("user-124").await, user);
    assert_ne!(id_of("User-123").await, user);
    let another = contract.another().await;
    let data = another.ask(query, json!({ "key": "user-123" })).await;
    assert_eq!(
        data["aggregateId"],
        user.to_string(),
        "it is the same in every database"
    );
    let failure = contract.refused(query, json!({ "key": "" })).await;
    assert_eq!(failure.code(), "BAD_USER_INPUT");
    assert_eq!(failure.extension("field"), "key");

    contract.append(event(user)).await;
    assert_eq!(contract.aggregate(user).await["version"], 1);
}

/// SQLite takes 32,766 parameters in a statement, and a range of versions needs four.
#[tokio::test]
async fn more_lists_than_one_statement_takes_are_looked_up() {
    let contract = Contract::on(crate::support::in_process::Engine::Sqlite, 1).await;
    let aggregates: Vec<Uuid> = (0..1000).map(|_| Uuid::new_v4()).collect();
    for _ in 0..9 {
        let events: Vec<Value> = aggregates.iter().map(|id| event(*id)).collect();
        contract.append_all(json!(events)).await;
    }
    let lists: String = (0..9)
        .map(|after| format!("a{after}: events(afterVersion: {after}, first: 1) {{ version }} "))
        .collect();
    let query = format!("{{ aggregates(first: 1000) {{ nodes {{ {lists} }} }} }}");
    let nodes = list(contract.ask(&query, json!({})).await["aggregates"]["nodes"].take());
    assert_eq!(nodes.len(), 1000);
    for node in nodes {
        for after in 0..9 {
            assert_eq!(node[format!("a{after}")], json!([{ "version": after + 1 }]));
        }
    }
}

//! The queries readModel and readModels, and the read model of an aggregate.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tidings::domain::{Cursor, Place, Position};
use uuid::Uuid;

use super::{Contract, event, list, pick, with};

cases!(
    a_read_model_follows_its_aggregate,
    a_client_reads_its_own_write_at_once,
    an_event_that_no_domain_declares_is_merged,
    a_deleted_aggregate_has_no_read_model_until_a_new_event_brings_it_back,
    a_read_model_is_waited_for,
    a_read_model_that_does_not_come_so_far_in_time_is_behind,
    a_read_model_that_is_not_there_is_null,
    wrong_arguments_of_a_read_model_are_refused,
    an_aggregate_leads_to_its_read_model_and_back,
    read_models_are_listed_by_each_of_their_times,
    paging_gives_each_read_model_once_in_every_order,
    read_models_of_some_types_are_listed,
    read_models_that_contain_something_are_listed_alike_on_both_databases,
    a_filter_finds_the_few_among_many,
    wrong_arguments_of_read_models_are_refused,
);

const LIST: &str = "query($filter: ReadModelFilter, $orderBy: ReadModelOrder! = CREATED_NEWEST_FIRST, $first: Int! = 100, $after: String) {
    readModels(filter: $filter, orderBy: $orderBy, first: $first, after: $after) {
        edges { cursor node { aggregateId } } nodes { aggregateId createdAt updatedAt data }
        pageInfo { hasNextPage hasPreviousPage startCursor endCursor }
    }
}";

const ORDERS: [&str; 4] = [
    "CREATED_OLDEST_FIRST",
    "CREATED_NEWEST_FIRST",
    "UPDATED_OLDEST_FIRST",
    "UPDATED_NEWEST_FIRST",
];

async fn page(contract: &Contract, arguments: Value) -> Value {
    contract.ask(LIST, arguments).await["readModels"].take()
}

async fn ids(contract: &Contract, arguments: Value) -> Vec<Value> {
    let nodes = page(contract, arguments).await["nodes"].take();
    pick(&list(nodes), "aggregateId")
}

fn updated(aggregate: Uuid, data: Value) -> Value {
    with(
        event(aggregate),
        json!({ "type": "user_updated", "data": data }),
    )
}

/// Makes aggregates, and updates every third of them afterwards; their ids in the order of their creation.
async fn fill(contract: &Contract, count: u8) -> Vec<Value> {
    let ids = contract.aggregates(count);
    for (no, id) in ids.iter().enumerate() {
        let kind = ["user", "order"][no % 2];
        let input = json!({ "aggregateType": kind, "data": { "no": no } });
        contract.append(with(event(*id), input)).await;
    }
    for (no, id) in ids.iter().enumerate().step_by(3) {
        let kind = ["user", "order"][no % 2];
        let input = with(
            updated(*id, json!({ "again": true })),
            json!({ "aggregateType": kind }),
        );
        contract.append(input).await;
    }
    contract.projected().await;
    ids.into_iter().map(|id| json!(id)).collect()
}

async fn a_read_model_follows_its_aggregate(contract: Contract) {
    let id = Uuid::new_v4();
    let created = contract.append(event(id)).await["event"].take();
    let expected = json!({
        "aggregateId": id, "aggregateType": "user", "data": { "name": "Ada" }, "version": 1, "source": "PROJECTED",
        "fault": null, "createdAt": created["createdAt"], "updatedAt": created["createdAt"],
    });
    assert_eq!(contract.read_model(id, 1).await, expected);
    assert_eq!(contract.present_model(id).await, expected);

    let data = json!({ "email": "ada@example.org", "name": null });
    let changed = contract.append(updated(id, data)).await["event"].take();
    let model = contract.read_model(id, 2).await;
    assert_eq!(model["data"], json!({ "email": "ada@example.org" }));
    assert_eq!(model["version"], 2);
    assert_eq!(model["createdAt"], created["createdAt"]);
    assert_eq!(model["updatedAt"], changed["createdAt"]);
    assert_eq!(contract.all_models().await, [model]);
}

async fn a_client_reads_its_own_write_at_once(contract: Contract) {
    let ids = contract.aggregates(3);
    for round in 1..=10 {
        for id in &ids {
            contract
                .append(updated(*id, json!({ "round": round })))
                .await;
            let model = contract.read_model(*id, round).await;
            assert_eq!(model["data"]["round"], round);
        }
    }
}

async fn an_event_that_no_domain_declares_is_merged(contract: Contract) {
    let id = Uuid::new_v4();
    for (kind, data) in [
        ("ordered", json!({ "what": { "book": 1 }, "when": "today" })),
        ("changed", json!({ "what": { "pen": 2 }, "when": null })),
    ] {
        let input = json!({ "aggregateType": "order", "type": kind, "data": data });
        contract.append(with(event(id), input)).await;
    }
    let model = contract.read_model(id, 2).await;
    assert_eq!(model["data"], json!({ "what": { "book": 1, "pen": 2 } }));
    assert_eq!(model["aggregateType"], "order");
}

async fn a_deleted_aggregate_has_no_read_model_until_a_new_event_brings_it_back(
    contract: Contract,
) {
    let id = Uuid::new_v4();
    contract.append(event(id)).await;
    assert_eq!(contract.read_model(id, 1).await["version"], 1);
    let deleted = with(event(id), json!({ "type": "user_deleted", "data": {} }));
    contract.append(deleted).await;
    assert_eq!(contract.read_model(id, 2).await, Value::Null);
    assert_eq!(contract.read_model(id, 1).await, Value::Null);
    assert_eq!(contract.present_model(id).await, Value::Null);
    assert!(contract.all_models().await.is_empty());

    // What is older does not bring it back.
    let older = json!({ "aggregateId": id, "aggregateType": "user", "version": 1, "data": { "old": true } });
    let failure = contract.update_is_refused(older).await;
    assert_eq!(failure.code(), "NOT_FOUND", "{failure:?}");
    assert!(failure.message().contains("version 2"), "{failure:?}");
    assert_eq!(contract.present_model(id).await, Value::Null);

    let created = contract.append(event(id)).await["event"].take();
    let model = contract.read_model(id, 3).await;
    assert_eq!(model["data"], json!({ "name": "Ada" }));
    assert_eq!(model["version"], 3);
    assert_eq!(model["createdAt"], created["createdAt"], "it is a new one");
}

async fn a_read_model_is_waited_for(contract: Contract) {
    let id = Uuid::new_v4();
    contract.append(event(id)).await;
    let waiting = contract.read_model(id, 3);
    let appending = async {
        for no in 0..2 {
            tokio::time::sleep(Duration::from_millis(100)).await;
            contract.append(updated(id, json!({ "no": no }))).await;
        }
    };
    let (model, ()) = tokio::join!(waiting, appending);
    assert_eq!(model["version"], 3);
    assert_eq!(model["data"]["no"], 1);
}

async fn a_read_model_that_does_not_come_so_far_in_time_is_behind(contract: Contract) {
    let id = Uuid::new_v4();
    let query = "query($id: UUID!, $min: Int!, $wait: Int!) { readModel(aggregateId: $id, minVersion: $min, waitMs: $wait) { version } }";
    for (events, wait_ms) in [(0, 0), (0, 200), (1, 200), (1, 0)] {
        if events
            > contract.aggregate(id).await["version"]
                .as_i64()
                .unwrap_or_default()
        {
            contract.append(event(id)).await;
            contract.read_model(id, events).await;
        }
        let began = Instant::now();
        let variables = json!({ "id": id, "min": events + 1, "wait": wait_ms });
        let failure = contract.refused(query, variables).await;
        assert_eq!(failure.code(), "READ_MODEL_BEHIND", "{failure:?}");
        assert_eq!(failure.extension("version"), events, "waitMs {wait_ms}");
        assert!(began.elapsed() >= Duration::from_millis(wait_ms));
    }
    // Without waiting, what is there is answered all the same, by a server that has read nothing yet as well.
    let contract = contract.restarted(None, |_| {}).await;
    for min in [1, 0] {
        let variables = json!({ "id": id, "min": min, "wait": 0 });
        let found = contract.ask(query, variables).await;
        assert_eq!(found["readModel"]["version"], 1, "minVersion {min}");
    }
}

async fn a_read_model_that_is_not_there_is_null(contract: Contract) {
    contract.append(event(Uuid::new_v4())).await;
    assert_eq!(contract.present_model(Uuid::new_v4()).await, Value::Null);
    assert_eq!(contract.read_model(Uuid::new_v4(), 0).await, Value::Null);
    assert_eq!(contract.projection().await["faulted"], 0);
}

async fn wrong_arguments_of_a_read_model_are_refused(contract: Contract) {
    let query = "query($id: UUID!, $min: Int, $wait: Int!) { readModel(aggregateId: $id, minVersion: $min, waitMs: $wait) { version } }";
    for (min, wait, field) in [
        (json!(-1), 0, "minVersion"),
        (json!(1), -1, "waitMs"),
        (json!(1), 30_001, "waitMs"),
        (Value::Null, -5, "waitMs"),
    ] {
        let variables = json!({ "id": Uuid::new_v4(), "min": min, "wait": wait });
        let failure = contract.refused(query, variables).await;
        assert_eq!(failure.code(), "BAD_USER_INPUT", "{failure:?}");
        assert_eq!(failure.extension("field"), field, "{failure:?}");
    }
}

async fn an_aggregate_leads_to_its_read_model_and_back(contract: Contract) {
    let id = Uuid::new_v4();
    contract.append(event(id)).await;
    let expected = contract.read_model(id, 1).await;
    let query = "query($id: UUID!) { aggregate(id: $id) { readModel { aggregateId data version aggregate { id version readModel { version } } } } }";
    let found = contract.ask(query, json!({ "id": id })).await;
    let model = &found["aggregate"]["readModel"];
    assert_eq!(model["data"], expected["data"]);
    assert_eq!(model["aggregate"]["id"], json!(id));
    assert_eq!(model["aggregate"]["readModel"]["version"], 1);
    let deleted = with(event(id), json!({ "type": "user_deleted" }));
    contract.append(deleted).await;
    contract.read_model(id, 2).await;
    let found = contract.ask(query, json!({ "id": id })).await;
    assert_eq!(found["aggregate"]["readModel"], Value::Null);
}

async fn read_models_are_listed_by_each_of_their_times(contract: Contract) {
    let created = fill(&contract, 10).await;
    let mut by_update: Vec<Value> = (0..10)
        .filter(|no| no % 3 != 0)
        .map(|no| created[no].clone())
        .collect();
    by_update.extend(created.iter().step_by(3).cloned());
    let reversed = |ids: &[Value]| ids.iter().rev().cloned().collect::<Vec<_>>();
    for (order, expected) in [
        ("CREATED_OLDEST_FIRST", created.clone()),
        ("CREATED_NEWEST_FIRST", reversed(&created)),
        ("UPDATED_OLDEST_FIRST", by_update.clone()),
        ("UPDATED_NEWEST_FIRST", reversed(&by_update)),
    ] {
        let found = ids(&contract, json!({ "orderBy": order })).await;
        assert_eq!(found, expected, "{order}");
    }
    assert_eq!(ids(&contract, json!({})).await, reversed(&created));
}

async fn paging_gives_each_read_model_once_in_every_order(contract: Contract) {
    fill(&contract, 11).await;
    for order in ORDERS {
        let all = ids(&contract, json!({ "orderBy": order })).await;
        assert_eq!(all.len(), 11);
        for first in [1, 3, 11] {
            let mut found = Vec::new();
            let mut after = Value::Null;
            loop {
                let arguments = json!({ "orderBy": order, "first": first, "after": after });
                let page = page(&contract, arguments).await;
                let edges = list(page["edges"].clone());
                assert_eq!(page["pageInfo"]["hasPreviousPage"], !found.is_empty());
                found.extend(edges.iter().map(|edge| edge["node"]["aggregateId"].clone()));
                assert_eq!(
                    page["pageInfo"]["endCursor"],
                    edges.last().unwrap()["cursor"]
                );
                if page["pageInfo"]["hasNextPage"] == false {
                    break;
                }
                after = page["pageInfo"]["endCursor"].clone();
            }
            assert_eq!(found, all, "{order}, {first} at a time");
        }
    }
}

async fn read_models_of_some_types_are_listed(contract: Contract) {
    let made = fill(&contract, 8).await;
    let users: Vec<Value> = made.iter().step_by(2).cloned().collect();
    let of = async |types: Value| {
        let arguments =
            json!({ "filter": { "aggregateTypes": types }, "orderBy": "CREATED_OLDEST_FIRST" });
        ids(&contract, arguments).await
    };
    assert_eq!(of(json!(["user"])).await, users);
    assert_eq!(of(json!(["order", "user"])).await, made);
    assert_eq!(of(json!(["nothing"])).await, Vec::<Value>::new());
    assert_eq!(of(json!([])).await, Vec::<Value>::new());
    assert_eq!(of(Value::Null).await, made);
}

async fn read_models_that_contain_something_are_listed_alike_on_both_databases(contract: Contract) {
    let cases: Vec<(String, String, bool)> =
        serde_json::from_str(include_str!("../../containment.json")).unwrap();
    let mut ids_of_cases = Vec::new();
    for (value, _, _) in &cases {
        let id = Uuid::new_v4();
        let data: Value = serde_json::from_str(value).unwrap();
        let input = json!({ "aggregateId": id, "aggregateType": "x", "version": 1, "data": data });
        // A bare null is no argument for JSON!, so it is in none of the values.
        assert_eq!(contract.update_model(input).await["updated"], true);
        ids_of_cases.push(json!(id));
    }
    for ((value, contained, expected), id) in cases.iter().zip(&ids_of_cases) {
        let contained_value: Value = serde_json::from_str(contained).unwrap();
        if contained_value.is_null() {
            continue;
        }
        let arguments = json!({ "filter": { "contains": contained_value }, "first": 1000 });
        let found = ids(&contract, arguments).await;
        assert_eq!(
            found.contains(id),
            *expected,
            "{value} contains {contained}"
        );
    }
}

async fn a_filter_finds_the_few_among_many(contract: Contract) {
    let many = contract.aggregates(200);
    let events: Vec<Value> = many
        .iter()
        .enumerate()
        .map(|(no, id)| {
            let city = ["Bonn", "Rome"][no % 2];
            let data = json!({ "no": no, "even": no % 2 == 0, "tags": [format!("t{}", no % 50), "all"], "city": city });
            with(event(*id), json!({ "data": data }))
        })
        .collect();
    contract.append_all(json!(events)).await;
    contract.projected().await;
    let found = async |contains: Value, first: usize| {
        let arguments = json!({ "filter": { "contains": contains, "aggregateTypes": ["user"] }, "first": first, "orderBy": "UPDATED_OLDEST_FIRST" });
        let page = page(&contract, arguments).await;
        let nodes = list(page["nodes"].clone());
        (nodes.len(), page["pageInfo"]["hasNextPage"] == true)
    };
    assert_eq!(found(json!({ "no": 7 }), 10).await, (1, false));
    assert_eq!(found(json!({ "tags": ["t3"] }), 10).await, (4, false));
    assert_eq!(
        found(json!({ "tags": ["t3", "all"], "even": false }), 10).await,
        (4, false)
    );
    assert_eq!(found(json!({ "even": true }), 30).await, (30, true));
    assert_eq!(found(json!({ "even": true }), 100).await, (100, false));
    assert_eq!(
        found(json!({ "city": "Rome", "even": true }), 10).await,
        (0, false)
    );
    assert_eq!(found(json!({ "city": "Rome" }), 99).await, (99, true));
}

async fn wrong_arguments_of_read_models_are_refused(contract: Contract) {
    let ids = fill(&contract, 2).await;
    let created = page(&contract, json!({ "orderBy": "CREATED_OLDEST_FIRST" })).await;
    let of_aggregates = "{ aggregates { pageInfo { endCursor } } }";
    let of_aggregates = contract.ask(of_aggregates, json!({})).await;
    let partitions = usize::from(contract.partitions);
    let store = contract.server.app.store();
    let of_events = Cursor::Events(Place::behind(vec![Position(1); partitions]))
        .encode(store.database_id(), store.partitions());
    let another = contract.another().await;
    fill(&another, 1).await;
    let foreign = page(&another, json!({})).await;
    for (arguments, field) in [
        (json!({ "first": 0 }), "first"),
        (json!({ "first": 1001 }), "first"),
        (json!({ "after": "nonsense" }), "after"),
        (json!({ "after": of_events }), "after"),
        (
            json!({ "after": of_aggregates["aggregates"]["pageInfo"]["endCursor"] }),
            "after",
        ),
        (
            json!({ "after": foreign["pageInfo"]["endCursor"] }),
            "after",
        ),
        // A place by one time is none by another.
        (
            json!({ "after": created["pageInfo"]["endCursor"], "orderBy": "UPDATED_OLDEST_FIRST" }),
            "after",
        ),
        (
            json!({ "filter": { "aggregateTypes": [""] } }),
            "filter.aggregateTypes[0]",
        ),
        (
            json!({ "filter": { "contains": { "a": "x".repeat(2 << 20) } } }),
            "filter.contains",
        ),
    ] {
        let failure = contract.refused(LIST, arguments).await;
        assert_eq!(failure.code(), "BAD_USER_INPUT", "{failure:?}");
        assert_eq!(failure.extension("field"), field, "{failure:?}");
    }
    // The other direction is another list of the same kind: before the second of two comes the first.
    let end = &created["pageInfo"]["endCursor"];
    let before = json!({ "after": end, "orderBy": "CREATED_NEWEST_FIRST" });
    let before = page(&contract, before).await["nodes"].take();
    assert_eq!(pick(&list(before), "aggregateId"), ids[..1]);
}

//! createAggregate: an aggregate before its first event.

use serde_json::{Value, json};
use uuid::Uuid;

use super::{Contract, event, with};

cases!(
    an_aggregate_is_made_once,
    an_aggregate_of_another_type_is_not_made_again,
    an_aggregate_without_an_id_gets_one,
    a_made_aggregate_takes_events_from_version_1,
    an_aggregate_with_events_is_not_made_again,
);

const CREATE: &str = "mutation($input: CreateAggregateInput!) {
    createAggregate(input: $input) { created aggregate { id type version createdAt updatedAt events { id } } }
}";

async fn create(contract: &Contract, input: Value) -> Value {
    contract.ask(CREATE, json!({ "input": input })).await["createAggregate"].take()
}

async fn an_aggregate_is_made_once(contract: Contract) {
    let id = Uuid::new_v4();
    let input = json!({ "id": id, "type": "user" });
    let first = create(&contract, input.clone()).await;
    assert_eq!(first["created"], true);
    assert_eq!(first["aggregate"]["id"], id.to_string());
    assert_eq!(first["aggregate"]["type"], "user");
    assert_eq!(first["aggregate"]["version"], 0);
    assert_eq!(first["aggregate"]["events"], json!([]));
    assert_eq!(
        first["aggregate"]["createdAt"],
        first["aggregate"]["updatedAt"]
    );
    assert_eq!(contract.aggregate(id).await, first["aggregate"]);

    let again = create(&contract, input).await;
    assert_eq!(again["created"], false);
    assert_eq!(again["aggregate"], first["aggregate"]);
    assert!(contract.all_events().await.is_empty());
}

async fn an_aggregate_of_another_type_is_not_made_again(contract: Contract) {
    let id = Uuid::new_v4();
    let first = create(&contract, json!({ "id": id, "type": "user" })).await;
    let variables = json!({ "input": { "id": id, "type": "order" } });
    let failure = contract.refused(CREATE, variables).await;
    assert_eq!(failure.code(), "AGGREGATE_TYPE_MISMATCH", "{failure:?}");
    assert_eq!(failure.extension("expected"), "order");
    assert_eq!(failure.extension("actual"), "user");
    assert_eq!(contract.aggregate(id).await, first["aggregate"]);
}

async fn an_aggregate_without_an_id_gets_one(contract: Contract) {
    let one = create(&contract, json!({ "type": "user" })).await;
    let other = create(&contract, json!({ "type": "user" })).await;
    assert_eq!(one["created"], true);
    assert_eq!(other["created"], true);
    assert_ne!(one["aggregate"]["id"], other["aggregate"]["id"]);
    let id = Uuid::parse_str(one["aggregate"]["id"].as_str().unwrap()).unwrap();
    assert_eq!(id.get_version_num(), 7);
    assert_eq!(contract.aggregate(id).await, one["aggregate"]);
}

async fn a_made_aggregate_takes_events_from_version_1(contract: Contract) {
    let id = Uuid::new_v4();
    create(&contract, json!({ "id": id, "type": "user" })).await;
    let other_type = with(event(id), json!({ "aggregateType": "order" }));
    let failure = contract.append_is_refused(other_type).await;
    assert_eq!(failure.code(), "AGGREGATE_TYPE_MISMATCH", "{failure:?}");
    let input = with(event(id), json!({ "expectedVersion": 0 }));
    assert_eq!(contract.append(input).await["event"]["version"], 1);
    assert_eq!(
        contract.append(event(id)).await["event"]["version"],
        2,
        "the next one counts on"
    );
    assert_eq!(contract.aggregate(id).await["version"], 2);
}

async fn an_aggregate_with_events_is_not_made_again(contract: Contract) {
    let id = Uuid::new_v4();
    contract.append(event(id)).await;
    let payload = create(&contract, json!({ "id": id, "type": "user" })).await;
    assert_eq!(payload["created"], false);
    assert_eq!(payload["aggregate"]["version"], 1);
    assert_eq!(contract.aggregate(id).await["version"], 1);
}

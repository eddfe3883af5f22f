//! updateReadModel: read models that a client writes.

use serde_json::{Value, json};
use uuid::Uuid;

use super::{Contract, event, with};
use crate::support::counting::{self, TYPE};

cases!(
    append_and_then_update_ends_with_the_clients_data_where_the_projector_was_faster,
    append_and_then_update_ends_with_the_clients_data_where_the_projector_was_slower,
    the_projector_leaves_an_external_read_model_alone,
    an_older_write_changes_nothing,
    a_version_above_the_aggregates_own_is_refused,
    a_read_model_without_an_aggregate_may_have_any_version,
    a_read_model_of_another_type_is_refused,
    wrong_input_of_an_update_is_refused,
    an_update_at_the_version_of_a_deletion_brings_it_back,
    a_deletion_ends_a_read_model_from_outside_whichever_of_them_was_first,
    a_deletion_ends_a_read_model_from_outside_by_the_rules_of_a_decider,
);

fn model(aggregate: Uuid, version: i64, data: Value) -> Value {
    json!({ "aggregateId": aggregate, "aggregateType": "user", "version": version, "data": data })
}

async fn append_and_then_update_ends_with_the_clients_data_where_the_projector_was_faster(
    contract: Contract,
) {
    let id = Uuid::new_v4();
    let created = contract.append(event(id)).await["event"].take();
    assert_eq!(contract.read_model(id, 1).await["source"], "PROJECTED");
    let payload = contract
        .update_model(model(id, 1, json!({ "mine": [1, null] })))
        .await;
    assert_eq!(payload["updated"], true);
    let written = &payload["readModel"];
    assert_eq!(written["data"], json!({ "mine": [1, null] }));
    assert_eq!(written["version"], 1);
    assert_eq!(written["source"], "EXTERNAL");
    assert_eq!(written["createdAt"], created["createdAt"]);
    assert!(written["updatedAt"].as_str() >= created["createdAt"].as_str());
    contract.projected().await;
    assert_eq!(contract.present_model(id).await, *written);
    assert_eq!(contract.read_model(id, 1).await, *written);
}

async fn append_and_then_update_ends_with_the_clients_data_where_the_projector_was_slower(
    contract: Contract,
) {
    let contract = contract
        .restarted(None, |config| config.background.enabled = false)
        .await;
    let ids = contract.aggregates(4);
    for id in &ids {
        contract.append(event(*id)).await;
        let payload = contract
            .update_model(model(*id, 1, json!({ "mine": 1 })))
            .await;
        assert_eq!(payload["updated"], true);
    }
    assert_eq!(contract.projection().await["lagEvents"], 4);
    let contract = contract.restarted(None, |_| {}).await;
    contract.projected().await;
    for id in ids {
        let model = contract.present_model(id).await;
        assert_eq!(model["data"], json!({ "mine": 1 }));
        assert_eq!(model["source"], "EXTERNAL");
    }
}

async fn the_projector_leaves_an_external_read_model_alone(contract: Contract) {
    let id = Uuid::new_v4();
    contract.append(event(id)).await;
    let first = contract
        .update_model(model(id, 1, json!({ "mine": 1 })))
        .await;
    for _ in 0..3 {
        contract.append(event(id)).await;
    }
    contract.projected().await;
    assert_eq!(contract.present_model(id).await, first["readModel"]);
    // The client writes on.
    let payload = contract
        .update_model(model(id, 3, json!({ "mine": 3 })))
        .await;
    assert_eq!(payload["updated"], true);
    assert_eq!(
        contract.read_model(id, 3).await["data"],
        json!({ "mine": 3 })
    );
}

async fn an_older_write_changes_nothing(contract: Contract) {
    let id = Uuid::new_v4();
    for _ in 0..3 {
        contract.append(event(id)).await;
    }
    let projected = contract.read_model(id, 3).await;
    let payload = contract
        .update_model(model(id, 2, json!({ "old": 1 })))
        .await;
    assert_eq!(payload["updated"], false);
    assert_eq!(payload["readModel"], projected);

    let written = contract
        .update_model(model(id, 3, json!({ "mine": 1 })))
        .await;
    assert_eq!(written["updated"], true);
    for version in [3, 2, 0] {
        let payload = contract
            .update_model(model(id, version, json!({ "other": 1 })))
            .await;
        assert_eq!(payload["updated"], false, "version {version}");
        assert_eq!(payload["readModel"], written["readModel"]);
    }
    assert_eq!(contract.present_model(id).await, written["readModel"]);
}

async fn a_version_above_the_aggregates_own_is_refused(contract: Contract) {
    let id = Uuid::new_v4();
    contract.append(event(id)).await;
    let before = contract.read_model(id, 1).await;
    for version in [2, i64::from(i32::MAX)] {
        let failure = contract
            .update_is_refused(model(id, version, json!({ "mine": 1 })))
            .await;
        assert_eq!(failure.code(), "BAD_USER_INPUT", "{failure:?}");
        assert_eq!(failure.extension("field"), "input.version");
        assert!(failure.message().contains("version 1"), "{failure:?}");
    }
    assert_eq!(contract.present_model(id).await, before);
    // An aggregate without events has version 0.
    let create = "mutation($input: CreateAggregateInput!) { createAggregate(input: $input) { aggregate { id } } }";
    let empty = Uuid::new_v4();
    contract
        .ask(create, json!({ "input": { "id": empty, "type": "user" } }))
        .await;
    let failure = contract.update_is_refused(model(empty, 1, json!({}))).await;
    assert_eq!(failure.extension("field"), "input.version");
    let payload = contract.update_model(model(empty, 0, json!({}))).await;
    assert_eq!(payload["updated"], true);
}

async fn a_read_model_without_an_aggregate_may_have_any_version(contract: Contract) {
    let id = Uuid::new_v4();
    let payload = contract
        .update_model(model(id, 41, json!({ "mine": 1 })))
        .await;
    assert_eq!(payload["updated"], true);
    assert_eq!(
        payload["readModel"]["createdAt"],
        payload["readModel"]["updatedAt"]
    );
    let query = "query($id: UUID!) { readModel(aggregateId: $id, minVersion: 41) { data aggregate { id } } }";
    let found = contract.ask(query, json!({ "id": id })).await;
    assert_eq!(found["readModel"]["data"], json!({ "mine": 1 }));
    assert_eq!(found["readModel"]["aggregate"], Value::Null);
    let payload = contract
        .update_model(model(id, 42, json!({ "mine": 2 })))
        .await;
    assert_eq!(payload["updated"], true);
    // Its first event does not take it over.
    contract.append(event(id)).await;
    contract.projected().await;
    assert_eq!(contract.present_model(id).await, payload["readModel"]);
}

async fn a_read_model_of_another_type_is_refused(contract: Contract) {
    let id = Uuid::new_v4();
    contract.append(event(id)).await;
    let other = Uuid::new_v4();
    contract.update_model(model(other, 5, json!({}))).await;
    for id in [id, other] {
        let input = with(model(id, 1, json!({})), json!({ "aggregateType": "order" }));
        let failure = contract.update_is_refused(input).await;
        assert_eq!(failure.code(), "AGGREGATE_TYPE_MISMATCH", "{failure:?}");
        assert_eq!(failure.extension("expected"), "order");
        assert_eq!(failure.extension("actual"), "user");
        assert_eq!(failure.extension("field"), "input.aggregateType");
    }
}

async fn wrong_input_of_an_update_is_refused(contract: Contract) {
    let right = model(Uuid::new_v4(), 1, json!({}));
    for (wrong, field) in [
        (json!({ "version": -1 }), "input.version"),
        (json!({ "aggregateType": "" }), "input.aggregateType"),
        (
            json!({ "data": { "a": "x".repeat(2 << 20) } }),
            "input.data",
        ),
        (json!({ "data": "\u{0}" }), "input.data"),
    ] {
        let failure = contract.update_is_refused(with(right.clone(), wrong)).await;
        assert_eq!(failure.code(), "BAD_USER_INPUT", "{failure:?}");
        assert_eq!(failure.extension("field"), field, "{failure:?}");
    }
    assert!(contract.all_models().await.is_empty());
}

async fn an_update_at_the_version_of_a_deletion_brings_it_back(contract: Contract) {
    let id = Uuid::new_v4();
    contract.append(event(id)).await;
    contract
        .append(with(event(id), json!({ "type": "user_deleted" })))
        .await;
    assert_eq!(contract.read_model(id, 2).await, Value::Null);
    let payload = contract
        .update_model(model(id, 2, json!({ "mine": 1 })))
        .await;
    assert_eq!(payload["updated"], true);
    contract.projected().await;
    assert_eq!(contract.present_model(id).await, payload["readModel"]);
    assert_eq!(
        payload["readModel"]["createdAt"],
        payload["readModel"]["updatedAt"]
    );
}

/// A client writes what was true before the deletion: before the projector has come to that, or after it.
async fn a_deletion_ends_a_read_model_from_outside_whichever_of_them_was_first(contract: Contract) {
    let deleted = |id| with(event(id), json!({ "type": "user_deleted", "data": {} }));
    let (before, after) = (contract.aggregate_in(0), contract.aggregate_in(1));
    let (created_again, at_deletion) = (contract.aggregate_in(2), contract.aggregate_in(3));
    let contract = contract
        .restarted(None, |config| config.background.enabled = false)
        .await;
    for id in [before, after, created_again, at_deletion] {
        contract.append(event(id)).await;
        let updated = json!({ "type": "user_updated", "data": { "name": "Eve" } });
        contract.append(with(event(id), updated)).await;
        contract.append(deleted(id)).await;
    }
    contract.append(event(created_again)).await;
    for (id, version) in [(before, 1), (created_again, 1), (at_deletion, 3)] {
        let payload = contract
            .update_model(model(id, version, json!({ "mine": 1 })))
            .await;
        assert_eq!(payload["updated"], true, "nothing is folded yet");
    }
    let contract = contract.restarted(None, |_| {}).await;
    contract.projected().await;
    let failure = contract
        .update_is_refused(model(after, 1, json!({ "mine": 1 })))
        .await;
    assert_eq!(failure.code(), "NOT_FOUND", "{failure:?}");
    for id in [before, after] {
        assert_eq!(contract.present_model(id).await, Value::Null);
        assert_eq!(contract.read_model(id, 3).await, Value::Null);
    }
    let model = contract.read_model(created_again, 4).await;
    assert_eq!(model["data"], json!({ "name": "Ada" }));
    assert_eq!(model["source"], "PROJECTED");
    // This one is as new as the deletion, and stays.
    assert_eq!(
        contract.present_model(at_deletion).await["source"],
        "EXTERNAL"
    );

    // What is rebuilt is the same.
    contract.rebuild(json!({ "aggregateId": before })).await;
    assert_eq!(contract.present_model(before).await, Value::Null);
    assert_eq!(contract.all_models().await.len(), 2);
    // The client may write again, and another deletion ends that too, after events that are passed by.
    let written = self::model(at_deletion, 3, json!({ "mine": [2] }));
    assert_eq!(contract.update_model(written).await["updated"], false);
    contract.append(event(at_deletion)).await;
    contract.append(deleted(at_deletion)).await;
    contract.projected().await;
    assert_eq!(contract.present_model(at_deletion).await, Value::Null);
}

async fn a_deletion_ends_a_read_model_from_outside_by_the_rules_of_a_decider(contract: Contract) {
    let contract = contract.restarted(Some(counting::domain()), |_| {}).await;
    let id = Uuid::new_v4();
    let counted = |kind: &str| {
        with(
            event(id),
            json!({ "aggregateType": TYPE, "type": kind, "data": {} }),
        )
    };
    contract.append(counted("counted")).await;
    let input = with(
        model(id, 1, json!({ "mine": 1 })),
        json!({ "aggregateType": TYPE }),
    );
    let written = contract.update_model(input).await["readModel"].take();
    // Neither a fault nor any other event touches what a client has written.
    for kind in ["counted", "broken", "panicked"] {
        contract.append(counted(kind)).await;
    }
    contract.projected().await;
    assert_eq!(contract.present_model(id).await, written);
    contract.append(counted("removed")).await;
    assert_eq!(contract.read_model(id, 5).await, Value::Null);
    contract.append(counted("counted")).await;
    let model = contract.read_model(id, 6).await;
    assert_eq!(
        (&model["data"]["count"], &model["source"]),
        (&json!(1), &json!("PROJECTED"))
    );
}

//! rebuildReadModels: folding read models anew from the first event.

use std::sync::Arc;

use serde_json::{Value, json};
use uuid::Uuid;

use super::{Contract, event, with};
use crate::support::{
    counting::{self, TYPE},
    projected::StoredModels,
};

cases!(
    a_rebuild_makes_what_is_stored_what_the_events_come_to,
    an_external_read_model_becomes_projected_again,
    an_external_read_model_without_an_aggregate_stays,
    a_rebuild_of_what_is_right_changes_nothing,
    deleted_aggregates_are_rebuilt_too,
    wrong_scopes_of_a_rebuild_are_refused,
    a_rebuild_goes_on_beside_appends_and_reads,
    a_rebuild_and_clients_that_write_do_not_lose_events,
);

/// Spoils what is stored, as nobody but this test does.
async fn spoil(contract: &Contract) {
    let sql = "UPDATE read_models SET model_data = '{\"spoilt\": true}'";
    super::database::execute(&contract.server.database, sql)
        .await
        .unwrap();
}

fn of_type(kind: &str, id: Uuid) -> Value {
    with(event(id), json!({ "aggregateType": kind }))
}

async fn a_rebuild_makes_what_is_stored_what_the_events_come_to(contract: Contract) {
    let ids = contract.aggregates(9);
    for (no, id) in ids.iter().enumerate() {
        for _ in 0..=no {
            contract
                .append(of_type(["user", "order", "cart"][no % 3], *id))
                .await;
        }
    }
    contract.projected().await;
    let right = contract.all_models().await;
    spoil(&contract).await;
    assert_eq!(
        contract.present_model(ids[0]).await["data"],
        json!({ "spoilt": true })
    );

    assert_eq!(contract.rebuild(json!({ "aggregateId": ids[0] })).await, 1);
    let stored = contract.all_models().await;
    assert_eq!(stored[0], right[0]);
    assert_ne!(stored[3], right[3]);
    assert_eq!(
        contract.rebuild(json!({ "aggregateType": "user" })).await,
        3
    );
    assert_eq!(
        contract
            .rebuild(json!({ "aggregateType": "nothing" }))
            .await,
        0
    );
    let stored = contract.all_models().await;
    for no in 0..9 {
        assert_eq!(stored[no] == right[no], no % 3 == 0, "{no}");
    }
    assert_eq!(contract.rebuild(json!({})).await, 9);
    assert_eq!(contract.all_models().await, right);
    contract.append(event(ids[0])).await;
    assert_eq!(contract.read_model(ids[0], 2).await["version"], 2);
}

async fn an_external_read_model_becomes_projected_again(contract: Contract) {
    let id = Uuid::new_v4();
    contract.append(event(id)).await;
    let input =
        json!({ "aggregateId": id, "aggregateType": "user", "version": 1, "data": { "mine": 1 } });
    contract.update_model(input).await;
    for _ in 0..3 {
        contract.append(event(id)).await;
    }
    contract.projected().await;
    assert_eq!(contract.present_model(id).await["source"], "EXTERNAL");
    assert_eq!(contract.rebuild(json!({ "aggregateId": id })).await, 1);
    let model = contract.present_model(id).await;
    assert_eq!(model["source"], "PROJECTED");
    assert_eq!(model["version"], 4);
    assert_eq!(model["data"], json!({ "name": "Ada" }));
    contract.append(event(id)).await;
    assert_eq!(contract.read_model(id, 5).await["source"], "PROJECTED");
}

async fn an_external_read_model_without_an_aggregate_stays(contract: Contract) {
    let id = Uuid::new_v4();
    let input =
        json!({ "aggregateId": id, "aggregateType": "user", "version": 1, "data": { "mine": 1 } });
    let payload = contract.update_model(input).await;
    assert_eq!(contract.rebuild(json!({})).await, 0);
    assert_eq!(contract.present_model(id).await, payload["readModel"]);
}

async fn a_rebuild_of_what_is_right_changes_nothing(contract: Contract) {
    contract.fill(10).await;
    contract.projected().await;
    let (head, models) = (contract.head().await, contract.all_models().await);
    assert_eq!(contract.rebuild(json!({})).await, 10);
    assert_eq!(
        contract.head().await,
        head,
        "there is nothing for subscribers"
    );
    assert_eq!(contract.all_models().await, models);
}

async fn deleted_aggregates_are_rebuilt_too(contract: Contract) {
    let id = Uuid::new_v4();
    contract.append(event(id)).await;
    contract
        .append(with(event(id), json!({ "type": "user_deleted" })))
        .await;
    contract.read_model(id, 2).await;
    let sql = "UPDATE read_models SET deleted_at = NULL, version = 1";
    super::database::execute(&contract.server.database, sql)
        .await
        .unwrap();
    assert_ne!(contract.present_model(id).await, Value::Null);
    assert_eq!(contract.rebuild(json!({})).await, 1);
    assert_eq!(contract.present_model(id).await, Value::Null);
    assert_eq!(contract.read_model(id, 2).await, Value::Null);
}

async fn wrong_scopes_of_a_rebuild_are_refused(contract: Contract) {
    let query =
        "mutation($input: RebuildReadModelsInput!) { rebuildReadModels(input: $input) { count } }";
    let id = Uuid::new_v4();
    for (input, code, field) in [
        (
            json!({ "aggregateId": id }),
            "NOT_FOUND",
            "input.aggregateId",
        ),
        (
            json!({ "aggregateId": id, "aggregateType": "user" }),
            "BAD_USER_INPUT",
            "input.aggregateType",
        ),
        (
            json!({ "aggregateType": "" }),
            "BAD_USER_INPUT",
            "input.aggregateType",
        ),
    ] {
        let failure = contract.refused(query, json!({ "input": input })).await;
        assert_eq!(failure.code(), code, "{failure:?}");
        assert_eq!(failure.extension("field"), field, "{failure:?}");
    }
}

/// Appends, reads and rebuilds at the same time, over a few aggregates.
async fn a_rebuild_goes_on_beside_appends_and_reads(contract: Contract) {
    let contract = contract.restarted(Some(counting::domain()), |_| {}).await;
    let contract = Arc::new(contract);
    let ids = contract.aggregates(12);
    let counted = |id: Uuid| {
        let fields = json!({ "aggregateType": TYPE, "type": "counted", "data": {} });
        with(event(id), fields)
    };
    let appending = async {
        for round in 1..=40_i64 {
            let events: Vec<Value> = ids.iter().map(|id| counted(*id)).collect();
            contract.append_all(json!(events)).await;
            if round % 8 == 0 {
                let model = contract.read_model(ids[round as usize % 12], round).await;
                assert!(model["version"].as_i64().unwrap() >= round, "reads go on");
            }
        }
    };
    let rebuilding = async {
        let mut rebuilt = 0;
        for (round, id) in ids.iter().enumerate() {
            let scope = match round % 3 {
                0 => json!({}),
                1 => json!({ "aggregateType": TYPE }),
                _ => json!({ "aggregateId": id }),
            };
            let query = "mutation($input: RebuildReadModelsInput!) { rebuildReadModels(input: $input) { count } }";
            // The aggregate may not be there yet.
            if let Ok(data) = contract
                .client
                .query(query, json!({ "input": scope }))
                .await
            {
                rebuilt += data["rebuildReadModels"]["count"].as_i64().unwrap();
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        rebuilt
    };
    let ((), rebuilt) = tokio::join!(appending, rebuilding);
    assert!(rebuilt > 0);
    let (log, models) = StoredModels::read_settled(&contract.server.database.url()).await;
    assert_eq!(log.events.len(), 480);
    for (id, model) in &models.models {
        let events = log.of_aggregate(*id);
        assert_eq!(model.version, 40);
        assert_eq!(model.data, counting::folded(events));
    }
}

/// A client takes read models over, rebuilds take them back, and events come all the while: in the end none is missing.
async fn a_rebuild_and_clients_that_write_do_not_lose_events(contract: Contract) {
    let contract = contract.restarted(Some(counting::domain()), |_| {}).await;
    let ids = contract.aggregates(4);
    let appending = async {
        for _ in 0..60 {
            for id in &ids {
                let fields = json!({ "aggregateType": TYPE, "type": "counted", "data": {} });
                contract.append(with(event(*id), fields)).await;
            }
        }
    };
    let writing = async {
        for round in 0..40 {
            let id = ids[round % 4];
            let newest = contract.aggregate(id).await["version"]
                .as_i64()
                .unwrap_or_default();
            let input =
                json!({ "aggregateId": id, "aggregateType": TYPE, "version": newest, "data": {} });
            let query = "mutation($input: UpdateReadModelInput!) { updateReadModel(input: $input) { updated } }";
            let _ = contract
                .client
                .query(query, json!({ "input": input }))
                .await;
        }
    };
    let rebuilding = async {
        for round in 0..40 {
            let query = "mutation($input: RebuildReadModelsInput!) { rebuildReadModels(input: $input) { count } }";
            let input = json!({ "aggregateId": ids[(round + 2) % 4] });
            let _ = contract
                .client
                .query(query, json!({ "input": input }))
                .await;
        }
    };
    tokio::join!(appending, writing, rebuilding);
    for id in &ids {
        contract.rebuild(json!({ "aggregateId": id })).await;
    }
    for id in &ids {
        let fields = json!({ "aggregateType": TYPE, "type": "counted", "data": {} });
        contract.append(with(event(*id), fields)).await;
        let model = contract.read_model(*id, 61).await;
        assert_eq!(model["data"]["count"], 61);
        assert_eq!(model["source"], "PROJECTED");
    }
    let (log, models) = StoredModels::read_settled(&contract.server.database.url()).await;
    for (id, model) in &models.models {
        assert_eq!(model.data, counting::folded(log.of_aggregate(*id)));
    }
}

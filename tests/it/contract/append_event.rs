//! appendEvent: versions, expected versions, types, and ids that make it idempotent.

use serde_json::{Value, json};
use uuid::Uuid;

use super::{Contract, event, list, with};

cases!(
    a_first_event_makes_its_aggregate,
    a_next_event_gets_the_next_version,
    an_event_that_expects_the_right_version_is_appended,
    append_with_a_stale_version_is_refused,
    an_event_for_an_aggregate_of_another_type_is_refused,
    a_repeat_of_an_id_answers_the_first_outcome_also_with_the_old_expected_version,
    an_id_with_another_payload_or_type_is_reused,
    an_id_of_an_event_of_another_aggregate_is_reused,
    metadata_comes_back_and_is_empty_when_left_out,
    metadata_that_is_no_object_is_refused,
    a_correlation_id_that_no_index_takes_is_refused,
    the_server_makes_ids_that_sort_by_time,
    time_never_runs_backwards_in_a_partition,
);

async fn a_first_event_makes_its_aggregate(contract: Contract) {
    let aggregate = Uuid::new_v4();
    assert_eq!(contract.aggregate(aggregate).await, Value::Null);
    let payload = contract.append(event(aggregate)).await;
    assert_eq!(payload["duplicate"], false);
    let appended = &payload["event"];
    assert_eq!(appended["version"], 1);
    assert_eq!(appended["aggregateId"], aggregate.to_string());
    assert_eq!(appended["aggregateType"], "user");
    assert_eq!(appended["type"], "user_created");
    assert_eq!(appended["data"], json!({ "name": "Ada" }));

    assert_eq!(contract.event(&appended["id"]).await, *appended);
    let stored = contract.aggregate(aggregate).await;
    assert_eq!(stored["events"], json!([appended]));
    assert_eq!(stored["type"], "user");
    assert_eq!(stored["createdAt"], appended["createdAt"]);
    assert_eq!(stored["updatedAt"], appended["createdAt"]);
}

async fn a_next_event_gets_the_next_version(contract: Contract) {
    let aggregate = Uuid::new_v4();
    for version in 1..=5 {
        let payload = contract.append(event(aggregate)).await;
        assert_eq!(payload["event"]["version"], version);
    }
    let stored = contract.aggregate(aggregate).await;
    assert_eq!(stored["version"], 5);
    assert_eq!(stored["createdAt"], stored["events"][0]["createdAt"]);
    assert_eq!(stored["updatedAt"], stored["events"][4]["createdAt"]);
}

async fn an_event_that_expects_the_right_version_is_appended(contract: Contract) {
    let aggregate = Uuid::new_v4();
    for version in 0..3 {
        let input = with(event(aggregate), json!({ "expectedVersion": version }));
        assert_eq!(
            contract.append(input).await["event"]["version"],
            version + 1
        );
    }
    assert_eq!(contract.aggregate(aggregate).await["version"], 3);
}

async fn append_with_a_stale_version_is_refused(contract: Contract) {
    let aggregate = Uuid::new_v4();
    let conflict = async |expected: i64, actual: i64| {
        let input = with(event(aggregate), json!({ "expectedVersion": expected }));
        let failure = contract.append_is_refused(input).await;
        assert_eq!(failure.code(), "VERSION_CONFLICT", "{failure:?}");
        assert_eq!(failure.extension("expected"), expected);
        assert_eq!(failure.extension("actual"), actual);
    };
    conflict(1, 0).await;
    assert_eq!(contract.aggregate(aggregate).await, Value::Null);
    contract.append(event(aggregate)).await;
    contract.append(event(aggregate)).await;
    for expected in [0, 1, 3, i64::from(i32::MAX)] {
        conflict(expected, 2).await;
    }
    assert_eq!(contract.aggregate(aggregate).await["version"], 2);
}

async fn an_event_for_an_aggregate_of_another_type_is_refused(contract: Contract) {
    let aggregate = Uuid::new_v4();
    contract.append(event(aggregate)).await;
    for other in [
        json!({ "aggregateType": "order" }),
        // The type is looked at before the version.
        json!({ "aggregateType": "order", "expectedVersion": 7 }),
    ] {
        let failure = contract
            .append_is_refused(with(event(aggregate), other))
            .await;
        assert_eq!(failure.code(), "AGGREGATE_TYPE_MISMATCH", "{failure:?}");
        assert_eq!(failure.extension("expected"), "order");
        assert_eq!(failure.extension("actual"), "user");
    }
    assert_eq!(contract.aggregate(aggregate).await["version"], 1);
}

async fn a_repeat_of_an_id_answers_the_first_outcome_also_with_the_old_expected_version(
    contract: Contract,
) {
    let (aggregate, id) = (Uuid::new_v4(), Uuid::new_v4());
    let data = json!({ "b": [1, 2.5, { "x": null }], "a": "ä" });
    let input = with(
        event(aggregate),
        json!({ "id": id, "data": data, "metadata": { "correlationId": "c" }, "expectedVersion": 0 }),
    );
    let first = contract.append(input.clone()).await;
    assert_eq!(first["duplicate"], false);
    assert_eq!(first["event"]["id"], id.to_string());
    contract.append(event(aggregate)).await;

    let same_value = json!({ "a": "ä", "b": [1, 2.5, { "x": null }] });
    for repeat in [
        input.clone(),
        with(input.clone(), json!({ "expectedVersion": null })),
        with(input.clone(), json!({ "expectedVersion": 1 })),
        with(input.clone(), json!({ "data": same_value })),
        // Metadata tells about the append itself: a retry may well have another trace.
        with(input.clone(), json!({ "metadata": { "traceId": "t" } })),
    ] {
        let payload = contract.append(repeat).await;
        assert_eq!(payload["duplicate"], true);
        assert_eq!(payload["event"], first["event"]);
    }
    assert_eq!(contract.aggregate(aggregate).await["version"], 2);
    assert_eq!(
        contract.event(&first["event"]["id"]).await,
        first["event"],
        "what is stored is the first one"
    );
}

async fn an_id_with_another_payload_or_type_is_reused(contract: Contract) {
    let (aggregate, id) = (Uuid::new_v4(), Uuid::new_v4());
    let input = with(event(aggregate), json!({ "id": id }));
    let first = contract.append(input.clone()).await;
    for other in [
        json!({ "data": { "name": "Bob" } }),
        json!({ "data": [] }),
        json!({ "type": "user_renamed" }),
        json!({ "aggregateType": "order" }),
        // Ids are looked at before versions and types.
        json!({ "type": "user_renamed", "expectedVersion": 9 }),
    ] {
        let failure = contract.append_is_refused(with(input.clone(), other)).await;
        assert_eq!(failure.code(), "ID_REUSED", "{failure:?}");
        assert_eq!(failure.extension("field"), "input.id");
    }
    assert_eq!(
        contract.aggregate(aggregate).await["events"],
        json!([first["event"]])
    );
}

async fn an_id_of_an_event_of_another_aggregate_is_reused(contract: Contract) {
    let id = Uuid::new_v4();
    let first = with(event(contract.aggregate_in(0)), json!({ "id": id }));
    let first = contract.append(first).await;
    for partition in 0..contract.partitions {
        let other = contract.aggregate_in(partition);
        let failure = contract
            .append_is_refused(with(event(other), json!({ "id": id })))
            .await;
        assert_eq!(failure.code(), "ID_REUSED", "{failure:?}");
        assert_eq!(contract.aggregate(other).await, Value::Null);
    }
    assert_eq!(contract.all_events().await, [first["event"].clone()]);
}

async fn metadata_comes_back_and_is_empty_when_left_out(contract: Contract) {
    let aggregate = Uuid::new_v4();
    let metadata = json!({ "correlationId": "c-1", "causationId": "x", "commandId": null, "user": { "id": 7 } });
    let input = with(event(aggregate), json!({ "metadata": metadata }));
    let payload = contract.append(input).await;
    assert_eq!(payload["event"]["metadata"], metadata);
    let payload = contract.append(event(aggregate)).await;
    assert_eq!(payload["event"]["metadata"], json!({}));
    let input = with(event(aggregate), json!({ "metadata": null }));
    let payload = contract.append(input).await;
    assert_eq!(payload["event"]["metadata"], json!({}));

    let stored = list(contract.aggregate(aggregate).await["events"].take());
    assert_eq!(stored[0]["metadata"], metadata);
    assert_eq!(stored[1]["metadata"], json!({}));
    assert_eq!(stored[2]["metadata"], json!({}));
}

async fn a_correlation_id_that_no_index_takes_is_refused(contract: Contract) {
    let long = |chars: usize| json!({ "metadata": { "correlationId": "x".repeat(chars) } });
    let failure = contract
        .append_is_refused(with(event(Uuid::new_v4()), long(499)))
        .await;
    assert_eq!(failure.code(), "BAD_USER_INPUT");
    assert_eq!(failure.extension("field"), "input.metadata.correlationId");
    assert_eq!(contract.all_events().await, Vec::<Value>::new());

    contract
        .append(with(event(Uuid::new_v4()), long(498)))
        .await;
    assert_eq!(contract.all_events().await.len(), 1);
}

async fn metadata_that_is_no_object_is_refused(contract: Contract) {
    let aggregate = Uuid::new_v4();
    for metadata in [json!([]), json!("text"), json!(1), json!(true)] {
        let input = with(event(aggregate), json!({ "metadata": metadata }));
        let failure = contract.append_is_refused(input).await;
        assert_eq!(failure.code(), "BAD_USER_INPUT", "{failure:?}");
        assert_eq!(failure.extension("field"), "input.metadata");
    }
    assert_eq!(contract.aggregate(aggregate).await, Value::Null);
}

async fn the_server_makes_ids_that_sort_by_time(contract: Contract) {
    let aggregate = Uuid::new_v4();
    let mut ids = Vec::new();
    for _ in 0..5 {
        let payload = contract.append(event(aggregate)).await;
        let id = Uuid::parse_str(payload["event"]["id"].as_str().unwrap()).unwrap();
        assert_eq!(id.get_version_num(), 7);
        ids.push(id);
    }
    assert!(ids.is_sorted());
}

async fn time_never_runs_backwards_in_a_partition(contract: Contract) {
    let aggregates = contract.aggregates(8);
    for round in 0..3 {
        for aggregate in &aggregates {
            contract.append(event(*aggregate)).await;
        }
        let batch: Vec<Value> = aggregates.iter().map(|id| event(*id)).collect();
        contract.append_all(json!(batch)).await;
        assert_eq!(contract.all_events().await.len(), (round + 1) * 16);
    }
    for partition in 0..contract.partitions {
        let times: Vec<String> = contract
            .all_events()
            .await
            .iter()
            .filter(|event| {
                let id = Uuid::parse_str(event["aggregateId"].as_str().unwrap()).unwrap();
                contract.partition_of(id) == partition
            })
            .map(|event| event["createdAt"].as_str().unwrap().to_owned())
            .collect();
        assert!(!times.is_empty());
        for time in &times {
            assert_eq!(time.len(), "2026-01-31T12:00:00.000000Z".len(), "{time}");
            assert!(time.ends_with('Z'), "{time}");
        }
        assert!(times.is_sorted(), "{times:?}");
    }
}

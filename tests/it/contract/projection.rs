//! The projector: what it does with events that cannot be folded, how far it is, and what is published.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use uuid::Uuid;

use super::{Contract, event, list, pick, with};
use crate::support::{
    counting::{self, STREAM, TYPE},
    projected::{StoredModels, assert_published},
};

cases!(
    an_event_that_cannot_be_folded_marks_its_read_model_and_no_other,
    a_first_event_that_cannot_be_folded_shows_why,
    a_decider_that_panics_marks_the_read_model,
    a_fault_in_a_batch_keeps_what_was_folded_before_it,
    a_faulted_read_model_comes_back_when_it_is_rebuilt_by_other_rules,
    a_client_takes_a_faulted_read_model_over,
    data_that_is_no_object_is_a_fault,
    the_lag_is_told_and_made_up_for,
    events_before_the_first_start_of_the_projector_are_folded,
    events_are_published_once_in_their_order,
    an_aggregate_that_comes_and_goes_is_folded_once,
);

fn counted(aggregate: Uuid, kind: &str) -> Value {
    with(
        event(aggregate),
        json!({ "aggregateType": TYPE, "type": kind, "data": {} }),
    )
}

/// The server with the counting domain.
async fn counting(contract: Contract) -> Contract {
    contract.restarted(Some(counting::domain()), |_| {}).await
}

/// What is really stored, once all is projected and published.
async fn assert_folded(contract: &Contract) {
    let (log, models) = StoredModels::read_settled(&contract.server.database.url()).await;
    models.assert_folded(&log);
    assert_published(&log);
}

async fn an_event_that_cannot_be_folded_marks_its_read_model_and_no_other(contract: Contract) {
    let contract = counting(contract).await;
    let (broken, good) = (contract.aggregate_in(0), contract.aggregate_in(0));
    for id in [broken, good] {
        for _ in 0..2 {
            contract.append(counted(id, "counted")).await;
        }
    }
    let before = contract.read_model(broken, 2).await;
    contract.append(counted(broken, "broken")).await;
    contract.append(counted(broken, "counted")).await;
    contract.append(counted(good, "counted")).await;
    assert_eq!(contract.read_model(good, 3).await["data"]["count"], 3);

    let model = contract.present_model(broken).await;
    assert_eq!(model["fault"], "this event is broken");
    let stands_still = with(before, json!({ "fault": model["fault"] }));
    assert_eq!(model, stands_still, "it is as it was before that event");

    let began = Instant::now();
    let query = "query($id: UUID!, $min: Int!) { readModel(aggregateId: $id, minVersion: $min, waitMs: 30000) { version } }";
    for min in [3, 4, 100] {
        let failure = contract
            .refused(query, json!({ "id": broken, "min": min }))
            .await;
        assert_eq!(failure.code(), "READ_MODEL_FAULTED", "{failure:?}");
        assert_eq!(failure.extension("version"), 2);
        assert!(
            failure.message().contains("this event is broken"),
            "{failure:?}"
        );
    }
    assert!(began.elapsed() < Duration::from_secs(10), "at once");
    let found = contract.ask(query, json!({ "id": broken, "min": 2 })).await;
    assert_eq!(found["readModel"]["version"], 2);

    contract.projected().await;
    let status = contract.projection().await;
    assert_eq!(
        status,
        json!({ "lagEvents": 0, "lagMs": 0.0, "faulted": 1 })
    );
    let readiness = contract.server.app.ready().await;
    assert!(readiness.ready, "it can do its work");
    let detail = readiness
        .details
        .iter()
        .find(|(name, _)| name == "projection");
    let detail = &detail.unwrap().1;
    assert!(
        detail.contains(&broken.to_string()) && detail.contains(": 1 "),
        "{detail}"
    );

    // After a restart it stands still as before.
    let contract = contract.restarted(Some(counting::domain()), |_| {}).await;
    contract.append(counted(broken, "counted")).await;
    contract.projected().await;
    assert_eq!(contract.present_model(broken).await, model);
}

async fn a_first_event_that_cannot_be_folded_shows_why(contract: Contract) {
    let contract = counting(contract).await;
    let id = Uuid::new_v4();
    let broken = contract.append(counted(id, "broken")).await["event"].take();
    contract.projected().await;
    let model = contract.present_model(id).await;
    let expected = json!({
        "aggregateId": id, "aggregateType": TYPE, "data": {}, "version": 0, "source": "PROJECTED",
        "fault": "this event is broken", "createdAt": broken["createdAt"], "updatedAt": broken["createdAt"],
    });
    assert_eq!(model, expected);
    assert_eq!(contract.all_models().await, [expected]);
    let query = "query($id: UUID!) { readModel(aggregateId: $id, minVersion: 1) { version } }";
    let failure = contract.refused(query, json!({ "id": id })).await;
    assert_eq!(failure.code(), "READ_MODEL_FAULTED", "{failure:?}");
    assert_eq!(failure.extension("version"), 0);
}

async fn a_decider_that_panics_marks_the_read_model(contract: Contract) {
    let contract = counting(contract).await;
    let (panics, good) = (contract.aggregate_in(0), contract.aggregate_in(0));
    contract.append(counted(panics, "counted")).await;
    contract.append(counted(panics, "panicked")).await;
    contract.append(counted(good, "counted")).await;
    assert_eq!(contract.read_model(good, 1).await["data"]["count"], 1);
    let model = contract.present_model(panics).await;
    assert_eq!(model["version"], 1);
    let fault = model["fault"].as_str().unwrap();
    assert!(fault.contains("this event makes it panic"), "{fault}");
}

async fn a_fault_in_a_batch_keeps_what_was_folded_before_it(contract: Contract) {
    let contract = counting(contract).await;
    let id = Uuid::new_v4();
    contract.append(counted(id, "counted")).await;
    contract.read_model(id, 1).await;
    let kinds = ["counted", "counted", "broken", "counted", "broken"];
    let events: Vec<Value> = kinds.map(|kind| counted(id, kind)).to_vec();
    let stored = list(contract.append_all(json!(events)).await);
    contract.projected().await;
    let model = contract.present_model(id).await;
    assert_eq!(model["version"], 3);
    assert_eq!(model["data"]["count"], 3);
    assert_eq!(model["updatedAt"], stored[1]["createdAt"]);
    assert!(model["fault"].is_string());
    let query = "query($id: UUID!) { readModel(aggregateId: $id, minVersion: 6) { version } }";
    let failure = contract.refused(query, json!({ "id": id })).await;
    assert_eq!(failure.extension("version"), 3, "{failure:?}");
}

async fn a_faulted_read_model_comes_back_when_it_is_rebuilt_by_other_rules(contract: Contract) {
    let contract = counting(contract).await;
    let ids = contract.aggregates(3);
    for id in &ids {
        for kind in ["counted", "broken", "counted"] {
            contract.append(counted(*id, kind)).await;
        }
    }
    contract.projected().await;
    assert_eq!(contract.projection().await["faulted"], 3);
    let before = contract.present_model(ids[0]).await;
    // By the same rules it stands still at the same event.
    assert_eq!(contract.rebuild(json!({ "aggregateId": ids[0] })).await, 1);
    assert_eq!(contract.present_model(ids[0]).await, before);

    let contract = contract
        .restarted(Some(counting::mended_domain()), |_| {})
        .await;
    assert_eq!(contract.projection().await["faulted"], 3, "not by itself");
    assert_eq!(contract.rebuild(json!({})).await, 3);
    assert_eq!(contract.projection().await["faulted"], 0);
    for id in &ids {
        let model = contract.read_model(*id, 3).await;
        assert_eq!(model["data"]["count"], 3);
        assert_eq!(model["fault"], Value::Null);
        contract.append(counted(*id, "counted")).await;
        assert_eq!(contract.read_model(*id, 4).await["data"]["count"], 4);
    }
    assert_folded(&contract).await;
}

async fn a_client_takes_a_faulted_read_model_over(contract: Contract) {
    let contract = counting(contract).await;
    let id = Uuid::new_v4();
    contract.append(counted(id, "counted")).await;
    contract.append(counted(id, "broken")).await;
    contract.projected().await;
    let input =
        json!({ "aggregateId": id, "aggregateType": TYPE, "version": 2, "data": { "mine": 1 } });
    let payload = contract.update_model(input).await;
    assert_eq!(payload["updated"], true);
    assert_eq!(payload["readModel"]["fault"], Value::Null);
    assert_eq!(contract.projection().await["faulted"], 0);
    assert_eq!(
        contract.read_model(id, 2).await["data"],
        json!({ "mine": 1 })
    );
}

async fn data_that_is_no_object_is_a_fault(contract: Contract) {
    let (id, good) = (contract.aggregate_in(1), contract.aggregate_in(1));
    contract.append(event(id)).await;
    contract
        .append(with(
            event(id),
            json!({ "type": "unheard_of", "data": [1, 2] }),
        ))
        .await;
    contract.append(event(good)).await;
    contract.read_model(good, 1).await;
    let model = contract.present_model(id).await;
    assert_eq!(model["version"], 1);
    assert!(
        model["fault"].as_str().unwrap().contains("object"),
        "{model}"
    );
    // A deletion may have any data.
    contract
        .append(with(
            event(good),
            json!({ "type": "user_deleted", "data": 7 }),
        ))
        .await;
    assert_eq!(contract.read_model(good, 2).await, Value::Null);
}

async fn the_lag_is_told_and_made_up_for(contract: Contract) {
    let contract = contract
        .restarted(None, |config| config.background.enabled = false)
        .await;
    assert_eq!(
        contract.projection().await,
        json!({ "lagEvents": 0, "lagMs": 0.0, "faulted": 0 })
    );
    contract.fill(10).await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    let status = contract.projection().await;
    assert_eq!(status["lagEvents"], 10);
    assert!(status["lagMs"].as_f64().unwrap() >= 20.0, "{status}");
    assert!(contract.all_models().await.is_empty());
    let contract = contract.restarted(None, |_| {}).await;
    contract.projected().await;
    assert_eq!(contract.all_models().await.len(), 10);
    assert_eq!(contract.projection().await["lagMs"], 0.0);
}

async fn events_before_the_first_start_of_the_projector_are_folded(contract: Contract) {
    let contract = contract
        .restarted(Some(counting::domain()), |config| {
            config.background.enabled = false;
        })
        .await;
    let ids = contract.aggregates(20);
    let events: Vec<Value> = (0..1000)
        .map(|no| counted(ids[no * 7 % 20], "counted"))
        .collect();
    for _ in 0..3 {
        contract.append_all(json!(events)).await;
    }
    let contract = contract.restarted(Some(counting::domain()), |_| {}).await;
    assert_folded(&contract).await;
}

async fn events_are_published_once_in_their_order(contract: Contract) {
    let contract = counting(contract).await;
    let ids = contract.aggregates(6);
    let mut appended = Vec::new();
    for round in 0..5 {
        for id in &ids {
            let data = json!({ "data": { "round": round } });
            let input = with(counted(*id, "counted"), data);
            appended.push(contract.append(input).await["event"].take());
        }
        // Of another type, which is not published.
        contract.append(event(Uuid::new_v4())).await;
    }
    let contract = counting(contract).await;
    let query = "subscription($stream: String!) { streamEntries(streamName: $stream, after: 0) { eventId type data event { id } } }";
    let mut subscription = contract
        .client
        .subscribe(query, json!({ "stream": STREAM }))
        .await;
    let entries = subscription.take("streamEntries", 30).await;
    for id in &ids {
        let of_aggregate = |event: &&Value| event["aggregateId"] == json!(id);
        let events: Vec<Value> = appended.iter().filter(of_aggregate).cloned().collect();
        let ids_of_events = pick(&events, "id");
        let published: Vec<Value> = entries
            .iter()
            .filter(|entry| ids_of_events.contains(&entry["eventId"]))
            .cloned()
            .collect();
        assert_eq!(pick(&published, "eventId"), ids_of_events);
        assert_eq!(pick(&published, "data"), pick(&events, "data"));
        assert_eq!(pick(&published, "type"), pick(&events, "type"));
    }
    let last = counted(ids[0], "counted");
    let last = contract.append(last).await["event"].take();
    let live = subscription.take("streamEntries", 1).await;
    assert_eq!(live[0]["eventId"], last["id"]);
    assert_eq!(live[0]["event"]["id"], last["id"]);
    assert_eq!(contract.stream(STREAM).await["lastPosition"], 31);
}

async fn an_aggregate_that_comes_and_goes_is_folded_once(contract: Contract) {
    let contract = counting(contract).await;
    let id = Uuid::new_v4();
    let mut version = 0;
    for _ in 0..3 {
        for kind in ["counted", "counted", "removed", "removed"] {
            contract.append(counted(id, kind)).await;
            version += 1;
            let model = contract.read_model(id, version).await;
            assert_eq!(model.is_null(), kind == "removed");
        }
    }
    assert_folded(&contract).await;
}

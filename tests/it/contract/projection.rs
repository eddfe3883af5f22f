//! The projector: what it does with events that cannot be folded, how far it is, and what is published.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tidings::domain::{Decider, Domain, declared::parse};
use uuid::Uuid;

use super::{Contract, create_user, event, list, pick, update_user, with};
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
    what_commands_cause_is_published_and_followed_from_history_and_live,
    events_are_published_from_the_time_on_when_the_domain_says_so,
    many_that_write_beside_the_projector_do_not_keep_it_from_its_work,
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

async fn what_commands_cause_is_published_and_followed_from_history_and_live(contract: Contract) {
    let id = Uuid::new_v4();
    let commands = [
        create_user(id, "ada"),
        update_user(id, json!({ "email": "ada@example.org" })),
        json!({ "aggregateId": id, "type": "delete_user", "data": {} }),
    ];
    let query = "subscription { streamEntries(streamName: \"user_events\", after: 0) { position eventId type data event { id version } } }";
    let mut live = contract.client.subscribe(query, json!({})).await;
    let mut events = Vec::new();
    let mut followed = Vec::new();
    for command in commands {
        let executed = contract.execute(command).await;
        events.extend(list(executed["events"].clone()));
        followed.extend(live.take("streamEntries", 1).await);
    }
    let kinds = ["user_created", "user_updated", "user_deleted"];
    assert_eq!(pick(&followed, "type"), kinds);
    assert_eq!(pick(&followed, "position"), [1, 2, 3]);
    assert_eq!(pick(&followed, "eventId"), pick(&events, "id"));
    assert_eq!(pick(&followed, "data"), pick(&events, "data"));
    for (entry, event) in followed.iter().zip(&events) {
        assert_eq!(entry["event"]["id"], event["id"]);
        assert_eq!(entry["event"]["version"], event["version"]);
    }
    let mut history = contract.client.subscribe(query, json!({})).await;
    assert_eq!(history.take("streamEntries", 3).await, followed);
    assert_eq!(contract.stream("user_events").await["lastPosition"], 3);
}

async fn events_are_published_from_the_time_on_when_the_domain_says_so(contract: Contract) {
    let domain = |publish_to: &str| {
        let text = format!(
            "[aggregates.note]\n{publish_to}\n[aggregates.note.events.noted]\nstate = \"merge\"\n"
        );
        let declared = parse(&text).unwrap().into_iter();
        let deciders = declared.map(|decider| Arc::new(decider) as Arc<dyn Decider>);
        Some(Domain::new(deciders.collect()).unwrap())
    };
    let noted = |id: Uuid| {
        with(
            event(id),
            json!({ "aggregateType": "note", "type": "noted", "data": {} }),
        )
    };
    let contract = contract.restarted(domain(""), |_| {}).await;
    let ids = contract.aggregates(4);
    for id in &ids {
        contract.append(noted(*id)).await;
    }
    StoredModels::read_settled(&contract.server.database.url()).await;
    let contract = contract
        .restarted(domain("publish_to = \"notes\""), |_| {})
        .await;
    let mut published = Vec::new();
    for id in &ids {
        published.push(contract.append(noted(*id)).await["event"]["id"].take());
    }
    StoredModels::read_settled(&contract.server.database.url()).await;
    let contract = contract.restarted(domain(""), |_| {}).await;
    contract.append(noted(ids[0])).await;
    StoredModels::read_settled(&contract.server.database.url()).await;
    let contract = contract
        .restarted(domain("publish_to = \"notes\""), |_| {})
        .await;
    published.push(contract.append(noted(ids[0])).await["event"]["id"].take());
    StoredModels::read_settled(&contract.server.database.url()).await;
    let entries = list(contract.stream("notes").await["entries"].take());
    let sorted = |mut ids: Vec<Value>| {
        ids.sort_by_key(ToString::to_string);
        ids
    };
    assert_eq!(sorted(pick(&entries, "eventId")), sorted(published));
}

/// Appends to a few aggregates and takes their read models over, again and again, all at the same time: each batch of the
/// projector has some among it that somebody has just changed.
async fn many_that_write_beside_the_projector_do_not_keep_it_from_its_work(contract: Contract) {
    const CLIENTS: usize = 64;
    const ROUNDS: usize = 6;
    let contract = counting(contract).await;
    let ids = contract.aggregates(32);
    let update =
        "mutation($input: UpdateReadModelInput!) { updateReadModel(input: $input) { updated } }";
    let clients = (0..CLIENTS).map(|no| {
        let (contract, ids) = (&contract, &ids);
        async move {
            for round in 0..ROUNDS {
                let id = ids[(no * 7 + round) % ids.len()];
                let appended = contract.append(counted(id, "counted")).await;
                if no % 2 == 0 {
                    let input = json!({
                        "aggregateId": id, "aggregateType": TYPE, "version": appended["event"]["version"], "data": { "mine": no },
                    });
                    contract.ask(update, json!({ "input": input })).await;
                }
            }
        }
    });
    futures_util::future::join_all(clients).await;
    contract.projected().await;
    assert_eq!(contract.projection().await["lagEvents"], 0);
    assert_eq!(contract.all_events().await.len(), CLIENTS * ROUNDS);
    // What was lost beside all that would show now.
    contract.rebuild(json!({})).await;
    let (log, models) = StoredModels::read_settled(&contract.server.database.url()).await;
    assert_eq!(models.models.len(), 32);
    for (id, model) in &models.models {
        let events = log.of_aggregate(*id);
        assert_eq!(model.version as usize, events.len());
        assert_eq!(model.data, counting::folded(events));
    }
    assert_published(&log);
}

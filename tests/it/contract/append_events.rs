//! appendEvents: all of them or none, in one partition or several.

use std::collections::HashSet;

use futures_util::FutureExt;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{Contract, by_id, event, list, with};
use crate::support::in_process::new_event;

cases!(
    several_events_of_one_aggregate_get_versions_in_their_order,
    events_of_several_aggregates_are_appended_together,
    expected_versions_count_after_earlier_events_of_the_list,
    one_refusal_in_the_middle_stores_nothing_in_any_partition,
    a_list_of_known_ids_answers_the_first_outcome,
    a_list_of_which_some_ids_are_known_is_refused,
    ids_are_judged_before_versions_and_types,
    an_id_that_is_in_the_list_twice_is_refused,
    no_event_and_more_than_a_thousand_are_refused,
    a_thousand_events_are_appended_at_once,
    an_append_that_nobody_waits_for_any_more_is_finished_and_told,
);

async fn several_events_of_one_aggregate_get_versions_in_their_order(contract: Contract) {
    let aggregate = Uuid::new_v4();
    contract.append(event(aggregate)).await;
    let events: Vec<Value> = (0..5)
        .map(|no| with(event(aggregate), json!({ "data": { "no": no } })))
        .collect();
    let appended = list(contract.append_all(json!(events)).await);
    for (no, event) in appended.iter().enumerate() {
        assert_eq!(event["version"], no + 2);
        assert_eq!(event["data"]["no"], no);
    }
    let stored = list(contract.aggregate(aggregate).await["events"].take());
    assert_eq!(stored[1..], appended);
}

async fn events_of_several_aggregates_are_appended_together(contract: Contract) {
    // In no order of partitions, and one of them twice.
    let mut aggregates = contract.aggregates(8);
    aggregates.reverse();
    aggregates.push(aggregates[2]);
    let events: Vec<Value> = aggregates
        .iter()
        .enumerate()
        .map(|(no, id)| with(event(*id), json!({ "data": { "no": no } })))
        .collect();
    let appended = list(contract.append_all(json!(events)).await);
    assert_eq!(appended.len(), 9);
    for (no, event) in appended.iter().enumerate() {
        assert_eq!(event["data"]["no"], no);
        assert_eq!(event["aggregateId"], aggregates[no].to_string());
        assert_eq!(event["version"], if no == 8 { 2 } else { 1 });
    }
    assert_eq!(by_id(contract.all_events().await), by_id(appended));
}

async fn expected_versions_count_after_earlier_events_of_the_list(contract: Contract) {
    let (one, other) = (contract.aggregate_in(0), contract.aggregate_in(3));
    let expecting = |id: Uuid, version: i32| with(event(id), json!({ "expectedVersion": version }));
    let events = json!([
        expecting(one, 0),
        expecting(other, 0),
        expecting(one, 1),
        expecting(one, 2),
        expecting(other, 1)
    ]);
    contract.append_all(events).await;
    assert_eq!(contract.aggregate(one).await["version"], 3);
    assert_eq!(contract.aggregate(other).await["version"], 2);

    let events = json!([expecting(other, 2), expecting(one, 3), expecting(one, 3)]);
    let failure = contract.append_all_is_refused(events).await;
    assert_eq!(failure.code(), "VERSION_CONFLICT", "{failure:?}");
    assert_eq!(failure.extension("expected"), 3);
    assert_eq!(failure.extension("actual"), 4);
    assert_eq!(
        failure.extension("field"),
        "input.events[2].expectedVersion"
    );
    assert_eq!(contract.all_events().await.len(), 5);
}

async fn one_refusal_in_the_middle_stores_nothing_in_any_partition(contract: Contract) {
    let known = contract.fill(4).await;
    let before = contract.all_events().await;
    let head = contract.newest_place().await;
    let known_aggregate = known[1]["aggregateId"].clone();
    let reasons = [
        (
            json!({ "aggregateId": known_aggregate, "expectedVersion": 0 }),
            "VERSION_CONFLICT",
            "expectedVersion",
        ),
        (
            json!({ "aggregateId": known_aggregate, "aggregateType": "order" }),
            "AGGREGATE_TYPE_MISMATCH",
            "aggregateType",
        ),
        (json!({ "id": known[2]["id"] }), "ID_REUSED", "id"),
        (json!({ "type": "" }), "BAD_USER_INPUT", "type"),
    ];
    for (wrong, code, field) in reasons {
        let aggregates = contract.aggregates(8);
        let mut events: Vec<Value> = aggregates.iter().map(|id| event(*id)).collect();
        events[4] = with(events[4].clone(), wrong);
        let failure = contract.append_all_is_refused(json!(events)).await;
        assert_eq!(failure.code(), code, "{failure:?}");
        assert_eq!(
            failure.extension("field"),
            format!("input.events[4].{field}")
        );
        for aggregate in aggregates {
            assert_eq!(contract.aggregate(aggregate).await, Value::Null);
        }
    }
    assert_eq!(contract.all_events().await, before);
    assert_eq!(contract.newest_place().await, head);
    let payload = contract.append(event(contract.aggregate_in(2))).await;
    assert_eq!(payload["event"]["version"], 1);
}

async fn a_list_of_known_ids_answers_the_first_outcome(contract: Contract) {
    for aggregates in [
        contract.aggregates(5),
        vec![contract.aggregate_in(1); 3],
        vec![contract.aggregate_in(2)],
    ] {
        let events: Vec<Value> = aggregates
            .iter()
            .map(|id| with(event(*id), json!({ "id": Uuid::new_v4() })))
            .collect();
        let first = contract.append_all(json!(events)).await;
        contract.append(event(aggregates[0])).await;
        assert_eq!(contract.append_all(json!(events)).await, first);

        let stale = |event: &Value| with(event.clone(), json!({ "expectedVersion": 0 }));
        let stale: Vec<Value> = events.iter().map(stale).collect();
        assert_eq!(contract.append_all(json!(stale)).await, first);
        let mut other_order = events.clone();
        other_order.reverse();
        let again = list(contract.append_all(json!(other_order)).await);
        assert_eq!(by_id(again), by_id(list(first)));
    }
    assert_eq!(contract.all_events().await.len(), 5 + 1 + 3 + 1 + 1 + 1);
}

async fn a_list_of_which_some_ids_are_known_is_refused(contract: Contract) {
    let known = with(
        event(contract.aggregate_in(1)),
        json!({ "id": Uuid::new_v4() }),
    );
    contract.append(known.clone()).await;
    for partition in 0..contract.partitions {
        let id = Uuid::new_v4();
        let aggregate = contract.aggregate_in(partition);
        let new = with(event(aggregate), json!({ "id": id }));
        let without_id = event(contract.aggregate_in(partition + 1));
        for events in [
            json!([known, new]),
            json!([new, known]),
            json!([without_id, known, new]),
        ] {
            let failure = contract.append_all_is_refused(events.clone()).await;
            assert_eq!(failure.code(), "ID_REUSED", "{failure:?}");
            let index = list(events)
                .iter()
                .position(|event| event == &known)
                .unwrap();
            assert_eq!(
                failure.extension("field"),
                format!("input.events[{index}].id")
            );
        }
    }
    assert_eq!(contract.all_events().await.len(), 1);
}

async fn ids_are_judged_before_versions_and_types(contract: Contract) {
    // Of the first list and of each repeat, every event lies in another partition than its neighbours.
    let first: Vec<Value> = contract
        .aggregates(4)
        .into_iter()
        .map(|id| {
            with(
                event(id),
                json!({ "id": Uuid::new_v4(), "expectedVersion": 0 }),
            )
        })
        .collect();
    let appended = contract.append_all(json!(first)).await;
    assert_eq!(contract.append_all(json!(first)).await, appended);

    let changed = |index: usize, fields: Value| {
        let mut events = first.clone();
        events[index] = with(events[index].clone(), fields);
        events
    };
    let other = json!({ "data": { "name": "Grace" } });
    let new = json!({ "id": Uuid::new_v4() });
    let without_id = json!({ "id": null });
    let of_another_type = json!({ "id": Uuid::new_v4(), "aggregateType": "order" });
    let mut two_changed = changed(0, new.clone());
    two_changed[3] = with(two_changed[3].clone(), other.clone());
    let mut known_among_new: Vec<Value> = (0..4)
        .map(|no| {
            with(
                event(contract.aggregate_in(no)),
                json!({ "expectedVersion": 7 }),
            )
        })
        .collect();
    known_among_new[2] = with(first[2].clone(), other.clone());
    for (events, index) in [
        // Every place: whichever partition is judged first, what stands for something else is what is named.
        (changed(0, other.clone()), 0),
        (changed(1, other.clone()), 1),
        (changed(2, other.clone()), 2),
        (changed(3, other), 3),
        // One that is new has a version that is stale by now, or another type; the first one known is named.
        (changed(0, new.clone()), 1),
        (changed(3, new), 0),
        (changed(1, without_id), 0),
        (changed(0, of_another_type), 1),
        (two_changed, 3),
        (known_among_new, 2),
    ] {
        let failure = contract.append_all_is_refused(json!(events)).await;
        assert_eq!(failure.code(), "ID_REUSED", "{failure:?}");
        assert_eq!(
            failure.extension("field"),
            format!("input.events[{index}].id"),
            "{events:#?}"
        );
    }

    // Without known ids, what is wrong first in the list is named, wherever it lies.
    for partitions in [[0, 1, 2, 3], [3, 2, 1, 0], [2, 3, 0, 1]] {
        let mut events = partitions.map(|partition| event(contract.aggregate_in(partition)));
        for index in [1, 3] {
            events[index] = with(events[index].clone(), json!({ "expectedVersion": 7 }));
        }
        let failure = contract.append_all_is_refused(json!(events)).await;
        assert_eq!(failure.code(), "VERSION_CONFLICT", "{failure:?}");
        assert_eq!(
            failure.extension("field"),
            "input.events[1].expectedVersion"
        );
    }
    assert_eq!(contract.all_events().await.len(), 4);
}

async fn an_id_that_is_in_the_list_twice_is_refused(contract: Contract) {
    let id = Uuid::new_v4();
    let one = with(event(contract.aggregate_in(0)), json!({ "id": id }));
    let other = with(event(contract.aggregate_in(1)), json!({ "id": id }));
    for events in [json!([one, one]), json!([one, other])] {
        let failure = contract.append_all_is_refused(events).await;
        assert_eq!(failure.code(), "BAD_USER_INPUT", "{failure:?}");
        assert_eq!(failure.extension("field"), "input.events[1].id");
    }
    assert!(contract.all_events().await.is_empty());
}

async fn no_event_and_more_than_a_thousand_are_refused(contract: Contract) {
    let aggregate = Uuid::new_v4();
    for count in [0, 1001] {
        let events = vec![event(aggregate); count];
        let failure = contract.append_all_is_refused(json!(events)).await;
        assert_eq!(failure.code(), "BAD_USER_INPUT", "{failure:?}");
        assert_eq!(failure.extension("field"), "input.events");
    }
    assert!(contract.all_events().await.is_empty());
}

async fn a_thousand_events_are_appended_at_once(contract: Contract) {
    let aggregates = contract.aggregates(4);
    let events: Vec<Value> = (0..1000)
        .map(|no| with(event(aggregates[no % 4]), json!({ "data": { "no": no } })))
        .collect();
    let appended = list(contract.append_all(json!(events)).await);
    assert_eq!(appended.len(), 1000);
    for aggregate in &aggregates {
        assert_eq!(contract.aggregate(*aggregate).await["version"], 250);
    }
    assert_eq!(by_id(contract.all_events().await), by_id(appended));
}

async fn an_append_that_nobody_waits_for_any_more_is_finished_and_told(contract: Contract) {
    let query = "subscription($after: String!) { events(after: $after) { event { aggregateId } } }";
    let variables = json!({ "after": contract.head().await });
    let mut subscription = contract.client.subscribe(query, variables).await;
    let aggregates = contract.aggregates(2);
    let events = aggregates.iter().map(|id| new_event(*id)).collect();
    let appender = contract.server.app.appender();
    let answer = appender.append_events(events).now_or_never();
    assert!(answer.is_none(), "it is begun and not over: {answer:?}");

    let steps = subscription.take("events", 2).await;
    let followed: HashSet<Value> = steps
        .iter()
        .map(|step| step["event"]["aggregateId"].clone())
        .collect();
    assert_eq!(followed, aggregates.iter().map(|id| json!(id)).collect());
    assert_eq!(contract.all_events().await.len(), 2);
}

//! The subscriptions streamEntries and events: from history over to live, behind any place.

use std::time::Duration;

use serde_json::{Value, json};
use tidings::domain::{Cursor, Place, Position};
use uuid::Uuid;

use super::{Contract, EVENT, entry, event, pick, with};
use crate::support::client::{Step, Subscription};

cases!(
    stream_entries_come_from_history_and_then_live,
    stream_entries_without_a_place_begin_with_new_ones,
    stream_entries_of_a_stream_that_is_not_there_yet_begin_with_its_first,
    stream_entries_behind_a_place_above_the_newest_are_refused,
    events_come_from_history_and_then_live,
    events_without_a_place_begin_with_new_ones,
    events_go_on_behind_every_cursor,
    events_pass_a_filter_in_history_and_live,
    a_correlation_id_that_is_no_text_passes_in_history_as_it_does_live,
    only_the_newest_event_is_caught_up,
    progress_tells_of_events_that_do_not_pass,
    progress_tells_at_once_that_it_has_caught_up,
    a_place_above_the_head_is_not_reached,
    cursors_that_do_not_belong_here_are_refused,
    a_cursor_of_a_list_is_one_of_a_subscription_and_back,
);

const QUIET: Duration = Duration::from_millis(200);

const ENTRIES: &str = "subscription($stream: String!, $after: Long) {
    streamEntries(streamName: $stream, after: $after) { streamName position eventId type data createdAt }
}";

async fn follow_stream(contract: &Contract, variables: Value) -> Subscription {
    contract.client.subscribe(ENTRIES, variables).await
}

async fn follow_events(contract: &Contract, variables: Value) -> Subscription {
    let query = format!(
        "subscription($filter: EventFilter, $after: String, $progress: Boolean! = false) {{
            events(filter: $filter, after: $after, progress: $progress) {{ cursor caughtUp event {{ {EVENT} }} }}
        }}"
    );
    contract.client.subscribe(&query, variables).await
}

async fn refusal(mut subscription: Subscription) -> Value {
    match subscription.next().await {
        Step::Errors(mut errors) => errors[0].take(),
        step => panic!("it was to be refused: {step:?}"),
    }
}

/// The events of some steps, in the order in which each partition has them.
fn in_log_order(contract: &Contract, updates: &[Value]) -> Vec<Value> {
    let mut events = pick(updates, "event");
    let partition = |event: &Value| {
        let id = Uuid::parse_str(event["aggregateId"].as_str().unwrap()).unwrap();
        contract.partition_of(id)
    };
    events.sort_by_key(partition);
    events
}

fn as_updates(events: &[Value]) -> Vec<Value> {
    events
        .iter()
        .map(|event| json!({ "event": event }))
        .collect()
}

/// A cursor of this database that is so far above the beginning in each partition.
fn cursor_at(contract: &Contract, position: i64) -> String {
    let store = contract.server.app.store();
    let behind = vec![Position(position); usize::from(contract.partitions)];
    Cursor::Events(Place::behind(behind)).encode(store.database_id(), store.partitions())
}

async fn stream_entries_come_from_history_and_then_live(contract: Contract) {
    let mut appended = Vec::new();
    for _ in 0..40 {
        appended.push(contract.append_entry(entry("a")).await["entry"].take());
        contract.append_entry(entry("b")).await;
    }
    let mut all = follow_stream(&contract, json!({ "stream": "a", "after": 0 })).await;
    let mut rest = follow_stream(&contract, json!({ "stream": "a", "after": 25 })).await;
    let mut newest = follow_stream(&contract, json!({ "stream": "a", "after": 40 })).await;
    assert_eq!(all.take("streamEntries", 40).await, appended);
    for _ in 0..10 {
        contract.append_entry(entry("b")).await;
        appended.push(contract.append_entry(entry("a")).await["entry"].take());
    }
    assert_eq!(all.take("streamEntries", 10).await, appended[40..]);
    assert_eq!(rest.take("streamEntries", 25).await, appended[25..]);
    assert_eq!(newest.take("streamEntries", 10).await, appended[40..]);
    for subscription in [&mut all, &mut rest, &mut newest] {
        assert_eq!(subscription.next_within(QUIET).await, None);
    }
}

async fn stream_entries_without_a_place_begin_with_new_ones(contract: Contract) {
    for _ in 0..3 {
        contract.append_entry(entry("a")).await;
    }
    let mut subscription = follow_stream(&contract, json!({ "stream": "a" })).await;
    // Nothing tells when it was accepted, but something new arrives once it is.
    let first = loop {
        contract.append_entry(entry("a")).await;
        if let Some(step) = subscription.next_within(QUIET).await {
            break step;
        }
    };
    let Step::Next(payload) = first else {
        panic!("an entry was to come: {first:?}");
    };
    let first = payload["data"]["streamEntries"]["position"]
        .as_i64()
        .unwrap();
    assert!(first > 3, "{first} was there before");
    let newest = contract.stream("a").await["lastPosition"].as_i64().unwrap();
    contract.append_entry(entry("a")).await;
    for position in first + 1..=newest + 1 {
        let next = subscription.next_data().await;
        assert_eq!(next["streamEntries"]["position"], position);
    }
}

async fn stream_entries_of_a_stream_that_is_not_there_yet_begin_with_its_first(contract: Contract) {
    let mut subscription = follow_stream(&contract, json!({ "stream": "a", "after": 0 })).await;
    assert_eq!(subscription.next_within(QUIET).await, None);
    contract.append_entry(entry("b")).await;
    let appended = contract.append_entry(entry("a")).await;
    assert_eq!(
        subscription.next_data().await["streamEntries"],
        appended["entry"]
    );
    assert_eq!(contract.stream("a").await["lastPosition"], 1);
}

async fn stream_entries_behind_a_place_above_the_newest_are_refused(contract: Contract) {
    contract.append_entry(entry("a")).await;
    for (stream, after, head) in [("a", 2, 1), ("a", (1_i64 << 53) - 1, 1), ("b", 1, 0)] {
        let variables = json!({ "stream": stream, "after": after });
        let error = refusal(follow_stream(&contract, variables).await).await;
        assert_eq!(error["extensions"]["code"], "PLACE_NOT_REACHED", "{error}");
        assert_eq!(error["extensions"]["head"], head);
    }
    for (stream, after) in [("a", json!(-1)), ("", json!(0)), ("a", json!(1_i64 << 53))] {
        let variables = json!({ "stream": stream, "after": after });
        let error = refusal(follow_stream(&contract, variables).await).await;
        assert_eq!(error["extensions"]["code"], "BAD_USER_INPUT", "{error}");
    }
}

async fn events_come_from_history_and_then_live(contract: Contract) {
    let mut appended = contract.fill(40).await;
    let mut subscription = follow_events(&contract, json!({ "after": "" })).await;
    let history = subscription.take("events", 40).await;
    assert_eq!(
        in_log_order(&contract, &history),
        in_log_order(&contract, &as_updates(&appended))
    );
    appended = contract.fill(10).await;
    let live = subscription.take("events", 10).await;
    assert_eq!(
        in_log_order(&contract, &live),
        in_log_order(&contract, &as_updates(&appended))
    );
    assert_eq!(subscription.next_within(QUIET).await, None);
}

async fn events_without_a_place_begin_with_new_ones(contract: Contract) {
    contract.fill(5).await;
    let mut subscription = follow_events(&contract, json!({ "progress": true })).await;
    let accepted = subscription.next_data().await["events"].take();
    assert_eq!(accepted["event"], Value::Null);
    assert_eq!(accepted["caughtUp"], true);
    let appended = contract.fill(5).await;
    let mut updates = Vec::new();
    while updates.len() < 5 {
        let update = subscription.next_data().await["events"].take();
        if !update["event"].is_null() {
            updates.push(update);
        }
    }
    assert_eq!(
        in_log_order(&contract, &updates),
        in_log_order(&contract, &as_updates(&appended))
    );
}

async fn events_go_on_behind_every_cursor(contract: Contract) {
    let appended = contract.fill(12).await;
    let mut subscription = follow_events(&contract, json!({ "after": "" })).await;
    let updates = subscription.take("events", 12).await;
    for (seen, update) in updates.iter().enumerate() {
        let mut rest = follow_events(&contract, json!({ "after": update["cursor"] })).await;
        let mut all = updates[..=seen].to_vec();
        all.extend(rest.take("events", 11 - seen).await);
        assert_eq!(
            in_log_order(&contract, &all),
            in_log_order(&contract, &as_updates(&appended)),
            "behind the cursor of step {seen}"
        );
    }
}

async fn events_pass_a_filter_in_history_and_live(contract: Contract) {
    let aggregates = contract.aggregates(4);
    let append = async || {
        let mut appended = Vec::new();
        for (no, aggregate) in aggregates.iter().enumerate() {
            for kind in ["created", "renamed"] {
                let metadata = json!({ "correlationId": format!("trace {no}") });
                let aggregate_type = ["user", "order"][no % 2];
                let input = with(
                    event(*aggregate),
                    json!({ "aggregateType": aggregate_type, "type": kind, "metadata": metadata }),
                );
                appended.push(contract.append(input).await["event"].take());
            }
        }
        appended
    };
    let history = append().await;
    let from = history[2]["createdAt"].as_str().unwrap().to_owned();
    type Passes<'a> = Box<dyn Fn(&Value) -> bool + 'a>;
    let filters: Vec<(Value, Passes)> = vec![
        (
            json!({ "aggregateId": aggregates[2] }),
            Box::new(|event| event["aggregateId"] == aggregates[2].to_string()),
        ),
        (
            json!({ "aggregateTypes": ["order", "x"] }),
            Box::new(|event| event["aggregateType"] == "order"),
        ),
        (
            json!({ "eventTypes": ["renamed"] }),
            Box::new(|event| event["type"] == "renamed"),
        ),
        (
            json!({ "correlationId": "trace 3" }),
            Box::new(|event| event["metadata"]["correlationId"] == "trace 3"),
        ),
        (
            json!({ "createdFrom": from }),
            Box::new(|event| event["createdAt"].as_str() >= Some(from.as_str())),
        ),
        (
            json!({ "aggregateTypes": ["user"], "eventTypes": ["created"], "aggregateId": aggregates[0] }),
            Box::new(|event| {
                event["type"] == "created" && event["aggregateId"] == aggregates[0].to_string()
            }),
        ),
    ];
    let mut subscriptions = Vec::new();
    for (filter, passes) in &filters {
        let variables = json!({ "filter": filter, "after": "" });
        let subscription = follow_events(&contract, variables).await;
        subscriptions.push((subscription, filter, passes));
    }
    let live = append().await;
    for (mut subscription, filter, passes) in subscriptions {
        let expected: Vec<Value> = history
            .iter()
            .chain(&live)
            .filter(|event| passes(event))
            .cloned()
            .collect();
        let updates = subscription.take("events", expected.len()).await;
        assert_eq!(
            in_log_order(&contract, &updates),
            in_log_order(&contract, &as_updates(&expected)),
            "{filter}"
        );
    }
}

async fn a_correlation_id_that_is_no_text_passes_in_history_as_it_does_live(contract: Contract) {
    let head = contract.head().await;
    let ids = [json!(7), json!(true), json!("7"), json!(null)];
    let mut live = Vec::new();
    for text in ["7", "true", "null"] {
        let variables = json!({ "filter": { "correlationId": text }, "after": head });
        live.push((text, follow_events(&contract, variables).await, Vec::new()));
    }
    for id in &ids {
        let metadata = json!({ "metadata": { "correlationId": id } });
        contract.append(with(event(Uuid::new_v4()), metadata)).await;
    }
    for (text, subscription, seen) in &mut live {
        while let Some(Step::Next(payload)) = subscription.next_within(QUIET).await {
            seen.push(payload["data"]["events"]["event"]["metadata"]["correlationId"].to_string());
        }
        let query =
            "query($id: String!) { events(filter: { correlationId: $id }) { nodes { metadata } } }";
        let data = contract.ask(query, json!({ "id": text })).await;
        let mut history: Vec<String> = data["events"]["nodes"]
            .as_array()
            .unwrap()
            .iter()
            .map(|event| event["metadata"]["correlationId"].to_string())
            .collect();
        history.sort();
        seen.sort();
        assert_eq!(*seen, history, "{text}");
    }
}

async fn only_the_newest_event_is_caught_up(contract: Contract) {
    contract.fill(9).await;
    let mut subscription = follow_events(&contract, json!({ "after": "" })).await;
    let caught_up = pick(&subscription.take("events", 9).await, "caughtUp");
    assert_eq!(caught_up[..8], vec![json!(false); 8]);
    assert_eq!(caught_up[8], true);
    for _ in 0..3 {
        contract.fill(1).await;
        assert_eq!(subscription.next_data().await["events"]["caughtUp"], true);
    }
}

async fn progress_tells_of_events_that_do_not_pass(contract: Contract) {
    let filter = json!({ "eventTypes": ["nothing_has_this_type"] });
    let variables = json!({ "filter": filter, "after": "", "progress": true });
    let mut subscription = follow_events(&contract, variables).await;
    let first = subscription.next_data().await["events"].take();
    assert_eq!(first["event"], Value::Null);
    assert_eq!(first["caughtUp"], true);
    contract.fill(5).await;
    let head = contract.newest_place().await;
    let told = loop {
        let update = subscription.next_data().await["events"].take();
        assert_eq!(update["event"], Value::Null);
        if update["cursor"] == head {
            break update;
        }
    };
    assert_eq!(told["caughtUp"], true);
    let new = contract.fill(1).await;
    let variables = json!({ "after": told["cursor"] });
    let mut rest = follow_events(&contract, variables).await;
    assert_eq!(rest.next_data().await["events"]["event"], new[0]);
}

async fn progress_tells_at_once_that_it_has_caught_up(contract: Contract) {
    contract.fill(3).await;
    for (variables, events) in [
        (json!({ "after": contract.head().await }), 0),
        (json!({ "after": "" }), 3),
        (
            json!({ "after": "", "filter": { "eventTypes": ["nothing_has_this_type"] } }),
            0,
        ),
    ] {
        let variables = with(variables, json!({ "progress": true }));
        let mut subscription = follow_events(&contract, variables).await;
        let mut seen = 0;
        loop {
            let update = subscription.next_data().await["events"].take();
            seen += i32::from(!update["event"].is_null());
            if update["caughtUp"] == true {
                break;
            }
        }
        assert_eq!(seen, events);
    }
}

async fn a_place_above_the_head_is_not_reached(contract: Contract) {
    let known = contract.fill(4).await;
    let head = contract.newest_place().await;
    for cursor in [
        cursor_at(&contract, 5),
        cursor_at(&contract, i64::MAX),
        cursor_at(&contract, Position::MAX.0),
    ] {
        let error = refusal(follow_events(&contract, json!({ "after": cursor })).await).await;
        assert_eq!(error["extensions"]["code"], "PLACE_NOT_REACHED", "{error}");
        assert_eq!(error["extensions"]["head"], head);
        for order in ["OLDEST_FIRST", "NEWEST_FIRST"] {
            let query = "query($order: Order! = OLDEST_FIRST, $after: String) {
                events(order: $order, after: $after) { nodes { id } }
            }";
            let variables = json!({ "after": cursor, "order": order });
            let failure = contract.refused(query, variables).await;
            assert_eq!(failure.code(), "PLACE_NOT_REACHED", "{failure:?}");
            assert_eq!(failure.extension("head"), head);
        }
    }
    // The head that the error names is a place to go on behind.
    let mut subscription = follow_events(&contract, json!({ "after": head })).await;
    let new = contract.fill(1).await;
    assert_eq!(subscription.next_data().await["events"]["event"], new[0]);
    assert_eq!(contract.all_events().await.len(), known.len() + 1);
}

async fn cursors_that_do_not_belong_here_are_refused(contract: Contract) {
    contract.fill(2).await;
    let another = contract.another().await;
    another.fill(2).await;
    let other_partitions = Contract::on(contract.engine, 5 - contract.partitions).await;
    let query = "{ aggregates(first: 1) { pageInfo { endCursor } } }";
    let of_aggregates = contract.ask(query, json!({})).await;
    for cursor in [
        json!(another.head().await),
        json!(other_partitions.head().await),
        of_aggregates["aggregates"]["pageInfo"]["endCursor"].clone(),
        json!("x"),
    ] {
        let error = refusal(follow_events(&contract, json!({ "after": cursor })).await).await;
        assert_eq!(error["extensions"]["code"], "BAD_USER_INPUT", "{error}");
        assert_eq!(error["extensions"]["field"], "after");
    }
}

async fn a_cursor_of_a_list_is_one_of_a_subscription_and_back(contract: Contract) {
    let appended = contract.fill(10).await;
    let query = format!(
        "query($after: String) {{ events(first: 4, after: $after) {{ nodes {{ {EVENT} }} pageInfo {{ endCursor }} }} }}"
    );
    let page = contract.ask(&query, json!({})).await["events"].take();
    let mut all = as_updates(page["nodes"].as_array().unwrap());
    let after = json!({ "after": page["pageInfo"]["endCursor"] });
    let mut subscription = follow_events(&contract, after).await;
    all.extend(subscription.take("events", 3).await);
    let after = json!({ "after": all[6]["cursor"] });
    let page = contract.ask(&query, after).await["events"].take();
    all.extend(as_updates(page["nodes"].as_array().unwrap()));
    assert_eq!(
        in_log_order(&contract, &all),
        in_log_order(&contract, &as_updates(&appended))
    );
}

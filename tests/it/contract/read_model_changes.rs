//! The subscription readModels: from history over to live, behind any place.

use std::{collections::BTreeMap, time::Duration};

use serde_json::{Value, json};
use tidings::domain::{Cursor, Place, Position};
use uuid::Uuid;

use super::{Contract, READ_MODEL, event, with};
use crate::support::client::{Step, Subscription};

cases!(
    changes_come_from_history_and_then_live,
    changes_without_a_place_begin_with_new_ones,
    a_list_and_what_comes_behind_a_place_before_it_give_the_true_list,
    changes_go_on_behind_every_cursor,
    a_reader_is_given_the_newest_state_of_each,
    changes_of_one_aggregate_are_followed,
    changes_of_some_types_are_followed,
    a_change_that_no_longer_passes_is_null,
    a_deletion_and_a_write_from_outside_are_changes,
    cursors_that_do_not_belong_here_are_refused,
    a_place_above_the_newest_change_is_not_reached,
);

const QUIET: Duration = Duration::from_millis(300);

async fn follow(contract: &Contract, variables: Value) -> Subscription {
    let query = format!(
        "subscription($id: UUID, $filter: ReadModelFilter, $after: String) {{
            readModels(aggregateId: $id, filter: $filter, after: $after) {{ cursor aggregateId readModel {{ {READ_MODEL} }} }}
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

/// What a client holds that applies changes to a list.
#[derive(Debug, Default, PartialEq)]
struct Held(BTreeMap<String, Value>);

impl Held {
    fn of(models: &[Value]) -> Self {
        let entry = |model: &Value| (model["aggregateId"].to_string(), model.clone());
        Self(models.iter().map(entry).collect())
    }

    fn apply(&mut self, change: &Value) {
        let id = change["aggregateId"].to_string();
        match &change["readModel"] {
            Value::Null => self.0.remove(&id),
            model => self.0.insert(id, model.clone()),
        };
    }
}

fn updated(aggregate: Uuid, data: Value) -> Value {
    with(
        event(aggregate),
        json!({ "type": "user_updated", "data": data }),
    )
}

async fn changes_come_from_history_and_then_live(contract: Contract) {
    let ids = contract.aggregates(10);
    for id in &ids {
        contract.append(event(*id)).await;
    }
    contract.projected().await;
    let mut subscription = follow(&contract, json!({ "after": "" })).await;
    let mut held = Held::default();
    for change in subscription.take("readModels", 10).await {
        held.apply(&change);
    }
    assert_eq!(held, Held::of(&contract.all_models().await));
    for id in &ids {
        contract.append(updated(*id, json!({ "again": 1 }))).await;
        let change = subscription.take("readModels", 1).await.remove(0);
        assert_eq!(change["aggregateId"], json!(id));
        assert_eq!(change["readModel"]["version"], 2);
        assert_eq!(change["readModel"], contract.present_model(*id).await);
    }
    assert_eq!(subscription.next_within(QUIET).await, None);
}

async fn changes_without_a_place_begin_with_new_ones(contract: Contract) {
    let old = Uuid::new_v4();
    contract.append(event(old)).await;
    contract.projected().await;
    let mut subscription = follow(&contract, json!({})).await;
    // Nothing tells when it was accepted, but something new arrives once it is.
    let new = Uuid::new_v4();
    let first = loop {
        contract.append(event(new)).await;
        if let Some(step) = subscription.next_within(QUIET).await {
            break step;
        }
    };
    let Step::Next(payload) = first else {
        panic!("a change was to come: {first:?}");
    };
    assert_eq!(payload["data"]["readModels"]["aggregateId"], json!(new));
}

async fn a_list_and_what_comes_behind_a_place_before_it_give_the_true_list(contract: Contract) {
    let ids = contract.aggregates(16);
    for round in 0..4 {
        for id in &ids[round * 2..round * 2 + 8] {
            contract
                .append(updated(*id, json!({ "round": round })))
                .await;
        }
        // The projector may be anywhere.
        let head = contract.head().await;
        for id in &ids[..4] {
            contract
                .append(updated(*id, json!({ "between": round })))
                .await;
        }
        let mut held = Held::of(&contract.all_models().await);
        let mut subscription = follow(&contract, json!({ "after": head })).await;
        for id in &ids[2..6] {
            contract
                .append(updated(*id, json!({ "later": round })))
                .await;
        }
        if round == 2 {
            let deleted = with(event(ids[7]), json!({ "type": "user_deleted" }));
            contract.append(deleted).await;
        }
        contract.projected().await;
        let expected = Held::of(&contract.all_models().await);
        let wait = async {
            while held != expected {
                let change = subscription.take("readModels", 1).await.remove(0);
                held.apply(&change);
            }
        };
        wait.await;
        assert_eq!(held, expected);
    }
}

async fn changes_go_on_behind_every_cursor(contract: Contract) {
    let ids = contract.aggregates(12);
    for id in &ids {
        contract.append(event(*id)).await;
    }
    contract.projected().await;
    let mut subscription = follow(&contract, json!({ "after": "" })).await;
    let changes = subscription.take("readModels", 12).await;
    let id_of = |change: &Value| change["aggregateId"].to_string();
    for (seen, change) in changes.iter().enumerate() {
        let mut rest = follow(&contract, json!({ "after": change["cursor"] })).await;
        let mut all: Vec<String> = changes[..=seen].iter().map(id_of).collect();
        let behind = rest.take("readModels", 11 - seen).await;
        all.extend(behind.iter().map(id_of));
        let mut expected: Vec<String> = changes.iter().map(id_of).collect();
        all.sort();
        expected.sort();
        assert_eq!(all, expected, "each once, resumed after {}", seen + 1);
        assert_eq!(rest.next_within(Duration::from_millis(20)).await, None);
    }
    // Also after a restart.
    let contract = contract.restarted(None, |_| {}).await;
    let mut rest = follow(&contract, json!({ "after": changes[11]["cursor"] })).await;
    contract.append(event(ids[3])).await;
    let change = rest.take("readModels", 1).await.remove(0);
    assert_eq!(change["aggregateId"], json!(ids[3]));
}

async fn a_reader_is_given_the_newest_state_of_each(contract: Contract) {
    let ids = contract.aggregates(3);
    for round in 0..5 {
        for id in &ids {
            contract
                .append(updated(*id, json!({ "round": round })))
                .await;
        }
    }
    contract.projected().await;
    let mut subscription = follow(&contract, json!({ "after": "" })).await;
    for change in subscription.take("readModels", 3).await {
        assert_eq!(change["readModel"]["data"]["round"], 4);
    }
    assert_eq!(subscription.next_within(QUIET).await, None);
}

async fn changes_of_one_aggregate_are_followed(contract: Contract) {
    let ids = contract.aggregates(5);
    for id in &ids {
        contract.append(event(*id)).await;
    }
    contract.projected().await;
    let mut subscription = follow(&contract, json!({ "id": ids[2], "after": "" })).await;
    let first = subscription.take("readModels", 1).await.remove(0);
    assert_eq!(first["aggregateId"], json!(ids[2]));
    for id in &ids {
        contract.append(updated(*id, json!({ "again": 1 }))).await;
    }
    let second = subscription.take("readModels", 1).await.remove(0);
    assert_eq!(second["aggregateId"], json!(ids[2]));
    assert_eq!(second["readModel"]["version"], 2);
    assert_eq!(subscription.next_within(QUIET).await, None);
}

async fn changes_of_some_types_are_followed(contract: Contract) {
    let ids = contract.aggregates(6);
    let append = async |no: usize| {
        let kind = ["user", "order", "cart"][no % 3];
        let input = with(event(ids[no]), json!({ "aggregateType": kind }));
        contract.append(input).await;
    };
    for no in 0..6 {
        append(no).await;
    }
    contract.projected().await;
    let variables =
        json!({ "after": "", "filter": { "aggregateTypes": ["order", "cart", "nothing"] } });
    let mut subscription = follow(&contract, variables).await;
    for _ in 0..2 {
        for change in subscription.take("readModels", 4).await {
            assert_ne!(change["readModel"]["aggregateType"], "user");
        }
        for no in 0..6 {
            append(no).await;
        }
    }
    subscription.take("readModels", 4).await;
    assert_eq!(subscription.next_within(QUIET).await, None);
}

async fn a_change_that_no_longer_passes_is_null(contract: Contract) {
    let id = Uuid::new_v4();
    let filter = json!({ "contains": { "tags": ["red"] } });
    let mut subscription = follow(&contract, json!({ "after": "", "filter": filter })).await;
    for (tags, passes) in [
        (json!(["red", "green"]), true),
        (json!(["green"]), false),
        (json!("red"), false),
        (json!(["blue", "red"]), true),
    ] {
        contract.append(updated(id, json!({ "tags": tags }))).await;
        let change = subscription.take("readModels", 1).await.remove(0);
        assert_eq!(change["aggregateId"], json!(id));
        assert_eq!(!change["readModel"].is_null(), passes, "{change}");
    }
}

async fn a_deletion_and_a_write_from_outside_are_changes(contract: Contract) {
    let id = Uuid::new_v4();
    let mut subscription = follow(&contract, json!({ "after": "" })).await;
    contract.append(event(id)).await;
    let change = subscription.take("readModels", 1).await.remove(0);
    assert_eq!(change["readModel"]["source"], "PROJECTED");
    contract
        .append(with(event(id), json!({ "type": "user_deleted" })))
        .await;
    let change = subscription.take("readModels", 1).await.remove(0);
    assert_eq!(change["readModel"], Value::Null);
    assert_eq!(change["aggregateId"], json!(id));
    let input =
        json!({ "aggregateId": id, "aggregateType": "user", "version": 2, "data": { "mine": 1 } });
    let payload = contract.update_model(input).await;
    let change = subscription.take("readModels", 1).await.remove(0);
    assert_eq!(change["readModel"], payload["readModel"]);
}

async fn cursors_that_do_not_belong_here_are_refused(contract: Contract) {
    contract.fill(3).await;
    contract.projected().await;
    let store = contract.server.app.store();
    let partitions = usize::from(contract.partitions);
    let of_events = Cursor::Events(Place::behind(vec![Position(1); partitions]))
        .encode(store.database_id(), store.partitions());
    let of_models = "{ readModels { pageInfo { endCursor } } }";
    let of_models = contract.ask(of_models, json!({})).await;
    let another = contract.another().await;
    for cursor in [
        json!("nonsense"),
        json!(of_events),
        of_models["readModels"]["pageInfo"]["endCursor"].clone(),
        json!(another.head().await),
    ] {
        let error = refusal(follow(&contract, json!({ "after": cursor })).await).await;
        assert_eq!(error["extensions"]["code"], "BAD_USER_INPUT", "{error}");
        assert_eq!(error["extensions"]["field"], "after", "{error}");
    }
    // A place of changes is none of events; the head is one of both.
    let mut changes = follow(&contract, json!({ "after": "" })).await;
    let change = changes.take("readModels", 1).await.remove(0);
    let events =
        "subscription($after: String) { events(after: $after, progress: true) { cursor } }";
    let variables = json!({ "after": change["cursor"] });
    let error = refusal(contract.client.subscribe(events, variables).await).await;
    assert_eq!(error["extensions"]["code"], "BAD_USER_INPUT", "{error}");
    let variables = json!({ "after": contract.head().await });
    let mut events = contract.client.subscribe(events, variables).await;
    assert!(events.next_data().await["events"]["cursor"].is_string());
}

async fn a_place_above_the_newest_change_is_not_reached(contract: Contract) {
    contract.fill(3).await;
    contract.projected().await;
    let (database, partitions, behind) = {
        let store = contract.server.app.store();
        let behind = vec![Position(1000); usize::from(contract.partitions)];
        (store.database_id(), store.partitions(), behind)
    };
    let cursor = Cursor::Changes(behind).encode(database, partitions);
    let error = refusal(follow(&contract, json!({ "after": cursor })).await).await;
    assert_eq!(error["extensions"]["code"], "PLACE_NOT_REACHED", "{error}");
    // The head that the error names is a place to go on behind.
    let head = &error["extensions"]["head"];
    let mut subscription = follow(&contract, json!({ "after": head })).await;
    let id = Uuid::new_v4();
    contract.append(event(id)).await;
    let change = subscription.take("readModels", 1).await.remove(0);
    assert_eq!(change["aggregateId"], json!(id));
}

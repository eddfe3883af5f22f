//! createCommand and processCommand: pending commands, the worker, and the subscription to one command.

use std::time::Duration;

use serde_json::{Value, json};
use tidings::domain::{Clock, SystemClock, Timestamp};
use uuid::Uuid;

use super::{COMMAND, Contract, create_user, event, pick, update_user, with};
use crate::support::client::{Step, Subscription};

cases!(
    a_created_command_is_pending_and_soon_processed,
    a_created_command_that_breaks_a_rule_is_rejected,
    a_command_is_not_processed_before_its_instant,
    a_command_whose_instant_is_far_does_not_stand_in_the_way,
    process_command_does_it_now_and_once,
    execute_command_of_a_pending_one_does_it_now,
    pending_commands_of_an_aggregate_are_processed_in_the_order_of_their_creation,
    a_repeat_of_create_command_answers_what_has_become_of_the_first,
    an_aggregate_that_became_something_else_rejects_its_pending_commands,
    a_subscription_tells_a_command_now_and_when_it_is_settled,
    a_subscription_to_a_settled_command_ends_at_once,
    a_subscription_to_a_command_that_is_not_there_is_refused,
);

/// An instant so far from now.
fn later(time: Duration) -> Value {
    json!(SystemClock.now().after(time).to_string())
}

fn instant(value: &Value) -> Timestamp {
    Timestamp::parse(value.as_str().unwrap()).unwrap()
}

async fn follow(contract: &Contract, id: &Value) -> Subscription {
    let query = format!(
        "subscription($id: UUID!) {{ command(id: $id) {{ {COMMAND} events {{ version }} aggregate {{ version }} }} }}"
    );
    contract.client.subscribe(&query, json!({ "id": id })).await
}

async fn a_created_command_is_pending_and_soon_processed(contract: Contract) {
    let aggregate = Uuid::new_v4();
    let created = contract.create(create_user(aggregate, "ada")).await;
    assert_eq!(created["status"], "PENDING");
    assert_eq!(created["attempts"], 0);
    for field in ["reason", "notBefore", "processedAt"] {
        assert_eq!(created[field], Value::Null, "{field}");
    }
    let settled = contract.settled(&created["id"]).await;
    assert_eq!(settled["status"], "PROCESSED");
    assert_eq!(settled["attempts"], 1);
    assert_eq!(settled["reason"], Value::Null);
    assert_eq!(settled["createdAt"], created["createdAt"]);
    let event = &settled["events"][0];
    assert_eq!(event["createdAt"], settled["processedAt"]);
    assert_eq!(event["metadata"]["commandId"], created["id"]);
    assert_eq!(
        contract.aggregate(aggregate).await["events"],
        json!([event])
    );
}

async fn a_created_command_that_breaks_a_rule_is_rejected(contract: Contract) {
    let aggregate = Uuid::new_v4();
    let created = contract.create(update_user(aggregate, json!({}))).await;
    assert_eq!(created["status"], "PENDING");
    let settled = contract.settled(&created["id"]).await;
    assert_eq!(settled["status"], "REJECTED");
    assert!(
        settled["reason"]
            .as_str()
            .is_some_and(|reason| !reason.is_empty())
    );
    assert_eq!(settled["events"], json!([]));
    assert_eq!(settled["attempts"], 1);
    assert!(settled["processedAt"].is_string());
}

async fn a_command_is_not_processed_before_its_instant(contract: Contract) {
    let not_before = later(Duration::from_millis(400));
    let input = with(
        create_user(Uuid::new_v4(), "ada"),
        json!({ "notBefore": not_before }),
    );
    let created = contract.create(input).await;
    assert_eq!(created["status"], "PENDING");
    assert_eq!(created["notBefore"], not_before);
    let settled = contract.settled(&created["id"]).await;
    assert_eq!(settled["status"], "PROCESSED");
    assert_eq!(settled["notBefore"], not_before);
    assert!(instant(&settled["processedAt"]) >= instant(&not_before));
}

async fn a_command_whose_instant_is_far_does_not_stand_in_the_way(contract: Contract) {
    let aggregate = Uuid::new_v4();
    let far = with(
        create_user(aggregate, "far"),
        json!({ "notBefore": later(Duration::from_secs(3600)) }),
    );
    let far = contract.create(far).await;
    let near = contract.create(create_user(aggregate, "near")).await;
    assert_eq!(contract.settled(&near["id"]).await["status"], "PROCESSED");
    assert_eq!(contract.command(&far["id"]).await["status"], "PENDING");
}

async fn process_command_does_it_now_and_once(contract: Contract) {
    let aggregate = Uuid::new_v4();
    let input = with(
        create_user(aggregate, "ada"),
        json!({ "notBefore": later(Duration::from_secs(3600)) }),
    );
    let created = contract.create(input).await;
    let payload = contract.process(&created["id"]).await;
    assert_eq!(payload["processed"], true);
    assert_eq!(payload["command"]["status"], "PROCESSED");
    assert_eq!(payload["command"]["attempts"], 1);
    let again = contract.process(&created["id"]).await;
    assert_eq!(again["processed"], false);
    assert_eq!(again["command"], payload["command"]);
    assert_eq!(contract.aggregate(aggregate).await["version"], 1);

    // A rejection settles it too.
    let input = with(
        create_user(aggregate, "again"),
        json!({ "notBefore": later(Duration::from_secs(3600)) }),
    );
    let created = contract.create(input).await;
    let payload = contract.process(&created["id"]).await;
    assert_eq!(payload["processed"], true);
    assert_eq!(payload["command"]["status"], "REJECTED");

    let query =
        "mutation($input: ProcessCommandInput!) { processCommand(input: $input) { processed } }";
    let variables = json!({ "input": { "id": Uuid::new_v4() } });
    let failure = contract.refused(query, variables).await;
    assert_eq!(failure.code(), "NOT_FOUND", "{failure:?}");
}

async fn execute_command_of_a_pending_one_does_it_now(contract: Contract) {
    let input = with(
        create_user(Uuid::new_v4(), "ada"),
        json!({ "id": Uuid::new_v4() }),
    );
    let waiting = with(
        input.clone(),
        json!({ "notBefore": later(Duration::from_secs(3600)) }),
    );
    contract.create(waiting).await;
    let payload = contract.execute(input.clone()).await;
    assert_eq!(payload["command"]["status"], "PROCESSED");
    assert_eq!(payload["command"]["attempts"], 1);
    assert_eq!(payload["events"][0]["version"], 1);
    assert_eq!(payload["events"][0]["metadata"]["commandId"], input["id"]);
    assert_eq!(contract.command(&input["id"]).await, payload["command"]);
    assert_eq!(contract.execute(input).await, payload);
}

async fn pending_commands_of_an_aggregate_are_processed_in_the_order_of_their_creation(
    contract: Contract,
) {
    const COUNT: usize = 40;
    let aggregates = contract.aggregates(4);
    let mut last = Vec::new();
    for number in 0..COUNT {
        for aggregate in &aggregates {
            let input = if number == 0 {
                create_user(*aggregate, "0")
            } else {
                update_user(*aggregate, json!({ "username": number.to_string() }))
            };
            last.push(contract.create(input).await["id"].clone());
        }
    }
    for id in last.iter().rev().take(aggregates.len()) {
        assert_eq!(contract.settled(id).await["status"], "PROCESSED");
    }
    let expected: Vec<Value> = (0..COUNT).map(|number| json!(number.to_string())).collect();
    for aggregate in aggregates {
        let stored = contract.aggregate(aggregate).await;
        let events = stored["events"].as_array().unwrap();
        let names: Vec<Value> = pick(events, "data")
            .iter()
            .map(|data| data["username"].clone())
            .collect();
        assert_eq!(names, expected);
    }
}

async fn a_repeat_of_create_command_answers_what_has_become_of_the_first(contract: Contract) {
    let input = with(
        create_user(Uuid::new_v4(), "ada"),
        json!({ "id": Uuid::new_v4() }),
    );
    let waiting = with(
        input.clone(),
        json!({ "notBefore": later(Duration::from_secs(3600)) }),
    );
    let created = contract.create(waiting.clone()).await;
    assert_eq!(contract.create(waiting.clone()).await, created);
    assert_eq!(contract.create(input.clone()).await, created);
    let processed = contract.process(&input["id"]).await;
    assert_eq!(contract.create(waiting).await, processed["command"]);
    let other = with(input, json!({ "data": { "username": "bob" } }));
    let failure = contract.create_is_refused(other).await;
    assert_eq!(failure.code(), "ID_REUSED", "{failure:?}");
}

async fn an_aggregate_that_became_something_else_rejects_its_pending_commands(contract: Contract) {
    let aggregate = Uuid::new_v4();
    let input = with(
        create_user(aggregate, "ada"),
        json!({ "notBefore": later(Duration::from_secs(3600)) }),
    );
    let created = contract.create(input).await;
    contract
        .append(with(event(aggregate), json!({ "aggregateType": "order" })))
        .await;
    let payload = contract.process(&created["id"]).await;
    assert_eq!(payload["command"]["status"], "REJECTED");
    let reason = payload["command"]["reason"].as_str().unwrap();
    assert!(reason.contains("order"), "{reason}");
    assert_eq!(contract.aggregate(aggregate).await["version"], 1);
}

async fn a_subscription_tells_a_command_now_and_when_it_is_settled(contract: Contract) {
    let input = with(
        create_user(Uuid::new_v4(), "ada"),
        json!({ "notBefore": later(Duration::from_secs(3600)) }),
    );
    let id = contract.create(input).await["id"].clone();
    let (mut one, mut other) = (follow(&contract, &id).await, follow(&contract, &id).await);
    for subscription in [&mut one, &mut other] {
        let now = subscription.next_data().await;
        assert_eq!(now["command"]["status"], "PENDING");
        assert_eq!(now["command"]["aggregate"], Value::Null);
    }
    contract.process(&id).await;
    for subscription in [&mut one, &mut other] {
        let then = subscription.next_data().await;
        assert_eq!(then["command"]["status"], "PROCESSED");
        assert_eq!(then["command"]["events"], json!([{ "version": 1 }]));
        assert_eq!(then["command"]["aggregate"], json!({ "version": 1 }));
        assert_eq!(subscription.next().await, Step::Complete);
    }

    // Also of one that the worker processes.
    let id = contract
        .create(update_user(Uuid::new_v4(), json!({})))
        .await["id"]
        .clone();
    let mut subscription = follow(&contract, &id).await;
    let mut told = subscription.next_data().await;
    if told["command"]["status"] == "PENDING" {
        told = subscription.next_data().await;
    }
    assert_eq!(told["command"]["status"], "REJECTED");
    assert_eq!(subscription.next().await, Step::Complete);
}

async fn a_subscription_to_a_settled_command_ends_at_once(contract: Contract) {
    let payload = contract.execute(create_user(Uuid::new_v4(), "ada")).await;
    let mut subscription = follow(&contract, &payload["command"]["id"]).await;
    let told = subscription.next_data().await;
    assert_eq!(told["command"]["status"], "PROCESSED");
    assert_eq!(subscription.next().await, Step::Complete);
}

async fn a_subscription_to_a_command_that_is_not_there_is_refused(contract: Contract) {
    let mut subscription = follow(&contract, &json!(Uuid::new_v4())).await;
    match subscription.next().await {
        Step::Errors(errors) => assert_eq!(errors[0]["extensions"]["code"], "NOT_FOUND"),
        step => panic!("it was to be refused: {step:?}"),
    }
}

//! What webhooks are given: order, retries, dead deliveries, and what is refused.

use std::{collections::HashMap, time::Duration};

use serde_json::{Value, json};
use tidings::config::Config;
use uuid::Uuid;

use super::{Contract, event, with};
use crate::support::{
    client::LIMIT,
    receiver::{Posted, Receiver},
};

cases!(
    a_webhook_is_given_each_wanted_event_as_a_signed_document,
    a_receiver_that_fails_now_and_then_gets_every_event_in_order,
    what_fails_waits_and_is_dead_after_the_last_attempt_and_the_aggregate_goes_on,
    dead_deliveries_are_put_back_in_line,
    a_redirect_is_not_followed,
    private_addresses_are_refused_at_registration_and_at_delivery,
);

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// Short pauses, and webhooks to this machine.
pub(super) fn quick(config: &mut Config) {
    config.handlers.webhook_secrets = vec![SECRET.parse().unwrap()];
    config.handlers.allow_private = true;
    config.handlers.time_out = Duration::from_secs(5);
    config.handlers.retry_delay = Duration::from_millis(20);
    config.handlers.longest_delay = Duration::from_millis(100);
}

impl Contract {
    pub(super) async fn quick(self, configure: impl FnOnce(&mut Config)) -> Self {
        self.restarted(None, |config| {
            quick(config);
            configure(config);
        })
        .await
    }

    /// Appends events to aggregates, one to each after another, so many times.
    pub(super) async fn append_rounds(&self, aggregates: &[Uuid], rounds: usize) {
        for _ in 0..rounds {
            let events: Vec<Value> = aggregates.iter().map(|id| event(*id)).collect();
            self.append_all(json!(events)).await;
        }
    }

    pub(super) async fn process_event(&self, id: &Value) -> Value {
        let query = "mutation($input: ProcessEventInput!) { processEvent(input: $input) { processed deliveries { \
                     status attempts lastError handler { name } event { id } } } }";
        self.ask(query, json!({ "input": { "eventId": id } })).await["processEvent"].take()
    }

    pub(super) async fn retry_dead(&self, name: &str, ids: Option<&[Value]>) -> i64 {
        let query = "mutation($input: RetryDeadDeliveriesInput!) { retryDeadDeliveries(input: $input) { count } }";
        let input = json!({ "handlerName": name, "deliveryIds": ids });
        let data = self.ask(query, json!({ "input": input })).await;
        data["retryDeadDeliveries"]["count"].as_i64().unwrap()
    }
}

/// Waits until something holds.
pub(super) async fn until<T>(what: &str, mut check: impl AsyncFnMut() -> Option<T>) -> T {
    let started = std::time::Instant::now();
    loop {
        if let Some(found) = check().await {
            return found;
        }
        assert!(started.elapsed() < LIMIT, "{what} does not come");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The versions that were taken of each aggregate, in the order in which they were.
pub(super) fn versions(taken: &[Posted]) -> HashMap<String, Vec<i64>> {
    let mut versions: HashMap<String, Vec<i64>> = HashMap::new();
    for posted in taken {
        let version = posted.body["aggregateversion"].as_i64().unwrap();
        versions
            .entry(posted.aggregate())
            .or_default()
            .push(version);
    }
    versions
}

async fn a_webhook_is_given_each_wanted_event_as_a_signed_document(contract: Contract) {
    let contract = contract.quick(|_| {}).await;
    let receiver = Receiver::answering(200).await;
    let input = json!({ "name": "hook", "function": receiver.url, "eventTypes": ["user_seen"] });
    let handler = contract.register(input).await;
    contract.fill(2).await;
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let seen = with(
        event(Uuid::new_v4()),
        json!({ "type": "user_seen", "data": { "name": "Ädä \"A\"" }, "metadata": { "traceparent": trace, "correlationId": "c" } }),
    );
    let seen = contract.append(seen).await["event"].take();
    contract.handled("hook").await;
    let [posted] = &receiver.taken()[..] else {
        panic!("{:?}", receiver.posted());
    };
    let (headers, body) = (&posted.headers, &posted.body);
    assert_eq!(
        headers["content-type"],
        "application/cloudevents+json; charset=utf-8"
    );
    assert_eq!(headers["traceparent"], trace);
    let id = format!(
        "{}_{}",
        seen["id"].as_str().unwrap(),
        handler["id"].as_str().unwrap()
    );
    assert_eq!(headers["webhook-id"], id);
    assert!(headers["webhook-signature"].starts_with("v1,"));
    assert!(headers["webhook-timestamp"].parse::<i64>().unwrap() > 1_700_000_000);
    for (field, of_event) in [
        ("id", "id"),
        ("type", "type"),
        ("subject", "aggregateId"),
        ("time", "createdAt"),
        ("aggregatetype", "aggregateType"),
        ("aggregateversion", "version"),
        ("data", "data"),
    ] {
        assert_eq!(body[field], seen[of_event], "{field}");
    }
    assert_eq!(contract.deliveries("hook").await, [Value::Null; 0]);
}

async fn a_receiver_that_fails_now_and_then_gets_every_event_in_order(contract: Contract) {
    let contract = contract
        .quick(|config| {
            config.handlers.attempts = 100;
            config.handlers.time_out = Duration::from_millis(500);
        })
        .await;
    // Every third fails, and some take longer than they may.
    let receiver = Receiver::start(|no, _| match no {
        no if no % 3 == 1 => (500, Duration::ZERO),
        no if no % 17 == 5 => (503, Duration::from_secs(1)),
        _ => (200, Duration::ZERO),
    })
    .await;
    contract
        .register(json!({ "name": "hook", "function": receiver.url }))
        .await;
    let aggregates = contract.aggregates(8);
    contract.append_rounds(&aggregates, 10).await;
    until("every event", async || {
        let taken = versions(&receiver.taken());
        let is_all = |id: &Uuid| {
            let versions = taken.get(&id.to_string()).cloned().unwrap_or_default();
            (1..=10).all(|version| versions.contains(&version))
        };
        aggregates.iter().all(is_all).then_some(())
    })
    .await;
    for (aggregate, versions) in versions(&receiver.taken()) {
        let mut first_times = Vec::new();
        for version in versions {
            if !first_times.contains(&version) {
                first_times.push(version);
            }
        }
        assert_eq!(first_times, (1..=10).collect::<Vec<_>>(), "{aggregate}");
    }
    until("the end of all deliveries", async || {
        contract.deliveries("hook").await.is_empty().then_some(())
    })
    .await;
    contract.handled("hook").await;
}

async fn what_fails_waits_and_is_dead_after_the_last_attempt_and_the_aggregate_goes_on(
    contract: Contract,
) {
    let contract = contract
        .quick(|config| {
            config.handlers.attempts = 3;
            config.handlers.retry_delay = Duration::from_secs(6);
            config.handlers.longest_delay = Duration::from_secs(6);
        })
        .await;
    let ids = contract.aggregates(2);
    let (bad, good) = (ids[0], ids[1]);
    let fails = bad.to_string();
    let receiver = Receiver::start(move |_, body| {
        let is_bad = body["subject"] == fails && body["aggregateversion"] == 1;
        (if is_bad { 422 } else { 200 }, Duration::ZERO)
    })
    .await;
    contract
        .register(json!({ "name": "hook", "function": receiver.url }))
        .await;
    contract.append_rounds(&[bad, good], 3).await;
    contract.handled("hook").await;
    let deliveries = contract.deliveries("hook").await;
    let statuses: Vec<_> = deliveries
        .iter()
        .map(|delivery| {
            (
                delivery["status"].as_str().unwrap(),
                delivery["attempts"].as_i64().unwrap(),
            )
        })
        .collect();
    assert_eq!(statuses, [("RETRYING", 1), ("WAITING", 0), ("WAITING", 0)]);
    assert!(deliveries[0]["lastError"].as_str().unwrap().contains("422"));
    assert!(deliveries[0]["nextAttemptAt"].is_string());
    assert!(
        deliveries
            .iter()
            .all(|delivery| delivery["event"]["aggregateId"] == json!(bad))
    );
    assert_eq!(
        versions(&receiver.taken()),
        HashMap::from([(good.to_string(), vec![1, 2, 3])])
    );
    // One of an aggregate that is held back waits, too.
    contract.append(event(bad)).await;
    let dead = until("a dead delivery", async || {
        let left = contract.deliveries("hook").await;
        (left.len() == 1 && left[0]["status"] == "DEAD").then_some(left)
    })
    .await;
    assert_eq!(dead[0]["attempts"], 3);
    assert_eq!(dead[0]["event"]["version"], 1);
    assert_eq!(versions(&receiver.taken())[&bad.to_string()], [2, 3, 4]);
    contract.append(event(bad)).await;
    contract.handled("hook").await;
    assert_eq!(versions(&receiver.taken())[&bad.to_string()], [2, 3, 4, 5]);
}

async fn dead_deliveries_are_put_back_in_line(contract: Contract) {
    let contract = contract.quick(|config| config.handlers.attempts = 1).await;
    let ids = contract.aggregates(2);
    let receiver = Receiver::start(|_, body| {
        let fails = body["aggregateversion"].as_i64().unwrap() <= 2;
        (if fails { 500 } else { 200 }, Duration::ZERO)
    })
    .await;
    contract
        .register(json!({ "name": "hook", "function": receiver.url }))
        .await;
    contract.append_rounds(&ids, 3).await;
    let dead = until("dead deliveries", async || {
        let left = contract.deliveries("hook").await;
        (left.len() == 4).then_some(left)
    })
    .await;
    assert!(dead.iter().all(|delivery| delivery["status"] == "DEAD"));
    receiver.answer(|_, _| (200, Duration::ZERO));
    until("the last events", async || {
        (receiver.taken().len() == 2).then_some(())
    })
    .await;
    assert_eq!(
        contract
            .retry_dead("hook", Some(&[json!(Uuid::new_v4())]))
            .await,
        0
    );
    assert_eq!(
        contract
            .retry_dead("hook", Some(&[dead[3]["id"].clone()]))
            .await,
        1
    );
    until("one delivery less", async || {
        (contract.deliveries("hook").await.len() == 3).then_some(())
    })
    .await;
    assert_eq!(contract.retry_dead("hook", None).await, 3);
    until("the end of all deliveries", async || {
        contract.deliveries("hook").await.is_empty().then_some(())
    })
    .await;
    let taken = versions(&receiver.taken());
    let first = dead[0]["event"]["aggregateId"].as_str().unwrap();
    assert_eq!(
        taken[first],
        [3, 1, 2],
        "those of one aggregate in their order"
    );
    assert_eq!(receiver.taken().len(), 6);
    assert_eq!(contract.retry_dead("hook", None).await, 0);
}

async fn a_redirect_is_not_followed(contract: Contract) {
    let contract = contract.quick(|config| config.handlers.attempts = 1).await;
    let receiver = Receiver::answering(307).await;
    contract
        .register(json!({ "name": "hook", "function": receiver.url }))
        .await;
    contract.fill(1).await;
    let dead = until("a dead delivery", async || {
        contract.deliveries("hook").await.pop()
    })
    .await;
    assert!(dead["lastError"].as_str().unwrap().contains("307"));
    assert_eq!(receiver.posted().len(), 1);
}

async fn private_addresses_are_refused_at_registration_and_at_delivery(contract: Contract) {
    let contract = contract
        .quick(|config| config.handlers.allow_private = false)
        .await;
    let receiver = Receiver::answering(200).await;
    for url in [
        receiver.url.clone(),
        receiver.url.replace("127.0.0.1", "localhost"),
        receiver.url.replace("127.0.0.1", "[::ffff:127.0.0.1]"),
        "http://169.254.169.254/latest/meta-data".to_owned(),
        "http://[::1]/".to_owned(),
    ] {
        let input = json!({ "name": "hook", "function": url });
        let failure = contract.register_is_refused(input).await;
        assert_eq!(failure.extension("field"), "input.function");
        assert!(
            failure.message().contains("TIDINGS_WEBHOOK_ALLOW_PRIVATE"),
            "{url}"
        );
    }
    assert_eq!(contract.handlers().await, [Value::Null; 0]);
    // One that was registered while it was allowed, by a name as well.
    let contract = contract.quick(|_| {}).await;
    for (name, host) in [("address", "127.0.0.1"), ("name", "localhost")] {
        let url = receiver.url.replace("127.0.0.1", host);
        contract
            .register(json!({ "name": name, "function": url }))
            .await;
    }
    let contract = contract
        .quick(|config| {
            config.handlers.allow_private = false;
            config.handlers.attempts = 1;
        })
        .await;
    contract.fill(1).await;
    for name in ["address", "name"] {
        let dead = until("a dead delivery", async || {
            contract.deliveries(name).await.pop()
        })
        .await;
        let error = dead["lastError"].as_str().unwrap();
        assert!(error.contains("private"), "{error}");
    }
    assert_eq!(receiver.posted().len(), 0);
}

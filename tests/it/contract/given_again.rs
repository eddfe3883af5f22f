//! Giving one event again to whoever handles it.

use std::time::Duration;

use serde_json::{Value, json};
use uuid::Uuid;

use super::{Contract, deliveries::until, list};
use crate::support::receiver::Receiver;

cases!(
    an_event_is_given_again_to_every_handler_that_wants_it,
    an_event_that_is_given_again_waits_until_its_handler_may_be_given_one,
);

async fn an_event_is_given_again_to_every_handler_that_wants_it(contract: Contract) {
    let contract = contract
        .quick(|config| config.handlers.retry_delay = Duration::from_secs(1))
        .await;
    let (well, ill) = (
        Receiver::answering(200).await,
        Receiver::answering(200).await,
    );
    for (name, function, types) in [
        ("copy", "publish:copy", json!([])),
        ("hook", well.url.as_str(), json!(["user_created"])),
        ("ill", ill.url.as_str(), json!([])),
        ("off", "publish:off", json!([])),
        ("other", "publish:other", json!(["other"])),
    ] {
        contract
            .register(json!({ "name": name, "function": function, "eventTypes": types }))
            .await;
    }
    contract.set_active("off", false).await;
    let stored = contract.fill(1).await.remove(0);
    for name in ["copy", "hook", "ill"] {
        contract.handled(name).await;
    }
    ill.answer(|_, _| (500, Duration::ZERO));
    let payload = contract.process_event(&stored["id"]).await;
    assert_eq!(payload["processed"], true);
    let deliveries = list(payload["deliveries"].clone());
    let told: Vec<_> = deliveries
        .iter()
        .map(|delivery| {
            (
                delivery["handler"]["name"].as_str().unwrap(),
                delivery["status"].as_str().unwrap(),
            )
        })
        .collect();
    assert_eq!(
        told,
        [
            ("copy", "DELIVERED"),
            ("hook", "DELIVERED"),
            ("ill", "RETRYING")
        ]
    );
    assert!(
        deliveries
            .iter()
            .all(|delivery| delivery["event"]["id"] == stored["id"])
    );
    assert!(deliveries[2]["lastError"].as_str().unwrap().contains("500"));
    assert_eq!(well.taken().len(), 2);
    assert_eq!(
        contract.stream("copy").await["lastPosition"],
        1,
        "it was there already"
    );
    assert_eq!(contract.stream("off").await, Value::Null);
    // What failed is tried again.
    ill.answer(|_, _| (200, Duration::ZERO));
    until("the end of all deliveries", async || {
        contract.deliveries("ill").await.is_empty().then_some(())
    })
    .await;
    assert_eq!(ill.taken().len(), 2);
    let payload = contract.process_event(&json!(Uuid::new_v4())).await;
    assert_eq!(payload, json!({ "processed": false, "deliveries": [] }));
}

async fn an_event_that_is_given_again_waits_until_its_handler_may_be_given_one(contract: Contract) {
    let contract = contract
        .quick(|config| {
            config.handlers.concurrency = 2;
            config.handlers.time_out = Duration::from_secs(60);
        })
        .await;
    let receiver = Receiver::start(|_, _| (200, Duration::from_millis(300))).await;
    let stored = contract.fill(1).await.remove(0);
    contract
        .register(json!({ "name": "hook", "function": receiver.url }))
        .await;
    contract.fill(4).await;
    let again = (0..6).map(|_| contract.process_event(&stored["id"]));
    for payload in futures_util::future::join_all(again).await {
        assert_eq!(payload["deliveries"][0]["status"], "DELIVERED");
    }
    contract.handled("hook").await;
    assert_eq!(receiver.taken().len(), 10);
    assert_eq!(receiver.most_at_a_time(), 2);
}

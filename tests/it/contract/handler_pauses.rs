//! Handlers that stand still, by themselves or because somebody stops them, and those beside them.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tidings::config::Config;

use super::{
    Contract,
    database::execute,
    deliveries::{until, versions},
    event,
};
use crate::support::client::LIMIT;
use crate::support::receiver::Receiver;

cases!(
    an_endpoint_that_fails_five_times_pauses_its_handler_until_it_answers,
    a_pause_outlives_the_server_and_ends_with_a_handler_that_is_made_active_anew,
    whether_a_handler_is_paused_follows_from_what_is_stored_and_any_success_ends_it,
    a_handler_whose_webhook_hangs_can_be_stopped_and_goes_on_where_it_stopped,
    a_slow_handler_delays_no_other,
    what_is_due_is_tried_again_while_events_keep_coming,
);

async fn an_endpoint_that_fails_five_times_pauses_its_handler_until_it_answers(contract: Contract) {
    let contract = contract
        .quick(|config| {
            config.handlers.attempts = 50;
            config.handlers.concurrency = 1;
        })
        .await;
    let receiver = Receiver::answering(500).await;
    contract
        .register(json!({ "name": "hook", "function": receiver.url }))
        .await;
    let aggregates = contract.aggregates(40);
    contract.append_rounds(&aggregates, 2).await;
    until("a pause", async || {
        (contract.handler("hook").await["isPaused"] == true).then_some(())
    })
    .await;
    // Probes go on; each may leave a delivery, and no event does without one.
    let posted = receiver.posted().len();
    until("a probe", async || {
        (receiver.posted().len() > posted + 2).then_some(())
    })
    .await;
    let stored = contract.deliveries("hook").await.len();
    assert!(stored <= 2 * receiver.posted().len(), "{stored}");
    assert_eq!(contract.handler("hook").await["isPaused"], true);
    receiver.answer(|_, _| (200, Duration::ZERO));
    until("all events", async || {
        (receiver.taken().len() >= 80).then_some(())
    })
    .await;
    contract.handled("hook").await;
    until("the end of all deliveries", async || {
        contract.deliveries("hook").await.is_empty().then_some(())
    })
    .await;
    let handler = contract.handler("hook").await;
    assert_eq!(
        (&handler["isPaused"], &handler["isActive"]),
        (&json!(false), &json!(true))
    );
    for (aggregate, versions) in versions(&receiver.taken()) {
        assert_eq!(versions, [1, 2], "{aggregate}");
    }
}

async fn a_pause_outlives_the_server_and_ends_with_a_handler_that_is_made_active_anew(
    contract: Contract,
) {
    let slow = |config: &mut Config| {
        config.handlers.retry_delay = Duration::from_secs(600);
        config.handlers.longest_delay = Duration::from_secs(600);
        config.handlers.concurrency = 1;
    };
    let contract = contract.quick(slow).await;
    let receiver = Receiver::answering(500).await;
    contract
        .register(json!({ "name": "hook", "function": receiver.url }))
        .await;
    let aggregates = contract.aggregates(20);
    contract.append_rounds(&aggregates, 1).await;
    until("a pause", async || {
        (contract.handler("hook").await["isPaused"] == true).then_some(())
    })
    .await;
    let posted = receiver.posted().len();
    until("what failed", async || {
        (contract.deliveries("hook").await.len() == posted).then_some(())
    })
    .await;
    receiver.answer(|_, _| (200, Duration::ZERO));
    let contract = contract.quick(slow).await;
    assert_eq!(contract.handler("hook").await["isPaused"], true);
    contract.append_rounds(&aggregates, 1).await;
    contract.projected().await;
    assert_eq!(receiver.posted().len(), posted, "it waits");
    contract.set_active("hook", false).await;
    contract.set_active("hook", true).await;
    contract.handled("hook").await;
    assert_eq!(contract.handler("hook").await["isPaused"], false);
    // All but those that failed, and what waits behind these.
    let deliveries = contract.deliveries("hook").await;
    assert_eq!(receiver.taken().len() + deliveries.len(), 40);
    assert_eq!(deliveries.len(), 2 * posted);
}

async fn whether_a_handler_is_paused_follows_from_what_is_stored_and_any_success_ends_it(
    contract: Contract,
) {
    let contract = contract.quick(|_| {}).await;
    let receiver = Receiver::answering(200).await;
    contract
        .register(json!({ "name": "hook", "function": receiver.url }))
        .await;
    // This server has called already, and knows of no pause.
    contract.fill(1).await;
    contract.handled("hook").await;
    // A server that is no more has stored one: it is over when the probe after it is.
    let store = async |until: &str| {
        let sql = format!("UPDATE event_handlers SET paused_until = '{until}'");
        let written = execute(&contract.server.database, sql).await;
        assert_eq!(written, Ok(1));
    };
    store("2001-01-01T00:00:00.000000+00:00").await;
    assert_eq!(contract.handler("hook").await["isPaused"], false);
    assert_eq!(contract.handlers().await[0]["isPaused"], false);
    store("2999-01-01T00:00:00.000000+00:00").await;
    assert_eq!(contract.handler("hook").await["isPaused"], true);
    assert_eq!(contract.handlers().await[0]["isPaused"], true);
    // The server takes in what others have stored within a second: any success behind that ends it.
    let mut events = 1;
    until("the end of the pause", async || {
        contract.fill(1).await;
        events += 1;
        (contract.handler("hook").await["isPaused"] == false).then_some(())
    })
    .await;
    contract.handled("hook").await;
    assert_eq!(receiver.taken().len(), events);
}

async fn a_handler_whose_webhook_hangs_can_be_stopped_and_goes_on_where_it_stopped(
    contract: Contract,
) {
    let contract = contract
        .quick(|config| config.handlers.time_out = Duration::from_secs(300))
        .await;
    let receiver = Receiver::start(|_, _| (200, Duration::from_secs(300))).await;
    contract
        .register(json!({ "name": "hook", "function": receiver.url }))
        .await;
    let ids = contract.aggregates(4);
    contract.append_rounds(&ids, 1).await;
    until("the calls", async || (receiver.begun() == 4).then_some(())).await;
    let stopped = Instant::now();
    contract.set_active("hook", false).await;
    assert!(stopped.elapsed() < Duration::from_secs(2));
    until("the end of the calls", async || {
        (receiver.hung_up() == 4).then_some(())
    })
    .await;
    // A busy machine may need longer than the second.
    assert!(
        stopped.elapsed() < Duration::from_secs(3),
        "{:?}",
        stopped.elapsed()
    );
    contract.append_rounds(&ids, 1).await;
    contract.projected().await;
    assert_eq!(contract.handler("hook").await["lagEvents"], 8);
    assert_eq!(receiver.begun(), 4, "it is given nothing");
    receiver.answer(|_, _| (200, Duration::ZERO));
    contract.set_active("hook", true).await;
    contract.handled("hook").await;
    let taken = versions(&receiver.taken());
    assert_eq!(taken.len(), 4);
    for (aggregate, versions) in taken {
        assert_eq!(versions, [1, 2], "{aggregate}");
    }
    assert_eq!(contract.deliveries("hook").await, [Value::Null; 0]);
}

async fn a_slow_handler_delays_no_other(contract: Contract) {
    let contract = contract
        .quick(|config| config.handlers.time_out = Duration::from_secs(300))
        .await;
    let slow = Receiver::start(|_, _| (200, Duration::from_secs(300))).await;
    let quick = Receiver::answering(200).await;
    for (name, function) in [
        ("slow", slow.url.as_str()),
        ("quick", quick.url.as_str()),
        ("copy", "publish:copy"),
    ] {
        contract
            .register(json!({ "name": name, "function": function }))
            .await;
    }
    let ids = contract.aggregates(20);
    contract.append_rounds(&ids, 3).await;
    for name in ["quick", "copy"] {
        contract.handled(name).await;
    }
    assert_eq!(quick.taken().len(), 60);
    assert_eq!(contract.stream("copy").await["lastPosition"], 60);
    assert!(slow.begun() > 0, "it was called");
    assert!(slow.taken().is_empty(), "it still hangs");
    assert!(contract.handler("slow").await["lagEvents"].as_i64() > Some(0));
}

async fn what_is_due_is_tried_again_while_events_keep_coming(contract: Contract) {
    // It fails for as long as the appends take.
    let contract = contract
        .quick(|config| config.handlers.attempts = 1000)
        .await;
    let ids = contract.aggregates(9);
    let (bad, others) = (ids[0], &ids[1..]);
    let fails = bad.to_string();
    let hook = Receiver::start(move |no, body| {
        let fails = body["subject"] == fails && no < 50;
        (if fails { 500 } else { 200 }, Duration::ZERO)
    })
    .await;
    contract
        .register(json!({ "name": "hook", "function": hook.url }))
        .await;
    contract.append(event(bad)).await;
    until("a failure", async || {
        (!hook.posted().is_empty()).then_some(())
    })
    .await;
    let begun = Instant::now();
    while hook
        .taken()
        .iter()
        .all(|posted| posted.aggregate() != bad.to_string())
    {
        contract.append_rounds(others, 1).await;
        assert!(begun.elapsed() < LIMIT, "{:?}", hook.posted().len());
    }
    contract.handled("hook").await;
    until("the end of all deliveries", async || {
        contract.deliveries("hook").await.is_empty().then_some(())
    })
    .await;
}

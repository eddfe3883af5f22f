//! What handlers are given outside of the database: order, retries, dead deliveries, pauses, and giving events again.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use serde_json::{Value, json};
use tidings::{
    config::Config,
    domain::Event,
    handlers::{HandlerError, HandlerFunctions},
};
use uuid::Uuid;

use super::{Contract, event, list, with};
use crate::support::{
    client::LIMIT,
    in_process::{Database, Engine, TestServer},
    receiver::{Posted, Receiver},
};

cases!(
    a_webhook_is_given_each_wanted_event_as_a_signed_document,
    a_receiver_that_fails_now_and_then_gets_every_event_in_order,
    what_fails_waits_and_is_dead_after_the_last_attempt_and_the_aggregate_goes_on,
    dead_deliveries_are_put_back_in_line,
    an_endpoint_that_fails_five_times_pauses_its_handler_until_it_answers,
    a_redirect_is_not_followed,
    private_addresses_are_refused_at_registration_and_at_delivery,
    an_event_is_given_again_to_every_handler_that_wants_it,
    a_function_in_rust_is_called_in_order_and_again_where_it_fails,
    a_function_in_sql_is_called_once_for_each_event_and_its_faults_are_its_own,
    a_function_in_sql_that_takes_too_long_has_failed_for_that_event_alone,
    a_function_in_sql_that_is_gone_pauses_its_handler,
    a_pause_outlives_the_server_and_ends_with_a_handler_that_is_made_active_anew,
);

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// Short pauses, and webhooks to this machine.
fn quick(config: &mut Config) {
    config.handlers.webhook_secrets = vec![SECRET.parse().unwrap()];
    config.handlers.allow_private = true;
    config.handlers.time_out = Duration::from_secs(5);
    config.handlers.retry_delay = Duration::from_millis(20);
    config.handlers.longest_delay = Duration::from_millis(100);
}

impl Contract {
    pub async fn quick(self, configure: impl FnOnce(&mut Config)) -> Self {
        self.restarted(None, |config| {
            quick(config);
            configure(config);
        })
        .await
    }

    /// Appends events to aggregates, one to each after another, so many times.
    pub async fn append_rounds(&self, aggregates: &[Uuid], rounds: usize) {
        for _ in 0..rounds {
            let events: Vec<Value> = aggregates.iter().map(|id| event(*id)).collect();
            self.append_all(json!(events)).await;
        }
    }

    pub async fn process_event(&self, id: &Value) -> Value {
        let query = "mutation($input: ProcessEventInput!) { processEvent(input: $input) { processed deliveries { \
                     status attempts lastError handler { name } event { id } } } }";
        self.ask(query, json!({ "input": { "eventId": id } })).await["processEvent"].take()
    }

    async fn retry_dead(&self, name: &str, ids: Option<&[Value]>) -> i64 {
        let query = "mutation($input: RetryDeadDeliveriesInput!) { retryDeadDeliveries(input: $input) { count } }";
        let input = json!({ "handlerName": name, "deliveryIds": ids });
        let data = self.ask(query, json!({ "input": input })).await;
        data["retryDeadDeliveries"]["count"].as_i64().unwrap()
    }
}

/// Waits until something holds.
pub async fn until<T>(what: &str, mut check: impl AsyncFnMut() -> Option<T>) -> T {
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
fn versions(taken: &[Posted]) -> HashMap<String, Vec<i64>> {
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
        "http://2130706433/".to_owned(),
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

async fn a_function_in_rust_is_called_in_order_and_again_where_it_fails(contract: Contract) {
    let called: Arc<Mutex<Vec<(Uuid, i32)>>> = Arc::default();
    let attempts = Arc::new(Mutex::new(HashMap::<(Uuid, i32), u32>::new()));
    let functions = {
        let called = called.clone();
        let remember = move |event: Arc<Event>| {
            let (called, attempts) = (called.clone(), attempts.clone());
            async move {
                let key = (event.aggregate_id.0, event.version.0);
                let attempt = {
                    let mut attempts = attempts.lock().unwrap();
                    let attempt = attempts.entry(key).or_default();
                    *attempt += 1;
                    *attempt
                };
                match (key.1, attempt) {
                    (2, 1) => Err(HandlerError::from("not yet")),
                    (3, 1) => panic!("it goes wrong"),
                    _ => {
                        called.lock().unwrap().push(key);
                        Ok(())
                    }
                }
            }
        };
        HandlerFunctions::new().with("remember", remember).unwrap()
    };
    let database = contract.server.stop().await;
    let server = TestServer::with_functions(database, functions, quick).await;
    let contract = Contract {
        engine: contract.engine,
        partitions: contract.partitions,
        client: server.client(),
        server,
    };
    let failure = contract
        .register_is_refused(json!({ "name": "f", "function": "forget" }))
        .await;
    assert!(
        failure.message().contains("remember"),
        "{}",
        failure.message()
    );
    contract
        .register(json!({ "name": "f", "function": "remember" }))
        .await;
    let aggregates = contract.aggregates(4);
    contract.append_rounds(&aggregates, 4).await;
    until("every event", async || {
        (called.lock().unwrap().len() >= 16).then_some(())
    })
    .await;
    for id in aggregates {
        let called = called.lock().unwrap();
        let versions: Vec<i32> = called
            .iter()
            .filter(|key| key.0 == id)
            .map(|key| key.1)
            .collect();
        assert_eq!(versions, [1, 2, 3, 4]);
    }
    contract.handled("f").await;
}

async fn a_function_in_sql_is_called_once_for_each_event_and_its_faults_are_its_own(
    contract: Contract,
) {
    if contract.engine == Engine::Sqlite {
        // It is refused there, as another case shows.
        return;
    }
    let contract = contract
        .quick(|config| {
            config.handlers.attempts = 2;
            config.handlers.time_out = Duration::from_secs(5);
            config.handlers.retry_delay = Duration::from_secs(8);
            config.handlers.longest_delay = Duration::from_secs(8);
        })
        .await;
    let Database::Postgres(database) = contract.server.database.as_ref() else {
        panic!("it is not on PostgreSQL");
    };
    database.execute(
        "CREATE TABLE noted (event_id uuid, aggregate_id uuid, no int); \
         CREATE FUNCTION note(event uuid, aggregate uuid, data jsonb) RETURNS void LANGUAGE plpgsql AS $$ BEGIN \
         INSERT INTO noted VALUES (event, aggregate, (data ->> 'no')::int); \
         IF data ->> 'no' = '7' THEN RAISE EXCEPTION 'seven is too much'; END IF; END $$",
    );
    contract
        .register(json!({ "name": "note", "function": "sql:note" }))
        .await;
    let aggregates = contract.aggregates(4);
    for (no, id) in aggregates.iter().enumerate() {
        for step in 0..3 {
            let data = json!({ "no": 10 * no + step + if no == 0 { 6 } else { 0 } });
            contract
                .append(with(event(*id), json!({ "data": data })))
                .await;
        }
    }
    contract.handled("note").await;
    let left = contract.deliveries("note").await;
    let statuses: Vec<_> = left.iter().map(|delivery| &delivery["status"]).collect();
    assert_eq!(statuses, ["RETRYING", "WAITING"]);
    let dead = until("a dead delivery", async || {
        let left = contract.deliveries("note").await;
        (left.len() == 1 && left[0]["status"] == "DEAD").then_some(left)
    })
    .await;
    assert_eq!(dead[0]["lastError"], "seven is too much");
    assert_eq!(dead[0]["attempts"], 2);
    contract.handled("note").await;
    let noted = database
        .text("SELECT string_agg(no::text, ',' ORDER BY no) FROM noted")
        .await;
    assert_eq!(noted, "6,8,10,11,12,20,21,22,30,31,32");
    assert_eq!(
        contract.process_event(&dead[0]["event"]["id"]).await["deliveries"][0]["status"],
        "DEAD"
    );
    let other = contract.all_events().await[0]["id"].clone();
    assert_eq!(
        contract.process_event(&other).await["deliveries"][0]["status"],
        "DELIVERED"
    );
}

async fn a_function_in_sql_that_takes_too_long_has_failed_for_that_event_alone(contract: Contract) {
    if contract.engine == Engine::Sqlite {
        return;
    }
    let contract = contract
        .quick(|config| {
            config.handlers.attempts = 1;
            config.handlers.time_out = Duration::from_secs(1);
        })
        .await;
    let Database::Postgres(database) = contract.server.database.as_ref() else {
        panic!("it is not on PostgreSQL");
    };
    database.execute(
        "CREATE TABLE noted (no int); \
         CREATE FUNCTION note(event uuid, aggregate uuid, data jsonb) RETURNS void LANGUAGE plpgsql AS $$ BEGIN \
         INSERT INTO noted VALUES ((data ->> 'no')::int); \
         IF data ->> 'no' = '1' THEN PERFORM pg_sleep(60); END IF; END $$",
    );
    contract
        .register(json!({ "name": "note", "function": "sql:public.note" }))
        .await;
    contract.fill(4).await;
    contract.handled("note").await;
    let dead = contract.deliveries("note").await;
    assert_eq!(dead.len(), 1);
    assert_eq!(dead[0]["status"], "DEAD");
    assert_eq!(dead[0]["lastError"], "it took too long");
    let noted = database
        .text("SELECT string_agg(no::text, ',' ORDER BY no) FROM noted")
        .await;
    assert_eq!(noted, "0,2,3");
}

async fn a_function_in_sql_that_is_gone_pauses_its_handler(contract: Contract) {
    if contract.engine == Engine::Sqlite {
        return;
    }
    let contract = contract
        .quick(|config| {
            config.handlers.attempts = 100;
            config.handlers.time_out = Duration::from_secs(5);
        })
        .await;
    let Database::Postgres(database) = contract.server.database.as_ref() else {
        panic!("it is not on PostgreSQL");
    };
    let note = "CREATE FUNCTION note(event uuid, aggregate uuid, data jsonb) RETURNS void LANGUAGE sql AS $$ \
                INSERT INTO noted VALUES (event) $$";
    database.execute(&format!("CREATE TABLE noted (id uuid); {note}"));
    contract
        .register(json!({ "name": "note", "function": "sql:note" }))
        .await;
    database.execute("DROP FUNCTION note");
    let aggregates = contract.aggregates(100);
    contract.append_rounds(&aggregates, 1).await;
    let handler = until("a pause", async || {
        let handler = contract.handler("note").await;
        (handler["isPaused"] == true).then_some(handler)
    })
    .await;
    assert!(handler["lagEvents"].as_i64() > Some(0), "{handler}");
    let stored = contract.deliveries("note").await;
    assert!(stored.len() < 100, "{}", stored.len());
    let error = stored[0]["lastError"].as_str().unwrap();
    assert!(error.contains("there is no function note"), "{error}");
    database.execute(note);
    contract.handled("note").await;
    until("the end of all deliveries", async || {
        contract.deliveries("note").await.is_empty().then_some(())
    })
    .await;
    let noted = "SELECT count(*) || ' ' || count(DISTINCT id) FROM noted";
    assert_eq!(database.text(noted).await, "100 100");
    assert_eq!(contract.handler("note").await["isPaused"], false);
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

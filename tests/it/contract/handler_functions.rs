//! Functions in Rust and in SQL that handlers call.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use serde_json::json;
use tidings::{
    domain::Event,
    handlers::{HandlerError, HandlerFunctions},
};
use uuid::Uuid;

use super::{
    Contract,
    deliveries::{quick, until},
    event, with,
};
use crate::support::in_process::{Engine, TestServer};

cases!(
    a_function_in_rust_is_called_in_order_and_again_where_it_fails,
    a_function_in_rust_that_panics_has_failed_and_the_server_goes_on,
    a_function_in_sql_is_called_once_for_each_event_and_its_faults_are_its_own,
    a_function_in_sql_that_takes_too_long_has_failed_for_that_event_alone,
    a_function_in_sql_that_is_gone_pauses_its_handler,
    what_fails_together_in_sql_is_not_tried_again_together,
    a_handler_with_a_slow_function_in_sql_can_be_stopped_and_goes_on_where_it_stopped,
);

impl Contract {
    /// The server again, with functions in Rust.
    async fn with_functions(self, functions: HandlerFunctions, attempts: u32) -> Self {
        let database = self.server.stop().await;
        let server = TestServer::with_functions(database, functions, |config| {
            quick(config);
            config.handlers.attempts = attempts;
        })
        .await;
        Self {
            engine: self.engine,
            partitions: self.partitions,
            client: server.client(),
            server,
        }
    }
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
    let contract = contract.with_functions(functions, 8).await;
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

async fn a_function_in_rust_that_panics_has_failed_and_the_server_goes_on(contract: Contract) {
    let functions = HandlerFunctions::new()
        .with("within", |event: Arc<Event>| async move {
            assert!(event.version.0 != 1, "it goes wrong within");
            Ok::<_, HandlerError>(())
        })
        .unwrap()
        .with("before", |event: Arc<Event>| {
            assert!(event.version.0 != 1, "it goes wrong before");
            async { Ok::<_, HandlerError>(()) }
        })
        .unwrap();
    let contract = contract.with_functions(functions, 2).await;
    for name in ["within", "before"] {
        contract
            .register(json!({ "name": name, "function": name }))
            .await;
    }
    let aggregates = contract.aggregates(4);
    contract.append_rounds(&aggregates, 2).await;
    for name in ["within", "before"] {
        let dead = until("dead deliveries", async || {
            let left = contract.deliveries(name).await;
            let dead = left.iter().filter(|delivery| delivery["status"] == "DEAD");
            (dead.count() == 4).then_some(left)
        })
        .await;
        for delivery in dead.iter().filter(|delivery| delivery["status"] == "DEAD") {
            assert_eq!(delivery["event"]["version"], 1, "{name}");
            assert_eq!(delivery["attempts"], 2, "{name}");
            assert_eq!(delivery["lastError"], "the function panicked", "{name}");
        }
        // The second event of each was given.
        until("the end of all others", async || {
            (contract.deliveries(name).await.len() == 4).then_some(())
        })
        .await;
        contract.handled(name).await;
    }
    assert_eq!(contract.fill(1).await.len(), 1, "the server goes on");
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
    let Some(database) = contract.postgres() else {
        return;
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
    let contract = contract
        .quick(|config| {
            config.handlers.attempts = 1;
            config.handlers.time_out = Duration::from_secs(1);
        })
        .await;
    let Some(database) = contract.postgres() else {
        return;
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
    let contract = contract
        .quick(|config| {
            config.handlers.attempts = 100;
            config.handlers.time_out = Duration::from_secs(5);
        })
        .await;
    let Some(database) = contract.postgres() else {
        return;
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

async fn a_handler_with_a_slow_function_in_sql_can_be_stopped_and_goes_on_where_it_stopped(
    contract: Contract,
) {
    let contract = contract
        .quick(|config| config.handlers.time_out = Duration::from_secs(10))
        .await;
    let Some(database) = contract.postgres() else {
        return;
    };
    database.execute(
        "CREATE TABLE noted (no int); \
         CREATE FUNCTION note(event uuid, aggregate uuid, data jsonb) RETURNS void LANGUAGE plpgsql AS $$ BEGIN \
         INSERT INTO noted VALUES ((data ->> 'no')::int); \
         IF data ->> 'no' = '0' THEN PERFORM pg_sleep(3); END IF; END $$",
    );
    let input = json!({ "name": "note", "function": "sql:note" });
    contract.register(input).await;
    contract.fill(1).await;
    let sleeping = "SELECT count(*)::text FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'";
    until("the call", async || {
        (database.text(sleeping).await == "1").then_some(())
    })
    .await;
    // It is being called: the answer does not wait for it, and nothing more is called after a second.
    let begun = std::time::Instant::now();
    contract.set_active("note", false).await;
    assert!(
        begun.elapsed() < Duration::from_secs(2),
        "{:?}",
        begun.elapsed()
    );
    tokio::time::sleep(Duration::from_secs(1)).await;
    let ids = contract.aggregates(4);
    for (no, id) in ids.iter().enumerate() {
        let data = json!({ "data": { "no": no + 1 } });
        contract.append(with(event(*id), data)).await;
    }
    contract.projected().await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    let noted = "SELECT coalesce(string_agg(no::text, ',' ORDER BY no), '') FROM noted";
    assert_eq!(
        database.text(noted).await,
        "",
        "the call was undone, and none has followed"
    );
    contract.set_active("note", true).await;
    contract.handled("note").await;
    assert_eq!(database.text(noted).await, "0,1,2,3,4");
    assert!(contract.deliveries("note").await.is_empty());
}

async fn what_fails_together_in_sql_is_not_tried_again_together(contract: Contract) {
    let contract = contract
        .quick(|config| {
            config.handlers.retry_delay = Duration::from_secs(1000);
            config.handlers.longest_delay = Duration::from_secs(1000);
        })
        .await;
    let Some(database) = contract.postgres() else {
        return;
    };
    database.execute(
        "CREATE FUNCTION refuse(event uuid, aggregate uuid, data jsonb) RETURNS void LANGUAGE plpgsql AS $$ BEGIN \
         RAISE EXCEPTION 'not now'; END $$",
    );
    let input = json!({ "name": "refuse", "function": "sql:refuse" });
    contract.register(input).await;
    // Fewer than pause the handler, and all in one batch.
    let ids: Vec<Uuid> = (0..4).map(|_| contract.aggregate_in(0)).collect();
    let events: Vec<_> = ids.iter().map(|id| event(*id)).collect();
    contract.append_all(json!(events)).await;
    until("all failures", async || {
        (contract.deliveries("refuse").await.len() == 4).then_some(())
    })
    .await;
    // Of pauses of 800 to 1200 seconds four are nearly never that close.
    let spread = "SELECT CASE WHEN max(p) - min(p) > interval '1 second' AND min(p) >= interval '799 seconds' \
                  AND max(p) <= interval '1201 seconds' THEN 'differ' ELSE max(p) || ' ' || min(p) END \
                  FROM (SELECT next_attempt_at - updated_at AS p FROM deliveries) AS pauses";
    assert_eq!(database.text(spread).await, "differ");
}

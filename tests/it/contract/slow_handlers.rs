//! Handlers that are slow, whose checkpoints somebody has locked, or whose functions leave something behind: what that may not do
//! to others. Functions in SQL are PostgreSQL's, and so are locks of rows.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use sea_orm::sqlx::{self, AssertSqlSafe, Connection, PgConnection};
use serde_json::{Value, json};

use super::{Contract, deliveries::until, entry, event, with};
use crate::support::{
    in_process::{Database, Engine},
    postgres,
    receiver::Receiver,
};

cases!(
    a_locked_checkpoint_holds_up_no_other_handler_and_no_append,
    a_handler_begins_while_the_checkpoint_of_another_one_is_locked,
    what_slow_calls_have_done_is_stored_while_later_ones_run,
    a_call_that_shares_its_time_with_others_does_not_fail_of_it,
    a_deferred_constraint_that_a_call_breaks_is_a_fault_of_that_call,
    what_a_function_leaves_in_its_session_is_taken_away,
    an_event_that_its_handler_has_not_come_to_is_given_again_and_not_stored,
    an_event_that_is_given_again_waits_behind_its_aggregate,
    an_outcome_of_a_delivery_that_was_changed_meanwhile_is_not_stored,
);

impl Contract {
    /// Has the function `note` called with so many events of one aggregate, which are all there when it begins.
    async fn note_together(&self, events: u32) {
        self.register(json!({ "name": "note", "function": "sql:note" }))
            .await;
        self.set_active("note", false).await;
        let aggregate = self.aggregates(1)[0];
        for no in 0..events {
            let input = with(event(aggregate), json!({ "data": { "no": no } }));
            self.append(input).await;
        }
        self.set_active("note", true).await;
    }

    /// The database where it is PostgreSQL, which alone has functions in SQL.
    pub(super) fn postgres(&self) -> Option<&postgres::Database> {
        match self.server.database.as_ref() {
            Database::Postgres(database) => Some(database),
            Database::Sqlite(_) => None,
        }
    }

    /// Locks the checkpoints of a handler until the connection is dropped.
    async fn lock_checkpoints(&self, handler: &Value) -> PgConnection {
        let url = self.server.database.url();
        let mut connection = PgConnection::connect(&url).await.unwrap();
        let id = handler["id"].as_str().unwrap();
        let lock = format!("SELECT FROM checkpoints WHERE name = 'handler:{id}' FOR UPDATE");
        for sql in ["BEGIN", &lock] {
            sqlx::query(AssertSqlSafe(sql))
                .execute(&mut connection)
                .await
                .unwrap();
        }
        connection
    }
}

/// A lock that is waited for is waited for longer than any test goes on.
async fn patient(contract: Contract) -> Contract {
    contract
        .quick(|config| config.database.lock_timeout = Duration::from_secs(90))
        .await
}

async fn a_locked_checkpoint_holds_up_no_other_handler_and_no_append(contract: Contract) {
    if contract.engine == Engine::Sqlite {
        return;
    }
    let contract = patient(contract).await;
    let held = contract
        .register(json!({ "name": "held", "function": "publish:held" }))
        .await;
    contract
        .register(json!({ "name": "free", "function": "publish:free" }))
        .await;
    let lock = contract.lock_checkpoints(&held).await;
    for round in 1..=3 {
        contract.fill(8).await;
        contract.handled("free").await;
        assert_eq!(contract.stream("free").await["lastPosition"], 8 * round);
    }
    for name in ["free", "held", "other"] {
        contract.append_entry(entry(name)).await;
    }
    assert_eq!(contract.handler("held").await["lagEvents"], 24);
    lock.close().await.unwrap();
    contract.handled("held").await;
    assert_eq!(contract.stream("held").await["lastPosition"], 25);
    assert_eq!(contract.deliveries("held").await, [Value::Null; 0]);
}

async fn a_handler_begins_while_the_checkpoint_of_another_one_is_locked(contract: Contract) {
    if contract.engine == Engine::Sqlite {
        return;
    }
    let contract = patient(contract).await;
    let held = contract
        .register(json!({ "name": "held", "function": "publish:held" }))
        .await;
    contract.set_active("held", false).await;
    let lock = contract.lock_checkpoints(&held).await;
    contract.set_active("held", true).await;
    for name in ["one", "two"] {
        contract
            .register(json!({ "name": name, "function": format!("publish:{name}") }))
            .await;
        contract.fill(4).await;
        contract.handled(name).await;
    }
    lock.close().await.unwrap();
    contract.handled("held").await;
    for (name, count) in [("one", 8), ("two", 4), ("held", 8)] {
        assert_eq!(contract.stream(name).await["lastPosition"], count, "{name}");
    }
}

async fn what_slow_calls_have_done_is_stored_while_later_ones_run(contract: Contract) {
    let Some(database) = contract.postgres() else {
        return;
    };
    database.execute(
        "CREATE TABLE noted (no int); \
         CREATE FUNCTION note(event uuid, aggregate uuid, data jsonb) RETURNS void LANGUAGE plpgsql AS $$ BEGIN \
         PERFORM pg_sleep(0.4); INSERT INTO noted VALUES ((data ->> 'no')::int); END $$",
    );
    contract.note_together(8).await;
    let database = contract.postgres().unwrap();
    let first = until("the first calls", async || {
        let count: u32 = count(database, "SELECT count(*)::text FROM noted").await;
        (count > 0).then_some(count)
    })
    .await;
    assert!(first < 8, "{first} at once");
    contract.handled("note").await;
    let noted = database
        .text("SELECT string_agg(no::text, ',' ORDER BY no) FROM noted")
        .await;
    assert_eq!(noted, "0,1,2,3,4,5,6,7");
}

async fn count(database: &postgres::Database, query: &str) -> u32 {
    database.text(query).await.parse().unwrap()
}

async fn a_call_that_shares_its_time_with_others_does_not_fail_of_it(contract: Contract) {
    let contract = contract
        .quick(|config| {
            config.handlers.attempts = 1;
            config.handlers.time_out = Duration::from_secs(3);
        })
        .await;
    let Some(database) = contract.postgres() else {
        return;
    };
    // The third one begins in time, and has not enough of it left.
    database.execute(
        "CREATE TABLE noted (no int); \
         CREATE FUNCTION note(event uuid, aggregate uuid, data jsonb) RETURNS void LANGUAGE plpgsql AS $$ BEGIN \
         INSERT INTO noted VALUES ((data ->> 'no')::int); \
         PERFORM pg_sleep(CASE data ->> 'no' WHEN '2' THEN 2.4 ELSE 0.4 END); END $$",
    );
    contract.note_together(5).await;
    contract.handled("note").await;
    assert_eq!(contract.deliveries("note").await, [Value::Null; 0]);
    let database = contract.postgres().unwrap();
    let noted = database
        .text("SELECT string_agg(no::text, ',' ORDER BY no) FROM noted")
        .await;
    assert_eq!(noted, "0,1,2,3,4");
}

async fn a_deferred_constraint_that_a_call_breaks_is_a_fault_of_that_call(contract: Contract) {
    let contract = contract.quick(|config| config.handlers.attempts = 1).await;
    let Some(database) = contract.postgres() else {
        return;
    };
    // Each call relies on that the constraint is deferred; the second one never makes it good.
    database.execute(
        "CREATE TABLE parents (no int PRIMARY KEY); \
         CREATE TABLE noted (no int REFERENCES parents DEFERRABLE INITIALLY DEFERRED); \
         CREATE FUNCTION note(event uuid, aggregate uuid, data jsonb) RETURNS void LANGUAGE plpgsql AS $$ BEGIN \
         INSERT INTO noted VALUES ((data ->> 'no')::int); \
         IF data ->> 'no' <> '1' THEN INSERT INTO parents VALUES ((data ->> 'no')::int); END IF; END $$",
    );
    contract.note_together(4).await;
    contract.handled("note").await;
    let dead = contract.deliveries("note").await;
    assert_eq!(dead.len(), 1, "{dead:?}");
    assert_eq!(dead[0]["status"], "DEAD");
    assert_eq!(dead[0]["event"]["version"], 2);
    let error = dead[0]["lastError"].as_str().unwrap();
    assert!(error.contains("foreign key"), "{error}");
    let database = contract.postgres().unwrap();
    let noted = "SELECT string_agg(no::text, ',' ORDER BY no) FROM noted";
    assert_eq!(database.text(noted).await, "0,2,3");
    // So it is where somebody gives it again.
    database.execute("DELETE FROM deliveries");
    let payload = contract.process_event(&dead[0]["event"]["id"]).await;
    let error = payload["deliveries"][0]["lastError"].as_str().unwrap();
    assert!(error.contains("foreign key"), "{error}");
    assert_eq!(database.text(noted).await, "0,2,3");
}

async fn what_a_function_leaves_in_its_session_is_taken_away(contract: Contract) {
    let contract = contract.quick(|config| config.handlers.attempts = 1).await;
    let Some(database) = contract.postgres() else {
        return;
    };
    database.execute(
        "CREATE TABLE noted (no int, found text); \
         CREATE FUNCTION note(event uuid, aggregate uuid, data jsonb) RETURNS void LANGUAGE plpgsql AS $$ BEGIN \
         INSERT INTO noted VALUES ((data ->> 'no')::int, \
           coalesce(current_setting('my.left', true), '') || current_setting('lock_timeout')); \
         PERFORM set_config('my.left', 'something', false), set_config('lock_timeout', '1ms', false), \
           pg_advisory_lock(4711); \
         IF data ->> 'no' = '2' THEN PERFORM set_config('search_path', 'pg_catalog', false); END IF; END $$",
    );
    contract
        .register(json!({ "name": "note", "function": "sql:note" }))
        .await;
    let aggregate = contract.aggregates(1)[0];
    for no in 0..4 {
        let input = with(event(aggregate), json!({ "data": { "no": no } }));
        contract.append(input).await;
        contract.handled("note").await;
    }
    let database = contract.postgres().unwrap();
    let found = "SELECT string_agg(no || ' ' || found, ', ' ORDER BY no) FROM noted";
    let found = database.text(found).await;
    assert!(!found.contains("something"), "{found}");
    assert!(!found.contains("1ms"), "{found}");
    let dead = contract.deliveries("note").await;
    assert_eq!(dead.len(), 1, "{dead:?}");
    assert_eq!(dead[0]["event"]["version"], 3);
    let error = dead[0]["lastError"].as_str().unwrap();
    assert!(error.contains("search_path"), "{error}");
    let locks = "SELECT count(*)::text FROM pg_locks WHERE locktype = 'advisory' AND objid = 4711";
    until("the end of all locks", async || {
        (count(database, locks).await == 0).then_some(())
    })
    .await;
}

async fn an_event_that_its_handler_has_not_come_to_is_given_again_and_not_stored(
    contract: Contract,
) {
    let contract = contract
        .quick(|config| {
            config.handlers.retry_delay = Duration::from_secs(600);
            config.handlers.longest_delay = Duration::from_secs(600);
            config.handlers.concurrency = 1;
        })
        .await;
    let receiver = Receiver::answering(500).await;
    contract
        .register(json!({ "name": "hook", "function": receiver.url }))
        .await;
    // Of one partition: a handler comes to the end of one with few events before it is paused.
    let aggregates: Vec<_> = (0..20).map(|_| contract.aggregate_in(1)).collect();
    contract.append_rounds(&aggregates, 1).await;
    let mut lasts = Vec::new();
    for id in aggregates.iter().take(4) {
        lasts.push(contract.append(event(*id)).await["event"].take());
    }
    until("a pause", async || {
        (contract.handler("hook").await["isPaused"] == true).then_some(())
    })
    .await;
    let last = lasts.last().unwrap();
    let payload = contract.process_event(&last["id"]).await;
    let told = &payload["deliveries"][0];
    assert_eq!(told["status"], "RETRYING");
    assert!(told["lastError"].as_str().unwrap().contains("500"));
    let stored = contract.deliveries("hook").await;
    assert!(
        stored
            .iter()
            .all(|delivery| delivery["event"]["id"] != last["id"]),
        "{stored:?}"
    );
    assert!(contract.handler("hook").await["lagEvents"].as_i64() > Some(0));
}

async fn an_event_that_is_given_again_waits_behind_its_aggregate(contract: Contract) {
    let contract = contract
        .quick(|config| {
            config.handlers.retry_delay = Duration::from_secs(600);
            config.handlers.longest_delay = Duration::from_secs(600);
        })
        .await;
    let receiver = Receiver::answering(200).await;
    contract
        .register(json!({ "name": "hook", "function": receiver.url }))
        .await;
    let aggregate = contract.aggregates(1)[0];
    let first = contract.append(event(aggregate)).await["event"].take();
    contract.handled("hook").await;
    receiver.answer(|_, _| (500, Duration::ZERO));
    contract.append(event(aggregate)).await;
    contract.handled("hook").await;
    let payload = contract.process_event(&first["id"]).await;
    assert_eq!(payload["deliveries"][0]["status"], "WAITING");
    let stored = contract.deliveries("hook").await;
    let statuses: Vec<_> = stored
        .iter()
        .map(|delivery| {
            (
                delivery["event"]["version"].as_i64().unwrap(),
                delivery["status"].as_str().unwrap(),
            )
        })
        .collect();
    assert_eq!(statuses, [(1, "WAITING"), (2, "RETRYING")]);
    assert_eq!(stored[0]["nextAttemptAt"], Value::Null);
}

async fn an_outcome_of_a_delivery_that_was_changed_meanwhile_is_not_stored(contract: Contract) {
    let Some(_) = contract.postgres() else {
        return;
    };
    let contract = contract.quick(|_| {}).await;
    let database = contract.postgres().unwrap();
    let asked = Arc::new(AtomicUsize::new(0));
    // The second attempt succeeds, slowly.
    let receiver = {
        let asked = asked.clone();
        Receiver::start(move |no, _| {
            asked.fetch_max(no + 1, Ordering::SeqCst);
            match no {
                1 => (200, Duration::from_secs(2)),
                _ => (500, Duration::ZERO),
            }
        })
        .await
    };
    contract
        .register(json!({ "name": "hook", "function": receiver.url }))
        .await;
    let aggregate = contract.aggregates(1)[0];
    contract.append(event(aggregate)).await;
    until("the second attempt", async || {
        (asked.load(Ordering::SeqCst) == 2).then_some(())
    })
    .await;
    database.execute("UPDATE deliveries SET attempts = 7, next_attempt_at = now()");
    // It is as if it had not been made: the next one is the eighth, and the last.
    let dead = until("a dead delivery", async || {
        let stored = contract.deliveries("hook").await;
        (stored.len() == 1 && stored[0]["status"] == "DEAD").then_some(stored)
    })
    .await;
    assert_eq!(dead[0]["attempts"], 8);
}

//! Handlers that SQL clients register, and events that they give to handlers again.

use serde_json::{Value, json};

use super::{Sql, on_postgres, start};
use crate::support::in_process::TestServer;

on_postgres!(
    a_handler_from_sql_is_a_handler_of_the_server,
    a_new_handler_begins_with_the_next_event,
    process_event_runs_what_the_database_can_and_queues_the_rest,
    an_event_that_a_function_has_not_come_to_is_left_to_it,
    a_function_that_fails_undoes_itself_alone_and_is_tried_again,
    functions_are_called_with_values_and_never_with_text,
    what_a_function_breaks_for_the_commit_is_its_own_fault,
    what_the_client_has_broken_for_the_commit_is_no_functions_fault,
    a_function_that_leaves_another_role_or_search_path_has_failed,
    a_deadlock_in_a_function_is_the_transactions,
    what_fails_together_in_sql_is_not_tried_again_together,
);

const NOTE: &str = "CREATE TABLE notes (event_id uuid, aggregate_id uuid, data jsonb); \
     CREATE FUNCTION note(uuid, uuid, jsonb) RETURNS void LANGUAGE sql AS 'INSERT INTO notes VALUES ($1, $2, $3)'; \
     CREATE FUNCTION fail(a uuid, b uuid, c jsonb) RETURNS void LANGUAGE plpgsql AS \
     'BEGIN INSERT INTO notes VALUES (a, b, c); RAISE EXCEPTION ''not now''; END'";

async fn bench(partitions: u8, background: bool) -> (TestServer, Sql) {
    let server = start(partitions, |config| config.background.enabled = background).await;
    let mut sql = Sql::connect(&server).await;
    sql.run(NOTE).await.unwrap();
    (server, sql)
}

async fn register(sql: &mut Sql, name: &str, event_type: &str, function: &str) {
    let call = format!("SELECT register_event_handler('{name}', '{event_type}', '{function}')");
    sql.run(&call).await.unwrap();
}

async fn a_handler_from_sql_is_a_handler_of_the_server(partitions: u8) {
    let (server, mut sql) = bench(partitions, true).await;
    register(&mut sql, "a", "seen", "log").await;
    register(&mut sql, "b", "seen", "publish:all seen").await;
    register(&mut sql, "c", "seen", "https://example.com/hook?a=b").await;
    register(&mut sql, "d", "seen", "note").await;
    register(&mut sql, "e", "seen", "sql:public.note").await;
    register(&mut sql, "a", "noticed", "note").await;
    let query = "{ eventHandlers { name eventTypes function isActive lagEvents } }";
    let data = server.client().query(query, json!({})).await.unwrap();
    let handler = |name: &str, event_type: &str, function: &str| json!({ "name": name, "eventTypes": [event_type], "function": function, "isActive": true, "lagEvents": 0 });
    let expected = json!([
        handler("a", "noticed", "sql:note"),
        handler("b", "seen", "publish:all seen"),
        handler("c", "seen", "https://example.com/hook?a=b"),
        handler("d", "seen", "sql:note"),
        handler("e", "seen", "sql:public.note"),
    ]);
    assert_eq!(data["eventHandlers"], expected);
    let checkpoints = sql
        .rows("SELECT name FROM checkpoints WHERE name LIKE 'handler:%'")
        .await;
    assert_eq!(checkpoints.len(), 5 * usize::from(partitions));
}

async fn a_new_handler_begins_with_the_next_event(partitions: u8) {
    let (_server, mut sql) = bench(partitions, true).await;
    let append = |n: i32| {
        format!(
            "SELECT append_event('user-{}', 'user', 'seen', '{n}')",
            n % 5
        )
    };
    for n in 0..10 {
        sql.run(&append(n)).await.unwrap();
    }
    register(&mut sql, "note", "seen", "note").await;
    for n in 10..20 {
        sql.run(&append(n)).await.unwrap();
    }
    until(&mut sql, "SELECT count(*) FROM notes", "10").await;
    let notes = sql.rows("SELECT data FROM notes ORDER BY data").await;
    let expected: Vec<Value> = (10..20).map(|n| json!({ "data": n })).collect();
    assert_eq!(notes, expected);
}

async fn process_event_runs_what_the_database_can_and_queues_the_rest(partitions: u8) {
    let (server, mut sql) = bench(partitions, false).await;
    let append = "SELECT append_event('user', 'user', 'seen', '{\"n\": 1}')";
    let id = sql.value(append).await.unwrap().unwrap();
    for (name, event_type, function) in [
        ("hook", "seen", "https://example.com/hook"),
        ("log", "seen", "log"),
        ("note", "seen", "note"),
        ("off", "seen", "note"),
        ("other", "noticed", "note"),
        ("publish", "seen", "publish:all seen"),
        ("published", "seen", "publish:others"),
    ] {
        register(&mut sql, name, event_type, function).await;
    }
    sql.run("UPDATE event_handlers SET is_active = false WHERE handler_name = 'off'")
        .await
        .unwrap();
    for _ in 0..3 {
        let processed = sql.value(&format!("SELECT process_event('{id}')")).await;
        assert_eq!(processed.unwrap().as_deref(), Some("true"));
    }
    let note = json!({ "event_id": id, "data": { "n": 1 } });
    let notes = sql.rows("SELECT event_id, data FROM notes").await;
    assert_eq!(notes, vec![note; 3]);
    for stream in ["all seen", "others"] {
        let entries = format!(
            "SELECT event_id, event_type, event_data, position FROM read_from_stream('{stream}')"
        );
        let entry = json!({ "event_id": id, "event_type": "seen", "event_data": { "n": 1 }, "position": 1 });
        assert_eq!(sql.rows(&entries).await, [entry]);
    }
    // The first one may be in a server's hand; one waits behind it, however often the event was given.
    let deliveries = "SELECT h.handler_name, d.status, d.attempts, d.next_attempt_at <= now() AS is_due, h.revision \
                      FROM deliveries d JOIN event_handlers h ON h.id = d.handler_id ORDER BY d.status";
    let queued = |status: &str, is_due: Value, revision: i32| json!({ "handler_name": "hook", "status": status, "attempts": 0, "is_due": is_due, "revision": revision });
    assert_eq!(
        sql.rows(deliveries).await,
        [
            queued("RETRYING", json!(true), 3),
            queued("WAITING", Value::Null, 3)
        ]
    );

    // A dead one is put back in line, and one that was tried already need not wait any longer.
    sql.run("DELETE FROM deliveries WHERE status = 'WAITING'")
        .await
        .unwrap();
    for change in [
        "status = 'DEAD', next_attempt_at = NULL",
        "next_attempt_at = now() + interval '1 hour'",
    ] {
        sql.run(&format!("UPDATE deliveries SET {change}"))
            .await
            .unwrap();
        sql.run(&format!("SELECT process_event('{id}')"))
            .await
            .unwrap();
        let rows = sql.rows(deliveries).await;
        let revision = rows[0]["revision"].as_i64().unwrap();
        assert_eq!(rows, [queued("RETRYING", json!(true), revision as i32)]);
    }
    drop(server);
}

async fn an_event_that_a_function_has_not_come_to_is_left_to_it(partitions: u8) {
    let (_server, mut sql) = bench(partitions, false).await;
    for (name, function) in [("hook", "https://example.com/hook"), ("fail", "fail")] {
        register(&mut sql, name, "seen", function).await;
    }
    // No server runs handlers here, so none of them comes to it.
    let processed =
        "SELECT process_event(append_event('user', 'user', 'seen', '{\"n\": 1}')) AS is_there";
    assert_eq!(sql.value(processed).await.unwrap().as_deref(), Some("true"));
    let stored = "SELECT h.handler_name, d.attempts FROM deliveries d JOIN event_handlers h ON h.id = d.handler_id";
    let hook = json!({ "handler_name": "hook", "attempts": 0 });
    assert_eq!(sql.rows(stored).await, [hook]);
    assert_eq!(
        sql.rows("SELECT event_id FROM notes").await,
        Vec::<Value>::new()
    );
}

async fn a_function_that_fails_undoes_itself_alone_and_is_tried_again(partitions: u8) {
    let (server, mut sql) = bench(partitions, false).await;
    let append = "SELECT append_event('user', 'user', 'seen', '{\"n\": 1}')";
    let id = sql.value(append).await.unwrap().unwrap();
    register(&mut sql, "a", "seen", "fail").await;
    register(&mut sql, "b", "seen", "note").await;
    let processed = sql.value(&format!("SELECT process_event('{id}')")).await;
    assert_eq!(processed.unwrap().as_deref(), Some("true"));
    assert_eq!(sql.rows("SELECT FROM notes").await.len(), 1);
    let deliveries = "SELECT h.handler_name, d.status, d.attempts, d.last_error FROM deliveries d JOIN event_handlers h ON h.id = d.handler_id";
    let failed = json!({ "handler_name": "a", "status": "RETRYING", "attempts": 1, "last_error": "not now" });
    assert_eq!(sql.rows(deliveries).await, [failed]);

    // The server goes on with it once it can.
    sql.run("CREATE OR REPLACE FUNCTION fail(a uuid, b uuid, c jsonb) RETURNS void LANGUAGE sql AS 'SELECT'; \
             UPDATE deliveries SET next_attempt_at = now()")
        .await
        .unwrap();
    let database = server.stop().await;
    let _server = TestServer::on(database, |_| {}).await;
    until(&mut sql, "SELECT count(*) FROM deliveries", "0").await;
}

async fn functions_are_called_with_values_and_never_with_text(partitions: u8) {
    let (_server, mut sql) = bench(partitions, false).await;
    sql.run("CREATE FUNCTION \"Odd Name; DROP TABLE notes\"(uuid, uuid, jsonb) RETURNS void LANGUAGE sql AS 'SELECT'")
        .await
        .unwrap();
    let register_odd = "SELECT register_event_handler('odd', 'seen', 'Odd Name; DROP TABLE notes')";
    assert_eq!(sql.refused(register_odd).await.code, "22023");
    register(&mut sql, "note", "seen", "note").await;
    let data = r#"{"a": "'; DROP TABLE notes; --", "b": "$1"}"#;
    let append = format!(
        "SELECT append_event('user', 'user', 'seen', {})",
        super::literal(data)
    );
    let id = sql.value(&append).await.unwrap().unwrap();
    // Somebody has written past the function that registers.
    sql.run("UPDATE event_handlers SET handler_function = 'sql:note''(); DROP TABLE notes; --' WHERE handler_name = 'note'")
        .await
        .unwrap();
    sql.run(&format!("SELECT process_event('{id}')"))
        .await
        .unwrap();
    register(&mut sql, "note", "seen", "note").await;
    sql.run(&format!("SELECT process_event('{id}')"))
        .await
        .unwrap();
    let expected: Value = serde_json::from_str(data).unwrap();
    assert_eq!(
        sql.rows("SELECT data FROM notes").await,
        [json!({ "data": expected })]
    );
}

/// A table whose rows need a parent by the commit, and a function that makes them; that of `1` it leaves without one.
const ORPHANS: &str = "CREATE TABLE parents (no int PRIMARY KEY); \
     CREATE TABLE noted (no int REFERENCES parents DEFERRABLE INITIALLY DEFERRED); \
     CREATE FUNCTION adopt(event uuid, aggregate uuid, data jsonb) RETURNS void LANGUAGE plpgsql AS $$ BEGIN \
     INSERT INTO noted VALUES ((data ->> 'no')::int); \
     IF data ->> 'no' <> '1' THEN INSERT INTO parents VALUES ((data ->> 'no')::int); END IF; END $$";

/// Appends an event with a number, before the handler is registered, and answers its id.
async fn numbered(sql: &mut Sql, no: i32) -> String {
    let append = format!("SELECT append_event('user-{no}', 'user', 'seen', '{{\"no\": {no}}}')");
    sql.value(&append).await.unwrap().unwrap()
}

async fn what_a_function_breaks_for_the_commit_is_its_own_fault(partitions: u8) {
    let (_server, mut sql) = bench(partitions, false).await;
    sql.run(ORPHANS).await.unwrap();
    let (good, bad) = (numbered(&mut sql, 0).await, numbered(&mut sql, 1).await);
    let last = numbered(&mut sql, 2).await;
    register(&mut sql, "adopt", "seen", "adopt").await;
    // The one after it finds its constraint deferred again.
    sql.run(&format!(
        "BEGIN; SELECT process_event('{good}'), process_event('{bad}'), process_event('{last}'); COMMIT"
    ))
    .await
    .unwrap();
    let noted = sql.rows("SELECT no FROM noted ORDER BY no").await;
    assert_eq!(noted, [json!({ "no": 0 }), json!({ "no": 2 })]);
    let deliveries = "SELECT d.attempts, d.last_error ~ 'foreign key' AS is_told, e.event_data ->> 'no' AS no \
         FROM deliveries d JOIN events e ON e.partition_no = d.partition_no AND e.position = d.event_position";
    let failed = json!({ "attempts": 1, "is_told": true, "no": "1" });
    assert_eq!(sql.rows(deliveries).await, [failed]);
}

async fn what_the_client_has_broken_for_the_commit_is_no_functions_fault(partitions: u8) {
    let (_server, mut sql) = bench(partitions, false).await;
    sql.run(ORPHANS).await.unwrap();
    let good = numbered(&mut sql, 0).await;
    register(&mut sql, "adopt", "seen", "adopt").await;
    let process = format!("BEGIN; INSERT INTO noted VALUES (7); SELECT process_event('{good}')");
    assert_eq!(sql.refused(&process).await.code, "23503");
    sql.run("ROLLBACK").await.unwrap();
    assert!(sql.rows("SELECT FROM noted").await.is_empty());
    assert!(sql.rows("SELECT FROM deliveries").await.is_empty());
}

async fn a_function_that_leaves_another_role_or_search_path_has_failed(partitions: u8) {
    let (_server, mut sql) = bench(partitions, false).await;
    sql.run(
        "CREATE FUNCTION stray(event uuid, aggregate uuid, data jsonb) RETURNS void LANGUAGE plpgsql AS $$ BEGIN \
         INSERT INTO public.notes VALUES (event, aggregate, data); \
         PERFORM set_config(CASE data ->> 'no' WHEN '0' THEN 'search_path' ELSE 'role' END, 'pg_monitor', false); END $$",
    )
    .await
    .unwrap();
    let ids = [numbered(&mut sql, 0).await, numbered(&mut sql, 1).await];
    register(&mut sql, "stray", "seen", "stray").await;
    for id in ids {
        sql.run(&format!("SELECT process_event('{id}')"))
            .await
            .unwrap();
    }
    assert!(sql.rows("SELECT FROM notes").await.is_empty());
    let failed =
        "SELECT FROM deliveries WHERE attempts = 1 AND last_error ~ 'the role or the search_path'";
    assert_eq!(sql.rows(failed).await.len(), 2);
    let user = sql.value("SELECT current_user").await.unwrap();
    assert_eq!(user, sql.value("SELECT session_user").await.unwrap());
}

async fn a_deadlock_in_a_function_is_the_transactions(partitions: u8) {
    let (_server, mut sql) = bench(partitions, false).await;
    let id = numbered(&mut sql, 0).await;
    register(&mut sql, "a", "seen", "note").await;
    register(&mut sql, "b", "seen", "fail").await;
    for code in ["40P01", "40001"] {
        sql.run(&format!(
            "CREATE OR REPLACE FUNCTION fail(a uuid, b uuid, c jsonb) RETURNS void LANGUAGE plpgsql AS \
             'BEGIN RAISE EXCEPTION ''not now'' USING ERRCODE = ''{code}''; END'"
        ))
        .await
        .unwrap();
        let refused = sql.refused(&format!("SELECT process_event('{id}')")).await;
        assert_eq!(
            (refused.code.as_str(), refused.message.as_str()),
            (code, "not now")
        );
        assert!(
            sql.rows("SELECT FROM notes").await.is_empty(),
            "all of it is undone"
        );
        assert!(
            sql.rows("SELECT FROM deliveries").await.is_empty(),
            "it is no attempt"
        );
    }
}

async fn what_fails_together_in_sql_is_not_tried_again_together(partitions: u8) {
    let (_server, mut sql) = bench(partitions, false).await;
    let mut ids = Vec::new();
    for no in 0..8 {
        ids.push(numbered(&mut sql, no).await);
    }
    register(&mut sql, "fail", "seen", "fail").await;
    let together: Vec<String> = ids
        .iter()
        .map(|id| format!("process_event('{id}')"))
        .collect();
    sql.run(&format!("SELECT {}", together.join(", ")))
        .await
        .unwrap();
    // Of pauses of 4 to 6 seconds eight are never that close.
    let pauses = "SELECT count(*) AS n, bool_and(p BETWEEN interval '3.9 s' AND interval '6 s') AS are_right, \
         max(p) - min(p) > interval '1 ms' AS differ \
         FROM (SELECT next_attempt_at - updated_at AS p FROM deliveries WHERE status = 'RETRYING') AS pauses";
    let expected = json!({ "n": 8, "are_right": true, "differ": true });
    assert_eq!(sql.rows(pauses).await, [expected]);
}

async fn until(sql: &mut Sql, query: &str, expected: &str) {
    let wait = async {
        while sql.value(query).await.unwrap().as_deref() != Some(expected) {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    let waited = tokio::time::timeout(crate::support::client::LIMIT, wait).await;
    assert!(waited.is_ok(), "{query} does not come to {expected}");
}

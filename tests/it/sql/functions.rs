//! What the functions take, and where: keys, limits, search paths, installation again.

use serde_json::{Value, json};

use super::{Sql, literal, on_postgres, start};

on_postgres!(
    a_key_stands_for_the_same_aggregate_in_sql_and_in_the_api,
    an_aggregate_from_sql_is_the_same_as_one_from_the_api,
    functions_work_whatever_the_search_path_is,
    a_temporary_table_takes_no_tables_place,
    sql_clients_are_held_to_the_servers_own_limit,
    json_that_sql_takes_comes_back_from_the_api,
    a_role_that_may_do_nothing_gets_nothing,
    the_rights_of_the_documentation_are_enough_and_no_more,
    the_examples_of_the_documentation_run,
);

async fn a_key_stands_for_the_same_aggregate_in_sql_and_in_the_api(partitions: u8) {
    let server = start(partitions, |_| {}).await;
    let mut sql = Sql::connect(&server).await;
    let keys = [
        "user-123",
        "äöü",
        "a'b",
        " ",
        "0192d3f0-1111-7222-8333-444455556666",
        "0192D3F0-1111-7222-8333-444455556666",
        "0192d3f0111172228333444455556666",
        "{0192d3f0-1111-7222-8333-444455556666}",
        "urn:uuid:0192d3f0-1111-7222-8333-444455556666",
        "URN:UUID:0192d3f0-1111-7222-8333-444455556666",
        "0192d3f0-11117222-8333-444455556666",
        "{0192d3f0111172228333444455556666}",
        "0192d3f0-1111-7222-8333-44445555666g",
        " 0192d3f0-1111-7222-8333-444455556666",
        &"long key ".repeat(100),
    ];
    for key in keys {
        let query = format!("SELECT tidings_id_of_key({})", literal(key));
        let by_sql = sql.value(&query).await.unwrap().unwrap();
        let query = "query($key: String!) { aggregateId(key: $key) }";
        let data = server.client().query(query, json!({ "key": key })).await;
        assert_eq!(data.unwrap()["aggregateId"], json!(by_sql), "{key}");
    }
    let refused = sql
        .refused("SELECT append_event('', 'user', 'seen', '{}')")
        .await;
    assert_eq!(
        (refused.code.as_str(), refused.message.as_str()),
        ("22023", "a key must not be empty")
    );
}

async fn an_aggregate_from_sql_is_the_same_as_one_from_the_api(partitions: u8) {
    let server = start(partitions, |_| {}).await;
    let mut sql = Sql::connect(&server).await;
    let client = server.client();
    sql.run("SELECT create_aggregate('order-1', 'order')")
        .await
        .unwrap();
    sql.run("SELECT append_event('order-1', 'order', 'order_placed', '{\"n\": 1}', '{\"by\": \"sql\"}')")
        .await
        .unwrap();
    let id = sql
        .value("SELECT tidings_id_of_key('order-1')")
        .await
        .unwrap();
    let append =
        "mutation($input: AppendEventInput!) { appendEvent(input: $input) { event { version } } }";
    let input = json!({ "aggregateId": id, "aggregateType": "order", "type": "order_paid", "data": { "n": 2 }, "expectedVersion": 1 });
    client
        .query(append, json!({ "input": input }))
        .await
        .unwrap();
    sql.run("SELECT append_event('order-1', 'order', 'order_sent', '{\"n\": 3}', '{}', 2)")
        .await
        .unwrap();

    let query = "query($id: UUID!) { aggregate(id: $id) { type version events { type data metadata version } } }";
    let data = client.query(query, json!({ "id": id })).await.unwrap();
    let event = |event_type: &str, version: i64, metadata: Value| json!({ "type": event_type, "data": { "n": version }, "metadata": metadata, "version": version });
    let expected = json!({ "type": "order", "version": 3, "events": [
        event("order_placed", 1, json!({ "by": "sql" })),
        event("order_paid", 2, json!({})),
        event("order_sent", 3, json!({})),
    ] });
    assert_eq!(data["aggregate"], expected);
    let events = sql
        .rows("SELECT event_type, version FROM get_events_for_aggregate('order-1', 1)")
        .await;
    assert_eq!(events.len(), 2);
    assert_eq!(
        events[0],
        json!({ "event_type": "order_paid", "version": 2 })
    );
}

/// Each function once, with its schema.
pub(super) const CALLS: &[&str] = &[
    "append_event('a', 'user', 'seen', '{}')",
    "append_event('0192d3f0-1111-7222-8333-444455556666'::uuid, 'user', 'seen', '{}')",
    "get_events_for_aggregate('a')",
    "create_aggregate('b', 'user')",
    "get_aggregate_version('a')",
    "update_aggregate_version('a', 1)",
    "create_command('a', 'update_user', '{}')",
    "update_read_model('a', 'user', '{}', 1)",
    "get_read_model('a')",
    "append_to_stream('s', 'e', 'seen', '{}')",
    "read_from_stream('s')",
    "register_event_handler('h', 'seen', 'log')",
    "process_event((SELECT id FROM public.events LIMIT 1))",
    "process_command((SELECT id FROM public.commands LIMIT 1))",
    "record_event_metrics('seen', 'user', 1)",
    "get_event_metrics()",
];

async fn functions_work_whatever_the_search_path_is(partitions: u8) {
    let server = start(partitions, |_| {}).await;
    let mut sql = Sql::connect(&server).await;
    for path in ["pg_catalog", "''", "elsewhere"] {
        sql.run(&format!(
            "CREATE SCHEMA IF NOT EXISTS elsewhere; SET search_path = {path}; BEGIN"
        ))
        .await
        .unwrap();
        for call in CALLS {
            let call = format!("SELECT * FROM public.{call}");
            if let Err(refused) = sql.run(&call).await {
                panic!("{call} with the search path {path}: {refused:?}");
            }
        }
        sql.run("ROLLBACK").await.unwrap();
    }
}

async fn a_temporary_table_takes_no_tables_place(partitions: u8) {
    let server = start(partitions, |_| {}).await;
    let mut sql = Sql::connect(&server).await;
    sql.run("CREATE TEMPORARY TABLE events (LIKE events); CREATE TEMPORARY TABLE aggregates (LIKE aggregates)")
        .await
        .unwrap();
    sql.run("SELECT append_event('a', 'user', 'seen', '{}')")
        .await
        .unwrap();
    assert!(sql.rows("SELECT FROM pg_temp.events").await.is_empty());
    assert_eq!(sql.rows("SELECT FROM public.events").await.len(), 1);
}

async fn sql_clients_are_held_to_the_servers_own_limit(partitions: u8) {
    let server = start(partitions, |config| {
        config.limits.max_event_bytes = 1000;
        // It would publish events of users.
        config.background.enabled = false;
    })
    .await;
    let mut sql = Sql::connect(&server).await;
    let append = |chars: usize| {
        format!(
            "SELECT append_event('a', 'user', 'seen', '\"{}\"')",
            "x".repeat(chars)
        )
    };
    sql.run(&append(998)).await.unwrap();
    let refused = sql.refused(&append(999)).await;
    assert_eq!(
        (refused.code.as_str(), refused.message.as_str()),
        (
            "22023",
            "p_event_data has 1001 bytes as JSON text: at most 1000 are allowed"
        )
    );
    for (call, parameter) in [
        ("append_to_stream('s', 'e', 'seen', %)", "p_event_data"),
        ("create_command('a', 'update_user', %)", "p_command_data"),
        ("update_read_model('a', 'user', %, 1)", "p_model_data"),
        (
            "append_event('a', 'user', 'seen', '1', %)",
            "p_event_metadata",
        ),
    ] {
        for (data, problem) in [
            (
                format!("'{{\"a\": \"{}\"}}'", "x".repeat(1000)),
                "has 1009 bytes as JSON text: at most 1000 are allowed",
            ),
            (
                "'{\"a\": [1e400]}'".to_owned(),
                "holds a number beyond the range of a double, which no reader could read",
            ),
            (
                format!("'{}1{}'", "{\"a\":".repeat(65), "}".repeat(65)),
                "has more than 64 levels of arrays and objects: 64 are allowed",
            ),
        ] {
            let refused = sql
                .refused(&format!("SELECT {}", call.replace('%', &data)))
                .await;
            let expected = format!("{parameter} {problem}");
            assert_eq!(
                (refused.code.as_str(), refused.message),
                ("22023", expected),
                "{call}"
            );
        }
    }
    assert_eq!(sql.rows("SELECT FROM events").await.len(), 1);
    for table in ["event_streams", "commands"] {
        assert!(sql.rows(&format!("SELECT FROM {table}")).await.is_empty());
    }
}

async fn json_that_sql_takes_comes_back_from_the_api(partitions: u8) {
    let server = start(partitions, |_| {}).await;
    let mut sql = Sql::connect(&server).await;
    let texts = [
        "1.7976931348623157e308".to_owned(),
        "-1.7976931348623157e308".to_owned(),
        "1e-400".to_owned(),
        "123456789012345678901234567890".to_owned(),
        "0.1234567890123456789".to_owned(),
        "18446744073709551615".to_owned(),
        format!("{}1{}", "[".repeat(64), "]".repeat(64)),
        r#""\u2028\ud83d\ude00\"""#.to_owned(),
    ];
    for text in &texts {
        let append = format!(
            "SELECT append_event('a', 'user', 'seen', {})",
            literal(text)
        );
        sql.run(&append).await.unwrap();
    }
    let id = sql.value("SELECT tidings_id_of_key('a')").await.unwrap();
    let query = "query($id: UUID!) { aggregate(id: $id) { events(first: 100) { data } } }";
    let data = server
        .client()
        .query(query, json!({ "id": id }))
        .await
        .unwrap();
    let events = data["aggregate"]["events"].as_array().unwrap();
    for (text, event) in texts.iter().zip(events) {
        let expected: Value = serde_json::from_str(text).unwrap();
        assert_eq!(event["data"], expected, "{text}");
    }
    assert_eq!(events.len(), texts.len());
}

async fn a_role_that_may_do_nothing_gets_nothing(partitions: u8) {
    let server = start(partitions, |_| {}).await;
    let mut sql = Sql::connect(&server).await;
    let role = format!("nobody_{}", uuid::Uuid::new_v4().simple());
    sql.run(&format!("CREATE ROLE {role}; SET ROLE {role}"))
        .await
        .unwrap();
    for call in [
        "append_event('a', 'user', 'seen', '{}')",
        "get_events_for_aggregate('a')",
    ] {
        let refused = sql.refused(&format!("SELECT * FROM {call}")).await;
        assert_eq!(refused.code, "42501", "{refused:?}");
    }
    sql.run(&format!("RESET ROLE; DROP ROLE {role}"))
        .await
        .unwrap();
    assert!(sql.rows("SELECT FROM events").await.is_empty());
}

/// What is to be run of the documentation, with a role of the test's own: all databases of a cluster have the same ones.
fn examples(role: &str) -> Vec<String> {
    let text = include_str!("../../../docs/sql.md");
    let blocks = text.split("```sql\n").skip(1);
    let examples = blocks.map(|block| block.split("```").next().unwrap());
    examples
        .map(|example| example.replace("app_role", role))
        .collect()
}

async fn the_rights_of_the_documentation_are_enough_and_no_more(partitions: u8) {
    let server = start(partitions, |_| {}).await;
    let mut sql = Sql::connect(&server).await;
    let role = format!("app_{}", uuid::Uuid::new_v4().simple());
    let examples = examples(&role);
    let grants: Vec<&String> = examples.iter().filter(|e| e.contains("GRANT")).collect();
    let [for_all, for_handlers] = grants[..] else {
        panic!("{grants:?}");
    };
    let needs_more =
        |call: &&str| call.contains("register_event_handler") || call.contains("process_event");
    sql.run(for_all).await.unwrap();
    sql.run(&format!("SET ROLE {role}; BEGIN")).await.unwrap();
    for call in CALLS {
        sql.run("SAVEPOINT before").await.unwrap();
        let called = sql.run(&format!("SELECT * FROM {call}")).await;
        match called {
            Ok(()) => assert!(!needs_more(call), "{call}"),
            Err(refused) => {
                assert!(needs_more(call), "{call}: {refused:?}");
                assert_eq!(refused.code, "42501", "{call}: {refused:?}");
                sql.run("ROLLBACK TO before").await.unwrap();
            }
        }
    }
    sql.run(&format!(
        "ROLLBACK; RESET ROLE; {for_handlers}; SET ROLE {role}"
    ))
    .await
    .unwrap();
    for function in ["log", "publish:news"] {
        let call = format!("SELECT register_event_handler('{function}', 'seen', '{function}')");
        sql.run(&call).await.unwrap();
    }
    for call in CALLS {
        if let Err(refused) = sql.run(&format!("SELECT * FROM {call}")).await {
            panic!("{call}: {refused:?}");
        }
    }
    let published = sql.rows("SELECT * FROM read_from_stream('news')").await;
    assert!(!published.is_empty());

    for change in [
        "UPDATE events SET event_type = 'other'",
        "UPDATE event_streams SET event_type = 'other'",
        "UPDATE database_settings SET database_id = gen_random_uuid()",
        "UPDATE domains SET content = content",
        "CREATE TABLE mine ()",
        "CREATE FUNCTION public.mine() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    ] {
        let refused = sql.refused(change).await;
        assert_eq!(refused.code, "42501", "{change}: {refused:?}");
    }
    let tables = sql
        .rows("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        .await;
    assert!(tables.len() > 10, "{tables:?}");
    for table in tables {
        let delete = format!("DELETE FROM {}", table["tablename"].as_str().unwrap());
        assert_eq!(sql.refused(&delete).await.code, "42501", "{delete}");
    }
    sql.run(&format!(
        "RESET ROLE; DROP OWNED BY {role}; DROP ROLE {role}"
    ))
    .await
    .unwrap();
}

async fn the_examples_of_the_documentation_run(partitions: u8) {
    let server = start(partitions, |_| {}).await;
    let mut sql = Sql::connect(&server).await;
    let role = format!("app_{}", uuid::Uuid::new_v4().simple());
    let examples = examples(&role);
    assert!(examples.len() > 15, "{} examples", examples.len());
    for example in examples {
        if let Err(refused) = sql.run(&example).await {
            panic!("{example}\n{refused:?}");
        }
    }
    sql.run(&format!("DROP OWNED BY {role}; DROP ROLE {role}"))
        .await
        .unwrap();
    let users = sql
        .rows("SELECT status FROM commands WHERE command_type = 'create_user'")
        .await;
    assert_eq!(users, vec![json!({ "status": "PROCESSED" }); 2]);
    assert_eq!(sql.rows("SELECT FROM greetings").await.len(), 1);
}

//! What PostgreSQL's planner makes of young tables: a plan that is made for some hundred rows, without statistics, is kept
//! while the table grows, and must not read the whole partition then.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use sea_orm::sqlx::{self, Connection, PgConnection, Row};
use serde_json::{Value, json};
use tidings::config::Config;
use uuid::Uuid;

use crate::support::{
    client::LIMIT,
    in_process::{Database, Engine, TestServer},
    postgres,
    receiver::Receiver,
};

/// So many aggregates there are when the statements are planned that some indexes have a second level and others have not.
const YOUNG: usize = 300;
const LATER: usize = 800;
const TABLES: [&str; 6] = [
    "aggregates",
    "events",
    "commands",
    "read_models",
    "streams",
    "event_streams",
];

async fn execute_commands(server: &TestServer, aggregates: &[Uuid]) {
    let query = "mutation($input: CreateCommandInput!) { executeCommand(input: $input) { command { status } events { version } } }";
    for id in aggregates {
        let input = json!({ "id": Uuid::new_v4(), "aggregateId": id, "type": "create_user", "data": { "username": "a" } });
        let variables = json!({ "input": input });
        server.client().query(query, variables).await.unwrap();
    }
}

async fn append_events(server: &TestServer, aggregates: &[Uuid]) {
    let query =
        "mutation($input: AppendEventsInput!) { appendEvents(input: $input) { events { id } } }";
    for some in aggregates.chunks(100) {
        let event = |id: &Uuid| json!({ "id": Uuid::new_v4(), "aggregateId": id, "aggregateType": "user", "type": "user_updated", "data": {} });
        let events: Vec<Value> = some.iter().map(event).collect();
        let input = json!({ "input": { "events": events } });
        server.client().query(query, input).await.unwrap();
    }
}

/// Waits until the read models of the aggregates are there, and reads all kinds of things one by one.
async fn read(server: &TestServer, aggregates: &[Uuid]) {
    let query = "query($id: UUID!) { readModel(aggregateId: $id, minVersion: 2, waitMs: 20000) { version } aggregate(id: $id) { events { id } commands(first: 5) { nodes { id events { id } } } } }";
    for id in aggregates {
        let data = server.client().query(query, json!({ "id": id })).await;
        assert_eq!(data.unwrap()["readModel"]["version"], 2);
    }
    let query = "{ stream(name: \"user_events\") { entries(first: 100) { eventId } } events(first: 100) { nodes { id } } }";
    server.client().query(query, json!({})).await.unwrap();
}

/// No index was read for more rows than that, and no table whole.
async fn assert_rows_were_looked_up(database_url: &str) {
    let mut connection = PgConnection::connect(database_url).await.unwrap();
    let sql = "SELECT indexrelname::text, idx_scan, idx_tup_read FROM pg_stat_user_indexes WHERE idx_tup_read > 0";
    let indexes = sqlx::query(sql).fetch_all(&mut connection).await.unwrap();
    assert!(indexes.len() > 5, "{} indexes were used", indexes.len());
    for index in indexes {
        let (name, scans, rows): (String, i64, i64) = (index.get(0), index.get(1), index.get(2));
        // Pages and batches read many rows a scan, each row a few times; a whole partition for each row would be millions.
        assert!(rows < 40_000, "{name}: {rows} rows in {scans} scans");
    }
}

#[tokio::test]
async fn plans_of_sql_clients_that_were_made_for_young_tables_do_not_read_whole_partitions_later() {
    let database = Arc::new(Database::make(Engine::Postgres));
    // Nothing but the SQL client reads.
    let server = TestServer::on(database, |config| config.background.enabled = false).await;
    let Database::Postgres(tables) = &*server.database else {
        unreachable!("it was made on PostgreSQL");
    };
    for table in TABLES {
        tables.execute(&format!(
            "ALTER TABLE {table} SET (autovacuum_enabled = off)"
        ));
    }
    let call_all = |from: usize, to: usize| {
        format!(
            "DO $$ DECLARE k text; v_id uuid; BEGIN FOR n IN {from}..{to} LOOP k := 'user-' || n; \
             PERFORM process_command(create_command(k, 'create_user', '{{\"username\": \"a\"}}')); \
             PERFORM create_aggregate(k, 'user'); \
             v_id := append_event(k, 'user', 'seen', '{{}}'); \
             PERFORM process_event(v_id); \
             PERFORM update_aggregate_version(k, get_aggregate_version(k)); \
             PERFORM get_events_for_aggregate(k); \
             PERFORM update_read_model(k, 'user', '{{}}', 2); \
             PERFORM get_read_model(k); \
             PERFORM append_to_stream('s', k, 'seen', '{{}}'); \
             PERFORM read_from_stream('s', n - 2, 2); \
             COMMIT; \
             END LOOP; END $$"
        )
    };
    // One session keeps its plans.
    let mut client = PgConnection::connect(&server.database.url()).await.unwrap();
    let mut run = async |statement: String| {
        let statement = sqlx::raw_sql(sqlx::AssertSqlSafe(statement));
        statement.execute(&mut client).await.unwrap();
    };
    run("SELECT register_event_handler('again', 'seen', 'publish:again')".to_owned()).await;
    run(call_all(1, YOUNG)).await;
    run("SELECT pg_stat_reset()".to_owned()).await;
    run(call_all(YOUNG + 1, YOUNG + LATER)).await;
    // Its figures are told when it ends.
    client.close().await.unwrap();

    let database = server.stop().await;
    assert_rows_were_looked_up(&database.url()).await;
    let mut connection = PgConnection::connect(&database.url()).await.unwrap();
    let sql =
        "SELECT relname::text, seq_tup_read FROM pg_stat_user_tables WHERE relname = ANY ($1)";
    let tables = sqlx::query(sql)
        .bind(TABLES)
        .fetch_all(&mut connection)
        .await;
    for table in tables.unwrap() {
        let (name, rows): (String, i64) = (table.get(0), table.get(1));
        assert!(rows < 40_000, "{name}: {rows} rows, and no index");
    }
}

#[tokio::test]
async fn plans_that_were_made_for_young_tables_do_not_read_whole_partitions_later() {
    let database = Arc::new(Database::make(Engine::Postgres));
    let aggregates = |count| (0..count).map(|_| Uuid::new_v4()).collect::<Vec<_>>();

    let server = TestServer::on(database, |_| {}).await;
    let Database::Postgres(tables) = &*server.database else {
        unreachable!("it was made on PostgreSQL");
    };
    for table in TABLES {
        // Autovacuum would make statistics, and so new plans, at some time.
        tables.execute(&format!(
            "ALTER TABLE {table} SET (autovacuum_enabled = off)"
        ));
    }
    let young = aggregates(YOUNG);
    execute_commands(&server, &young).await;
    append_events(&server, &young).await;
    read(&server, &young[YOUNG - 1..]).await;
    // The sessions of the next server plan for what is there now.
    let database = server.stop().await;
    let server = TestServer::on(database, |_| {}).await;
    let Database::Postgres(tables) = &*server.database else {
        unreachable!("it was made on PostgreSQL");
    };
    tables.execute("SELECT pg_stat_reset()");
    let later = aggregates(LATER);
    execute_commands(&server, &later).await;
    append_events(&server, &later).await;
    read(&server, &later[..200]).await;

    let database = server.stop().await;
    assert_rows_were_looked_up(&database.url()).await;
}

const FAR: &str = "now() + INTERVAL '1 day'";

/// Puts deliveries of a handler there that nobody comes to: of some aggregates one that is retried, some that wait, and a dead one.
fn store_deliveries(tables: &postgres::Database, handler: &str, aggregates: usize) {
    tables.execute(&format!(
        "INSERT INTO deliveries (partition_no, id, handler_id, event_position, aggregate_id, status, attempts, \
         next_attempt_at, updated_at) \
         SELECT 0, gen_random_uuid(), '{handler}', n, a.id, \
         CASE n WHEN 1 THEN 'DEAD' WHEN 2 THEN 'RETRYING' ELSE 'WAITING' END, 1, \
         CASE n WHEN 2 THEN {FAR} END, now() \
         FROM (SELECT gen_random_uuid() AS id FROM generate_series(1, {aggregates})) a, generate_series(1, 5) AS n"
    ));
}

#[tokio::test]
async fn plans_that_were_made_for_few_deliveries_do_not_read_all_of_them_later() {
    let configure = |config: &mut Config| {
        config.handlers.webhook_secrets =
            vec!["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".parse().unwrap()];
        config.handlers.allow_private = true;
        config.handlers.retry_delay = Duration::from_millis(20);
        config.handlers.longest_delay = Duration::from_millis(100);
        config.handlers.attempts = 100;
        config.handlers.concurrency = 1;
    };
    let server = TestServer::on(Arc::new(Database::make(Engine::Postgres)), configure).await;
    let Database::Postgres(tables) = &*server.database else {
        unreachable!("it was made on PostgreSQL");
    };
    for table in ["deliveries", "events", "checkpoints", "event_handlers"] {
        tables.execute(&format!(
            "ALTER TABLE {table} SET (autovacuum_enabled = off)"
        ));
    }
    // Every second call fails, whatever it is called for.
    tables.execute(
        "CREATE SEQUENCE calls; \
         CREATE FUNCTION note(event uuid, aggregate uuid, data jsonb) RETURNS void LANGUAGE plpgsql AS $$ BEGIN \
         IF nextval('calls') % 2 = 1 THEN RAISE EXCEPTION 'odd'; END IF; END $$",
    );
    let receiver = Receiver::start(|no, _| {
        let status = if no % 2 == 0 { 500 } else { 200 };
        (status, Duration::ZERO)
    })
    .await;
    let client = server.client();
    let mut handlers = Vec::new();
    for (name, function) in [("hook", receiver.url.as_str()), ("note", "sql:note")] {
        let query = "mutation($input: RegisterEventHandlerInput!) { registerEventHandler(input: $input) { eventHandler { id } } }";
        let input = json!({ "input": { "name": name, "function": function } });
        let data = client.query(query, input).await.unwrap();
        let id = &data["registerEventHandler"]["eventHandler"]["id"];
        handlers.push(id.as_str().unwrap().to_owned());
    }
    // No index has this column: what the test itself counts is not counted.
    let stored = "SELECT count(xmin)::text FROM deliveries";
    for (round, aggregates) in [60, 6000].into_iter().enumerate() {
        for handler in &handlers {
            store_deliveries(tables, handler, aggregates);
        }
        if round == 1 {
            tables.execute("SELECT pg_stat_reset()");
        }
        let before = tables.text(stored).await;
        let ids: Vec<Uuid> = (0..20).map(|_| Uuid::new_v4()).collect();
        for _ in 0..3 {
            append_events(&server, &ids).await;
        }
        let started = Instant::now();
        let lags = "{ eventHandlers { lagEvents } }";
        loop {
            let data = client.query(lags, json!({})).await.unwrap();
            let handlers = data["eventHandlers"].as_array().unwrap();
            if handlers.iter().all(|handler| handler["lagEvents"] == 0)
                && tables.text(stored).await == before
            {
                break;
            }
            assert!(started.elapsed() < LIMIT, "some deliveries stay");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    let database = server.stop().await;
    let mut connection = PgConnection::connect(&database.url()).await.unwrap();
    let sql = "SELECT indexrelname::text, idx_scan, idx_tup_read FROM pg_stat_user_indexes \
               WHERE relname = 'deliveries' AND idx_tup_read > 0";
    let indexes = sqlx::query(sql).fetch_all(&mut connection).await.unwrap();
    assert!(indexes.len() > 1, "{} indexes were used", indexes.len());
    for index in indexes {
        let (name, scans, rows): (String, i64, i64) = (index.get(0), index.get(1), index.get(2));
        // Each of some hundred outcomes looks a few up; there are 60,000.
        assert!(rows < 20_000, "{name}: {rows} rows in {scans} scans");
    }
}

//! Read models on PostgreSQL: what a rebuild and a lease do while somebody holds the locks, and which way the database takes to
//! find what is asked for.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use sea_orm::sqlx::{self, AssertSqlSafe, Connection, PgConnection};
use serde_json::{Value, json};
use tidings::{config::Config, domain::Partition, store::RebuildScope};
use uuid::Uuid;

use crate::support::{
    client::{Client, LIMIT},
    in_process::{Database, Engine, TestServer},
};

const REBUILD: &str =
    "mutation($input: RebuildReadModelsInput!) { rebuildReadModels(input: $input) { count } }";
const APPEND: &str =
    "mutation($input: AppendEventInput!) { appendEvent(input: $input) { event { id } } }";

async fn serve(configure: impl FnOnce(&mut Config)) -> TestServer {
    TestServer::on(Arc::new(Database::make(Engine::Postgres)), configure).await
}

async fn connect(server: &TestServer) -> PgConnection {
    PgConnection::connect(&server.database.url()).await.unwrap()
}

async fn execute(connection: &mut PgConnection, sql: impl Into<String>) {
    let sql = sqlx::raw_sql(AssertSqlSafe(sql.into()));
    sql.execute(connection).await.unwrap();
}

fn event(id: Uuid) -> Value {
    json!({ "aggregateId": id, "aggregateType": "user", "type": "user_created", "data": { "name": "Ada" } })
}

async fn append(client: &Client, id: Uuid) {
    let appended = client.query(APPEND, json!({ "input": event(id) })).await;
    appended.unwrap();
}

/// Waits until all is projected.
async fn projected(client: &Client) {
    let wait = async {
        let query = "{ projection { lagEvents } }";
        while client.query(query, json!({})).await.unwrap()["projection"]["lagEvents"] != 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(LIMIT, wait).await.unwrap();
}

/// Holds the lock of a log of the only partition until the transaction ends.
async fn hold_lock(connection: &mut PgConnection, log: &str) {
    let sql = format!("BEGIN; SELECT FROM partition_locks WHERE log = '{log}' FOR UPDATE");
    execute(connection, sql).await;
}

#[tokio::test]
async fn a_rebuild_takes_as_long_as_it_takes_and_no_more_than_a_few_run() {
    let server = serve(|config| {
        // Less than the lock is held for, and enough for the appends before.
        config.limits.request_timeout = Duration::from_millis(800);
        config.database.lock_timeout = Duration::from_secs(20);
    })
    .await;
    let client = server.client();
    let ids: Vec<Uuid> = (0..9).map(|_| Uuid::new_v4()).collect();
    for id in &ids {
        append(&client, *id).await;
    }
    projected(&client).await;
    let mut connection = connect(&server).await;
    execute(&mut connection, "UPDATE read_models SET model_data = '{}'").await;

    let rebuild = |input: Value| client.query(REBUILD, json!({ "input": input }));
    let held = Instant::now();
    hold_lock(&mut connection, "read_models").await;
    let releasing = async {
        // Until then all wait for the lock, also those that come late.
        tokio::time::sleep(Duration::from_millis(1200)).await;
        for input in [
            json!({}),
            json!({ "aggregateType": "user" }),
            json!({ "aggregateId": ids[8] }),
        ] {
            let refused = tokio::time::timeout(LIMIT / 3, rebuild(input.clone())).await;
            let failure = refused.expect("it is refused at once").unwrap_err();
            assert_eq!(failure.code(), "UNAVAILABLE", "{input}: {failure:?}");
            assert_eq!(failure.extension("outcome"), "NOT_DONE");
        }
        execute(&mut connection, "COMMIT").await;
    };
    let ones = ids[..8]
        .iter()
        .map(|id| rebuild(json!({ "aggregateId": id })));
    let (all, ones, ()) = tokio::join!(rebuild(json!({})), join_all(ones), releasing);
    assert!(held.elapsed() > Duration::from_millis(1200));
    assert_eq!(all.unwrap()["rebuildReadModels"]["count"], 9);
    for one in ones {
        assert_eq!(one.unwrap()["rebuildReadModels"]["count"], 1);
    }
    // There is room again, and all is as it was.
    assert_eq!(
        rebuild(json!({ "aggregateId": ids[8] })).await.unwrap()["rebuildReadModels"]["count"],
        1
    );
    let query = "{ readModels { nodes { data } } }";
    let models = client.query(query, json!({})).await.unwrap()["readModels"]["nodes"].take();
    assert_eq!(models, json!(vec![json!({ "data": { "name": "Ada" } }); 9]));
}

/// The sessions of writers say themselves how they are set.
#[tokio::test]
async fn sessions_that_hold_locks_end_before_the_lease_does() {
    let server = serve(|config| {
        config.background.lease = Duration::from_secs(1);
        config.database.lock_timeout = Duration::from_secs(3);
    })
    .await;
    let mut connection = connect(&server).await;
    let names = [
        "idle_in_transaction_session_timeout",
        "statement_timeout",
        "lock_timeout",
        "tcp_keepalives_idle",
        "tcp_keepalives_interval",
        "tcp_keepalives_count",
    ];
    let values: Vec<String> = names
        .iter()
        .map(|name| format!("('{name}', current_setting('{name}'))"))
        .collect();
    let sql = format!(
        "CREATE TABLE told (name text, value text);
         CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN INSERT INTO told VALUES {}; RETURN NEW; END $$;
         CREATE TRIGGER tell AFTER INSERT ON events FOR EACH ROW EXECUTE FUNCTION tell()",
        values.join(", ")
    );
    execute(&mut connection, sql).await;
    append(&server.client(), Uuid::new_v4()).await;
    let told: Vec<(String, String)> = sqlx::query_as("SELECT name, value FROM told")
        .fetch_all(&mut connection)
        .await
        .unwrap();
    let told: Vec<(&str, &str)> = told
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    let expected = ["800ms", "18s", "3s", "5", "2", "3"];
    assert_eq!(told, names.into_iter().zip(expected).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_statement_that_hangs_is_ended_by_the_database_and_nothing_was_done() {
    let server = serve(|config| config.database.lock_timeout = Duration::from_millis(500)).await;
    let client = server.client();
    let mut connection = connect(&server).await;
    let sql = "CREATE FUNCTION hang() RETURNS trigger LANGUAGE plpgsql AS $$
               BEGIN PERFORM pg_sleep(600); RETURN NEW; END $$;
               CREATE TRIGGER hang AFTER INSERT ON events FOR EACH ROW EXECUTE FUNCTION hang()";
    execute(&mut connection, sql).await;
    let id = Uuid::new_v4();
    let failure = client.query(APPEND, json!({ "input": event(id) })).await;
    let failure = failure.unwrap_err();
    assert_eq!(failure.code(), "UNAVAILABLE", "{failure:?}");
    assert_eq!(failure.extension("outcome"), "NOT_DONE", "{failure:?}");
    // Nobody holds the partition's lock any more.
    execute(&mut connection, "DROP TRIGGER hang ON events").await;
    append(&client, id).await;
    let query = "query($id: UUID!) { aggregate(id: $id) { version } }";
    let found = client.query(query, json!({ "id": id })).await.unwrap();
    assert_eq!(found["aggregate"]["version"], 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_is_renewed_while_everything_else_waits_for_a_connection() {
    const LEASE: Duration = Duration::from_secs(2);
    let database = Arc::new(Database::make(Engine::Postgres));
    let lease = |config: &mut Config| config.background.lease = LEASE;
    let server = TestServer::on(database.clone(), lease).await;
    let client = server.client();
    let id = Uuid::new_v4();
    append(&client, id).await;
    projected(&client).await;
    let _waiting = TestServer::on(database, lease).await;
    let mut connection = connect(&server).await;
    let owners = "SELECT name, owner, token FROM leases ORDER BY name";
    let before: Vec<(String, Uuid, i64)> = sqlx::query_as(owners)
        .fetch_all(&mut connection)
        .await
        .unwrap();

    let mut holding = connect(&server).await;
    hold_lock(&mut holding, "read_models").await;
    // Each takes a connection for writing and waits; there are fewer.
    let query =
        "mutation($input: UpdateReadModelInput!) { updateReadModel(input: $input) { updated } }";
    let input = json!({ "aggregateId": id, "aggregateType": "user", "data": {}, "version": 1 });
    let writing = (0..80).map(|_| client.query(query, json!({ "input": input })));
    let writing = join_all(writing);
    let waiting = async {
        let until = Instant::now() + 2 * LEASE;
        let sql = "SELECT COUNT(*) FROM pg_stat_activity \
                   WHERE datname = current_database() AND wait_event_type = 'Lock'";
        let mut most = 0_i64;
        while Instant::now() < until {
            let count = sqlx::query_scalar(sql).fetch_one(&mut connection).await;
            most = most.max(count.unwrap());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        execute(&mut holding, "COMMIT").await;
        assert_eq!(most, 40, "all connections for writing wait");
    };
    let (written, ()) = tokio::join!(writing, waiting);
    assert!(written.iter().all(Result::is_ok), "{written:?}");
    let after: Vec<(String, Uuid, i64)> = sqlx::query_as(owners)
        .fetch_all(&mut connection)
        .await
        .unwrap();
    assert_eq!(before, after, "nobody has taken it over");
}

/// Waits until what a statement counts has grown: sessions tell what they have done a little later.
async fn grown(connection: &mut PgConnection, sql: &'static str, before: i64) -> i64 {
    let wait = async {
        loop {
            let count = sqlx::query_scalar::<_, i64>(sql)
                .fetch_one(&mut *connection)
                .await;
            let count = count.unwrap();
            if count > before {
                return count - before;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(LIMIT, wait).await.expect("it grows")
}

#[tokio::test]
async fn what_read_models_contain_is_found_by_the_index() {
    const INDEX_SCANS: &str = "SELECT idx_scan FROM pg_stat_user_indexes WHERE indexrelname = 'idx_read_models_model_data'";
    let server = serve(|config| config.background.enabled = false).await;
    let mut connection = connect(&server).await;
    let sql = "INSERT INTO read_models (partition_no, aggregate_id, aggregate_type, model_data, version, source, change_position, created_at, updated_at) \
               SELECT 0, gen_random_uuid(), 'user', jsonb_build_object('no', n, 'name', 'user ' || n), 1, 'EXTERNAL', n, now(), now() \
               FROM generate_series(1, 5000) n";
    execute(&mut connection, sql).await;
    // As the database does by itself once there are many.
    execute(&mut connection, "ANALYZE read_models").await;
    let before = sqlx::query_scalar(INDEX_SCANS)
        .fetch_one(&mut connection)
        .await;
    let query = "query($contains: JSON!) { readModels(filter: { contains: $contains }) { nodes { data } } }";
    let contains = json!({ "contains": { "no": 4711 } });
    let found = server.client().query(query, contains).await.unwrap();
    let expected = json!([{ "data": { "no": 4711, "name": "user 4711" } }]);
    assert_eq!(found["readModels"]["nodes"], expected);
    assert_eq!(
        grown(&mut connection, INDEX_SCANS, before.unwrap()).await,
        1
    );
}

/// The way to them must not depend on statistics, which a database that was filled just now does not have.
#[tokio::test]
async fn a_page_of_what_is_to_be_rebuilt_reads_no_more_than_a_page() {
    const READ: &str = "SELECT COALESCE(SUM(seq_tup_read + COALESCE(idx_tup_fetch, 0)), 0)::bigint \
                        FROM pg_stat_user_tables WHERE relname = 'read_models'";
    let server = serve(|config| config.background.enabled = false).await;
    let mut connection = connect(&server).await;
    let sql = "ALTER TABLE read_models SET (autovacuum_enabled = false);
               ALTER TABLE aggregates SET (autovacuum_enabled = false);
               INSERT INTO aggregates (partition_no, id, aggregate_type, current_version, created_at, updated_at) \
               SELECT 0, gen_random_uuid(), 'user', 1, now(), now() FROM generate_series(1, 100000);
               INSERT INTO read_models (partition_no, aggregate_id, aggregate_type, model_data, version, source, change_position, created_at, updated_at) \
               SELECT 0, id, 'user', '{}', 1, 'PROJECTED', row_number() OVER (), now(), now() FROM aggregates";
    execute(&mut connection, sql).await;
    let before = grown(
        &mut connection,
        "SELECT 1 + n_tup_ins - n_tup_del FROM pg_stat_user_tables WHERE relname = 'read_models'",
        1,
    )
    .await;
    assert_eq!(before, 100_000);
    let before: i64 = sqlx::query_scalar(READ)
        .fetch_one(&mut connection)
        .await
        .unwrap();
    let store = server.app.store();
    let targets = store
        .rebuild_targets(Partition(0), &RebuildScope::All, None, 500)
        .await;
    let targets = targets.unwrap();
    assert_eq!(targets.len(), 500);
    assert!(
        targets
            .iter()
            .all(|target| target.change_position.is_some())
    );
    assert_eq!(grown(&mut connection, READ, before).await, 500);
}

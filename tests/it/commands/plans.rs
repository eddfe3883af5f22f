//! How much of the table of commands PostgreSQL reads where it is long: what is looked for has an index.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sea_orm::sqlx::{self, Connection, PgConnection};
use tidings::domain::{AggregateId, Partition};
use uuid::Uuid;

use crate::support::client::LIMIT;
use crate::support::in_process::{Database, Engine, TestServer};

/// 100,000 commands that are done, and 1,000 that are pending: 990 held back by ten that were tried, and 10 scheduled for
/// later.
const FILL: &str = "INSERT INTO commands (partition_no, id, aggregate_id, command_type, command_data, command_metadata, \
     status, reason, attempts, not_before, created_at) \
     SELECT 0, gen_random_uuid(), \
            CASE WHEN n <= 100000 THEN gen_random_uuid() ELSE ('00000000-0000-0000-0000-' || lpad((n % 10)::text, 12, '0'))::uuid END, \
            'common', '{}', '{}', \
            CASE WHEN n <= 100000 THEN 'PROCESSED' ELSE 'PENDING' END, NULL, \
            CASE WHEN n <= 100010 THEN 1 ELSE 0 END, \
            CASE WHEN n > 100000 AND n <= 100010 OR n > 101000 THEN now() + interval '1 hour' END, \
            now() - interval '1 day' + n * interval '1 millisecond' \
     FROM generate_series(1, 101010) AS n";

/// Rows that were read in the table, one way or another. Sessions tell what they have read when they end: this waits for all
/// but its own.
async fn rows_read(connection: &mut PgConnection) -> i64 {
    let others = "SELECT count(*) FROM pg_stat_activity \
         WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()";
    let started = Instant::now();
    while sqlx::query_scalar::<_, i64>(others)
        .fetch_one(&mut *connection)
        .await
        .unwrap()
        > 0
    {
        assert!(started.elapsed() < LIMIT, "the sessions end");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let sql = "SELECT (t.seq_tup_read + coalesce(sum(i.idx_tup_read), 0))::bigint \
         FROM pg_stat_user_tables t JOIN pg_stat_user_indexes i USING (relid) \
         WHERE t.relname = 'commands' GROUP BY t.seq_tup_read";
    sqlx::query_scalar(sql).fetch_one(connection).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn looks_at_a_long_table_of_commands_read_little_of_it() {
    // Beyond five, PostgreSQL may take a plan that does not depend on the values.
    const CALLS: usize = 8;
    let database = Arc::new(Database::make(Engine::Postgres));
    let start = async || {
        TestServer::on(database.clone(), |config| {
            config.database.partitions = Some(1);
            config.background.enabled = false;
        })
        .await
    };
    start().await.stop().await;
    let mut connection = PgConnection::connect(&database.url()).await.unwrap();
    for statement in [FILL, "ANALYZE commands"] {
        sqlx::query(statement)
            .execute(&mut connection)
            .await
            .unwrap();
    }
    connection.close().await.unwrap();

    let partition = Partition(0);
    let but = [AggregateId(Uuid::nil())];
    let mut connection = PgConnection::connect(&database.url()).await.unwrap();
    for (look, bound) in [("due", 6000), ("polled", 6000), ("next", 100)] {
        let before = rows_read(&mut connection).await;
        let server = start().await;
        let store = server.app.store();
        for _ in 0..CALLS {
            match look {
                "due" => {
                    let due = store.due_commands(partition, 256, &but).await;
                    assert_eq!(due.unwrap().commands.len(), 0);
                }
                "polled" => {
                    let due = store
                        .partitions_with_due_commands(&[(partition, but.to_vec())])
                        .await;
                    assert_eq!(due.unwrap(), []);
                }
                _ => assert!(store.next_due_in(partition).await.unwrap().is_some()),
            }
        }
        server.stop().await;
        let read = (rows_read(&mut connection).await - before) / CALLS as i64;
        println!("{look}: {read} rows for each look");
        assert!(read <= bound, "{look}: {read}");
    }
}

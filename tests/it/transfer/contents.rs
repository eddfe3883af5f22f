//! What two databases must have in common, read by SQL of its own and compared as values.

use std::collections::BTreeMap;

use sea_orm::{
    ConnectionTrait, DatabaseConnection, QueryResult, Statement,
    sqlx::types::chrono::{DateTime, Utc},
};
use serde_json::Value;
use uuid::Uuid;

type Row = Vec<Value>;

/// All of it, whatever the partitions and positions are.
#[derive(Debug, Default, PartialEq)]
pub struct Contents {
    pub events: BTreeMap<(Uuid, i32), Row>,
    pub aggregates: BTreeMap<Uuid, Row>,
    pub entries: BTreeMap<(String, i64), Row>,
    pub streams: BTreeMap<String, Row>,
    pub commands: BTreeMap<Uuid, Row>,
    /// Those from outside.
    pub read_models: BTreeMap<Uuid, Row>,
    pub handlers: BTreeMap<Uuid, Row>,
    pub deliveries: BTreeMap<Uuid, Row>,
}

impl Contents {
    pub async fn read(url: &str) -> Contents {
        let database = sea_orm::Database::connect(url).await.unwrap();
        let contents = Contents::of(&database).await;
        assert_in_order(&database).await;
        database.close().await.unwrap();
        contents
    }

    async fn of(database: &DatabaseConnection) -> Contents {
        let mut all = Contents::default();
        let sql = "SELECT aggregate_id, version, id, aggregate_type, event_type, CAST(event_data AS text), \
                   CAST(event_metadata AS text), created_at FROM events";
        for row in select(database, sql).await {
            let key = (uuid(&row, 0), int(&row, 1));
            let fields = vec![
                uuid(&row, 2).to_string().into(),
                text(&row, 3),
                text(&row, 4),
                json(&row, 5),
                json(&row, 6),
                time(&row, 7),
            ];
            assert!(all.events.insert(key, fields).is_none());
        }
        let sql =
            "SELECT id, aggregate_type, current_version, created_at, updated_at FROM aggregates";
        for row in select(database, sql).await {
            let fields = vec![
                text(&row, 1),
                int(&row, 2).into(),
                time(&row, 3),
                time(&row, 4),
            ];
            all.aggregates.insert(uuid(&row, 0), fields);
        }
        let sql = "SELECT s.stream_name, s.position, s.event_id, s.event_type, CAST(s.event_data AS text), s.created_at, e.aggregate_id \
                   FROM event_streams s LEFT JOIN events e ON e.partition_no = s.event_partition_no AND e.id = s.event_id";
        for row in select(database, sql).await {
            let of: Option<Uuid> = row.try_get_by_index(6).unwrap();
            let fields = vec![
                uuid(&row, 2).to_string().into(),
                text(&row, 3),
                json(&row, 4),
                time(&row, 5),
                of.map(|id| id.to_string()).into(),
            ];
            let key = (
                row.try_get_by_index(0).unwrap(),
                row.try_get_by_index(1).unwrap(),
            );
            assert!(all.entries.insert(key, fields).is_none());
        }
        for row in select(database, "SELECT name, created_at FROM streams").await {
            let name = row.try_get_by_index(0).unwrap();
            all.streams.insert(name, vec![time(&row, 1)]);
        }
        let sql = "SELECT id, aggregate_id, command_type, CAST(command_data AS text), CAST(command_metadata AS text), status, reason, \
                   attempts, not_before, first_version, last_version, created_at, processed_at FROM commands";
        for row in select(database, sql).await {
            let fields = vec![
                uuid(&row, 1).to_string().into(),
                text(&row, 2),
                json(&row, 3),
                json(&row, 4),
                text(&row, 5),
                text(&row, 6),
                int(&row, 7).into(),
                time(&row, 8),
                row.try_get_by_index::<Option<i32>>(9).unwrap().into(),
                row.try_get_by_index::<Option<i32>>(10).unwrap().into(),
                time(&row, 11),
                time(&row, 12),
            ];
            all.commands.insert(uuid(&row, 0), fields);
        }
        let sql = "SELECT aggregate_id, aggregate_type, CAST(model_data AS text), version, fault, deleted_at, created_at, updated_at \
                   FROM read_models WHERE source = 'EXTERNAL'";
        for row in select(database, sql).await {
            let fields = vec![
                text(&row, 1),
                json(&row, 2),
                int(&row, 3).into(),
                text(&row, 4),
                time(&row, 5),
                time(&row, 6),
                time(&row, 7),
            ];
            all.read_models.insert(uuid(&row, 0), fields);
        }
        let sql = "SELECT id, handler_name, CAST(event_types AS text), handler_function, created_at, is_active, paused_until, revision \
                   FROM event_handlers";
        for row in select(database, sql).await {
            let fields = vec![
                text(&row, 1),
                json(&row, 2),
                text(&row, 3),
                time(&row, 4),
                row.try_get_by_index::<bool>(5).unwrap().into(),
                time(&row, 6),
                row.try_get_by_index::<i64>(7).unwrap().into(),
            ];
            all.handlers.insert(uuid(&row, 0), fields);
        }
        let sql = "SELECT d.id, d.handler_id, e.id, d.aggregate_id, d.status, d.attempts, d.last_error, \
                   d.next_attempt_at, d.updated_at FROM deliveries d \
                   JOIN events e ON e.partition_no = d.partition_no AND e.position = d.event_position";
        for row in select(database, sql).await {
            let fields = vec![
                uuid(&row, 1).to_string().into(),
                uuid(&row, 2).to_string().into(),
                uuid(&row, 3).to_string().into(),
                text(&row, 4),
                int(&row, 5).into(),
                text(&row, 6),
                time(&row, 7),
                time(&row, 8),
            ];
            all.deliveries.insert(uuid(&row, 0), fields);
        }
        all
    }
}

/// Time never runs backwards in a partition, neither of the events nor of the entries.
async fn assert_in_order(database: &DatabaseConnection) {
    for sql in [
        "SELECT partition_no, created_at FROM events ORDER BY partition_no, position",
        "SELECT partition_no, created_at FROM event_streams ORDER BY partition_no, entry_position",
    ] {
        let mut last: Option<(i16, DateTime<Utc>)> = None;
        for row in select(database, sql).await {
            let place = (
                row.try_get_by_index(0).unwrap(),
                row.try_get_by_index(1).unwrap(),
            );
            assert!(
                last.is_none_or(|last| last <= place),
                "{sql}: {last:?} {place:?}"
            );
            last = Some(place);
        }
    }
}

async fn select(database: &DatabaseConnection, sql: &str) -> Vec<QueryResult> {
    let backend = database.get_database_backend();
    let rows = database.query_all_raw(Statement::from_string(backend, sql));
    rows.await.unwrap()
}

fn uuid(row: &QueryResult, column: usize) -> Uuid {
    row.try_get_by_index(column).unwrap()
}

fn int(row: &QueryResult, column: usize) -> i32 {
    row.try_get_by_index(column).unwrap()
}

fn text(row: &QueryResult, column: usize) -> Value {
    row.try_get_by_index::<Option<String>>(column)
        .unwrap()
        .into()
}

fn json(row: &QueryResult, column: usize) -> Value {
    let text: String = row.try_get_by_index(column).unwrap();
    value(serde_json::from_str(&text).unwrap())
}

/// PostgreSQL writes `1.5e19` as an integer.
fn value(json: Value) -> Value {
    match json {
        Value::Number(number) if number.as_i64().is_none() => number.as_f64().into(),
        Value::Array(values) => values.into_iter().map(value).collect(),
        Value::Object(fields) => {
            let fields = fields.into_iter().map(|(key, field)| (key, value(field)));
            fields.collect()
        }
        other => other,
    }
}

fn time(row: &QueryResult, column: usize) -> Value {
    let time: Option<DateTime<Utc>> = row.try_get_by_index(column).unwrap();
    time.map(|time| time.timestamp_micros()).into()
}

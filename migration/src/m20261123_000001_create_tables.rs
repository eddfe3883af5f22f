//! Makes every table. Each table that grows has `partition_no` first in its primary key and in every unique constraint.

use sea_orm_migration::{prelude::*, sea_orm::ConnectionTrait, sea_orm::DbBackend};

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

const NAME_CHARS: u32 = 100;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let sqlite = manager.get_database_backend() == DbBackend::Sqlite;
        for mut table in tables(Names { postgres: !sqlite }) {
            if sqlite && CLUSTERED.contains(&name_of(&table).as_str()) {
                table.extra("WITHOUT ROWID");
            }
            manager.create_table(table).await?;
        }
        for index in indexes() {
            manager.create_index(index).await?;
        }
        // An index on an expression is the same text on both databases, and beyond what the builder can say.
        manager
            .get_connection()
            .execute_unprepared(
                "CREATE INDEX idx_events_partition_no_correlation_id_position \
                 ON events (partition_no, (event_metadata -> 'correlationId'), position) \
                 WHERE (event_metadata -> 'correlationId') IS NOT NULL",
            )
            .await?;
        Ok(())
    }
}

/// Logs: their rows lie in the order of their primary key on SQLite too.
const CLUSTERED: &[&str] = &["events", "event_streams"];

fn name_of(table: &TableCreateStatement) -> String {
    match table.get_table_name() {
        Some(TableRef::Table(name, _)) => name.1.to_string(),
        _ => String::new(),
    }
}

/// Makes columns for names. They compare and sort by their bytes on both databases, whatever PostgreSQL's locale is.
#[derive(Clone, Copy)]
struct Names {
    postgres: bool,
}

impl Names {
    fn column(self, name: &'static str) -> ColumnDef {
        let mut column = ColumnDef::new(name);
        column.string_len(NAME_CHARS).not_null();
        if self.postgres {
            column.extra("COLLATE \"C\"");
        }
        column
    }
}

fn required(name: &'static str) -> ColumnDef {
    ColumnDef::new(name).not_null().take()
}

fn optional(name: &'static str) -> ColumnDef {
    ColumnDef::new(name).null().take()
}

fn partition_no() -> ColumnDef {
    required("partition_no").small_integer().take()
}

fn instant(name: &'static str) -> ColumnDef {
    required(name).timestamp_with_time_zone().take()
}

fn table(
    name: &'static str,
    columns: Vec<ColumnDef>,
    key: &[&'static str],
) -> TableCreateStatement {
    let mut primary_key = Index::create();
    primary_key.name(format!("pk_{name}"));
    for column in key {
        primary_key.col(*column);
    }
    let mut table = Table::create();
    table.table(name);
    for mut column in columns {
        table.col(&mut column);
    }
    table.primary_key(&mut primary_key).take()
}

fn tables(names: Names) -> Vec<TableCreateStatement> {
    let mut tables = log_tables(names);
    tables.extend(command_tables(names));
    tables.extend(handler_tables(names));
    tables.extend(server_tables(names));
    tables
}

fn log_tables(names: Names) -> Vec<TableCreateStatement> {
    vec![
        table(
            "partition_locks",
            vec![partition_no(), required("log").string_len(16).take()],
            &["partition_no", "log"],
        ),
        table(
            "aggregates",
            vec![
                partition_no(),
                required("id").uuid().take(),
                names.column("aggregate_type"),
                required("current_version").integer().take(),
                instant("created_at"),
                instant("updated_at"),
            ],
            &["partition_no", "id"],
        ),
        table(
            "events",
            vec![
                partition_no(),
                required("position").big_integer().take(),
                required("id").uuid().take(),
                required("aggregate_id").uuid().take(),
                names.column("aggregate_type"),
                names.column("event_type"),
                required("event_data").json_binary().take(),
                required("event_metadata").json_binary().take(),
                required("version").integer().take(),
                instant("created_at"),
            ],
            &["partition_no", "position"],
        ),
        table(
            "streams",
            vec![partition_no(), names.column("name"), instant("created_at")],
            &["partition_no", "name"],
        ),
        table(
            "event_streams",
            vec![
                partition_no(),
                names.column("stream_name"),
                required("position").big_integer().take(),
                required("entry_position").big_integer().take(),
                required("event_id").uuid().take(),
                names.column("event_type"),
                required("event_data").json_binary().take(),
                optional("event_partition_no").small_integer().take(),
                instant("created_at"),
            ],
            &["partition_no", "stream_name", "position"],
        ),
    ]
}

fn command_tables(names: Names) -> Vec<TableCreateStatement> {
    vec![
        table(
            "commands",
            vec![
                partition_no(),
                required("id").uuid().take(),
                required("aggregate_id").uuid().take(),
                names.column("command_type"),
                required("command_data").json_binary().take(),
                required("command_metadata").json_binary().take(),
                required("status").string_len(20).take(),
                optional("reason").text().take(),
                required("attempts").integer().take(),
                optional("not_before").timestamp_with_time_zone().take(),
                optional("first_version").integer().take(),
                optional("last_version").integer().take(),
                instant("created_at"),
                optional("processed_at").timestamp_with_time_zone().take(),
            ],
            &["partition_no", "id"],
        ),
        table(
            "read_models",
            vec![
                partition_no(),
                required("aggregate_id").uuid().take(),
                names.column("aggregate_type"),
                required("model_data").json_binary().take(),
                required("version").integer().take(),
                required("source").string_len(20).take(),
                optional("fault").text().take(),
                optional("deleted_at").timestamp_with_time_zone().take(),
                required("change_position").big_integer().take(),
                instant("created_at"),
                instant("updated_at"),
            ],
            &["partition_no", "aggregate_id"],
        ),
    ]
}

fn handler_tables(names: Names) -> Vec<TableCreateStatement> {
    vec![
        table(
            "event_handlers",
            vec![
                required("id").uuid().take(),
                names.column("handler_name"),
                required("event_types").json_binary().take(),
                required("handler_function").text().take(),
                required("is_active").boolean().take(),
                optional("paused_until").timestamp_with_time_zone().take(),
                instant("created_at"),
            ],
            &["id"],
        ),
        table(
            "deliveries",
            vec![
                partition_no(),
                required("id").uuid().take(),
                required("handler_id").uuid().take(),
                required("event_position").big_integer().take(),
                required("aggregate_id").uuid().take(),
                required("status").string_len(20).take(),
                required("attempts").integer().take(),
                optional("last_error").text().take(),
                optional("next_attempt_at")
                    .timestamp_with_time_zone()
                    .take(),
                instant("updated_at"),
            ],
            &["partition_no", "id"],
        ),
        table(
            "event_metrics",
            vec![
                required("id").uuid().take(),
                names.column("event_type"),
                names.column("aggregate_type"),
                required("event_count").big_integer().take(),
                optional("processing_time_ms").double().take(),
                optional("min_processing_time_ms").double().take(),
                optional("max_processing_time_ms").double().take(),
                instant("created_at"),
            ],
            &["id"],
        ),
    ]
}

fn server_tables(names: Names) -> Vec<TableCreateStatement> {
    vec![
        table(
            "database_settings",
            vec![
                required("id").small_integer().take(),
                required("database_id").uuid().take(),
                required("partitions").small_integer().take(),
                instant("created_at"),
            ],
            &["id"],
        ),
        table(
            "checkpoints",
            vec![
                partition_no(),
                names.column("name"),
                required("position").big_integer().take(),
                required("fence").big_integer().take(),
            ],
            &["partition_no", "name"],
        ),
        table(
            "leases",
            vec![
                names.column("name"),
                required("owner").uuid().take(),
                required("token").big_integer().take(),
                instant("expires_at"),
            ],
            &["name"],
        ),
        table(
            "domains",
            vec![
                required("fingerprint").string_len(64).take(),
                required("content").json_binary().take(),
                instant("in_force_from"),
            ],
            &["fingerprint"],
        ),
    ]
}

fn unique(table: &'static str, columns: &[&'static str]) -> IndexCreateStatement {
    index_on("uq", table, columns).unique().take()
}

fn index(table: &'static str, columns: &[&'static str]) -> IndexCreateStatement {
    index_on("idx", table, columns)
}

fn index_on(prefix: &str, table: &'static str, columns: &[&'static str]) -> IndexCreateStatement {
    let mut index = Index::create();
    index
        .name(format!("{prefix}_{table}_{}", columns.join("_")))
        .table(table);
    for column in columns {
        index.col(*column);
    }
    index
}

fn indexes() -> Vec<IndexCreateStatement> {
    vec![
        unique("events", &["partition_no", "aggregate_id", "version"]),
        unique("events", &["partition_no", "id"]),
        index("events", &["partition_no", "aggregate_type", "position"]),
        index("events", &["partition_no", "event_type", "position"]),
        index("events", &["partition_no", "created_at"]),
        index("aggregates", &["partition_no", "created_at", "id"]),
        unique("event_streams", &["partition_no", "entry_position"]),
        unique(
            "event_streams",
            &["partition_no", "stream_name", "event_id"],
        ),
        index("commands", &["partition_no", "status", "created_at", "id"]),
        index(
            "commands",
            &["partition_no", "aggregate_id", "created_at", "id"],
        ),
        unique("read_models", &["partition_no", "change_position"]),
        unique("event_handlers", &["handler_name"]),
        index(
            "deliveries",
            &["partition_no", "handler_id", "status", "next_attempt_at"],
        ),
        // Its whole name would be longer than PostgreSQL's names are.
        index(
            "deliveries",
            &[
                "partition_no",
                "handler_id",
                "aggregate_id",
                "event_position",
            ],
        )
        .name("idx_deliveries_handler_id_aggregate_id_event_position")
        .take(),
        index("event_metrics", &["created_at"]),
    ]
}

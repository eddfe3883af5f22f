//! PostgreSQL's functions and triggers, one file each.

/// The statements in the order of their installation.
pub const CODE: &[&str] = &[
    include_str!("../sql/postgres/functions/tidings_append_events.sql"),
    include_str!("../sql/postgres/functions/tidings_append_entries.sql"),
    include_str!("../sql/postgres/functions/tidings_save_read_models.sql"),
    include_str!("../sql/postgres/functions/tidings_write_read_model.sql"),
    include_str!("../sql/postgres/functions/tidings_publish_entries.sql"),
    include_str!("../sql/postgres/functions/tidings_describe_partitions.sql"),
    include_str!("../sql/postgres/functions/tidings_promote_deliveries.sql"),
    include_str!("../sql/postgres/functions/tidings_next_delivery_ms.sql"),
    include_str!("../sql/postgres/functions/tidings_is_held_back.sql"),
    include_str!("../sql/postgres/functions/tidings_write_deliveries.sql"),
    include_str!("../sql/postgres/functions/tidings_save_handler_steps.sql"),
    include_str!("../sql/postgres/functions/tidings_run_sql_handler.sql"),
    include_str!("../sql/postgres/triggers.sql"),
];

//! Indexes for lists of read models, for filters by what their data contains, and for finding those with a fault.

use sea_orm_migration::{prelude::*, sea_orm::ConnectionTrait, sea_orm::DbBackend};

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

/// Lists leave tombstones out, and so do their indexes. The same text does for both databases.
const INDEXES: &[&str] = &[
    "CREATE INDEX idx_read_models_partition_no_created_at_aggregate_id \
     ON read_models (partition_no, created_at, aggregate_id) WHERE deleted_at IS NULL",
    "CREATE INDEX idx_read_models_partition_no_updated_at_aggregate_id \
     ON read_models (partition_no, updated_at, aggregate_id) WHERE deleted_at IS NULL",
    "CREATE INDEX idx_read_models_partition_no_aggregate_id_fault \
     ON read_models (partition_no, aggregate_id) WHERE fault IS NOT NULL",
];

/// What is pending in such an index is sorted in by whoever makes it too long, all at once, under the partition's lock: a
/// short list keeps that short.
const CONTAINS_INDEX: &str = "CREATE INDEX idx_read_models_model_data ON read_models \
     USING gin (model_data jsonb_path_ops) WITH (gin_pending_list_limit = 256) WHERE deleted_at IS NULL";

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let connection = manager.get_connection();
        for index in INDEXES {
            connection.execute_unprepared(index).await?;
        }
        if manager.get_database_backend() == DbBackend::Postgres {
            connection.execute_unprepared(CONTAINS_INDEX).await?;
        }
        Ok(())
    }
}

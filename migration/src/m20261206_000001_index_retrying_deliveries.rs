//! An index for the question that each delivery's end asks: whether another one of its aggregate is under way.

use sea_orm_migration::{prelude::*, sea_orm::ConnectionTrait};

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

/// The same text does for both databases.
const CREATE: &str = "CREATE INDEX idx_deliveries_handler_id_aggregate_id_retrying \
                      ON deliveries (partition_no, handler_id, aggregate_id) WHERE status = 'RETRYING'";

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager
            .get_connection()
            .execute_unprepared(CREATE)
            .await
            .map(drop)
    }
}

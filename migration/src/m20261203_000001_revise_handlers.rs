//! What servers tell each other about event handlers, and an index for lists of deliveries.

use sea_orm_migration::{prelude::*, sea_orm::ConnectionTrait};

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

/// The same text does for both databases.
const STATEMENTS: &[&str] = &[
    // Grows with every change that the dispatchers of other servers have to know of.
    "ALTER TABLE event_handlers ADD COLUMN revision bigint NOT NULL DEFAULT 0",
    "CREATE INDEX idx_deliveries_partition_no_handler_id_id ON deliveries (partition_no, handler_id, id)",
];

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for statement in STATEMENTS {
            manager
                .get_connection()
                .execute_unprepared(statement)
                .await?;
        }
        Ok(())
    }
}

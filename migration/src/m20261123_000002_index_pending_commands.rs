//! Indexes of the commands that wait: those that are due, and those that were tried and hold back others.

use sea_orm_migration::prelude::*;

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        // An index on a part of a table is the same text on both databases, and beyond what the builder can say. Commands
        // that are not pending are in neither of them, and cost nothing.
        for statement in [
            "CREATE INDEX idx_commands_pending ON commands (partition_no, not_before, created_at, id) \
             WHERE status = 'PENDING'",
            "CREATE INDEX idx_commands_tried ON commands (partition_no, aggregate_id, created_at, id) \
             WHERE status = 'PENDING' AND attempts > 0",
        ] {
            manager
                .get_connection()
                .execute_unprepared(statement)
                .await?;
        }
        Ok(())
    }
}

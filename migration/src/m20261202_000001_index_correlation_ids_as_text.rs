//! On PostgreSQL, an index of correlation ids as text. The one that it takes the place of had them as JSONB, which compares
//! so slowly that it was the dearest of all to those who append.

use sea_orm_migration::{prelude::*, sea_orm::ConnectionTrait, sea_orm::DbBackend};

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        // SQLite has JSON as text anyway.
        if manager.get_database_backend() != DbBackend::Postgres {
            return Ok(());
        }
        for statement in [
            "CREATE INDEX idx_events_partition_no_correlation_text_position \
             ON events (partition_no, (event_metadata ->> 'correlationId') COLLATE \"C\", position) \
             WHERE (event_metadata ->> 'correlationId') IS NOT NULL",
            "DROP INDEX idx_events_partition_no_correlation_id_position",
        ] {
            manager
                .get_connection()
                .execute_unprepared(statement)
                .await?;
        }
        Ok(())
    }
}

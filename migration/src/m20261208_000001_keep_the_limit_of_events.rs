//! How large an event may be, for SQL clients: the server writes what it was started with.

use sea_orm_migration::prelude::*;

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

/// The server's own default.
const MAX_EVENT_BYTES: i64 = 1 << 20;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let mut max_event_bytes = ColumnDef::new("max_event_bytes");
        max_event_bytes
            .big_integer()
            .not_null()
            .default(MAX_EVENT_BYTES);
        let alter = Table::alter()
            .table("database_settings")
            .add_column(&mut max_event_bytes)
            .to_owned();
        manager.alter_table(alter).await
    }
}

//! How many of the events that were counted have a time: without it the means of two rows make none of both.

use sea_orm_migration::prelude::*;

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let mut timed_count = ColumnDef::new("timed_count");
        timed_count.big_integer().not_null().default(0);
        let alter = Table::alter()
            .table("event_metrics")
            .add_column(&mut timed_count)
            .to_owned();
        manager.alter_table(alter).await
    }
}

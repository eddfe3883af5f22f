//! Which database's export was taken over: an import goes on only with what it has begun, and no server starts before its end.

use sea_orm_migration::prelude::*;

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let mut primary_key = Index::create();
        primary_key.name("pk_imports").col("id");
        let table = Table::create()
            .table("imports")
            .col(ColumnDef::new("id").small_integer().not_null())
            .col(ColumnDef::new("source_id").uuid().not_null())
            .col(
                ColumnDef::new("source_partitions")
                    .small_integer()
                    .not_null(),
            )
            .col(
                ColumnDef::new("begun_at")
                    .timestamp_with_time_zone()
                    .not_null(),
            )
            .col(
                ColumnDef::new("finished_at")
                    .timestamp_with_time_zone()
                    .null(),
            )
            .primary_key(&mut primary_key)
            .to_owned();
        manager.create_table(table).await
    }
}

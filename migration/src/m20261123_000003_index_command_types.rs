//! An index for lists of commands of some types, each of its ranges in the order of the list.

use sea_orm_migration::prelude::*;

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        // The columns are those of the index that lists of some statuses have, behind the type.
        let index = Index::create()
            .name("idx_commands_partition_no_command_type_status_created_at_id")
            .table("commands")
            .col("partition_no")
            .col("command_type")
            .col("status")
            .col("created_at")
            .col("id")
            .to_owned();
        manager.create_index(index).await
    }
}

//! The table `commands`: what was asked for, and what became of it.
#![expect(
    missing_docs,
    reason = "the columns are described in the documentation of the architecture"
)]

use sea_orm::entity::prelude::*;

#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "commands")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub partition_no: i16,
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Uuid,
    pub aggregate_id: Uuid,
    pub command_type: String,
    #[sea_orm(column_type = "JsonBinary")]
    pub command_data: Json,
    #[sea_orm(column_type = "JsonBinary")]
    pub command_metadata: Json,
    pub status: String,
    pub reason: Option<String>,
    pub attempts: i32,
    pub not_before: Option<ChronoDateTimeUtc>,
    pub first_version: Option<i32>,
    pub last_version: Option<i32>,
    pub created_at: ChronoDateTimeUtc,
    pub processed_at: Option<ChronoDateTimeUtc>,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}

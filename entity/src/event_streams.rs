//! The table `event_streams`: the entries of the streams.
#![expect(
    missing_docs,
    reason = "the columns are described in the documentation of the architecture"
)]

use sea_orm::entity::prelude::*;

#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "event_streams")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub partition_no: i16,
    #[sea_orm(primary_key, auto_increment = false)]
    pub stream_name: String,
    #[sea_orm(primary_key, auto_increment = false)]
    pub position: i64,
    pub entry_position: i64,
    pub event_id: Uuid,
    pub event_type: String,
    #[sea_orm(column_type = "JsonBinary")]
    pub event_data: Json,
    pub event_partition_no: Option<i16>,
    pub created_at: ChronoDateTimeUtc,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}

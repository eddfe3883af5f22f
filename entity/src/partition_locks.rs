//! The table `partition_locks`: rows that are only ever locked.
#![expect(
    missing_docs,
    reason = "the columns are described in the documentation of the architecture"
)]

use sea_orm::entity::prelude::*;

#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "partition_locks")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub partition_no: i16,
    #[sea_orm(primary_key, auto_increment = false)]
    pub log: String,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}

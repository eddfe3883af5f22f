//! The table `event_metrics`: how many events of each type a server has appended in a minute, and how long they took.
#![expect(
    missing_docs,
    reason = "the columns are described in the documentation of the architecture"
)]

use sea_orm::entity::prelude::*;

#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "event_metrics")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Uuid,
    pub event_type: String,
    pub aggregate_type: String,
    pub event_count: i64,
    pub timed_count: i64,
    #[sea_orm(nullable)]
    pub processing_time_ms: Option<f64>,
    #[sea_orm(nullable)]
    pub min_processing_time_ms: Option<f64>,
    #[sea_orm(nullable)]
    pub max_processing_time_ms: Option<f64>,
    pub created_at: DateTimeUtc,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}

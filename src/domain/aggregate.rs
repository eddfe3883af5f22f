//! Aggregates as the store knows them. Floor 0.

use super::{AggregateId, AggregateType, Timestamp, Version};

/// One aggregate: what has events and a version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Aggregate {
    /// Its id.
    pub id: AggregateId,
    /// What it is.
    pub aggregate_type: AggregateType,
    /// The version of its newest event; 0 before the first.
    pub version: Version,
    /// When it was made.
    pub created_at: Timestamp,
    /// When its newest event was appended, or when it was made.
    pub updated_at: Timestamp,
}

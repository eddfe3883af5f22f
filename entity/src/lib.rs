//! The tables of tidings as SeaORM entities, one a file, and nothing else.

pub mod aggregates;
pub mod checkpoints;
pub mod commands;
pub mod database_settings;
pub mod deliveries;
pub mod domains;
pub mod event_handlers;
pub mod event_metrics;
pub mod event_streams;
pub mod events;
pub mod imports;
pub mod partition_locks;
pub mod read_models;
pub mod streams;

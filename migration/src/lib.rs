//! The schema of tidings: one neutral form for SQLite and PostgreSQL, and PostgreSQL's functions and triggers.
//! Applied migrations never change; functions and triggers are installed again by every migrate.

use sea_orm_migration::{
    prelude::*,
    sea_orm::{ConnectionTrait, DatabaseConnection, DbBackend},
};

mod m20261123_000001_create_tables;
mod m20261123_000002_index_pending_commands;
mod m20261201_000001_index_read_models;
mod m20261202_000001_index_correlation_ids_as_text;
mod m20261203_000001_revise_handlers;
mod m20261205_000001_count_timed_events;
mod m20261206_000001_index_retrying_deliveries;
mod m20261208_000001_keep_the_limit_of_events;
mod m20261210_000001_remember_imports;
pub mod postgres;
pub mod sqlite;

/// The migrations in their order.
#[derive(Debug)]
pub struct Migrator;

#[async_trait::async_trait]
impl MigratorTrait for Migrator {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![
            Box::new(m20261123_000001_create_tables::Migration),
            Box::new(m20261123_000002_index_pending_commands::Migration),
            Box::new(m20261201_000001_index_read_models::Migration),
            Box::new(m20261202_000001_index_correlation_ids_as_text::Migration),
            Box::new(m20261203_000001_revise_handlers::Migration),
            Box::new(m20261205_000001_count_timed_events::Migration),
            Box::new(m20261206_000001_index_retrying_deliveries::Migration),
            Box::new(m20261208_000001_keep_the_limit_of_events::Migration),
            Box::new(m20261210_000001_remember_imports::Migration),
        ]
    }
}

/// Installs what every migrate installs again: triggers and, on PostgreSQL, functions.
///
/// # Errors
/// When the database refuses a statement.
pub async fn install_code(connection: &DatabaseConnection) -> Result<(), DbErr> {
    let statements: &[&str] = match connection.get_database_backend() {
        DbBackend::Postgres => postgres::CODE,
        _ => sqlite::CODE,
    };
    for statement in statements {
        connection.execute_unprepared(statement).await?;
    }
    if connection.get_database_backend() == DbBackend::Postgres {
        // Sent as one they are one transaction: no client finds a function without its settings.
        connection
            .execute_unprepared(&postgres::FUNCTIONS.concat())
            .await?;
    }
    Ok(())
}

/// Describes the empty tables of a database with so many partitions to PostgreSQL's planner.
///
/// # Errors
/// When the database refuses it.
pub async fn describe_partitions(
    connection: &impl ConnectionTrait,
    partitions: i16,
) -> Result<(), DbErr> {
    if connection.get_database_backend() == DbBackend::Postgres {
        let describe = format!("SELECT tidings_describe_partitions({partitions})");
        connection.execute_unprepared(&describe).await?;
    }
    Ok(())
}

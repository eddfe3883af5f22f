//! The schema of tidings: one neutral form for SQLite and PostgreSQL, and PostgreSQL's functions and triggers.
//! Applied migrations never change; functions and triggers are installed again by every migrate.

use sea_orm_migration::prelude::*;

mod m20261123_000001_create_tables;
mod m20261123_000002_index_pending_commands;
mod m20261201_000001_index_read_models;
mod m20261203_000001_revise_handlers;
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
            Box::new(m20261203_000001_revise_handlers::Migration),
        ]
    }
}

/// Installs what every migrate installs again: triggers and, on PostgreSQL, functions.
///
/// # Errors
/// When the database refuses a statement.
pub async fn install_code(
    connection: &sea_orm_migration::sea_orm::DatabaseConnection,
) -> Result<(), DbErr> {
    use sea_orm_migration::sea_orm::{ConnectionTrait, DbBackend};
    let statements: &[&str] = match connection.get_database_backend() {
        DbBackend::Postgres => postgres::CODE,
        _ => sqlite::CODE,
    };
    for statement in statements {
        connection.execute_unprepared(statement).await?;
    }
    Ok(())
}

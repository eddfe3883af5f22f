//! Tidings: a GraphQL event store on SQLite and PostgreSQL.

pub mod app;
pub mod config;
pub mod domain;
pub mod graphql;
pub mod http;

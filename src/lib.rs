//! Tidings: a GraphQL event store on SQLite and PostgreSQL.
//!
//! [`app::App`] is the event store, [`graphql::Graphql`] its API, and [`http`] serves that API.

pub mod app;
pub mod appender;
pub mod commands;
pub mod config;
pub mod domain;
pub mod graphql;
pub mod handlers;
pub mod http;
pub mod metrics;
pub mod projections;
pub mod states;
pub mod store;
pub mod tail;
pub mod traces;
pub mod transfer;

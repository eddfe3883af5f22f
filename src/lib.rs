//! x
pub mod domain;
pub mod config;
pub mod store;
pub mod appender;
pub mod tail;

//! SQLite's triggers.

/// The statements in the order of their installation.
pub const CODE: &[&str] = &[include_str!("../sql/sqlite/triggers.sql")];

//! Stub of floor 0.

pub mod access;

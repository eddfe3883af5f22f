//! What the tests stand on: a PostgreSQL cluster, the real server as a process, and a GraphQL client.
#![allow(
    dead_code,
    reason = "each part is whole, and not every test needs all of it"
)]

pub mod client;
pub mod in_process;
pub mod postgres;
pub mod server;

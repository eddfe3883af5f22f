//! What the tests stand on: a PostgreSQL cluster, the real server as a process, and a GraphQL client.
#![allow(
    dead_code,
    reason = "each part is whole, and not every test needs all of it"
)]

pub mod client;
pub mod clock;
pub mod counting;
pub mod deciders;
pub mod follow;
pub mod in_process;
pub mod load;
pub mod log;
pub mod postgres;
pub mod projected;
pub mod proxy;
pub mod receiver;
pub mod script;
pub mod server;
pub mod sql_clients;

/// Runs each case, a function of an engine and a number of partitions, on SQLite and PostgreSQL with 1 and 4 partitions.
macro_rules! on_every_database {
    ($($case:ident),+ $(,)?) => {$(
        mod $case {
            use crate::support::in_process::Engine;

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn sqlite_1() {
                super::$case(Engine::Sqlite, 1).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn sqlite_4() {
                super::$case(Engine::Sqlite, 4).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn postgres_1() {
                super::$case(Engine::Postgres, 1).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn postgres_4() {
                super::$case(Engine::Postgres, 4).await;
            }
        }
    )+};
}
pub(crate) use on_every_database;

//! A connection to PostgreSQL for what surrounds the timed pieces.

use sea_orm::sqlx::{self, Connection, PgConnection};
use tokio::runtime::Runtime;

/// A connection that stays open as long as the value lives.
pub struct Sql {
    runtime: Runtime,
    connection: PgConnection,
}

impl Sql {
    pub fn connect(url: &str) -> Sql {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime starts");
        let connection = runtime
            .block_on(PgConnection::connect(url))
            .expect("PostgreSQL accepts the connection");
        Sql {
            runtime,
            connection,
        }
    }

    pub fn execute(&mut self, statements: &str) {
        let query = sqlx::raw_sql(sqlx::AssertSqlSafe(statements));
        let result = self.runtime.block_on(query.execute(&mut self.connection));
        result.unwrap_or_else(|error| panic!("{statements}: {error}"));
    }
}

/// A snapshot as pg_dump holds one: while it lives, PostgreSQL can clean up nothing that died after it was taken.
pub struct HeldSnapshot(Sql);

impl HeldSnapshot {
    pub fn take(url: &str) -> HeldSnapshot {
        let mut sql = Sql::connect(url);
        sql.execute("BEGIN TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY; SELECT count(*) FROM pg_class");
        HeldSnapshot(sql)
    }

    pub fn release(mut self) {
        self.0.execute("COMMIT");
    }
}

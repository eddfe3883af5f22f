//! `tidings export` and `tidings import`: from any database to any other, and what is made of interruptions and wrong input.

mod contents;
mod interruptions;
mod outputs;
mod pairs;
mod running;
mod twice;
mod wrong_input;

use std::path::Path;
use std::process::{Command, Output, Stdio};

use sea_orm::sqlx::{self, AssertSqlSafe, Connection, SqliteConnection};
use sea_orm::{ConnectionTrait, Statement};

use crate::support::in_process::Engine;

/// A call of the binary without any options from outside.
fn tidings(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidings"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("TIDINGS_") {
            command.env_remove(name);
        }
    }
    command.args(arguments);
    command
}

fn export(url: &str, file: &Path) -> Said {
    let file = file.to_str().unwrap();
    Said::by(tidings(&[
        "export",
        "--database-url",
        url,
        "--output",
        file,
    ]))
}

fn import(url: &str, partitions: u8, file: &Path) -> Said {
    let (file, partitions) = (file.to_str().unwrap(), partitions.to_string());
    let arguments = [
        "import",
        "--database-url",
        url,
        "--input",
        file,
        "--partitions",
    ];
    let mut command = tidings(&arguments);
    command.arg(partitions);
    Said::by(command)
}

/// `tidings export | tidings import`
fn pipe(from: &str, to: &str, partitions: u8) -> Said {
    let mut export = tidings(&["export", "--database-url", from])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let partitions = partitions.to_string();
    let mut import = tidings(&["import", "--database-url", to, "--partitions", &partitions]);
    import.stdin(export.stdout.take().unwrap());
    let said = Said::by(import);
    let exported = export.wait().unwrap();
    assert!(exported.success() || !said.succeeded);
    said
}

/// What a call has come to.
#[derive(Debug)]
struct Said {
    succeeded: bool,
    out: String,
    err: String,
}

impl Said {
    fn by(mut command: Command) -> Said {
        Said::of(&command.output().expect("the tidings binary starts"))
    }

    fn of(output: &Output) -> Said {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Said {
            succeeded: output.status.success(),
            out: text(&output.stdout),
            err: text(&output.stderr),
        }
    }

    #[track_caller]
    fn succeed(self) -> Said {
        assert!(self.succeeded, "{self:?}");
        self
    }

    #[track_caller]
    fn fail(self, problem: &str) -> Said {
        assert!(!self.succeeded, "{self:?}");
        assert!(self.err.contains(problem), "{self:?}");
        self
    }

    /// How many rows an import has found there already.
    fn skipped(&self) -> u64 {
        let (before, _) = self
            .out
            .split_once(" were there before")
            .expect("it says how many");
        before.rsplit(' ').next().unwrap().parse().unwrap()
    }
}

const AGGREGATES: i64 = 500;

/// Makes a database in a SQLite file with so many events, evenly over 500 aggregates, past any server.
async fn make_events(url: &str, events: i64) {
    Said::by(tidings(&["migrate", "--database-url", url])).succeed();
    let at = "'2026-01-31T12:00:00.123456+00:00'";
    let sql = format!(
        "CREATE TEMP TABLE ids AS WITH RECURSIVE n(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM n WHERE n < {AGGREGATES} - 1)
             SELECT n, randomblob(16) AS id FROM n;
         CREATE INDEX temp.ids_n ON ids (n);
         INSERT INTO events (partition_no, position, id, aggregate_id, aggregate_type, event_type, event_data, event_metadata, version, created_at)
             WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < {events})
             SELECT 0, n.n, randomblob(16), ids.id, 'load', 'counted', '{{\"n\":' || n.n || '}}', '{{}}', (n.n - 1) / {AGGREGATES} + 1, {at}
             FROM n JOIN ids ON ids.n = (n.n - 1) % {AGGREGATES};
         INSERT INTO aggregates SELECT 0, id, 'load', {events} / {AGGREGATES}, {at}, {at} FROM ids;"
    );
    let mut connection = SqliteConnection::connect(url).await.unwrap();
    sqlx::raw_sql(AssertSqlSafe(sql))
        .execute(&mut connection)
        .await
        .unwrap();
    connection.close().await.unwrap();
}

/// Runs statements in a database that nobody serves.
async fn run(url: &str, statements: &[String]) {
    let database = sea_orm::Database::connect(url).await.unwrap();
    for sql in statements {
        database.execute_unprepared(sql).await.unwrap();
    }
    database.close().await.unwrap();
}

/// Gives the events of a version to a handler: in each aggregate the first is dead, the next
/// one is to be tried, far in the future, and the last one waits for it.
fn deliver(engine: Engine, handler: &str, versions: &str) -> String {
    let id = match engine {
        Engine::Sqlite => "randomblob(16)",
        Engine::Postgres => "gen_random_uuid()",
    };
    format!(
        "INSERT INTO deliveries (partition_no, id, handler_id, event_position, aggregate_id, status, attempts, last_error, \
         next_attempt_at, updated_at) \
         SELECT e.partition_no, {id}, h.id, e.position, e.aggregate_id, \
         CASE e.version WHEN 1 THEN 'DEAD' WHEN 2 THEN 'RETRYING' ELSE 'WAITING' END, 3 - e.version, \
         CASE e.version WHEN 3 THEN NULL ELSE 'no connection: \"ä\"' END, '2999-01-01T00:00:00+00:00', e.created_at \
         FROM events e JOIN event_handlers h ON h.handler_name = '{handler}' \
         WHERE e.event_type IN ('noted', 'counted') AND e.version IN ({versions})"
    )
}

/// What a statement counts.
async fn count(url: &str, sql: &str) -> i64 {
    let database = sea_orm::Database::connect(url).await.unwrap();
    let statement = Statement::from_string(database.get_database_backend(), sql);
    let row = database.query_one_raw(statement).await.unwrap().unwrap();
    database.close().await.unwrap();
    row.try_get_by_index(0).unwrap()
}

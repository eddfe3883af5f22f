//! What the database itself keeps to: events never change, partitions are fixed, migrations run once, one server a file.

use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::sync::Arc;

use sea_orm::sqlx::{self, AssertSqlSafe, Connection, PgConnection, SqliteConnection};
use serde_json::json;
use tidings::{app::App, config::Config};

use super::{Contract, by_id, event};
use crate::support::in_process::{Database, Engine, TestServer};

cases!(
    events_cannot_be_changed_or_deleted_by_sql,
    another_number_of_partitions_is_refused,
    a_database_that_is_not_current_stops_the_start_without_migrations,
    migrations_that_ran_before_change_nothing,
    what_was_given_up_while_it_wrote_leaves_no_transaction_to_those_who_come_later,
);

/// Runs a statement beside the server: the rows that it changed, or the database's refusal.
pub(crate) async fn execute(database: &Database, sql: impl Into<String>) -> Result<u64, String> {
    let (url, sql) = (database.url(), sql.into());
    let refused = |error: sqlx::Error| error.to_string();
    match database {
        Database::Sqlite(_) => {
            let mut connection = SqliteConnection::connect(&url).await.unwrap();
            let done = sqlx::query(AssertSqlSafe(sql))
                .execute(&mut connection)
                .await;
            done.map(|done| done.rows_affected()).map_err(refused)
        }
        Database::Postgres(_) => {
            let mut connection = PgConnection::connect(&url).await.unwrap();
            let done = sqlx::query(AssertSqlSafe(sql))
                .execute(&mut connection)
                .await;
            done.map(|done| done.rows_affected()).map_err(refused)
        }
    }
}

/// One number that a statement counts.
async fn count(database: &Database, sql: &'static str) -> i64 {
    let url = database.url();
    match database {
        Database::Sqlite(_) => {
            let mut connection = SqliteConnection::connect(&url).await.unwrap();
            sqlx::query_scalar(AssertSqlSafe(sql))
                .fetch_one(&mut connection)
                .await
        }
        Database::Postgres(_) => {
            let mut connection = PgConnection::connect(&url).await.unwrap();
            sqlx::query_scalar(AssertSqlSafe(sql))
                .fetch_one(&mut connection)
                .await
        }
    }
    .unwrap()
}

/// One text that a statement finds.
pub(super) async fn text(database: &Database, sql: &'static str) -> String {
    let url = database.url();
    match database {
        Database::Sqlite(_) => {
            let mut connection = SqliteConnection::connect(&url).await.unwrap();
            sqlx::query_scalar(AssertSqlSafe(sql))
                .fetch_one(&mut connection)
                .await
        }
        Database::Postgres(_) => {
            let mut connection = PgConnection::connect(&url).await.unwrap();
            sqlx::query_scalar(AssertSqlSafe(sql))
                .fetch_one(&mut connection)
                .await
        }
    }
    .unwrap()
}

/// Why the store does not start, with all causes.
async fn start_error(config: &Config) -> String {
    match App::start(config).await {
        Ok(_) => panic!("it was to be refused"),
        Err(error) => {
            let mut text = error.to_string();
            let mut source = std::error::Error::source(&error);
            while let Some(cause) = source {
                text = format!("{text}: {cause}");
                source = cause.source();
            }
            text
        }
    }
}

async fn events_cannot_be_changed_or_deleted_by_sql(contract: Contract) {
    contract.fill(4).await;
    let before = contract.all_events().await;
    let database = &contract.server.database;
    let mut statements = vec![
        "UPDATE events SET event_data = '{}'",
        "UPDATE events SET event_type = event_type WHERE version = 1",
        "DELETE FROM events",
        "DELETE FROM events WHERE version = 1",
    ];
    if contract.engine == Engine::Postgres {
        statements.push("TRUNCATE events");
    }
    for sql in statements {
        let refusal = execute(database, sql).await.unwrap_err();
        assert!(refusal.contains("append another event"), "{sql}: {refusal}");
    }
    assert_eq!(contract.all_events().await, before);
    let payload = contract.append(event(uuid::Uuid::new_v4())).await;
    assert_eq!(payload["event"]["version"], 1);
}

async fn another_number_of_partitions_is_refused(contract: Contract) {
    let events = contract.fill(5).await;
    let partitions = contract.partitions;
    let database = contract.server.stop().await;
    let mut config = database.config();
    for other in [1, 2, 4, 16] {
        if other == partitions {
            continue;
        }
        config.database.partitions = Some(other);
        let error = start_error(&config).await;
        assert!(
            error.contains(&format!("the database has {partitions} partitions")),
            "{error}"
        );
        assert!(error.contains("--partitions"), "{error}");
    }
    for same in [None, Some(partitions)] {
        let server = TestServer::on(Arc::clone(&database), |config| {
            config.database.partitions = same;
        })
        .await;
        let contract = Contract {
            engine: contract.engine,
            partitions,
            client: server.client(),
            server,
        };
        assert_eq!(by_id(contract.all_events().await), by_id(events.clone()));
        contract.server.stop().await;
    }
}

async fn a_database_that_is_not_current_stops_the_start_without_migrations(contract: Contract) {
    let database = Arc::new(Database::make(contract.engine));
    let mut config = database.config();
    config.database.migrate = false;
    config.database.partitions = Some(contract.partitions);
    let error = start_error(&config).await;
    assert!(error.contains("tidings migrate"), "{error}");
    assert!(error.contains("--migrate=false"), "{error}");
    if let Database::Sqlite(folder) = database.as_ref() {
        let files = std::fs::read_dir(folder.path()).unwrap().count();
        assert_eq!(files, 0, "the refused start has made no file");
    }

    App::migrate(&config).await.unwrap();
    let server = TestServer::on(database, |config| config.database.migrate = false).await;
    let contract = Contract {
        engine: contract.engine,
        partitions: contract.partitions,
        client: server.client(),
        server,
    };
    let data = contract.ask("{ server { partitions } }", json!({})).await;
    assert_eq!(data["server"]["partitions"], contract.partitions);
    contract.fill(2).await;
}

async fn migrations_that_ran_before_change_nothing(contract: Contract) {
    let events = contract.fill(3).await;
    let head = contract.newest_place().await;
    let partitions = contract.partitions;
    let database = contract.server.stop().await;
    App::migrate(&database.config()).await.unwrap();
    App::migrate(&database.config()).await.unwrap();
    let server = TestServer::on(database, |_| {}).await;
    let contract = Contract {
        engine: contract.engine,
        partitions,
        client: server.client(),
        server,
    };
    assert_eq!(by_id(contract.all_events().await), by_id(events));
    assert_eq!(contract.newest_place().await, head);
}

/// A driver may send a BEGIN and forget it: an append that then runs on the same connection is acknowledged, and undone when
/// the session ends.
async fn what_was_given_up_while_it_wrote_leaves_no_transaction_to_those_who_come_later(
    contract: Contract,
) {
    let contract = contract
        .restarted(None, |config| {
            config.background.enabled = false;
            config.observability.event_metrics = false;
        })
        .await;
    let kind = tidings::domain::AggregateType::new("user").unwrap();
    for round in 0..40 {
        let id = tidings::domain::AggregateId(uuid::Uuid::new_v4());
        let store = contract.server.app.store();
        let given_up = store.create_aggregate(id, &kind, store.lock_timeout());
        let steps = std::time::Duration::from_micros(100) * (round / 4);
        let _ = tokio::time::timeout(steps, given_up).await;

        contract.append(event(uuid::Uuid::new_v4())).await;
        let stored = count(&contract.server.database, "SELECT count(*) FROM events").await;
        assert_eq!(stored, i64::from(round) + 1, "the append was committed");
    }
}

#[tokio::test]
async fn describing_the_partitions_once_more_takes_nothing_away() {
    let contract = Contract::on(Engine::Postgres, 4).await;
    let events = contract.fill(3).await;
    let database = &contract.server.database;
    for partitions in ["NULL", "0", "4", "16"] {
        let described = execute(
            database,
            format!("SELECT tidings_describe_partitions({partitions})"),
        );
        let is_number = matches!(partitions, "4" | "16");
        assert_eq!(described.await.is_ok(), is_number, "{partitions}");
    }
    assert_eq!(by_id(contract.all_events().await), by_id(events));
    assert_eq!(count(database, "SELECT count(*) FROM aggregates").await, 3);
}

#[tokio::test]
async fn a_second_server_on_one_sqlite_file_is_refused() {
    let contract = Contract::on(Engine::Sqlite, 1).await;
    contract.fill(1).await;
    let mut config = contract.server.database.config();
    for migrate in [true, false] {
        config.database.migrate = migrate;
        let error = start_error(&config).await;
        assert!(
            error.contains("in use by another tidings server"),
            "{error}"
        );
    }
    contract.fill(1).await;
    assert_eq!(contract.all_events().await.len(), 2);

    let database = contract.server.stop().await;
    let next = TestServer::on(database, |_| {}).await;
    let data = next
        .client()
        .query("{ events { nodes { id } } }", json!({}))
        .await
        .unwrap();
    assert_eq!(data["events"]["nodes"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn a_second_server_on_one_sqlite_file_is_refused_whatever_it_calls_the_file() {
    let contract = Contract::on(Engine::Sqlite, 1).await;
    contract.fill(1).await;
    let Database::Sqlite(folder) = contract.server.database.as_ref() else {
        panic!("it is a file");
    };
    let file = folder.path().join("tidings.db");
    let elsewhere = tempfile::tempdir().unwrap();
    let link = elsewhere.path().join("linked.db");
    symlink(&file, &link).unwrap();
    let linked_folder = elsewhere.path().join("folder");
    symlink(folder.path(), &linked_folder).unwrap();
    let mut relative: PathBuf = std::env::current_dir()
        .unwrap()
        .components()
        .skip(1)
        .map(|_| "..")
        .collect();
    relative.push(file.strip_prefix("/").unwrap());
    let name = folder.path().file_name().unwrap();
    let mut config = contract.server.database.config();
    for path in [
        link,
        linked_folder.join("tidings.db"),
        relative,
        folder.path().join("..").join(name).join("./tidings.db"),
    ] {
        assert!(path.exists(), "{path:?} leads to the file");
        config.database.url = format!("sqlite://{}", path.display()).parse().unwrap();
        let error = start_error(&config).await;
        assert!(error.contains("in use by another"), "{path:?}: {error}");
    }
    contract.fill(1).await;
    assert_eq!(contract.all_events().await.len(), 2);
}

#[tokio::test]
async fn a_file_that_was_made_through_a_link_is_locked_under_its_own_name() {
    let elsewhere = tempfile::tempdir().unwrap();
    let link = elsewhere.path().join("linked.db");
    let database = Arc::new(Database::make(Engine::Sqlite));
    let Database::Sqlite(folder) = database.as_ref() else {
        panic!("it is a file");
    };
    symlink(folder.path().join("tidings.db"), &link).unwrap();
    let server = TestServer::on(Arc::clone(&database), |config| {
        config.database.url = format!("sqlite://{}", link.display()).parse().unwrap();
    })
    .await;
    let error = start_error(&database.config()).await;
    assert!(error.contains("in use by another"), "{error}");
    server.stop().await;
    TestServer::on(database, |_| {}).await;
}

#[tokio::test]
async fn several_servers_may_share_one_postgres_database() {
    let contract = Contract::on(Engine::Postgres, 4).await;
    let other = TestServer::on(Arc::clone(&contract.server.database), |_| {}).await;
    let other = Contract {
        engine: Engine::Postgres,
        partitions: 4,
        client: other.client(),
        server: other,
    };
    let mut events = contract.fill(4).await;
    events.extend(other.fill(4).await);
    assert_eq!(by_id(contract.all_events().await), by_id(events.clone()));
    assert_eq!(by_id(other.all_events().await), by_id(events));
    assert_eq!(contract.newest_place().await, other.newest_place().await);
}

#[tokio::test]
async fn migrations_of_several_servers_that_start_at_once_run_once() {
    let database = Arc::new(Database::make(Engine::Postgres));
    let starts = (0..6).map(|_| {
        let database = Arc::clone(&database);
        tokio::spawn(async move {
            TestServer::on(database, |config| {
                config.database.partitions = Some(4);
                config.database.max_connections = 2;
            })
            .await
        })
    });
    let servers: Vec<TestServer> = futures_util::future::try_join_all(starts).await.unwrap();
    let ids: Vec<_> = servers
        .iter()
        .map(|server| server.app.store().database_id())
        .collect();
    assert!(ids.iter().all(|id| *id == ids[0]));
    let count = async |sql| count(&database, sql).await;
    assert_eq!(count("SELECT count(*) FROM database_settings").await, 1);
    assert_eq!(count("SELECT count(*) FROM partition_locks").await, 4 * 3);
    assert_eq!(
        count("SELECT count(*) - count(DISTINCT version) FROM seaql_migrations").await,
        0
    );
    let applied = count("SELECT count(*) FROM seaql_migrations").await;
    for server in &servers {
        let data = server
            .client()
            .query("{ server { partitions } }", json!({}))
            .await
            .unwrap();
        assert_eq!(data["server"]["partitions"], 4);
    }
    App::migrate(&database.config()).await.unwrap();
    assert_eq!(
        count("SELECT count(*) FROM seaql_migrations").await,
        applied
    );
}

//! Exports and imports that are cut off, and go on where they stopped.

use std::path::Path;
use std::process::{Child, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use sea_orm::sqlx::{self, Connection, PgConnection};
use tokio::task::block_in_place;

use super::{Said, contents::Contents, export, import, make_events, pipe, tidings};
use crate::support::client::LIMIT;
use crate::support::in_process::{Database, Engine};
use crate::support::log::StoredLog;
use crate::support::proxy::{Proxy, Reach};
use crate::support::server::TestServer;

const EVENTS: i64 = 40_000;

/// How many events are stored.
async fn stored(url: &str) -> i64 {
    use sea_orm::{ConnectionTrait, Statement};
    // The file may not be there yet.
    let Ok(database) = sea_orm::Database::connect(url).await else {
        return 0;
    };
    let sql = "SELECT CAST(count(*) AS bigint) FROM events";
    let statement = Statement::from_string(database.get_database_backend(), sql);
    // Before the tables are there, there is nothing.
    let row = database.query_one_raw(statement).await.ok().flatten();
    let count = row.map_or(0, |row| row.try_get_by_index(0).unwrap());
    database.close().await.unwrap();
    count
}

/// Starts an import, and kills it once it has stored something.
async fn kill_an_import(url: &str, partitions: u8, file: &Path) -> i64 {
    let partitions = partitions.to_string();
    let file = file.to_str().unwrap();
    let arguments = [
        "import",
        "--database-url",
        url,
        "--input",
        file,
        "--partitions",
        &partitions,
    ];
    let mut child = tidings(&arguments)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let began = Instant::now();
    while stored(url).await == 0 {
        assert!(
            began.elapsed() < Duration::from_secs(60),
            "something is stored in time"
        );
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    child.kill().unwrap();
    assert!(!child.wait().unwrap().success(), "it was not done yet");
    stored(url).await
}

async fn an_import_that_was_killed_goes_on(engine: Engine, partitions: u8) {
    let source = Database::make(Engine::Sqlite);
    make_events(&source.url(), EVENTS).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("export.jsonl");
    export(&source.url(), &file).succeed();

    let target = Database::make(engine);
    let there = kill_an_import(&target.url(), partitions, &file).await;
    assert!((1..EVENTS).contains(&there), "{there} events were stored");
    let (_, said) = TestServer::on(&target.url()).start_and_fail();
    assert!(
        said.contains("an import into the database was begun and not finished"),
        "{said}"
    );

    let said = import(&target.url(), partitions, &file).succeed();
    assert_eq!(
        said.skipped(),
        there as u64,
        "what was there is passed by: {said:?}"
    );
    assert_eq!(
        Contents::read(&target.url()).await,
        Contents::read(&source.url()).await
    );
    StoredLog::read_whole(&target.url()).await;
    // Once more there is nothing to do.
    let said = pipe(&source.url(), &target.url(), partitions).succeed();
    assert_eq!(said.skipped(), EVENTS as u64);
    TestServer::start(&target.url());
    pipe(&source.url(), &target.url(), partitions)
        .fail("a server has been started on the database");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_import_into_postgres_that_was_killed_goes_on() {
    an_import_that_was_killed_goes_on(Engine::Postgres, 4).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_import_into_sqlite_that_was_killed_goes_on() {
    an_import_that_was_killed_goes_on(Engine::Sqlite, 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_export_that_was_killed_goes_on_in_its_file() {
    let source = Database::make(Engine::Sqlite);
    make_events(&source.url(), EVENTS).await;
    let folder = tempfile::tempdir().unwrap();
    let (whole, cut) = (folder.path().join("whole"), folder.path().join("cut"));
    export(&source.url(), &whole).succeed();

    let (url, path) = (source.url(), cut.to_str().unwrap());
    let mut child = tidings(&["export", "--database-url", &url, "--output", path])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let began = Instant::now();
    let bytes = || std::fs::metadata(&cut).map_or(0, |file| file.len());
    while bytes() < 1 << 20 {
        assert!(
            began.elapsed() < Duration::from_secs(60),
            "something is written in time"
        );
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    child.kill().unwrap();
    assert!(!child.wait().unwrap().success(), "it was not done yet");
    let begun = std::fs::read_to_string(&cut).unwrap();
    export(&source.url(), &cut).succeed();
    let (whole, done) = (
        std::fs::read_to_string(&whole).unwrap(),
        std::fs::read_to_string(&cut).unwrap(),
    );
    let kept = begun.rfind('\n').unwrap();
    assert!(done.starts_with(&begun[..kept]), "what was written stays");
    let without_first = |text: &str| text.split_once('\n').unwrap().1.to_owned();
    assert!(
        without_first(&whole) == without_first(&done),
        "it is as if it had not been killed"
    );
    export(&source.url(), &cut).fail("holds a whole export");
}

/// Starts an export of a PostgreSQL that has a second to show that it is there.
fn begin_export(url: &str) -> Child {
    let patience = ["--migrate=false", "--database-acquire-timeout", "1s"];
    tidings(&["export", "--database-url", url])
        .args(patience)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// The end of a call that must not go on for ever.
fn end_of(mut child: Child) -> (ExitStatus, Said) {
    let began = Instant::now();
    let status = loop {
        match child.try_wait().unwrap() {
            Some(status) => break status,
            None if began.elapsed() > LIMIT => {
                child.kill().unwrap();
                panic!("it does not end");
            }
            None => std::thread::sleep(Duration::from_millis(10)),
        }
    };
    (status, Said::of(&child.wait_with_output().unwrap()))
}

async fn an_export_ends_where_the_database_falls_silent(reach: Reach) {
    let source = Database::make(Engine::Postgres);
    make_few(&source.url());
    let proxy = Proxy::to(&source.url()).await;
    // In the middle of the snapshot, while nothing has a time limit.
    proxy.fall_silent_at("FROM aggregates a", reach);
    let child = begin_export(&proxy.url);
    let (status, said) = block_in_place(|| end_of(child));
    assert!(proxy.asked() > 0, "it came that far: {said:?}");
    assert_eq!(status.code(), Some(1), "{said:?}");
    said.fail("the database does not answer");
}

fn make_few(url: &str) {
    Said::by(tidings(&["migrate", "--database-url", url])).succeed();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_export_ends_and_says_so_where_its_connection_falls_silent() {
    an_export_ends_where_the_database_falls_silent(Reach::Connected).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_export_ends_and_says_so_where_the_database_has_vanished() {
    an_export_ends_where_the_database_falls_silent(Reach::All).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_export_waits_for_a_database_that_is_at_work() {
    let source = Database::make(Engine::Postgres);
    make_few(&source.url());
    let mut holder = PgConnection::connect(&source.url()).await.unwrap();
    let mut held = holder.begin().await.unwrap();
    let lock = "LOCK TABLE aggregates IN ACCESS EXCLUSIVE MODE";
    sqlx::raw_sql(lock).execute(&mut *held).await.unwrap();
    let child = begin_export(&source.url());
    let mut looking = PgConnection::connect(&source.url()).await.unwrap();
    // For longer than it has patience with one that is silent.
    let waiting = "SELECT EXISTS (SELECT 1 FROM pg_stat_activity WHERE datname = current_database() \
         AND wait_event_type = 'Lock' AND clock_timestamp() - query_start > interval '3.5 s')";
    let began = Instant::now();
    while !sqlx::query_scalar::<_, bool>(waiting)
        .fetch_one(&mut looking)
        .await
        .unwrap()
    {
        assert!(began.elapsed() < LIMIT, "it waits for the table");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    held.commit().await.unwrap();
    let (_, said) = block_in_place(|| end_of(child));
    said.succeed();
}

//! Exports and imports that are cut off, and go on where they stopped.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use super::{contents::Contents, export, import, make_events, pipe, tidings};
use crate::support::in_process::{Database, Engine};
use crate::support::log::StoredLog;
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

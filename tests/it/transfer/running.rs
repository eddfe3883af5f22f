//! Exports of a database that goes on meanwhile, with deliveries that are not done: it is that of one instant.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use super::{contents::Contents, deliver, export, import, make_events, pipe, run, tidings};
use crate::support::in_process::{Database, Engine};

const EVENTS: i64 = 8000;

/// A handler that has come to the end.
fn register(name: &str) -> String {
    format!(
        "INSERT INTO event_handlers (id, handler_name, event_types, handler_function, is_active, created_at, revision) \
         VALUES (gen_random_uuid(), '{name}', '[\"counted\"]', 'http://127.0.0.1:1/', true, now(), 0); \
         INSERT INTO checkpoints (partition_no, name, position, fence) \
         SELECT e.partition_no, 'handler:' || h.id, max(e.position), 0 FROM events e JOIN event_handlers h \
         ON h.handler_name = '{name}' GROUP BY e.partition_no, h.id"
    )
}

/// A database with events and deliveries.
async fn make() -> Database {
    let (made, source) = (
        Database::make(Engine::Sqlite),
        Database::make(Engine::Postgres),
    );
    make_events(&made.url(), EVENTS).await;
    pipe(&made.url(), &source.url(), 4).succeed();
    let given = [
        register("first"),
        deliver(Engine::Postgres, "first", "1, 2, 3"),
    ];
    run(&source.url(), &given).await;
    source
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_export_has_the_deliveries_that_were_there_when_it_began() {
    let source = make().await;
    let url = source.url();
    let before = Contents::read(&url).await;
    assert_eq!(before.deliveries.len(), 1500);
    let mut child = tidings(&["export", "--database-url", &url])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // It has begun, and cannot come to its end before somebody reads on.
    let mut output = BufReader::with_capacity(1024, child.stdout.take().unwrap());
    let mut text = String::new();
    output.read_line(&mut text).unwrap();
    let meanwhile = [
        "DELETE FROM deliveries WHERE status = 'RETRYING'".to_owned(),
        "UPDATE deliveries SET status = 'RETRYING' WHERE status = 'WAITING'".to_owned(),
        register("second"),
        deliver(Engine::Postgres, "second", "1, 2"),
    ];
    run(&url, &meanwhile).await;
    output.read_to_string(&mut text).unwrap();
    assert!(child.wait().unwrap().success());
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, &text).unwrap();
    for (engine, partitions) in [(Engine::Sqlite, 1), (Engine::Postgres, 16)] {
        let target = Database::make(engine);
        import(&target.url(), partitions, &file).succeed();
        assert_eq!(Contents::read(&target.url()).await, before, "{engine:?}");
    }

    // One that lacks a delivery, has another one, or one of no event is not whole.
    let lines: Vec<&str> = text.lines().collect();
    let at = lines
        .iter()
        .position(|line| line.starts_with("{\"delivery\""))
        .unwrap();
    let without = [&lines[..at], &lines[at + 1..]].concat().join("\n") + "\n";
    let other = text.replacen("\"status\":\"WAITING\"", "\"status\":\"DEAD\"", 1);
    let (begin, id) = lines[at].split_once("\"eventId\":\"").unwrap();
    let nothing = format!("{begin}\"eventId\":\"{}{}", uuid::Uuid::nil(), &id[36..]);
    let nothing = text.replacen(lines[at], &nothing, 1);
    for (text, problem) in [
        (
            without,
            "the deliveries that are stored are not those of the export",
        ),
        (
            other,
            "the deliveries that are stored are not those of the export",
        ),
        (
            nothing,
            "a delivery is of the event 00000000-0000-0000-0000-000000000000",
        ),
    ] {
        let target = Database::make(Engine::Sqlite);
        std::fs::write(&file, text).unwrap();
        import(&target.url(), 2, &file).fail(problem);
    }
}

/// Imports again and again, each time for a bit longer, until it is done. Answers how often.
async fn import_with_kills(target: &Database, partitions: u8, file: &Path) -> u32 {
    let (url, partitions) = (target.url(), partitions.to_string());
    let file = file.to_str().unwrap();
    let arguments = [
        "import",
        "--database-url",
        &url,
        "--input",
        file,
        "--partitions",
        &partitions,
    ];
    let mut limit = Duration::from_millis(20);
    for times in 1..60 {
        let child = tokio::process::Command::from(tidings(&arguments))
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn();
        let mut child = child.unwrap();
        match tokio::time::timeout(limit, child.wait()).await {
            Ok(status) => {
                assert!(status.unwrap().success(), "after {times} times");
                return times;
            }
            Err(_) => child.kill().await.unwrap(),
        }
        limit = limit * 6 / 5;
    }
    panic!("it never comes to its end");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_import_that_is_killed_at_any_point_goes_on() {
    let source = make().await;
    let before = Contents::read(&source.url()).await;
    let folder = tempfile::tempdir().unwrap();
    let file: PathBuf = folder.path().join("file");
    export(&source.url(), &file).succeed();
    for (engine, partitions) in [(Engine::Sqlite, 2), (Engine::Postgres, 16)] {
        let target = Database::make(engine);
        let times = import_with_kills(&target, partitions, &file).await;
        assert!(times > 2, "it was killed");
        assert_eq!(Contents::read(&target.url()).await, before);
    }
}

//! Exports to where nothing can be written, or nobody reads.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, pipe};

use super::{Said, make_events, tidings};
use crate::support::in_process::{Database, Engine};

const EVENTS: i64 = 5000;

async fn make() -> Database {
    let source = Database::make(Engine::Sqlite);
    make_events(&source.url(), EVENTS).await;
    source
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_ends_an_export_with_an_error() {
    let source = make().await;
    let url = source.url();
    let full: File = OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut command = tidings(&["export", "--database-url", &url]);
    command.stdout(full);
    Said::by(command).fail("the export cannot be written: No space left on device");
    let command = tidings(&["export", "--database-url", &url, "--output", "/dev/full"]);
    Said::by(command).fail("the export cannot be written: No space left on device");
    // Something else than a file that can be written is written.
    let command = tidings(&["export", "--database-url", &url, "--output", "/dev/stdout"]);
    let said = Said::by(command).succeed();
    assert_eq!(said.out.lines().count() as i64, EVENTS + 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_export_whose_reader_goes_away_ends_with_an_error() {
    let source = make().await;
    let url = source.url();
    let (reader, writer) = pipe().unwrap();
    let mut command = tidings(&["export", "--database-url", &url]);
    let child = command
        .stdout(writer)
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    drop(command);
    let mut line = String::new();
    BufReader::new(reader).read_line(&mut line).unwrap();
    assert!(line.starts_with("{\"export\":"));
    let said = Said::of(&child.wait_with_output().unwrap());
    let said = said.fail("the export cannot be written: Broken pipe");
    assert!(!said.err.contains("panicked"), "{said:?}");

    // Nor where its errors cannot be read, either.
    let (reader, writer) = pipe().unwrap();
    let mut command = tidings(&["export", "--database-url", &url]);
    let errors = writer.try_clone().unwrap();
    let mut child = command.stdout(writer).stderr(errors).spawn().unwrap();
    drop(command);
    drop(reader);
    assert_eq!(child.wait().unwrap().code(), Some(1), "it does not panic");
}

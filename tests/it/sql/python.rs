//! Python programs with psycopg2 call every function. The script lies in `tests/python/`; `scripts/setup python` makes its
//! virtual environment beside what cargo builds.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::{on_postgres, start};
use crate::support::script;

on_postgres!(a_python_program_calls_every_function);

async fn a_python_program_calls_every_function(partitions: u8) {
    let server = start(partitions, |_| {}).await;
    let url = server.database.url();
    let ran = tokio::task::spawn_blocking(move || run_script("test_functions.py", &url));
    ran.await.unwrap();
}

fn run_script(name: &str, database_url: &str) {
    let python = python();
    assert!(
        python.is_file(),
        "{} is not there: run scripts/setup python",
        python.display()
    );
    let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python");
    let mut command = Command::new(python);
    command
        // It leaves nothing behind in the repository.
        .arg("-B")
        .arg(scripts.join(name))
        .env("DATABASE_URL", database_url);
    script::run(name, command);
}

fn python() -> PathBuf {
    let built = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let built = built.parent().expect("it lies in cargo's own folder");
    built.join("python/bin/python")
}

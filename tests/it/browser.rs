//! What runs in JavaScript against the real server: the playground in a headless Chromium, the clients that people
//! use, and the GraphQL-over-HTTP audits. The scripts live in `tests/browser/`.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::server::TestServer;

/// Beyond this a script hangs.
const LIMIT: Duration = Duration::from_secs(180);

#[test]
fn the_playground_appends_and_sees_it_arrive_and_asks_no_other_host() {
    run_script("playground.mjs");
}

#[test]
fn the_common_javascript_clients_query_append_and_subscribe() {
    run_script("clients.mjs");
}

#[test]
fn the_server_follows_the_graphql_over_http_specification() {
    run_script("http-spec.mjs");
}

#[test]
fn a_page_of_another_origin_can_neither_read_nor_write() {
    run_script("origins.mjs");
}

/// Runs one script with `TIDINGS_URL` set to a server on a fresh SQLite file; it succeeds by ending with status 0.
fn run_script(name: &str) {
    let folder = tempfile::tempdir().expect("a temp folder can be made");
    let server = TestServer::start(&format!(
        "sqlite://{}",
        folder.path().join("tidings.db").display()
    ));
    let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/browser");
    assert!(
        scripts.join("node_modules").is_dir(),
        "the npm packages of tests/browser are not there: run scripts/setup, or npm ci in {}",
        scripts.display()
    );
    // Its output goes where the test's goes, so a hanging script shows how far it came.
    let mut script = Command::new("node")
        .arg(scripts.join(name))
        .current_dir(&scripts)
        .env("TIDINGS_URL", server.url())
        .stdin(Stdio::null())
        .spawn()
        .expect("node starts: install Node.js 20 or newer");
    let started = Instant::now();
    let status = loop {
        if let Some(status) = script.try_wait().expect("a child can be waited for") {
            break status;
        }
        if started.elapsed() > LIMIT {
            let _ = script.kill();
            let _ = script.wait();
            panic!("{name} has not ended after {LIMIT:?}");
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    assert!(
        status.success(),
        "{name} ended with {status}; its output is above"
    );
}

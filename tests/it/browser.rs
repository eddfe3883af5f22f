//! What runs in JavaScript against the real server: the playground and a foreign page in a headless Chromium, the clients
//! that people use, and the audits of the GraphQL-over-HTTP specification. The scripts live in `tests/browser/`.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::{
    in_process::{Database, Engine},
    script,
    server::{TestServer, TestServerBuilder, free_port},
};

const BROWSERS: [&str; 4] = [
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
];

#[test]
fn the_playground_appends_and_sees_it_arrive_and_asks_no_other_host() {
    // With SCREENSHOT in the environment, the script writes the README's picture there.
    run_script("playground.mjs", |server| server, &[]);
}

#[test]
fn the_playground_works_with_a_token() {
    let with_token =
        |server: TestServerBuilder| server.arguments(["--token", "admin=a-token-for-tests"]);
    run_script(
        "playground.mjs",
        with_token,
        &[("TOKEN", "a-token-for-tests"), ("SCREENSHOT", "")],
    );
}

#[test]
fn clients_that_others_wrote_query_append_and_subscribe() {
    run_script("clients.mjs", |server| server, &[]);
}

#[test]
fn a_page_that_loses_its_connection_ends_with_the_true_list_of_read_models() {
    run_script("read-models.mjs", |server| server, &[]);
}

#[test]
fn a_page_that_loses_its_connection_ends_with_the_true_list_of_read_models_in_4_partitions() {
    let divided = |server: TestServerBuilder| server.arguments(["--partitions", "4"]);
    run_script("read-models.mjs", divided, &[]);
}

#[test]
fn the_server_follows_the_graphql_over_http_specification() {
    run_script("http-spec.mjs", |server| server, &[]);
}

#[test]
fn a_page_of_another_origin_can_neither_read_nor_write() {
    run_script("origins.mjs", |server| server, &[]);
}

#[test]
fn a_page_of_an_allowed_origin_can_do_what_is_regular() {
    let port = free_port().to_string();
    let allow = |server: TestServerBuilder| {
        server.arguments(["--allow-origin", &format!("http://127.0.0.1:{port}")])
    };
    run_script(
        "origins.mjs",
        allow,
        &[("ALLOWED", "1"), ("ORIGIN_PORT", &port)],
    );
}

#[test]
fn a_receiver_that_others_wrote_gets_every_event_signed_and_in_order_on_sqlite() {
    give_to_receiver(Engine::Sqlite);
}

#[test]
fn a_receiver_that_others_wrote_gets_every_event_signed_and_in_order_on_postgres() {
    give_to_receiver(Engine::Postgres);
}

fn give_to_receiver(engine: Engine) {
    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    let eager = |server: TestServerBuilder| {
        server.env("TIDINGS_WEBHOOK_SECRET", SECRET).arguments([
            "--webhook-allow-private",
            "--handler-timeout=500ms",
            "--handler-retry-delay=50ms",
            "--handler-longest-delay=500ms",
            "--handler-attempts=1000",
        ])
    };
    run_script_on(engine, "webhooks.mjs", eager, &[("WEBHOOK_SECRET", SECRET)]);
}

/// Runs one script with `TIDINGS_URL` set to a server on a fresh SQLite file.
fn run_script(
    name: &str,
    configure: impl FnOnce(TestServerBuilder) -> TestServerBuilder,
    environment: &[(&str, &str)],
) {
    run_script_on(Engine::Sqlite, name, configure, environment);
}

/// The same on a database of any kind.
fn run_script_on(
    engine: Engine,
    name: &str,
    configure: impl FnOnce(TestServerBuilder) -> TestServerBuilder,
    environment: &[(&str, &str)],
) {
    let database = Database::make(engine);
    let server = configure(TestServer::on(&database.url())).start();
    let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/browser");
    assert!(
        scripts.join("node_modules").is_dir(),
        "the npm packages of tests/browser are not there: run scripts/setup, or npm ci in {}",
        scripts.display()
    );
    let mut command = Command::new("node");
    command
        .arg(scripts.join(name))
        .current_dir(&scripts)
        .env_remove("TIDINGS_TOKEN")
        .env("TIDINGS_URL", server.url())
        .env("CHROMIUM", browser())
        .envs(environment.iter().copied());
    script::run(name, command);
}

/// The browser to drive: the one that `CHROMIUM` names, or the first that is installed.
fn browser() -> PathBuf {
    if let Some(path) = std::env::var_os("CHROMIUM").filter(|path| !path.is_empty()) {
        return PathBuf::from(path);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    let installed = BROWSERS
        .iter()
        .flat_map(|name| folders.iter().map(move |folder| folder.join(name)));
    installed.into_iter().find(|path| path.is_file()).expect(
        "no Chromium on this machine: install it (Debian: apt-get install chromium), or name one in CHROMIUM",
    )
}

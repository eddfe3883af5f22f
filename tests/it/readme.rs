//! The README's script of a user's life, run as it stands there.

use std::process::Command;

use serde_json::{Value, json};

use crate::support::in_process::{Database, Engine, TestServer};

fn script() -> String {
    let readme = include_str!("../../README.md");
    let from = readme
        .find("# The life of a user.")
        .expect("the script is there");
    let to = readme[from..].find("```").expect("it ends");
    readme[from..from + to].to_owned()
}

/// The answers that the script prints.
async fn answers(server: &TestServer) -> Vec<Value> {
    let mut bash = Command::new("bash");
    bash.args(["-euo", "pipefail", "-c", &script()])
        .env("TIDINGS_URL", &server.url);
    let output = tokio::task::spawn_blocking(move || bash.output())
        .await
        .expect("it ends")
        .expect("bash and curl are installed");
    let printed = String::from_utf8(output.stdout).expect("it is text");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{printed}\n{told}");
    let answer = |line: &str| serde_json::from_str::<Value>(line).expect("each line is an answer");
    printed.lines().map(answer).collect()
}

async fn the_life_of_a_user_is_as_the_readme_says(engine: Engine) {
    let server = TestServer::on(Database::make(engine).into(), |_| {}).await;
    // Twice: somebody may paste it again.
    for _ in 0..2 {
        let answers = answers(&server).await;
        assert_eq!(answers.len(), 9, "{answers:?}");
        let executed = |at: usize| &answers[at]["data"]["executeCommand"];
        for (at, event, version) in [
            (0, "user_created", 1),
            (2, "user_updated", 2),
            (4, "user_deleted", 3),
        ] {
            assert_eq!(executed(at)["command"]["status"], "PROCESSED");
            let expected = json!([{ "type": event, "version": version }]);
            assert_eq!(executed(at)["events"], expected);
        }
        let read = |at: usize| &answers[at]["data"]["readModel"];
        let created = json!({ "username": "ada", "email": "ada@example.org" });
        assert_eq!(*read(1), json!({ "version": 1, "data": created }));
        let updated = json!({ "username": "ada", "email": "countess@example.org" });
        assert_eq!(*read(3), json!({ "version": 2, "data": updated }));
        assert_eq!(answers[5], json!({ "data": { "readModel": null } }));
        assert_eq!(executed(6)["command"]["status"], "REJECTED");
        assert!(executed(6)["command"]["reason"].is_string());
        let aggregate = &answers[7]["data"]["aggregate"];
        assert_eq!(aggregate["version"], 3);
        assert_eq!(aggregate["events"].as_array().map(Vec::len), Some(3));
        assert_eq!(aggregate["state"], created);
        let entries = answers[8]["data"]["stream"]["entries"].as_array();
        let types: Vec<&Value> = entries
            .iter()
            .flat_map(|all| all.iter())
            .map(|entry| &entry["type"])
            .collect();
        assert_eq!(types, ["user_created", "user_updated", "user_deleted"]);
    }
}

#[tokio::test]
async fn the_life_of_a_user_on_sqlite() {
    the_life_of_a_user_is_as_the_readme_says(Engine::Sqlite).await;
}

#[tokio::test]
async fn the_life_of_a_user_on_postgres() {
    the_life_of_a_user_is_as_the_readme_says(Engine::Postgres).await;
}

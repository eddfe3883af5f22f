//! A dump that is taken while clients append, restored into a fresh cluster.

use std::process::Command;

use serde_json::json;
use uuid::Uuid;

use super::*;
use crate::support::postgres::Cluster;

fn run(command: &mut Command) {
    let output = command.output().expect("PostgreSQL's programs are there");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{command:?}: {said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dump_serves_the_same_cursors_in_a_fresh_cluster_and_goes_on_without_a_gap() {
    let database = Cluster::shared().create_database();
    let server = TestServer::on(&database.url)
        .arguments(["--partitions", "4"])
        .start();
    let client = Client::new(&server);
    let load = Load::start(&client, WRITERS, mixed());
    load.until_more_acknowledged(300).await;
    // A place in the middle of the log, and what lies before it.
    let page = "{ events(first: 100) { nodes { id } pageInfo { endCursor } } }";
    let page = client.query(page, json!({})).await.unwrap()["events"].take();
    let before = page["nodes"].as_array().unwrap().iter();
    let before: Vec<Uuid> = before
        .map(|event| event["id"].as_str().unwrap().parse().unwrap())
        .collect();
    assert_eq!(before.len(), 100);
    load.until_more_acknowledged(100).await;

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tidings.dump");
    let fresh = Cluster::private();
    run(Command::new(fresh.bin("pg_dump"))
        .args(["--format=custom", "--dbname", &database.url])
        .arg("--file")
        .arg(&file));
    load.until_more_acknowledged(100).await;
    let mut ledger = load.stop().await;
    ledger.repeat_unknown(&client).await;
    let original = StoredLog::read_whole(&database.url).await;
    ledger.assert_is_all_of(&original);

    let restored = fresh.create_database();
    run(Command::new(fresh.bin("pg_restore"))
        .args(["--exit-on-error", "--dbname", &restored.url])
        .arg(&file));
    let dumped = StoredLog::read_whole(&restored.url).await;
    assert!(dumped.events.len() >= 300 && dumped.events.len() < original.events.len());

    let server = TestServer::start(&restored.url);
    let client = Client::new(&server);
    let followers = follow_the_load(&server.ws_url(), false);
    let follow = Follow::everything();
    let resumed = Manner {
        after: Some(page["pageInfo"]["endCursor"].clone()),
        skipped: before.into_iter().collect(),
        ..Manner::default()
    };
    let resumed = Follower::start(&server.ws_url(), follow, resumed);
    let load = Load::start(&client, WRITERS, mixed());
    load.until_more_acknowledged(200).await;
    let mut ledger = load.stop().await;
    ledger.repeat_unknown(&client).await;
    let log = StoredLog::read_whole(&restored.url).await;
    ledger.assert_kept_in(&log);
    let appended =
        log.events.len() + log.entries.len() - dumped.events.len() - dumped.entries.len();
    assert_eq!(appended, ledger.acknowledged.len());
    for follower in followers.iter().chain([&resumed]) {
        follower.assert_was_given_all_of(&log).await;
    }
}

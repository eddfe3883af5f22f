//! The documents about metrics speak of those that there are, and of all of them.

use std::collections::BTreeSet;

use serde_json::Value;
use uuid::Uuid;

use super::{names, scrape};
use crate::support::in_process::{Database, Engine, TestServer};

const OPERATIONS: &str = include_str!("../../../docs/operations.md");
const DASHBOARD: &str = include_str!("../../../docs/grafana-dashboard.json");

/// Names of metrics in a text, without what histograms add to theirs.
fn named(text: &str, served: &BTreeSet<String>) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let ours = words.filter(|word| {
        let known = ["tidings_", "process_"];
        known.iter().any(|prefix| word.starts_with(prefix)) && !word.ends_with('_')
    });
    let of_histogram = |word: &str| {
        let endings = ["_bucket", "_sum", "_count"];
        let name = endings.iter().find_map(|ending| word.strip_suffix(ending));
        name.filter(|name| served.contains(*name))
            .map(str::to_owned)
    };
    ours.map(|word| of_histogram(word).unwrap_or_else(|| word.to_owned()))
        .filter(|word| !NO_METRICS.contains(&word.as_str()))
        .collect()
}

/// Words of the documents that only look like metrics.
const NO_METRICS: &[&str] = &["process_command"];

/// All metrics that a server can serve, those of event handlers too.
async fn served() -> BTreeSet<String> {
    let server = TestServer::on(
        std::sync::Arc::new(Database::make(Engine::Postgres)),
        |_| {},
    )
    .await;
    let Database::Postgres(database) = server.database.as_ref() else {
        panic!("it is one of PostgreSQL");
    };
    let id = Uuid::new_v4();
    database.execute(&format!(
        "INSERT INTO event_handlers (id, handler_name, event_types, handler_function, is_active, created_at) \
         VALUES ('{id}', 'a', '[]', 'log', false, now())"
    ));
    database.execute(&format!(
        "INSERT INTO checkpoints (partition_no, name, position, fence) VALUES \
         (0, 'handler:{id}', 0, 0), (0, 'read_models', 0, 0), (0, 'publish', 0, 0) ON CONFLICT DO NOTHING"
    ));
    database.execute(&format!(
        "INSERT INTO deliveries (partition_no, id, handler_id, event_position, aggregate_id, status, attempts, updated_at) \
         VALUES (0, '{id}', '{id}', 1, '{id}', 'DEAD', 8, now())"
    ));
    names(&scrape(&server).await)
}

#[tokio::test]
async fn the_documents_name_the_metrics_that_there_are() {
    let served = served().await;
    let explained = named(OPERATIONS, &served);
    let unknown: Vec<&String> = explained.difference(&served).collect();
    assert!(unknown.is_empty(), "docs/operations.md: {unknown:?}");
    let unexplained: Vec<&String> = served.difference(&explained).collect();
    assert!(
        unexplained.is_empty(),
        "docs/operations.md lacks {unexplained:?}"
    );
    let shown = named(DASHBOARD, &served);
    assert!(shown.len() > 20, "{shown:?}");
    let unknown: Vec<&String> = shown.difference(&served).collect();
    assert!(
        unknown.is_empty(),
        "docs/grafana-dashboard.json: {unknown:?}"
    );
}

#[test]
fn the_dashboard_is_one_that_grafana_can_load() {
    let dashboard: Value = serde_json::from_str(DASHBOARD).expect("it is JSON");
    assert!(dashboard["schemaVersion"].as_i64().unwrap() >= 36);
    assert!(dashboard["title"].is_string() && dashboard["uid"].is_string());
    let panels = dashboard["panels"].as_array().unwrap();
    let ids: BTreeSet<i64> = panels
        .iter()
        .map(|panel| panel["id"].as_i64().unwrap())
        .collect();
    assert_eq!(ids.len(), panels.len(), "each panel has an id of its own");
    let mut taken = BTreeSet::new();
    for panel in panels {
        let place = |key: &str| panel["gridPos"][key].as_i64().unwrap();
        assert!(place("x") + place("w") <= 24, "{panel}");
        for x in place("x")..place("x") + place("w") {
            for y in place("y")..place("y") + place("h") {
                assert!(
                    taken.insert((x, y)),
                    "{} lies on another panel",
                    panel["title"]
                );
            }
        }
        if panel["type"] == "row" {
            continue;
        }
        assert!(panel["description"].is_string(), "{}", panel["title"]);
        for target in panel["targets"].as_array().unwrap() {
            let query = target["expr"].as_str().unwrap();
            let opened = query.matches(['(', '{', '[']).count();
            assert_eq!(opened, query.matches([')', '}', ']']).count(), "{query}");
        }
    }
}

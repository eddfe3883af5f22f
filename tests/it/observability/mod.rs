//! What operators see: /metrics, logs, traces, and the documents about them.

mod documents;
mod logs;
mod metrics;
mod receiver;
mod traces;

use std::collections::{BTreeMap, BTreeSet};

use crate::support::in_process::TestServer;

/// The metrics of a server as text.
async fn scrape(server: &TestServer) -> String {
    let response = reqwest::get(format!("{}/metrics", server.url))
        .await
        .unwrap();
    assert_eq!(response.status(), 200);
    response.text().await.unwrap()
}

/// Each sample by its name with its labels.
fn samples(text: &str) -> BTreeMap<String, f64> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let (name, value) = line.rsplit_once(' ').unwrap();
            (name.to_owned(), value.parse().unwrap())
        })
        .collect()
}

/// The names of the metrics that are described.
fn names(text: &str) -> BTreeSet<String> {
    let described = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    described
        .map(|line| line.split(' ').next().unwrap().to_owned())
        .collect()
}

//! Requests: what was refused early is counted, what took too long has an id, connections are counted one by one.

use std::{sync::Arc, time::Duration};

use serde_json::{Value, json};
use tokio::{io::AsyncReadExt, net::TcpStream};

use super::{holding, samples, scrape};
use crate::support::{
    client::{LIMIT, Socket, Step},
    in_process::{Database, Engine, TestServer},
};

/// Waits until a request that nobody else makes has been counted so often.
async fn until_refused(server: &TestServer, code: &str, count: f64) {
    let sample = format!(r#"tidings_requests_total{{code="{code}",operation="unknown"}}"#);
    until(server, &sample, count).await;
}

async fn until(server: &TestServer, sample: &str, value: f64) {
    let seen = async {
        while samples(&scrape(server).await).get(sample) != Some(&value) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let seen = tokio::time::timeout(LIMIT, seen).await;
    seen.unwrap_or_else(|_| panic!("{sample} does not become {value}"));
}

#[tokio::test]
async fn what_is_refused_before_it_is_read_is_counted_by_its_code() {
    let server = TestServer::with(|config| {
        config.limits.max_request_bytes = 1000;
    })
    .await;
    let http = reqwest::Client::new();
    let post = |body: String| {
        let request = http.post(format!("{}/graphql", server.url)).body(body);
        request.header("content-type", "application/json")
    };
    // Another name, another origin.
    for (header, value) in [
        ("host", "elsewhere.example"),
        ("origin", "http://evil.example"),
    ] {
        let refused = post("{}".to_owned()).header(header, value);
        assert!(refused.send().await.unwrap().status().is_client_error());
    }
    until_refused(&server, "FORBIDDEN", 2.0).await;
    // No JSON, too large, no document.
    for body in [
        "{".to_owned(),
        " ".repeat(2000),
        r#"{"query":"{"}"#.to_owned(),
    ] {
        post(body).send().await.unwrap();
    }
    until_refused(&server, "BAD_USER_INPUT", 3.0).await;
    // A handshake with a protocol that there is none of, and a message that is none.
    assert!(Socket::open(&server.ws_url, "mqtt", &[]).await.is_err());
    until_refused(&server, "BAD_USER_INPUT", 4.0).await;
    let mut socket = Socket::connect(&server.ws_url, None).await;
    socket.send_text("nonsense").await;
    assert!(matches!(
        socket.receive().await,
        Err(Step::Closed { code: 4400, .. })
    ));
    until_refused(&server, "BAD_USER_INPUT", 5.0).await;
}

#[tokio::test]
async fn a_websocket_without_a_token_is_counted_as_unauthenticated() {
    let server = TestServer::with(|config| {
        config.access.tokens = vec!["admin=hunter2".parse().unwrap()];
    })
    .await;
    let client = server.client().with_token("hunter2");
    let counted = async || {
        let answer = reqwest::Client::new().get(format!("{}/metrics", server.url));
        let answer = answer.bearer_auth("hunter2").send().await.unwrap();
        let sample = r#"tidings_requests_total{code="UNAUTHENTICATED",operation="unknown"}"#;
        let samples = samples(&answer.text().await.unwrap());
        samples.get(sample).copied().unwrap_or_default()
    };
    let wrong = [("authorization", "Bearer wrong")];
    let refused = Socket::open(&server.ws_url, "graphql-transport-ws", &wrong).await;
    assert!(refused.is_err());
    assert_eq!(counted().await, 1.0);
    let mut socket = Socket::open(&server.ws_url, "graphql-transport-ws", &[])
        .await
        .unwrap();
    assert!(matches!(
        socket.init().await,
        Err(Step::Closed { code: 4401, .. })
    ));
    assert_eq!(counted().await, 2.0);
    client
        .query("{ server { version } }", json!({}))
        .await
        .unwrap();
    assert_eq!(counted().await, 2.0, "one that is let in is not");
}

#[tokio::test]
async fn a_connection_is_counted_once_and_one_that_is_refused_by_its_code() {
    let server = TestServer::with(|config| config.limits.max_connections = 4).await;
    let mut open = Vec::new();
    for _ in 0..3 {
        open.push(TcpStream::connect(server.authority()).await.unwrap());
    }
    // These, and the one that asks.
    until(&server, "tidings_connections", 4.0).await;
    open.push(TcpStream::connect(server.authority()).await.unwrap());
    let mut refused = TcpStream::connect(server.authority()).await.unwrap();
    let mut answer = String::new();
    refused.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    drop(open);
    until_refused(&server, "UNAVAILABLE", 1.0).await;
    until(&server, "tidings_connections", 1.0).await;
}

#[tokio::test]
async fn an_operation_that_takes_too_long_has_the_id_of_its_request() {
    let database = Arc::new(Database::make(Engine::Postgres));
    let server = TestServer::on(Arc::clone(&database), |config| {
        config.limits.request_timeout = Duration::from_millis(100);
    })
    .await;
    let held = holding(&database, "LOCK TABLE streams IN ACCESS EXCLUSIVE MODE").await;
    let query = "{ stream(name: \"s\") { name } }";
    let answer = reqwest::Client::new()
        .post(format!("{}/graphql", server.url))
        .json(&json!({ "query": query }))
        .send()
        .await
        .unwrap();
    let id = answer.headers()["x-request-id"]
        .to_str()
        .unwrap()
        .to_owned();
    let answer: Value = answer.json().await.unwrap();
    let extensions = &answer["errors"][0]["extensions"];
    assert_eq!(extensions["code"], "UNAVAILABLE", "{answer}");
    assert_eq!(extensions["outcome"], "NOT_DONE");
    assert_eq!(extensions["requestId"], id);
    drop(held);
}

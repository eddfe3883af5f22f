//! Who is let in: names of the server, origins of web pages, tokens.

use reqwest::{Method, RequestBuilder, Response, StatusCode, header};
use serde_json::{Value, json};
use tokio::time::timeout;

use super::{PATIENCE, QUERY, append, code};
use crate::support::in_process::TestServer;

async fn send(request: RequestBuilder) -> Response {
    timeout(PATIENCE, request.send()).await.unwrap().unwrap()
}

fn post(server: &TestServer, body: &Value) -> RequestBuilder {
    let request = reqwest::Client::new().post(format!("{}/graphql", server.url));
    request
        .header(header::CONTENT_TYPE, "application/json")
        .body(body.to_string())
}

async fn guarded() -> TestServer {
    TestServer::with(|config| {
        config.access.tokens = ["read=reader", "write=writer", "admin=boss"]
            .map(|token| token.parse().unwrap())
            .to_vec();
    })
    .await
}

#[tokio::test]
async fn a_request_for_another_host_is_refused_everywhere() {
    let server =
        TestServer::with(|config| config.access.allow_hosts = vec!["events.example".to_owned()])
            .await;
    for path in ["/graphql", "/", "/healthz", "/readyz", "/schema.graphql"] {
        let request = reqwest::Client::new()
            .get(format!("{}{path}", server.url))
            .header(header::HOST, "evil.example");
        let response = send(request).await;
        assert_eq!(response.status(), StatusCode::MISDIRECTED_REQUEST, "{path}");
        assert!(
            response
                .text()
                .await
                .unwrap()
                .contains("--allow-host evil.example")
        );
    }
    for host in ["localhost", "events.example:8080", "127.0.0.1"] {
        let request = post(&server, &json!({ "query": QUERY })).header(header::HOST, host);
        assert_eq!(send(request).await.status(), StatusCode::OK, "{host}");
    }
}

#[tokio::test]
async fn a_page_of_another_origin_changes_nothing() {
    let server = TestServer::start().await;
    for origin in [
        "http://evil.example",
        "null",
        "http://127.0.0.1:1",
        "https://127.0.0.1",
    ] {
        let response = send(post(&server, &append("foreign")).header(header::ORIGIN, origin)).await;
        assert_eq!(response.status(), StatusCode::FORBIDDEN, "{origin}");
        assert!(
            !response
                .headers()
                .contains_key(header::ACCESS_CONTROL_ALLOW_ORIGIN)
        );
        assert_eq!(code(&response.json().await.unwrap()), "FORBIDDEN");
    }
    let response =
        send(post(&server, &append("foreign")).header(header::ORIGIN, &server.url)).await;
    let body: Value = response.json().await.unwrap();
    assert_eq!(
        body["data"]["appendToStream"]["entry"]["position"], 1,
        "the refused requests left nothing: {body}"
    );
}

#[tokio::test]
async fn an_allowed_origin_may_read_the_answer() {
    let origin = "https://app.example";
    let server =
        TestServer::with(|config| config.access.allow_origins = vec![origin.to_owned()]).await;
    let response =
        send(post(&server, &json!({ "query": QUERY })).header(header::ORIGIN, origin)).await;
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(
        response.headers()[header::ACCESS_CONTROL_ALLOW_ORIGIN],
        origin
    );
    assert_eq!(response.headers()[header::VARY], "origin");
}

#[tokio::test]
async fn a_preflight_is_answered_for_allowed_origins_only() {
    let origin = "https://app.example";
    let server =
        TestServer::with(|config| config.access.allow_origins = vec![origin.to_owned()]).await;
    let preflight = |origin: &str| {
        let request =
            reqwest::Client::new().request(Method::OPTIONS, format!("{}/graphql", server.url));
        request
            .header(header::ORIGIN, origin)
            .header(header::ACCESS_CONTROL_REQUEST_METHOD, "POST")
            .header(
                header::ACCESS_CONTROL_REQUEST_HEADERS,
                "authorization,content-type",
            )
    };
    let allowed = send(preflight(origin)).await;
    assert_eq!(allowed.status(), StatusCode::NO_CONTENT);
    assert_eq!(
        allowed.headers()[header::ACCESS_CONTROL_ALLOW_ORIGIN],
        origin
    );
    assert_eq!(
        allowed.headers()[header::ACCESS_CONTROL_ALLOW_HEADERS],
        "authorization,content-type"
    );
    assert_eq!(
        allowed.headers()[header::ACCESS_CONTROL_ALLOW_METHODS],
        "GET, POST"
    );
    let foreign = send(preflight("https://evil.example")).await;
    assert_eq!(foreign.status(), StatusCode::FORBIDDEN);
    assert!(
        !foreign
            .headers()
            .contains_key(header::ACCESS_CONTROL_ALLOW_ORIGIN)
    );
}

#[tokio::test]
async fn no_token_or_an_unknown_one_is_unauthenticated() {
    let server = guarded().await;
    for authorization in [
        None,
        Some("Bearer nobody"),
        Some("Bearer "),
        Some("Basic cmVhZGVy"),
        Some("reader"),
    ] {
        let mut request = post(&server, &json!({ "query": QUERY }));
        if let Some(authorization) = authorization {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        let response = send(request).await;
        assert_eq!(
            response.status(),
            StatusCode::UNAUTHORIZED,
            "{authorization:?}"
        );
        assert_eq!(response.headers()[header::WWW_AUTHENTICATE], "Bearer");
        assert_eq!(code(&response.json().await.unwrap()), "UNAUTHENTICATED");
    }
}

#[tokio::test]
async fn each_operation_needs_its_role() {
    let server = guarded().await;
    let read = |token: &str| post(&server, &json!({ "query": QUERY })).bearer_auth(token);
    let write = |token: &str| post(&server, &append("roles")).bearer_auth(token);
    for token in ["reader", "writer", "boss"] {
        let body: Value = send(read(token)).await.json().await.unwrap();
        assert!(body.get("errors").is_none(), "{token}: {body}");
    }
    let body: Value = send(write("reader")).await.json().await.unwrap();
    assert_eq!(code(&body), "FORBIDDEN");
    let body: Value = send(write("writer")).await.json().await.unwrap();
    assert_eq!(
        body["data"]["appendToStream"]["entry"]["position"], 1,
        "the refused append left nothing: {body}"
    );
}

#[tokio::test]
async fn what_tells_nothing_needs_no_token() {
    let server = guarded().await;
    for path in ["/", "/healthz", "/readyz"] {
        let response = send(reqwest::Client::new().get(format!("{}{path}", server.url))).await;
        assert_eq!(response.status(), StatusCode::OK, "{path}");
    }
    let schema = || reqwest::Client::new().get(format!("{}/schema.graphql", server.url));
    assert_eq!(send(schema()).await.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(
        send(schema().bearer_auth("reader")).await.status(),
        StatusCode::OK
    );
}

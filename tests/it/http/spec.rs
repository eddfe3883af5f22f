//! GraphQL over HTTP: media types, status codes, methods, and what cannot be read.

use std::{
    io::{BufRead, BufReader, Read},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use reqwest::{Method, RequestBuilder, Response, StatusCode, header};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use super::{PATIENCE, QUERY, append, code, follow};
use crate::support::in_process::TestServer;

const GRAPHQL_RESPONSE: &str = "application/graphql-response+json";
const JSON: &str = "application/json";

fn post(server: &TestServer, body: impl ToString) -> RequestBuilder {
    let request = reqwest::Client::new().post(format!("{}/graphql", server.url));
    request
        .header(header::CONTENT_TYPE, JSON)
        .body(body.to_string())
}

async fn send(request: RequestBuilder) -> Response {
    timeout(PATIENCE, request.send()).await.unwrap().unwrap()
}

async fn refused(request: RequestBuilder, status: StatusCode) -> Value {
    let response = send(request).await;
    assert_eq!(response.status(), status);
    let body: Value = response.json().await.unwrap();
    assert_eq!(code(&body), "BAD_USER_INPUT", "{body}");
    assert!(body.get("data").is_none(), "{body}");
    body
}

#[tokio::test]
async fn an_operation_is_answered_in_the_media_type_that_the_client_takes() {
    let server = TestServer::start().await;
    for (accept, media) in [
        (None, JSON),
        (Some("*/*"), JSON),
        (Some(JSON), JSON),
        (Some(GRAPHQL_RESPONSE), GRAPHQL_RESPONSE),
    ] {
        let mut request = post(&server, json!({ "query": QUERY }));
        if let Some(accept) = accept {
            request = request.header(header::ACCEPT, accept);
        }
        let response = send(request).await;
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(
            response.headers()[header::CONTENT_TYPE],
            format!("{media}; charset=utf-8")
        );
        let body: Value = response.json().await.unwrap();
        assert!(body["data"]["server"]["version"].is_string(), "{body}");
        assert!(body.get("errors").is_none(), "{body}");
    }
}

#[tokio::test]
async fn a_client_that_takes_neither_media_type_is_refused() {
    let server = TestServer::start().await;
    let request = post(&server, json!({ "query": QUERY })).header(header::ACCEPT, "text/html");
    refused(request, StatusCode::NOT_ACCEPTABLE).await;
}

#[tokio::test]
async fn errors_before_execution_have_the_status_of_their_media_type() {
    let server = TestServer::start().await;
    for body in [
        json!({ "query": "{" }),
        json!({ "query": "" }),
        json!({ "query": "{ thereIsNoSuchField }" }),
        json!({ "query": "query($name: String!) { stream(name: $name) { name } }", "variables": { "name": null } }),
        json!({ "query": "query A { server { version } } query B { server { version } }" }),
        json!({ "query": "query A { server { version } }", "operationName": "B" }),
    ] {
        refused(
            post(&server, &body).header(header::ACCEPT, GRAPHQL_RESPONSE),
            StatusCode::BAD_REQUEST,
        )
        .await;
        refused(
            post(&server, &body).header(header::ACCEPT, JSON),
            StatusCode::OK,
        )
        .await;
    }
}

#[tokio::test]
async fn an_error_of_a_field_has_a_code_and_leaves_the_status() {
    let server = TestServer::start().await;
    let body = json!({ "query": r#"{ stream(name: "") { name } }"# });
    let response = send(post(&server, body).header(header::ACCEPT, GRAPHQL_RESPONSE)).await;
    assert_eq!(response.status(), StatusCode::OK);
    let body: Value = response.json().await.unwrap();
    assert_eq!(code(&body), "BAD_USER_INPUT");
    assert_eq!(body["data"]["stream"], Value::Null);
    assert_eq!(body["errors"][0]["path"], json!(["stream"]));
}

#[tokio::test]
async fn bodies_of_another_type_are_refused() {
    let server = TestServer::start().await;
    let url = format!("{}/graphql", server.url);
    let body = json!({ "query": QUERY }).to_string();
    for content_type in [
        None,
        Some("text/plain"),
        Some("application/x-www-form-urlencoded"),
        Some("multipart/form-data"),
        Some("application/json; charset=utf-16"),
    ] {
        let mut request = reqwest::Client::new().post(&url).body(body.clone());
        if let Some(content_type) = content_type {
            request = request.header(header::CONTENT_TYPE, content_type);
        }
        refused(request, StatusCode::UNSUPPORTED_MEDIA_TYPE).await;
    }
    refused(
        post(&server, body).header(header::CONTENT_ENCODING, "gzip"),
        StatusCode::UNSUPPORTED_MEDIA_TYPE,
    )
    .await;
}

#[tokio::test]
async fn bodies_that_cannot_be_read_are_refused_with_what_would_be_right() {
    let server = TestServer::start().await;
    for body in [
        "",
        "{",
        "null",
        "{}",
        r#"{"query":1}"#,
        r#"{"query":"{ x }","variables":[]}"#,
        r#"{"query":"{ x }","operationName":{}}"#,
        r#"{"query":"{ x }","extensions":"x"}"#,
        r#"{"query":"{ x }","variables":{"x":"\ud800"}}"#,
        r#"{"query":"{ x }","variables":{"x":1e999999}}"#,
    ] {
        let answer = refused(post(&server, body), StatusCode::BAD_REQUEST).await;
        assert!(
            answer["errors"][0]["message"]
                .as_str()
                .unwrap()
                .contains("expected a JSON object"),
            "{answer}"
        );
    }
    let deep = format!(
        r#"{{"query":"{{ x }}","variables":{{"x":{}{}}}}}"#,
        "[".repeat(100_000),
        "]".repeat(100_000)
    );
    refused(post(&server, deep), StatusCode::BAD_REQUEST).await;
    let batch = json!([{ "query": QUERY }]);
    let answer = refused(post(&server, batch), StatusCode::BAD_REQUEST).await;
    assert!(
        answer["errors"][0]["message"]
            .as_str()
            .unwrap()
            .contains("several requests in one array"),
        "{answer}"
    );
}

#[tokio::test]
async fn a_body_above_the_limit_is_refused() {
    let server = TestServer::with(|config| config.limits.max_request_bytes = 1000).await;
    let fits = json!({ "query": format!("{QUERY} # {}", "x".repeat(500)) });
    assert_eq!(send(post(&server, fits)).await.status(), StatusCode::OK);
    let large = json!({ "query": format!("{QUERY} # {}", "x".repeat(1000)) }).to_string();
    refused(post(&server, &large), StatusCode::PAYLOAD_TOO_LARGE).await;

    let mut stream = TcpStream::connect(server.authority()).await.unwrap();
    let head = "POST /graphql HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    for _ in 0..3 {
        stream
            .write_all(format!("190\r\n{}\r\n", " ".repeat(400)).as_bytes())
            .await
            .unwrap();
    }
    let answer = read_to_end(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
}

#[tokio::test]
async fn a_body_that_comes_in_pieces_is_put_together() {
    let server = TestServer::start().await;
    let name = "x".repeat(90);
    let filler = " ".repeat(300_000);
    let body = json!({ "query": format!(r#"{{ stream(name: "{name}") {{ name }} {filler} server {{ version }} }}"#) });
    let answer: Value = send(post(&server, body)).await.json().await.unwrap();
    assert!(answer["data"]["server"]["version"].is_string(), "{answer}");
}

#[tokio::test]
async fn get_is_for_queries() {
    let server = TestServer::start().await;
    let get = |query: &[(&str, &str)]| {
        let mut url = url::Url::parse(&format!("{}/graphql", server.url)).unwrap();
        url.query_pairs_mut().extend_pairs(query);
        reqwest::Client::new().get(url)
    };
    let query = "query($name: String!) { stream(name: $name) { name } server { version } }";
    let response = send(get(&[("query", query), ("variables", r#"{"name":"a"}"#)])).await;
    assert_eq!(response.status(), StatusCode::OK);
    let body: Value = response.json().await.unwrap();
    assert!(body["data"]["server"]["version"].is_string(), "{body}");

    let response = send(get(&[("query", "mutation { __typename }")])).await;
    assert_eq!(response.status(), StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(response.headers()[header::ALLOW], "POST");
    assert_eq!(code(&response.json().await.unwrap()), "BAD_USER_INPUT");

    for wrong in [
        &[][..],
        &[("variables", "{}")],
        &[("query", QUERY), ("variables", "[]")],
        &[("query", QUERY), ("query", QUERY)],
    ] {
        refused(get(wrong), StatusCode::BAD_REQUEST).await;
    }
}

#[tokio::test]
async fn other_methods_are_refused() {
    let server = TestServer::start().await;
    for method in [Method::PUT, Method::DELETE, Method::PATCH] {
        let response =
            send(reqwest::Client::new().request(method, format!("{}/graphql", server.url))).await;
        assert_eq!(response.status(), StatusCode::METHOD_NOT_ALLOWED);
        assert_eq!(response.headers()[header::ALLOW], "GET, POST, OPTIONS");
    }
}

#[tokio::test]
async fn a_mutation_is_executed_and_a_subscription_is_sent_to_websockets() {
    let server = TestServer::start().await;
    let body: Value = send(post(&server, append("a"))).await.json().await.unwrap();
    assert_eq!(
        body["data"]["appendToStream"]["entry"]["position"], 1,
        "{body}"
    );
    let body = refused(post(&server, follow("a")), StatusCode::BAD_REQUEST).await;
    assert!(
        body["errors"][0]["message"]
            .as_str()
            .unwrap()
            .contains("graphql-transport-ws"),
        "{body}"
    );
}

#[tokio::test]
async fn every_answer_has_a_request_id_of_its_own() {
    let server = TestServer::start().await;
    let mut ids = Vec::new();
    for path in [
        "/graphql",
        "/healthz",
        "/readyz",
        "/schema.graphql",
        "/",
        "/there-is-nothing",
    ] {
        let response = send(reqwest::Client::new().get(format!("{}{path}", server.url))).await;
        let id = response.headers()["x-request-id"]
            .to_str()
            .unwrap()
            .to_owned();
        assert_eq!(uuid::Uuid::parse_str(&id).unwrap().get_version_num(), 7);
        ids.push(id);
    }
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 6);
}

#[tokio::test]
async fn health_and_schema_have_addresses_of_their_own() {
    let server = TestServer::start().await;
    let get = |path: &str| send(reqwest::Client::new().get(format!("{}{path}", server.url)));
    assert_eq!(get("/healthz").await.status(), StatusCode::OK);
    let ready = get("/readyz").await;
    assert_eq!(ready.status(), StatusCode::OK);
    assert_eq!(ready.json::<Value>().await.unwrap()["ready"], true);
    assert!(
        get("/schema.graphql")
            .await
            .text()
            .await
            .unwrap()
            .contains("type Query")
    );
    assert_eq!(
        get("/there-is-nothing").await.status(),
        StatusCode::NOT_FOUND
    );
}

#[tokio::test]
async fn a_client_that_never_ends_its_request_is_cut_off() {
    let server = TestServer::with(|config| {
        config.limits.header_timeout = Duration::from_millis(200);
        config.limits.request_timeout = Duration::from_millis(200);
    })
    .await;
    let mut silent = TcpStream::connect(server.authority()).await.unwrap();
    let mut slow_head = TcpStream::connect(server.authority()).await.unwrap();
    slow_head
        .write_all(b"POST /graphql HTTP/1.1\r\nhost: loc")
        .await
        .unwrap();
    let mut slow_body = TcpStream::connect(server.authority()).await.unwrap();
    let head = b"POST /graphql HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{";
    slow_body.write_all(head).await.unwrap();
    read_to_end(&mut silent).await;
    read_to_end(&mut slow_head).await;
    let answer = read_to_end(&mut slow_body).await;
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
}

#[tokio::test]
async fn junk_on_the_socket_harms_nobody() {
    let server = TestServer::start().await;
    for junk in [
        &b"\x16\x03\x01\x02\x00\x01\x00"[..],
        b"\0\0\0\0\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ] {
        let mut stream = TcpStream::connect(server.authority()).await.unwrap();
        stream.write_all(junk).await.unwrap();
        stream.shutdown().await.unwrap();
        read_to_end(&mut stream).await;
    }
    assert_eq!(
        send(post(&server, json!({ "query": QUERY })))
            .await
            .status(),
        StatusCode::OK
    );
}

#[tokio::test]
async fn large_bodies_are_bounded_together() {
    const LIMIT: usize = 100_000;
    let server = TestServer::with(|config| config.limits.max_request_bytes = LIMIT).await;
    let query = json!({ "query": QUERY }).to_string();
    let body = query.clone() + &" ".repeat(LIMIT - query.len());
    let head = format!(
        "POST /graphql HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\nconnection: close\r\n\
         expect: 100-continue\r\ncontent-length: {LIMIT}\r\n\r\n"
    );
    let mut in_work = Vec::new();
    for _ in 0..8 {
        let mut stream = TcpStream::connect(server.authority()).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        // The server says that it goes on once it has room.
        let mut go_on = [0; 25];
        timeout(PATIENCE, stream.read_exact(&mut go_on))
            .await
            .unwrap()
            .unwrap();
        assert_eq!(&go_on, b"HTTP/1.1 100 Continue\r\n\r\n");
        in_work.push(stream);
    }

    let mut refused = TcpStream::connect(server.authority()).await.unwrap();
    refused.write_all(head.as_bytes()).await.unwrap();
    let answer = read_to_end(&mut refused).await;
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    let (_, answer) = answer.split_once("\r\n\r\n").unwrap();
    let answer: Value = serde_json::from_str(answer).unwrap();
    let extensions = &answer["errors"][0]["extensions"];
    let id = &extensions["requestId"];
    assert!(
        id.as_str()
            .is_some_and(|id| id.parse::<uuid::Uuid>().is_ok()),
        "{extensions}"
    );
    assert_eq!(
        *extensions,
        json!({ "code": "UNAVAILABLE", "outcome": "NOT_DONE", "retryAfterMs": 1000, "requestId": id })
    );
    // In pieces, without a length that says how much will come.
    let pieces = [body.clone()].map(Ok::<_, std::io::Error>);
    let request = post(&server, "").body(reqwest::Body::wrap_stream(futures_util::stream::iter(
        pieces,
    )));
    if let Ok(response) = timeout(PATIENCE, request.send()).await.unwrap() {
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    }
    let small = send(post(&server, json!({ "query": QUERY }))).await;
    assert_eq!(small.status(), StatusCode::OK);

    for mut stream in in_work {
        stream.write_all(body.as_bytes()).await.unwrap();
        let answer = read_to_end(&mut stream).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }
    let again = send(post(&server, &body)).await;
    assert_eq!(again.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_connection_too_many_is_told_so() {
    let server = TestServer::with(|config| config.limits.max_connections = 1).await;
    let mut first = TcpStream::connect(server.authority()).await.unwrap();
    first
        .write_all(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n")
        .await
        .unwrap();
    let mut byte = [0; 1];
    timeout(PATIENCE, first.read_exact(&mut byte))
        .await
        .unwrap()
        .unwrap();

    let mut second = TcpStream::connect(server.authority()).await.unwrap();
    let answer = read_to_end(&mut second).await;
    assert!(
        answer.starts_with("HTTP/1.1 503 ") && answer.contains("UNAVAILABLE"),
        "{answer}"
    );

    drop(first);
    let waiting = Instant::now();
    while send(reqwest::Client::new().get(format!("{}/healthz", server.url)))
        .await
        .status()
        != StatusCode::OK
    {
        assert!(waiting.elapsed() < PATIENCE, "the place was not given back");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn the_server_stops_whatever_connections_are_open() {
    let server = TestServer::start().await;
    let mut never_used = TcpStream::connect(server.authority()).await.unwrap();
    let mut half_sent = TcpStream::connect(server.authority()).await.unwrap();
    half_sent.write_all(b"GET /heal").await.unwrap();
    let client = reqwest::Client::new();
    assert_eq!(
        send(client.get(format!("{}/healthz", server.url)))
            .await
            .status(),
        StatusCode::OK
    );
    let address = server.authority().to_owned();
    timeout(PATIENCE, server.stop()).await.unwrap();
    read_to_end(&mut never_used).await;
    read_to_end(&mut half_sent).await;
    assert!(TcpStream::connect(address).await.is_err());
}

#[test]
fn a_server_whose_standard_output_is_closed_stops_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = Command::new(env!("CARGO_BIN_EXE_tidings"))
        .args(["serve", "--listen", "127.0.0.1:0", "--database-url"])
        .arg(format!("sqlite://{}/tidings.db", folder.path().display()))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = BufReader::new(server.stdout.take().unwrap());
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    drop(output);
    let pid = Pid::from_child(&server);
    kill_process(pid, Signal::TERM).unwrap();
    let mut log = String::new();
    server
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut log)
        .unwrap();
    let status = server.wait().unwrap();
    assert!(line.starts_with("Tidings "), "{line}");
    assert!(status.success(), "{status}: {log}");
}

async fn read_to_end(stream: &mut TcpStream) -> String {
    let mut read = Vec::new();
    // A reset is an end as well.
    timeout(PATIENCE, stream.read_to_end(&mut read))
        .await
        .expect("the connection is closed")
        .ok();
    String::from_utf8_lossy(&read).into_owned()
}

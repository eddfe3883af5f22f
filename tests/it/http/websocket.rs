//! GraphQL over websockets: both protocols, their close codes, and clients that behave badly.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_tungstenite::tungstenite::{Error, Message};

use super::{PATIENCE, QUERY, append, follow, websocket_client::Client};
use crate::support::in_process::TestServer;

const TRANSPORT: &str = "graphql-transport-ws";
const LEGACY: &str = "graphql-ws";

fn position(message: &Value) -> u64 {
    message["payload"]["data"]["streamEntries"]["position"]
        .as_u64()
        .unwrap_or_else(|| panic!("no entry in {message}"))
}

/// Appends on a connection of its own.
async fn append_entries(server: &TestServer, stream: &str, count: usize) {
    let mut writer = Client::begin(server).await;
    for _ in 0..count {
        writer.subscribe("append", append(stream)).await;
        assert_eq!(writer.next().await["type"], "next");
        writer
            .expect(json!({ "type": "complete", "id": "append" }))
            .await;
    }
}

async fn guarded() -> TestServer {
    TestServer::with(|config| {
        config.access.tokens = ["read=reader", "write=writer"]
            .map(|token| token.parse().unwrap())
            .to_vec()
    })
    .await
}

#[tokio::test]
async fn a_subscription_delivers_history_then_live_in_order() {
    let server = TestServer::start().await;
    append_entries(&server, "s", 3).await;
    let mut client = Client::begin(&server).await;
    client.subscribe("1", follow("s")).await;
    for expected in 1..=3 {
        let message = client.next().await;
        assert_eq!(
            (&message["type"], &message["id"], position(&message)),
            (&json!("next"), &json!("1"), expected)
        );
    }
    append_entries(&server, "s", 2).await;
    assert_eq!(position(&client.next().await), 4);
    assert_eq!(position(&client.next().await), 5);
    client.close().await;
}

#[tokio::test]
async fn many_subscriptions_share_a_connection_and_end_alone() {
    let server = TestServer::start().await;
    append_entries(&server, "a", 1).await;
    append_entries(&server, "b", 1).await;
    let mut client = Client::begin(&server).await;
    client.subscribe("a", follow("a")).await;
    assert_eq!(client.next().await["id"], "a");
    client.subscribe("b", follow("b")).await;
    assert_eq!(client.next().await["id"], "b");
    client.send(json!({ "type": "complete", "id": "a" })).await;
    // The pong says that the completion was taken up before the next append.
    client.send(json!({ "type": "ping" })).await;
    client.expect(json!({ "type": "pong" })).await;
    append_entries(&server, "a", 1).await;
    append_entries(&server, "b", 1).await;
    assert_eq!(client.next().await["id"], "b");
    client.subscribe("a", follow("a")).await;
    assert_eq!(
        position(&client.next().await),
        1,
        "the id can be used again"
    );
}

#[tokio::test]
async fn queries_and_mutations_are_answered_once() {
    let server = TestServer::start().await;
    let mut client = Client::begin(&server).await;
    client.subscribe("q", json!({ "query": QUERY })).await;
    assert!(client.next().await["payload"]["data"]["server"]["version"].is_string());
    client
        .expect(json!({ "type": "complete", "id": "q" }))
        .await;
    client.subscribe("m", append("s")).await;
    assert_eq!(
        client.next().await["payload"]["data"]["appendToStream"]["entry"]["position"],
        1
    );
    client
        .expect(json!({ "type": "complete", "id": "m" }))
        .await;
}

#[tokio::test]
async fn an_operation_that_cannot_begin_gets_one_error() {
    let server = TestServer::start().await;
    let mut client = Client::begin(&server).await;
    for payload in [
        json!({ "query": "{" }),
        json!({ "query": "{ thereIsNoSuchField }" }),
        json!({ "query": "subscription { thereIsNoSuchField }" }),
        follow(""),
        json!({ "query": "query($name: String!) { stream(name: $name) { name } }", "variables": { "name": null } }),
    ] {
        client.subscribe("1", payload).await;
        let message = client.next().await;
        assert_eq!(
            (&message["type"], &message["id"]),
            (&json!("error"), &json!("1")),
            "{message}"
        );
        assert_eq!(
            message["payload"][0]["extensions"]["code"], "BAD_USER_INPUT",
            "{message}"
        );
    }
    client.subscribe("1", json!({ "query": QUERY })).await;
    assert_eq!(
        client.next().await["type"],
        "next",
        "no completion came after the errors"
    );
}

#[tokio::test]
async fn an_error_of_a_field_comes_with_the_result() {
    let server = TestServer::start().await;
    let mut client = Client::begin(&server).await;
    client
        .subscribe("1", json!({ "query": r#"{ stream(name: "") { name } }"# }))
        .await;
    let message = client.next().await;
    assert_eq!(message["type"], "next");
    assert_eq!(
        message["payload"]["errors"][0]["extensions"]["code"], "BAD_USER_INPUT",
        "{message}"
    );
}

#[tokio::test]
async fn pings_are_answered_on_both_levels() {
    let server = TestServer::start().await;
    let mut client = Client::connect(&server, TRANSPORT).await;
    client
        .send(json!({ "type": "ping", "payload": { "n": 1 } }))
        .await;
    client.expect(json!({ "type": "pong" })).await;
    client.send(json!({ "type": "pong" })).await;
    client.send_raw(Message::Ping("x".into())).await;
    assert_eq!(client.next_pong().await, b"x");
}

#[tokio::test]
async fn a_client_that_never_begins_is_closed_with_4408() {
    let server = TestServer::with(|config| {
        config.limits.connection_init_timeout = Duration::from_millis(50)
    })
    .await;
    for protocol in [TRANSPORT, LEGACY] {
        let mut client = Client::connect(&server, protocol).await;
        assert_eq!(client.closed().await.0, 4408);
    }
}

#[tokio::test]
async fn the_protocol_is_kept_to_by_close_codes() {
    let server = TestServer::start().await;
    let init = json!({ "type": "connection_init" });
    let subscribe = json!({ "type": "subscribe", "id": "1", "payload": follow("s") });
    for (messages, code) in [
        (vec![subscribe.clone()], 4401),
        (vec![init.clone(), init.clone()], 4429),
        (
            vec![init.clone(), subscribe.clone(), subscribe.clone()],
            4409,
        ),
        (
            vec![
                init.clone(),
                json!({ "type": "start", "id": "1", "payload": follow("s") }),
            ],
            4400,
        ),
        (
            vec![
                init.clone(),
                json!({ "type": "subscribe", "id": "1", "payload": { "query": 1 } }),
            ],
            4400,
        ),
        (vec![json!([1])], 4400),
    ] {
        let mut client = Client::connect(&server, TRANSPORT).await;
        for message in &messages {
            client.send(message.clone()).await;
        }
        assert_eq!(client.closed().await.0, code, "{messages:?}");
    }
}

#[tokio::test]
async fn junk_is_closed_with_a_reason() {
    let server = TestServer::start().await;
    for (junk, code) in [
        (Message::text("junk"), 4400),
        (Message::text("{".repeat(100_000)), 4400),
        (
            Message::text(
                r#"{"type":"subscribe","id":"1","payload":{"query":"{ x }","variables":{"x":"\ud800"}}}"#,
            ),
            4400,
        ),
        (
            Message::text(format!(r#"{{"type":"{}"}}"#, "é".repeat(200))),
            4400,
        ),
        (Message::binary(b"junk".to_vec()), 4400),
    ] {
        let mut client = Client::begin(&server).await;
        client.send_raw(junk).await;
        let (actual, reason) = client.closed().await;
        assert_eq!(actual, code);
        assert!(!reason.is_empty());
    }
}

#[tokio::test]
async fn a_message_above_the_limit_is_closed_with_1009() {
    let server = TestServer::with(|config| config.limits.max_request_bytes = 100_000).await;
    let mut client = Client::begin(&server).await;
    // The server may close before it has all of it.
    client
        .try_send(Message::text(" ".repeat(200_000)))
        .await
        .ok();
    assert_eq!(client.closed().await.0, 1009);
}

#[tokio::test]
async fn a_large_message_before_the_acknowledgement_is_closed_with_1009() {
    let server = TestServer::start().await;
    let init = json!({ "type": "connection_init", "payload": { "token": "x".repeat(17_000) } });
    let subscribe = json!({ "type": "subscribe", "id": "1", "payload": large_query() });
    for protocol in [TRANSPORT, LEGACY] {
        for message in [&init, &subscribe] {
            let mut client = Client::connect(&server, protocol).await;
            // The server may close before it has all of it.
            client
                .try_send(Message::text(message.to_string()))
                .await
                .ok();
            assert_eq!(client.closed().await.0, 1009);
        }
    }
}

#[tokio::test]
async fn a_large_operation_after_the_acknowledgement_is_answered() {
    let server = TestServer::start().await;
    let mut client = Client::begin(&server).await;
    client.subscribe("1", large_query()).await;
    let message = client.next().await;
    assert!(
        message["payload"]["data"]["server"]["version"].is_string(),
        "{message}"
    );
}

/// The request of a query that has a megabyte of variables, which are for nothing.
fn large_query() -> Value {
    json!({ "query": QUERY, "variables": { "unused": "x".repeat(1_000_000) } })
}

#[tokio::test]
async fn a_handshake_without_a_known_protocol_is_refused() {
    let server = TestServer::start().await;
    for protocols in ["", "mqtt", "graphql"] {
        match Client::open(&server, protocols, &[]).await.err() {
            Some(Error::Http(response)) => {
                assert_eq!(response.status(), 400, "{protocols}");
                let body = String::from_utf8(response.into_body().unwrap()).unwrap();
                assert!(body.contains("graphql-transport-ws"), "{body}");
            }
            other => panic!("{protocols}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn too_many_operations_are_refused_alone() {
    let server =
        TestServer::with(|config| config.limits.max_subscriptions_per_connection = 1).await;
    append_entries(&server, "s", 1).await;
    let mut client = Client::begin(&server).await;
    client.subscribe("1", follow("s")).await;
    assert_eq!(position(&client.next().await), 1);
    client.subscribe("2", follow("s")).await;
    let message = client.next().await;
    assert_eq!(
        (&message["type"], &message["id"]),
        (&json!("error"), &json!("2"))
    );
    assert_eq!(message["payload"][0]["extensions"]["code"], "RATE_LIMITED");
    client.send(json!({ "type": "complete", "id": "1" })).await;
    client.subscribe("3", follow("s")).await;
    assert_eq!(client.next().await["type"], "next");
}

#[tokio::test]
async fn a_handshake_from_a_page_of_another_origin_or_for_another_host_is_refused() {
    let server = TestServer::start().await;
    let origin = server.url.clone();
    for (headers, status) in [
        ([("origin", "http://evil.example")], Some(403)),
        ([("origin", "null")], Some(403)),
        ([("host", "evil.example")], Some(421)),
        ([("origin", &*origin)], None),
    ] {
        let refused = match Client::open(&server, TRANSPORT, &headers).await {
            Ok(_) => None,
            Err(Error::Http(response)) => Some(response.status().as_u16()),
            Err(error) => panic!("{error}"),
        };
        assert_eq!(refused, status, "{headers:?}");
    }
}

#[tokio::test]
async fn a_token_comes_with_the_beginning_or_the_handshake() {
    let server = guarded().await;
    for payload in [
        json!(null),
        json!({}),
        json!({ "Authorization": "Bearer nobody" }),
        json!({ "Authorization": "reader" }),
        json!({ "token": "" }),
    ] {
        let mut client = Client::connect(&server, TRANSPORT).await;
        client
            .send(json!({ "type": "connection_init", "payload": payload }))
            .await;
        assert_eq!(
            client.closed().await,
            (4401, "Unauthorized".to_owned()),
            "{payload}"
        );
    }
    for payload in [
        json!({ "Authorization": "Bearer reader" }),
        json!({ "authorization": "bearer reader" }),
        json!({ "token": "reader" }),
    ] {
        let mut client = Client::connect(&server, TRANSPORT).await;
        client
            .send(json!({ "type": "connection_init", "payload": payload }))
            .await;
        client.expect(json!({ "type": "connection_ack" })).await;
    }
    let mut client = Client::open(&server, TRANSPORT, &[("authorization", "Bearer reader")])
        .await
        .unwrap();
    client.send(json!({ "type": "connection_init" })).await;
    client.expect(json!({ "type": "connection_ack" })).await;
    match Client::open(&server, TRANSPORT, &[("authorization", "Bearer nobody")])
        .await
        .err()
    {
        Some(Error::Http(response)) => assert_eq!(response.status(), 401),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_reader_cannot_write_over_a_websocket() {
    let server = guarded().await;
    let mut reader = Client::connect(&server, TRANSPORT).await;
    reader
        .send(json!({ "type": "connection_init", "payload": { "token": "reader" } }))
        .await;
    reader.expect(json!({ "type": "connection_ack" })).await;
    reader.subscribe("1", append("s")).await;
    let message = reader.next().await;
    assert_eq!(
        message["payload"]["errors"][0]["extensions"]["code"], "FORBIDDEN",
        "{message}"
    );
}

#[tokio::test]
async fn the_older_protocol_is_spoken_too() {
    let server = TestServer::start().await;
    append_entries(&server, "s", 1).await;
    let mut client = Client::connect(&server, LEGACY).await;
    client
        .send(json!({ "type": "connection_init", "payload": {} }))
        .await;
    client.expect(json!({ "type": "connection_ack" })).await;
    client.expect(json!({ "type": "ka" })).await;
    client
        .send(json!({ "type": "start", "id": "1", "payload": follow("s") }))
        .await;
    let message = client.next().await;
    assert_eq!(
        (&message["type"], &message["id"], position(&message)),
        (&json!("data"), &json!("1"), 1)
    );
    client.send(json!({ "type": "stop", "id": "1" })).await;
    client
        .send(json!({ "type": "start", "id": "2", "payload": { "query": QUERY } }))
        .await;
    assert_eq!(client.next().await["type"], "data");
    client
        .expect(json!({ "type": "complete", "id": "2" }))
        .await;
    client
        .send(
            json!({ "type": "start", "id": "3", "payload": { "query": "{ thereIsNoSuchField }" } }),
        )
        .await;
    let message = client.next().await;
    assert_eq!(message["type"], "error");
    assert!(message["payload"]["message"].is_string(), "{message}");
    assert_eq!(message["payload"]["extensions"]["code"], "BAD_USER_INPUT");
    client.send(json!({ "type": "connection_terminate" })).await;
    assert_eq!(client.closed().await.0, 1000);
}

#[tokio::test]
async fn the_older_protocol_says_why_a_connection_is_refused() {
    let server = guarded().await;
    let mut client = Client::connect(&server, LEGACY).await;
    client
        .send(json!({ "type": "connection_init", "payload": { "Authorization": "Bearer nobody" } }))
        .await;
    let message = client.next().await;
    assert_eq!(message["type"], "connection_error");
    assert_eq!(message["payload"]["extensions"]["code"], "UNAUTHENTICATED");
    assert_eq!(client.closed().await.0, 4401);
}

#[tokio::test]
async fn the_older_protocol_keeps_alive_with_messages() {
    let server =
        TestServer::with(|config| config.limits.keep_alive = Duration::from_millis(50)).await;
    let mut client = Client::connect(&server, LEGACY).await;
    client.send(json!({ "type": "connection_init" })).await;
    client.expect(json!({ "type": "connection_ack" })).await;
    for _ in 0..8 {
        client.expect(json!({ "type": "ka" })).await;
    }
}

#[tokio::test]
async fn a_stop_closes_websockets_with_1001() {
    let server = TestServer::start().await;
    let mut clients = Vec::new();
    for _ in 0..10 {
        let mut client = Client::begin(&server).await;
        client.subscribe("1", follow("s")).await;
        clients.push(client);
    }
    let stopping = Instant::now();
    let closed = async {
        for client in &mut clients {
            assert_eq!(
                client.closed().await,
                (1001, "the server is stopping".to_owned())
            );
        }
        clients.clear();
    };
    tokio::join!(server.stop(), closed);
    assert!(stopping.elapsed() < Duration::from_secs(8));
}

#[tokio::test]
async fn an_append_right_before_a_stop_is_answered_before_the_close_or_not_stored() {
    let server = TestServer::start().await;
    let mut clients = Vec::new();
    for number in 0..10 {
        let mut client = Client::begin(&server).await;
        client.subscribe("follow", follow("followed")).await;
        let appends: Vec<Value> = (0..20)
            .map(|id| append(&format!("s-{number}-{id}")))
            .collect();
        for (id, append) in appends.iter().enumerate() {
            client.subscribe(&id.to_string(), append.clone()).await;
        }
        clients.push((client, appends));
    }
    let answered = async {
        let mut unanswered = Vec::new();
        for (mut client, appends) in clients {
            let (messages, code) = client.rest().await;
            assert_eq!(code, 1001);
            for (id, append) in appends.into_iter().enumerate() {
                let id = id.to_string();
                let is_answer = |message: &&Value| message["id"].as_str() == Some(&id);
                match messages.iter().find(is_answer) {
                    Some(answer) => assert_eq!(answer["type"], "next", "{answer}"),
                    None => unanswered.push(append),
                }
            }
        }
        unanswered
    };
    let (database, unanswered) = tokio::join!(server.stop(), answered);

    let server = TestServer::on(database, |_| {}).await;
    let mut client = Client::begin(&server).await;
    for append in unanswered {
        client.subscribe("again", append).await;
        let answer = client.next().await;
        assert_eq!(
            answer["payload"]["data"]["appendToStream"]["duplicate"], false,
            "what was not answered is not stored: {answer}"
        );
        client
            .expect(json!({ "type": "complete", "id": "again" }))
            .await;
    }
}

#[tokio::test]
async fn a_client_that_takes_nothing_is_dropped() {
    let server =
        TestServer::with(|config| config.limits.send_timeout = Duration::from_millis(200)).await;
    let mut client = Client::begin(&server).await;
    let asking = Instant::now();
    // It asks on and on, and never reads the answers: once the buffers between are full, the server waits, and then gives up.
    for id in 0.. {
        let payload = json!({ "query": "{ __schema { types { name } } }" });
        let question = json!({ "type": "subscribe", "id": format!("q{id}"), "payload": payload });
        if client
            .try_send(Message::text(question.to_string()))
            .await
            .is_err()
        {
            return;
        }
        assert!(
            asking.elapsed() < PATIENCE * 3,
            "the server goes on sending"
        );
    }
}

#[tokio::test]
async fn a_dead_client_is_dropped() {
    let server =
        TestServer::with(|config| config.limits.keep_alive = Duration::from_millis(50)).await;
    let mut stream = TcpStream::connect(server.authority()).await.unwrap();
    let handshake = "GET /graphql HTTP/1.1\r\nhost: localhost\r\nconnection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
        sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-protocol: graphql-transport-ws\r\n\r\n";
    stream.write_all(handshake.as_bytes()).await.unwrap();
    // It reads, but answers no ping.
    let mut read = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut read))
        .await
        .expect("the server gives up")
        .ok();
    assert!(read.starts_with(b"HTTP/1.1 101 "));
}

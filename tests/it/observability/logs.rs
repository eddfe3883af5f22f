//! The log: as text and as JSON, each line of a request with the id that the client gets.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::{
    client::{Client, LIMIT, Step},
    postgres::Cluster,
    server::{TestServer, free_port},
};

/// The lines of the log, once the server has ended: those of its greeting begin with no brace.
fn lines(server: &TestServer) -> Vec<Value> {
    let output = server.output();
    let of_log = output.lines().filter(|line| line.starts_with('{'));
    of_log
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect()
}

async fn fail(server: &TestServer, client: &Client) -> (String, String) {
    let query = json!({ "query": "{ stream(name: \"s\") { name } }" });
    let answer = reqwest::Client::new()
        .post(server.graphql_url())
        .json(&query)
        .send()
        .await
        .unwrap();
    let header = answer.headers()["x-request-id"]
        .to_str()
        .unwrap()
        .to_owned();
    let body: Value = answer.json().await.unwrap();
    let extensions = &body["errors"][0]["extensions"];
    assert_eq!(extensions["code"], "INTERNAL", "{body}");
    assert_eq!(extensions["requestId"], header);
    // And on a websocket, where there is no header.
    let mut socket = client
        .subscribe("{ stream(name: \"s\") { name } }", json!({}))
        .await;
    let Step::Next(payload) = socket.next().await else {
        panic!("a query answers");
    };
    let on_socket = payload["errors"][0]["extensions"]["requestId"].as_str();
    (header, on_socket.unwrap().to_owned())
}

#[tokio::test]
async fn each_line_is_json_and_has_the_request_id_that_the_client_gets() {
    let database = Cluster::shared().create_database();
    let mut server = TestServer::on(&database.url)
        .arguments(["--log-format", "json", "--log", "info,tidings=debug"])
        .start();
    let client = Client::new(&server);
    database.execute("ALTER TABLE streams RENAME TO elsewhere");
    let (by_http, on_socket) = fail(&server, &client).await;
    database.execute("ALTER TABLE event_streams RENAME TO entries_elsewhere");
    let mut subscription = client
        .subscribe(
            "subscription { streamEntries(streamName: \"s\", after: 1) { position } }",
            json!({}),
        )
        .await;
    let Step::Errors(refusal) = subscription.next().await else {
        panic!("it cannot begin");
    };
    let of_subscription = refusal[0]["extensions"]["requestId"].as_str();
    let of_subscription = of_subscription.unwrap().to_owned();
    database.execute("ALTER TABLE entries_elsewhere RENAME TO event_streams");
    database.execute("ALTER TABLE elsewhere RENAME TO streams");
    server.sigterm_and_wait(std::time::Duration::from_secs(20));
    let lines = lines(&server);
    for line in &lines {
        for field in ["timestamp", "level", "target", "message"] {
            assert!(line[field].is_string(), "{field} in {line}");
        }
    }
    for id in [&by_http, &on_socket, &of_subscription] {
        let of_request = |line: &&Value| line["span"]["request_id"] == id.as_str();
        let errors: Vec<&Value> = lines
            .iter()
            .filter(of_request)
            .filter(|line| line["level"] == "ERROR")
            .collect();
        assert_eq!(errors.len(), 1, "{id} in {lines:#?}");
        assert!(
            errors[0]["error"]
                .as_str()
                .unwrap()
                .contains("the database failed")
        );
        // On a websocket beside the id of its handshake, with which the connection's own lines begin.
        let connection = &errors[0]["span"]["connection_id"];
        assert_eq!(connection.is_string(), *id != by_http, "{}", errors[0]);
        if let Some(connection) = connection.as_str() {
            let opened = lines.iter().find(|line| {
                line["message"] == "websocket opened" && line["span"]["request_id"] == connection
            });
            assert!(opened.is_some(), "{connection} in {lines:#?}");
        }
    }
    let answered = lines
        .iter()
        .find(|line| line["message"] == "answer" && line["span"]["request_id"] == by_http.as_str());
    assert_eq!(answered.unwrap()["status"], 200);
}

#[tokio::test]
async fn each_dead_delivery_is_one_line_with_its_handler_event_attempts_and_error() {
    let database = Cluster::shared().create_database();
    let mut server = TestServer::on(&database.url)
        .arguments(["--log-format", "json", "--handler-attempts=2"])
        .arguments(["--handler-retry-delay=20ms", "--webhook-allow-private"])
        .env(
            "TIDINGS_WEBHOOK_SECRET",
            "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        )
        .start();
    let client = Client::new(&server);
    database.execute(
        "CREATE FUNCTION refuse(event uuid, aggregate uuid, data jsonb) RETURNS void LANGUAGE plpgsql AS $$ BEGIN \
         RAISE EXCEPTION 'it is refused'; END $$",
    );
    let hook = format!("http://127.0.0.1:{}/", free_port());
    let handlers = [
        ("copy", "publish:copy", 1, "another entry"),
        ("hook", hook.as_str(), 2, "cannot be reached"),
        ("sql", "sql:refuse", 2, "it is refused"),
    ];
    for (name, function, ..) in handlers {
        let query = "mutation($input: RegisterEventHandlerInput!) { registerEventHandler(input: $input) { eventHandler { id } } }";
        let input = json!({ "name": name, "function": function });
        let registered = client.query(query, json!({ "input": input })).await;
        registered.unwrap();
    }
    let id = Uuid::new_v4();
    let entry = json!({ "streamName": "copy", "eventId": id, "type": "other", "data": {} });
    let query = "mutation($input: AppendToStreamInput!) { appendToStream(input: $input) { entry { eventId } } }";
    client
        .query(query, json!({ "input": entry }))
        .await
        .unwrap();
    let event = json!({ "id": id, "aggregateId": Uuid::new_v4(), "aggregateType": "user", "type": "user_created", "data": {} });
    let query =
        "mutation($input: AppendEventInput!) { appendEvent(input: $input) { event { id } } }";
    client
        .query(query, json!({ "input": event }))
        .await
        .unwrap();
    let started = Instant::now();
    loop {
        let query = "{ eventHandlers { deliveries(status: DEAD) { nodes { id } } } }";
        let data = client.query(query, json!({})).await.unwrap();
        let mut handlers = data["eventHandlers"].as_array().unwrap().iter();
        if handlers.all(|handler| handler["deliveries"]["nodes"].as_array().unwrap().len() == 1) {
            break;
        }
        assert!(started.elapsed() < LIMIT, "{data}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    server.sigterm_and_wait(Duration::from_secs(20));
    let lines = lines(&server);
    let is_dead = |line: &&Value| {
        let message = line["message"].as_str();
        message.is_some_and(|message| message.starts_with("a delivery is dead"))
    };
    let dead: Vec<&Value> = lines.iter().filter(is_dead).collect();
    assert_eq!(dead.len(), handlers.len(), "{dead:#?}");
    for (name, _, attempts, error) in handlers {
        let line = dead.iter().find(|line| line["handler"] == name);
        let line = line.unwrap_or_else(|| panic!("{name}: {dead:#?}"));
        assert_eq!(line["level"], "ERROR");
        assert_eq!(line["event_id"], id.to_string());
        assert_eq!(line["attempts"], attempts);
        assert!(line["error"].as_str().unwrap().contains(error), "{line}");
    }
}

#[tokio::test]
async fn the_text_has_the_request_id_whatever_the_level() {
    let database = Cluster::shared().create_database();
    let mut server = TestServer::on(&database.url)
        .arguments(["--log", "error"])
        .start();
    let client = Client::new(&server);
    database.execute("ALTER TABLE streams RENAME TO elsewhere");
    let (by_http, on_socket) = fail(&server, &client).await;
    server.sigterm_and_wait(std::time::Duration::from_secs(20));
    let output = server.output();
    for id in [by_http, on_socket] {
        let found = output
            .lines()
            .any(|line| line.contains(&format!("request_id={id}")) && line.contains("ERROR"));
        assert!(found, "{id} in\n{output}");
    }
}

//! Event handlers: what a hundred of them cost those who append, and what ten dead endpoints cost the other ninety.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::http_load::{Load, Request, send_times};
use crate::measure::{Measurement, milliseconds};
use crate::projection::{Client, TYPE, on_this_thread};
use crate::server::TestServer;
use crate::work::{FRESH_ID, Work, append_event_of, event_data};

/// Handlers whose effects are entries, those that post, and those whose endpoint is dead.
const PUBLISHERS: usize = 60;
const HOOKS: usize = 30;
const DEAD: usize = 10;
/// Each of the living wants one type of so many, the dead want all.
const TYPES: usize = 10;
const EVENTS: usize = 10_000;
const EVENTS_A_CALL: usize = 100;
const LIMIT: Duration = Duration::from_secs(120);

/// One run.
#[derive(Clone, Debug)]
pub struct Handled {
    pub appended: Measurement,
    /// From the first append of ten thousand events until all living handlers are done; none without handlers.
    pub handled_ms: Option<f64>,
}

/// A server that may post to this machine.
pub fn serve(database_url: &str) -> TestServer {
    TestServer::on(database_url)
        .env(
            "TIDINGS_WEBHOOK_SECRET",
            "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        )
        .arguments(["--webhook-allow-private"])
        .start()
}

/// Measures appends, and then how long ten thousand events take, with none, the living ones, or all.
pub fn run(address: SocketAddr, load: &Load, living: bool, dead: bool) -> Result<Handled, String> {
    let receiver = receive()?;
    on_this_thread(async {
        let mut client = Client::open(address).await?;
        let hooks = (0..HOOKS).map(|_| format!("http://{receiver}/"));
        let publishers = (0..PUBLISHERS).map(|no| format!("publish:out-{no}"));
        if living {
            for (no, function) in publishers.chain(hooks).enumerate() {
                let types = json!([format!("kind_{}", no % TYPES)]);
                register(&mut client, &format!("living-{no}"), &function, types).await?;
            }
        }
        // Nothing listens there.
        for no in 0..if dead { DEAD } else { 0 } {
            let name = format!("dead-{no}");
            register(&mut client, &name, "http://127.0.0.1:1/", json!([])).await?;
        }
        Ok::<_, String>(())
    })?;
    let appended = load.run(&append_event_of(TYPE, FRESH_ID));
    if !living {
        return Ok(Handled {
            appended,
            handled_ms: None,
        });
    }
    settle(address)?;
    let request = Request::new(address, &append_all_types());
    let requests = vec![request; EVENTS / EVENTS_A_CALL];
    let began = Instant::now();
    send_times(address, 4, requests)?;
    settle(address)?;
    Ok(Handled {
        appended,
        handled_ms: Some(milliseconds(began.elapsed())),
    })
}

async fn register(
    client: &mut Client,
    name: &str,
    function: &str,
    types: Value,
) -> Result<(), String> {
    let query = "mutation($input: RegisterEventHandlerInput!) { registerEventHandler(input: $input) { eventHandler { id } } }";
    let input = json!({ "name": name, "function": function, "eventTypes": types });
    client.ask(query, json!({ "input": input })).await.map(drop)
}

/// Waits until the living handlers have looked at everything.
fn settle(address: SocketAddr) -> Result<(), String> {
    on_this_thread(async {
        let mut client = Client::open(address).await?;
        let began = Instant::now();
        loop {
            let answer = client
                .ask("{ eventHandlers { name lagEvents } }", json!({}))
                .await?;
            let handlers = answer["data"]["eventHandlers"].as_array().cloned();
            let is_behind = |handler: &Value| {
                let is_living = handler["name"]
                    .as_str()
                    .is_some_and(|name| name.starts_with("living"));
                is_living && handler["lagEvents"] != 0
            };
            if !handlers.unwrap_or_default().iter().any(is_behind) {
                return Ok(());
            }
            if began.elapsed() > LIMIT {
                return Err("the handlers do not make up for their lag".to_owned());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
}

fn append_all_types() -> Work {
    let data: Value = serde_json::from_str(&event_data()).expect("it is JSON");
    let events: Vec<Value> = (0..EVENTS_A_CALL)
        .map(|no| {
            json!({ "aggregateId": FRESH_ID, "aggregateType": TYPE, "type": format!("kind_{}", no % TYPES), "data": data })
        })
        .collect();
    Work {
        query: "mutation Append($input: AppendEventsInput!) { appendEvents(input: $input) { events { id } } }",
        variables: json!({ "input": { "events": events } }),
        is_right: |data| data["appendEvents"]["events"].is_array(),
    }
}

/// Takes whatever is posted, until the program ends.
fn receive() -> Result<SocketAddr, String> {
    let listener = TcpListener::bind("127.0.0.1:0").map_err(|error| error.to_string())?;
    let address = listener.local_addr().map_err(|error| error.to_string())?;
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || answer_all(stream));
        }
    });
    Ok(address)
}

fn answer_all(mut stream: TcpStream) {
    let mut bytes: Vec<u8> = Vec::new();
    let mut part = [0; 16 << 10];
    loop {
        while let Some(end) = end_of_request(&bytes) {
            bytes.drain(..end);
            if stream
                .write_all(b"HTTP/1.1 204 No Content\r\n\r\n")
                .is_err()
            {
                return;
            }
        }
        match stream.read(&mut part) {
            Ok(0) | Err(_) => return,
            Ok(count) => bytes.extend_from_slice(&part[..count]),
        }
    }
}

fn end_of_request(bytes: &[u8]) -> Option<usize> {
    let head = bytes.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
    let text = std::str::from_utf8(&bytes[..head])
        .ok()?
        .to_ascii_lowercase();
    let length = text
        .lines()
        .find_map(|line| line.strip_prefix("content-length:"))?;
    let end = head + length.trim().parse::<usize>().ok()?;
    (bytes.len() >= end).then_some(end)
}

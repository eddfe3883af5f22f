//! Event handlers: what a hundred of them cost those who append, and what ten dead endpoints cost the other ninety.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::http_load::{Load, Request, send_times};
use crate::measure::{Measurement, milliseconds};
use crate::projection::{Client, TYPE, on_this_thread};
use crate::server::TestServer;
use crate::work::{FRESH_ID, Work, append_event_of, event_data};

/// Handlers whose effects are entries, those that post, and those whose endpoint is dead: half refuse connections, half take
/// them and never answer.
const PUBLISHERS: usize = 60;
const HOOKS: usize = 30;
const DEAD: usize = 10;
/// Each of the living wants one type of so many, the dead want all.
const TYPES: usize = 10;
/// Events of all types that are handled before those that count.
const WARM_UP: usize = 100;
const EVENTS: usize = 10_000;
const EVENTS_A_CALL: usize = 100;
const LIMIT: Duration = Duration::from_secs(120);
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// One run.
#[derive(Clone, Debug)]
pub struct Handled {
    /// Appends of events that the handlers want, as fast as they come.
    pub appended: Measurement,
    /// From the first append of ten thousand events until the last effect of the last living handler; none without handlers.
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

/// Measures how long ten thousand events take, and then appends, with none, the living ones, or all.
pub fn run(address: SocketAddr, load: &Load, living: bool, dead: bool) -> Result<Handled, String> {
    let receiver = Receiver::start()?;
    let hanging = hang()?;
    on_this_thread(async {
        let mut client = Client::open(address).await?;
        let hooks = (0..HOOKS).map(|no| receiver.url(no));
        let publishers = (0..PUBLISHERS).map(|no| format!("publish:out-{no}"));
        if living {
            for (no, function) in publishers.chain(hooks).enumerate() {
                let types = json!([kind(no)]);
                register(&mut client, &format!("living-{no}"), &function, types).await?;
            }
        }
        for no in 0..if dead { DEAD } else { 0 } {
            let name = format!("dead-{no}");
            // Nothing listens at the first of them.
            let port = if no % 2 == 0 { 1 } else { hanging.port() };
            let url = format!("http://127.0.0.1:{port}/");
            register(&mut client, &name, &url, json!([])).await?;
        }
        Ok::<_, String>(())
    })?;
    let mut handled_ms = None;
    if living {
        append_all_types(address, WARM_UP)?;
        until_handled(address, &receiver, WARM_UP / TYPES)?;
        let began = Instant::now();
        append_all_types(address, EVENTS)?;
        until_handled(address, &receiver, (WARM_UP + EVENTS) / TYPES)?;
        handled_ms = Some(milliseconds(began.elapsed()));
    }
    let works: Vec<Work> = (0..TYPES).map(append_one).collect();
    Ok(Handled {
        appended: load.run_mixed(&works),
        handled_ms,
    })
}

/// One of the types that the living want.
fn kind(no: usize) -> String {
    format!("kind_{}", no % TYPES)
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

/// Waits until the effects of so many events are there at each of the living.
fn until_handled(address: SocketAddr, receiver: &Receiver, events: usize) -> Result<(), String> {
    let published = |answer: &Value| {
        let streams = answer["data"]["streams"]["nodes"].as_array();
        let streams = streams.map(Vec::as_slice).unwrap_or_default();
        let is_whole = |stream: &&Value| {
            let name = stream["name"].as_str();
            let last = stream["lastPosition"].as_u64();
            name.is_some_and(|name| name.starts_with("out-")) && last >= Some(events as u64)
        };
        streams.iter().filter(is_whole).count()
    };
    on_this_thread(async {
        let mut client = Client::open(address).await?;
        let began = Instant::now();
        loop {
            let query = "{ streams(first: 1000) { nodes { name lastPosition } } }";
            // What was posted costs nobody else to be looked at.
            let posted = receiver.those_with(events);
            if posted == HOOKS {
                let answer = client.ask(query, json!({})).await?;
                let published = published(&answer);
                if published == PUBLISHERS {
                    return Ok(());
                }
            }
            if began.elapsed() > LIMIT {
                return Err(format!(
                    "{posted} of {HOOKS} webhooks have had {events} events"
                ));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    })
}

/// `appendEvent` of one type that the living want.
fn append_one(no: usize) -> Work {
    let mut work = append_event_of(TYPE, FRESH_ID);
    work.variables["input"]["type"] = kind(no).into();
    work
}

/// Appends so many events, each type as often as the others.
fn append_all_types(address: SocketAddr, count: usize) -> Result<(), String> {
    let data: Value = serde_json::from_str(&event_data()).expect("it is JSON");
    let event = |no| json!({ "aggregateId": FRESH_ID, "aggregateType": TYPE, "type": kind(no), "data": data });
    let events: Vec<Value> = (0..EVENTS_A_CALL).map(event).collect();
    let work = Work {
        query: "mutation Append($input: AppendEventsInput!) { appendEvents(input: $input) { events { id } } }",
        variables: json!({ "input": { "events": events } }),
        is_right: |data| data["appendEvents"]["events"].is_array(),
    };
    let request = Request::new(address, &work);
    send_times(address, 4, vec![request; count / EVENTS_A_CALL])
}

/// Takes whatever is posted, and counts it by its path, until the program ends.
struct Receiver {
    address: SocketAddr,
    counts: Arc<Mutex<HashMap<String, usize>>>,
}

impl Receiver {
    fn start() -> Result<Self, String> {
        let listener = TcpListener::bind("127.0.0.1:0").map_err(|error| error.to_string())?;
        let address = listener.local_addr().map_err(|error| error.to_string())?;
        let counts: Arc<Mutex<HashMap<String, usize>>> = Arc::default();
        let counted = counts.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let counts = counted.clone();
                std::thread::spawn(move || answer_all(stream, &counts));
            }
        });
        Ok(Self { address, counts })
    }

    /// Where the n-th hook posts to.
    fn url(&self, no: usize) -> String {
        format!("http://{}/{no}", self.address)
    }

    /// How many hooks have posted so often at least.
    fn those_with(&self, count: usize) -> usize {
        let counts = self.counts.lock().expect("no thread panics");
        counts.values().filter(|posted| **posted >= count).count()
    }
}

/// Takes connections and never answers, until the program ends.
fn hang() -> Result<SocketAddr, String> {
    let listener = TcpListener::bind("127.0.0.1:0").map_err(|error| error.to_string())?;
    let address = listener.local_addr().map_err(|error| error.to_string())?;
    std::thread::spawn(move || {
        let mut taken = Vec::new();
        taken.extend(listener.incoming().flatten());
    });
    Ok(address)
}

fn answer_all(mut stream: TcpStream, counts: &Mutex<HashMap<String, usize>>) {
    let mut bytes: Vec<u8> = Vec::new();
    let mut part = [0; 16 << 10];
    loop {
        while let Some((path, end)) = take_request(&bytes) {
            bytes.drain(..end);
            let answer = stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n");
            let mut counts = counts.lock().expect("no thread panics");
            *counts.entry(path).or_default() += 1;
            if answer.is_err() {
                return;
            }
        }
        match stream.read(&mut part) {
            Ok(0) | Err(_) => return,
            Ok(count) => bytes.extend_from_slice(&part[..count]),
        }
    }
}

/// The path of the first request, and its end, once it is whole.
fn take_request(bytes: &[u8]) -> Option<(String, usize)> {
    let head = bytes.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
    let text = std::str::from_utf8(&bytes[..head])
        .ok()?
        .to_ascii_lowercase();
    let path = text.split(' ').nth(1)?.to_owned();
    let length = text
        .lines()
        .find_map(|line| line.strip_prefix("content-length:"))?;
    let end = head + length.trim().parse::<usize>().ok()?;
    (bytes.len() >= end).then_some((path, end))
}

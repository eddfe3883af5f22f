//! Websocket subscribers by the thousand, each no more than a socket and a small buffer, and how long an entry takes to
//! reach them.
//!
//! An entry counts as committed at its own `createdAt`. The server takes that before it commits, so the commit itself is in
//! the time from there to arrival; the time from the answer of the mutation is given beside it. All is on one machine
//! and one clock.

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime};

use chrono::{DateTime, Utc};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::LocalSet;

use crate::http_load::{Connection, Request};
use crate::measure::{Cpu, CpuClock, milliseconds, quantile};
use crate::server::TestServer;
use crate::work::append_to_stream;

const STREAM: &str = "followed";
const WAIT_LIMIT: Duration = Duration::from_secs(20);

/// What the subscribers saw.
#[derive(Clone, Debug, Default)]
pub struct Delivery {
    pub appended: usize,
    pub missing: usize,
    pub from_created_p50_ms: f64,
    pub from_created_p99_ms: f64,
    pub from_answer_p50_ms: f64,
    pub from_answer_p99_ms: f64,
    pub idle_bytes_each: f64,
    pub cpu: Cpu,
}

/// Positions and when they arrived, of one subscriber.
type Arrivals = Rc<RefCell<Vec<(u64, Instant)>>>;

struct Appended {
    position: u64,
    created: Instant,
    answered: Instant,
}

/// Subscribes so many times to one stream, appends to it at this rate (through another server on the database, it may be), and
/// waits until all has arrived.
pub fn run(
    server: &TestServer,
    appends_to: &TestServer,
    postgres: u32,
    count: usize,
    rate: u32,
    duration: Duration,
) -> Result<Delivery, String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime starts");
    LocalSet::new().block_on(
        &runtime,
        follow(
            server,
            appends_to.address(),
            postgres,
            count,
            rate,
            duration,
        ),
    )
}

async fn follow(
    server: &TestServer,
    appends_to: SocketAddr,
    postgres: u32,
    count: usize,
    rate: u32,
    duration: Duration,
) -> Result<Delivery, String> {
    let before = settled_bytes(server).await;
    let mut sockets = Vec::with_capacity(count);
    for number in 0..count {
        let socket = Socket::subscribe(server.address()).await;
        sockets.push(socket.map_err(|error| format!("subscriber {number}: {error}"))?);
    }
    let connected = settled_bytes(server).await;

    let all: Vec<Arrivals> = sockets.iter().map(|_| Arrivals::default()).collect();
    let readers: Vec<_> = sockets
        .into_iter()
        .zip(&all)
        .map(|(socket, arrivals)| tokio::task::spawn_local(socket.read_all(arrivals.clone())))
        .collect();

    // A subscription is not acknowledged; it is there once an entry has come.
    let mut appender = Appender::new(appends_to).await?;
    let asked = Instant::now();
    while all.iter().any(|arrivals| arrivals.borrow().is_empty()) {
        if asked.elapsed() > WAIT_LIMIT {
            let silent = all
                .iter()
                .filter(|arrivals| arrivals.borrow().is_empty())
                .count();
            return Err(format!(
                "{silent} of {count} subscribers have received nothing after {WAIT_LIMIT:?}"
            ));
        }
        appender.append().await?;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }

    let clock = CpuClock::start(Some(server.pid()), Some(postgres));
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / rate);
    let mut appended = Vec::new();
    let started = Instant::now();
    while started.elapsed() < duration {
        ticks.tick().await;
        appended.push(appender.append().await?);
    }
    let cpu = clock.stop();
    let last = appended.last().map_or(0, |entry| entry.position);
    let has_last = |arrivals: &Arrivals| {
        arrivals
            .borrow()
            .last()
            .is_some_and(|(position, _)| *position >= last)
    };
    let asked = Instant::now();
    while !all.iter().all(has_last) && asked.elapsed() < WAIT_LIMIT {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let after = settled_bytes(server).await;
    readers.iter().for_each(|reader| reader.abort());

    let (mut from_created, mut from_answer, mut missing) = (Vec::new(), Vec::new(), 0);
    for arrivals in &all {
        let arrivals = arrivals.borrow();
        for entry in &appended {
            match arrivals.binary_search_by_key(&entry.position, |(position, _)| *position) {
                Ok(index) => {
                    let arrived = arrivals[index].1;
                    from_created.push(milliseconds(
                        arrived.saturating_duration_since(entry.created),
                    ));
                    from_answer.push(milliseconds(
                        arrived.saturating_duration_since(entry.answered),
                    ));
                }
                Err(_) => missing += 1,
            }
        }
    }
    from_created.sort_by(f64::total_cmp);
    from_answer.sort_by(f64::total_cmp);
    Ok(Delivery {
        appended: appended.len(),
        missing,
        from_created_p50_ms: quantile(&from_created, 0.5),
        from_created_p99_ms: quantile(&from_created, 0.99),
        from_answer_p50_ms: quantile(&from_answer, 0.5),
        from_answer_p99_ms: quantile(&from_answer, 0.99),
        idle_bytes_each: connected.max(after).saturating_sub(before) as f64 / count as f64,
        cpu,
    })
}

/// The server's resident memory, once it stays the same.
pub async fn settled_bytes(server: &TestServer) -> u64 {
    const SAME: u64 = 64 * 1024;
    let mut before = server.resident_bytes();
    for _ in 0..12 {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let now = server.resident_bytes();
        if now.abs_diff(before) < SAME {
            return now;
        }
        before = now;
    }
    before
}

/// Appends to the stream and says when that was committed.
struct Appender {
    connection: Connection,
    request: Request,
}

impl Appender {
    async fn new(address: SocketAddr) -> Result<Appender, String> {
        let connection = Connection::open(address)
            .await
            .map_err(|error| error.to_string())?;
        Ok(Appender {
            connection,
            request: Request::new(address, &append_to_stream(STREAM)),
        })
    }

    async fn append(&mut self) -> Result<Appended, String> {
        let (wall, started) = (SystemTime::now(), Instant::now());
        let exchange = self.connection.exchange(&mut self.request).await;
        let (_, body) = exchange.map_err(|error| error.to_string())?;
        let answered = Instant::now();
        let answer: Value = serde_json::from_slice(body).map_err(|error| error.to_string())?;
        let entry = &answer["data"]["appendToStream"]["entry"];
        let created: Option<DateTime<Utc>> = entry["createdAt"]
            .as_str()
            .and_then(|text| text.parse().ok());
        let (Some(position), Some(created)) = (entry["position"].as_u64(), created) else {
            return Err(format!("not what was asked for: {answer}"));
        };
        // The clock of the wall has been read at `started`; the rest is a difference.
        let after_start = SystemTime::from(created)
            .duration_since(wall)
            .unwrap_or_default();
        Ok(Appended {
            position,
            created: started + after_start,
            answered,
        })
    }
}

/// A websocket with a subscription on it, read with no more than a small buffer.
struct Socket {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Socket {
    async fn subscribe(address: SocketAddr) -> io::Result<Socket> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let mut socket = Socket {
            stream,
            buffer: Vec::with_capacity(1024),
        };
        let handshake = format!(
            "GET /graphql HTTP/1.1\r\nHost: {address}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Protocol: graphql-transport-ws\r\n\r\n"
        );
        socket.stream.write_all(handshake.as_bytes()).await?;
        let end = loop {
            if let Some(place) = socket
                .buffer
                .windows(4)
                .position(|window| window == b"\r\n\r\n")
            {
                break place + 4;
            }
            socket.fill().await?;
        };
        if !socket.buffer.starts_with(b"HTTP/1.1 101") {
            return Err(io::Error::other(
                String::from_utf8_lossy(&socket.buffer).into_owned(),
            ));
        }
        socket.buffer.drain(..end);

        socket.send(&json!({ "type": "connection_init" })).await?;
        socket.expect("connection_ack").await?;
        let query = "subscription Follow($stream: String!) \
                     { streamEntries(streamName: $stream) { position eventId type data createdAt } }";
        let payload = json!({ "query": query, "variables": { "stream": STREAM } });
        socket
            .send(&json!({ "id": "1", "type": "subscribe", "payload": payload }))
            .await?;
        // Its answer comes behind whatever refused the subscription.
        socket.send(&json!({ "type": "ping" })).await?;
        socket.expect("pong").await?;
        Ok(socket)
    }

    async fn expect(&mut self, kind: &str) -> io::Result<()> {
        let text = self.next_text().await?;
        let message: Value = serde_json::from_slice(&text).map_err(io::Error::other)?;
        if message["type"] != kind {
            return Err(io::Error::other(format!(
                "{kind} was to come, and this did: {message}"
            )));
        }
        Ok(())
    }

    /// Notes every entry that arrives, until the connection ends.
    async fn read_all(mut self, arrivals: Arrivals) {
        while let Ok(text) = self.next_text().await {
            let now = Instant::now();
            match position_in(&text) {
                Some(position) => arrivals.borrow_mut().push((position, now)),
                None if text.windows(6).any(|window| window == b"\"ping\"") => {
                    let _ = self.send(&json!({ "type": "pong" })).await;
                }
                None => {}
            }
        }
    }

    /// The next text message; answers pings of the websocket itself.
    async fn next_text(&mut self) -> io::Result<Vec<u8>> {
        loop {
            while let Some((opcode, start, end)) = frame_in(&self.buffer) {
                let payload = self.buffer[start..end].to_vec();
                self.buffer.drain(..end);
                match opcode {
                    0x1 => return Ok(payload),
                    0x8 => {
                        return Err(io::Error::other(format!(
                            "closed: {}",
                            String::from_utf8_lossy(&payload)
                        )));
                    }
                    0x9 => self.send_frame(0xA, &payload).await?,
                    _ => {}
                }
            }
            self.fill().await?;
        }
    }

    async fn fill(&mut self) -> io::Result<()> {
        if self.stream.read_buf(&mut self.buffer).await? == 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the server closed the connection",
            ));
        }
        Ok(())
    }

    async fn send(&mut self, message: &Value) -> io::Result<()> {
        self.send_frame(0x1, message.to_string().as_bytes()).await
    }

    /// With a mask of zeros, which RFC 6455 asks for the presence of, and which leaves the bytes as they are.
    async fn send_frame(&mut self, opcode: u8, payload: &[u8]) -> io::Result<()> {
        let mut frame = vec![0x80 | opcode];
        match u16::try_from(payload.len()) {
            Ok(length) if length < 126 => frame.push(0x80 | length as u8),
            Ok(length) => {
                frame.push(0x80 | 126);
                frame.extend(length.to_be_bytes());
            }
            Err(_) => {
                return Err(io::Error::other(
                    "the benchmark sends no message as long as this",
                ));
            }
        }
        frame.extend([0; 4]);
        frame.extend(payload);
        self.stream.write_all(&frame).await
    }
}

/// The first whole frame in these bytes: its opcode, where its payload begins and where it ends.
fn frame_in(bytes: &[u8]) -> Option<(u8, usize, usize)> {
    let (first, second) = (*bytes.first()?, *bytes.get(1)?);
    let (start, length) = match second & 0x7F {
        126 => (
            4,
            usize::from(u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?)),
        ),
        127 => (
            10,
            usize::try_from(u64::from_be_bytes(bytes.get(2..10)?.try_into().ok()?)).ok()?,
        ),
        length => (2, usize::from(length)),
    };
    (bytes.len() >= start + length).then_some((first & 0x0F, start, start + length))
}

fn position_in(text: &[u8]) -> Option<u64> {
    const NAME: &[u8] = b"\"position\":";
    let place = text.windows(NAME.len()).position(|window| window == NAME)? + NAME.len();
    let digits = text[place..]
        .iter()
        .take_while(|byte| byte.is_ascii_digit());
    Some(digits.fold(0, |number, digit| number * 10 + u64::from(digit - b'0')))
}

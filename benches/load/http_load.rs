//! An HTTP client that costs about as little as pgbench does, since it shares the machine with what it measures: one
//! thread, connections that are kept, requests made once in which only ids are replaced.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::LocalSet;

use crate::measure::{CpuClock, Measurement, milliseconds, quantile};
use crate::work::{FRESH_ID, ID_BYTES, KNOWN_AGGREGATES, KNOWN_ID, Work, known_id};

const WARM_UP: Duration = Duration::from_millis(500);
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
const BUFFER_BYTES: usize = 16 * 1024;
/// An answer's errors stand at its beginning or at its end, never only within the data between.
const SEARCHED_BYTES: usize = 2048;

/// A request whose ids change from one sending to the next.
#[derive(Clone)]
pub struct Request {
    bytes: Vec<u8>,
    fresh: Vec<usize>,
    known: Vec<usize>,
}

impl Request {
    pub fn new(address: SocketAddr, work: &Work) -> Request {
        let body = json!({ "query": work.query, "variables": work.variables }).to_string();
        let head = format!(
            "POST /graphql HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\n\
             Accept: application/graphql-response+json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        let text = head + &body;
        let places = |id: &str| text.match_indices(id).map(|(place, _)| place).collect();
        Request {
            fresh: places(FRESH_ID),
            known: places(KNOWN_ID),
            bytes: text.into_bytes(),
        }
    }

    /// The bytes to send next.
    fn next(&mut self, random: &mut Random) -> &[u8] {
        if !self.fresh.is_empty() {
            let id = random.id();
            self.fresh
                .iter()
                .for_each(|place| self.bytes[*place..place + ID_BYTES].copy_from_slice(&id));
        }
        if !self.known.is_empty() {
            let id = known_id(1 + (random.next() % u64::from(KNOWN_AGGREGATES)) as u32);
            self.known.iter().for_each(|place| {
                self.bytes[*place..place + ID_BYTES].copy_from_slice(id.as_bytes())
            });
        }
        &self.bytes
    }
}

/// Pseudo-random ids (xorshift64*), seeded differently in each process.
#[derive(Clone)]
struct Random(u64);

impl Random {
    fn new() -> Random {
        Random(
            u64::from_le_bytes(
                uuid::Uuid::new_v4().as_bytes()[..8]
                    .try_into()
                    .expect("8 bytes"),
            ) | 1,
        )
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// A UUIDv4 as text.
    fn id(&mut self) -> [u8; ID_BYTES] {
        let bits = (u128::from(self.next()) << 64) | u128::from(self.next());
        let id = uuid::Builder::from_u128(bits)
            .with_version(uuid::Version::Random)
            .into_uuid();
        let mut text = [0; ID_BYTES];
        id.hyphenated().encode_lower(&mut text);
        text
    }
}

/// A kept connection.
pub struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
    random: Random,
}

impl Connection {
    pub async fn open(address: SocketAddr) -> io::Result<Connection> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Connection {
            stream,
            buffer: vec![0; BUFFER_BYTES],
            random: Random::new(),
        })
    }

    /// Sends a request and returns its answer: the status, and the body.
    pub async fn exchange(&mut self, request: &mut Request) -> io::Result<(u16, &[u8])> {
        self.stream
            .write_all(request.next(&mut self.random))
            .await?;
        let mut filled = 0;
        let mut head: Option<(u16, usize, usize)> = None;
        loop {
            if filled == self.buffer.len() {
                self.buffer.resize(filled * 2, 0);
            }
            let count = self.stream.read(&mut self.buffer[filled..]).await?;
            if count == 0 {
                return Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "the server closed the connection",
                ));
            }
            filled += count;
            if head.is_none() {
                head = parse_head(&self.buffer[..filled])?;
            }
            if let Some((status, start, end)) = head.filter(|(_, _, end)| *end <= filled) {
                return Ok((status, &self.buffer[start..end]));
            }
        }
    }
}

/// The status of an answer, where its body begins and where it ends; `None` while the head is not complete.
fn parse_head(bytes: &[u8]) -> io::Result<Option<(u16, usize, usize)>> {
    let invalid = |text: &str| io::Error::new(io::ErrorKind::InvalidData, text.to_owned());
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut response = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(start) = response
        .parse(bytes)
        .map_err(|error| invalid(&error.to_string()))?
    else {
        return Ok(None);
    };
    let length = response
        .headers
        .iter()
        .find(|header| header.name.eq_ignore_ascii_case("content-length"));
    let length = length.and_then(|header| {
        std::str::from_utf8(header.value)
            .ok()?
            .trim()
            .parse::<usize>()
            .ok()
    });
    let length = length.ok_or_else(|| invalid("an answer without a content-length"))?;
    let status = response
        .code
        .ok_or_else(|| invalid("an answer without a status"))?;
    Ok(Some((status, start, start + length)))
}

/// What is wrong with an answer, by a look that costs little.
fn fault_of(status: u16, body: &[u8]) -> Option<String> {
    let has_errors = |part: &[u8]| part.windows(8).any(|window| window == b"\"errors\"");
    let is_good = status == 200
        && if body.len() <= 2 * SEARCHED_BYTES {
            !has_errors(body)
        } else {
            !has_errors(&body[..SEARCHED_BYTES])
                && !has_errors(&body[body.len() - SEARCHED_BYTES..])
        };
    (!is_good).then(|| {
        format!(
            "status {status}: {}",
            String::from_utf8_lossy(&body[..body.len().min(500)])
        )
    })
}

/// Where a load comes from and how long it lasts.
pub struct Load {
    pub address: SocketAddr,
    pub connections: usize,
    pub duration: Duration,
    pub server: u32,
    pub postgres: Option<u32>,
}

#[derive(Default)]
struct Tally {
    latencies_ms: RefCell<Vec<f64>>,
    errors: Cell<u64>,
    first_error: RefCell<Option<String>>,
}

impl Tally {
    fn fail(&self, error: String) {
        self.errors.set(self.errors.get() + 1);
        self.first_error.borrow_mut().get_or_insert(error);
    }
}

impl Load {
    /// Sends the same operation on all connections, each waiting for its answer, for the time of the load. What
    /// happens before is not counted: opening the connections, the first answers, and a short run to warm up.
    pub fn run(&self, work: &Work) -> Measurement {
        self.run_mixed(std::slice::from_ref(work))
    }

    /// The same with several operations: each connection sends one of them, in turn.
    pub fn run_mixed(&self, works: &[Work]) -> Measurement {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime starts");
        LocalSet::new().block_on(&runtime, self.run_all(works))
    }

    async fn run_all(&self, works: &[Work]) -> Measurement {
        let tally = Rc::new(Tally::default());
        let mut connections = Vec::new();
        for work in works.iter().cycle().take(self.connections) {
            let request = Request::new(self.address, work);
            match first_answer(self.address, &request, work).await {
                Ok(connection) => connections.push((connection, request)),
                Err(error) => tally.fail(error),
            }
        }
        let start = Instant::now() + WARM_UP;
        let end = start + self.duration;
        let tasks: Vec<_> = connections
            .into_iter()
            .map(|(connection, request)| {
                tokio::task::spawn_local(send_until(connection, request, start, end, tally.clone()))
            })
            .collect();
        tokio::time::sleep_until(start.into()).await;
        let clock = CpuClock::start(Some(self.server), self.postgres);
        tokio::time::sleep_until(end.into()).await;
        let cpu = clock.stop();
        for task in tasks {
            task.await.expect("a client does not panic");
        }

        let mut latencies = tally.latencies_ms.take();
        latencies.sort_by(f64::total_cmp);
        Measurement {
            operations: latencies.len() as u64,
            rate: latencies.len() as f64 / self.duration.as_secs_f64(),
            mean_ms: latencies.iter().sum::<f64>() / latencies.len().max(1) as f64,
            p50_ms: quantile(&latencies, 0.5),
            p99_ms: quantile(&latencies, 0.99),
            errors: tally.errors.get(),
            first_error: tally.first_error.take(),
            cpu,
        }
    }
}

/// Opens a connection and checks its first answer as a whole.
async fn first_answer(
    address: SocketAddr,
    request: &Request,
    work: &Work,
) -> Result<Connection, String> {
    let mut connection = Connection::open(address)
        .await
        .map_err(|error| error.to_string())?;
    let exchange = connection.exchange(&mut request.clone()).await;
    let (status, body) = exchange.map_err(|error| error.to_string())?;
    if let Some(fault) = fault_of(status, body) {
        return Err(fault);
    }
    let answer: Value = serde_json::from_slice(body).map_err(|error| error.to_string())?;
    if !(work.is_right)(&answer["data"]) {
        return Err(format!("not what was asked for: {answer}"));
    }
    Ok(connection)
}

async fn send_until(
    mut connection: Connection,
    mut request: Request,
    start: Instant,
    end: Instant,
    tally: Rc<Tally>,
) {
    loop {
        let sent = Instant::now();
        if sent >= end {
            return;
        }
        let answer = tokio::time::timeout(ANSWER_LIMIT, connection.exchange(&mut request)).await;
        let fault = match answer {
            Ok(Ok((status, body))) => fault_of(status, body),
            Ok(Err(error)) => return tally.fail(error.to_string()),
            Err(_) => return tally.fail(format!("no answer within {ANSWER_LIMIT:?}")),
        };
        let answered = Instant::now();
        match fault {
            Some(fault) => tally.fail(fault),
            None if answered >= start && answered <= end => {
                tally
                    .latencies_ms
                    .borrow_mut()
                    .push(milliseconds(answered - sent));
            }
            None => {}
        }
    }
}

/// Sends an operation so many times, as fast as this many connections can, and fails with the first error.
pub fn send_times(
    address: SocketAddr,
    connections: usize,
    requests: Vec<Request>,
) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime starts");
    let queue = Rc::new(RefCell::new(requests));
    LocalSet::new().block_on(&runtime, async {
        let tasks: Vec<_> = (0..connections)
            .map(|_| {
                let queue = queue.clone();
                tokio::task::spawn_local(async move {
                    let mut connection = Connection::open(address)
                        .await
                        .map_err(|error| error.to_string())?;
                    loop {
                        let Some(mut request) = queue.borrow_mut().pop() else {
                            return Ok(());
                        };
                        let exchange = connection.exchange(&mut request).await;
                        let (status, body) = exchange.map_err(|error| error.to_string())?;
                        if let Some(fault) = fault_of(status, body) {
                            return Err(fault);
                        }
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.expect("a client does not panic")?;
        }
        Ok(())
    })
}

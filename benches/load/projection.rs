//! Read models: whether the projector keeps up with appends, how long an append takes to be visible, and folding all anew.

use std::cell::RefCell;
use std::io::Read;
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::task::LocalSet;

use crate::http_load::{Connection, Load, Request, send_times};
use crate::measure::{Measurement, median, milliseconds, quantile};
use crate::server::TestServer;
use crate::sql::Sql;
use crate::work::{FRESH_ID, KNOWN_ID, Work, append_event_of};

/// Aggregates that nothing but the projector takes care of: no domain declares them, so nothing is published.
pub const TYPE: &str = "note";
const PACED_CONNECTIONS: u32 = 20;
const PACED_EVENTS_A_SECOND: u32 = 1000;
/// One in so many appends is read back.
const READ_BACK_EACH: u32 = 5;
const SAMPLE_EVERY: Duration = Duration::from_millis(250);
const SETTLE_LIMIT: Duration = Duration::from_secs(60);

/// The projector beside appends as fast as they come.
#[derive(Clone, Debug, Default)]
pub struct KeepingUp {
    pub appended: Measurement,
    /// Events that were not folded yet: the median of the first and of the last third of the time, and the most.
    pub lag_at_first: f64,
    pub lag_in_the_end: f64,
    pub lag_most: f64,
    /// From the last append to the last fold.
    pub made_up_ms: f64,
}

/// From the answer of an append to that of a query for its version.
#[derive(Clone, Debug, Default)]
pub struct Visible {
    pub rate: f64,
    pub p50_ms: f64,
    pub p99_ms: f64,
    pub most_ms: f64,
    pub errors: usize,
}

/// One rebuild by the command line.
#[derive(Clone, Debug, Default)]
pub struct Rebuilt {
    pub events: u64,
    pub seconds: f64,
    pub peak_mib: f64,
}

pub fn on_this_thread<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime starts");
    LocalSet::new().block_on(&runtime, work)
}

/// Appends as fast as the load can, and looks at the lag all the while.
pub fn keep_up(server: &TestServer, load: Load, aggregate_type: &str) -> Result<KeepingUp, String> {
    let address = server.address();
    let is_over = std::sync::atomic::AtomicBool::new(false);
    let (appended, lags) = std::thread::scope(|scope| {
        let watching = scope.spawn(|| {
            on_this_thread(async {
                let mut lags = Vec::new();
                let mut client = Client::open(address).await?;
                while !is_over.load(std::sync::atomic::Ordering::Relaxed) {
                    lags.push(client.lag().await? as f64);
                    tokio::time::sleep(SAMPLE_EVERY).await;
                }
                Ok::<_, String>(lags)
            })
        });
        let appended = load.run(&append_event_of(aggregate_type, FRESH_ID));
        is_over.store(true, std::sync::atomic::Ordering::Relaxed);
        (
            appended,
            watching.join().expect("the watcher does not panic"),
        )
    });
    let lags = lags?;
    let began = Instant::now();
    settle(address)?;
    let third = lags.len() / 3;
    Ok(KeepingUp {
        lag_at_first: median(lags[..third].iter().copied()),
        lag_in_the_end: median(lags[lags.len() - third..].iter().copied()),
        lag_most: lags.iter().copied().fold(0.0, f64::max),
        made_up_ms: milliseconds(began.elapsed()),
        appended,
    })
}

/// Waits until everything is folded.
pub fn settle(address: SocketAddr) -> Result<(), String> {
    on_this_thread(async {
        let mut client = Client::open(address).await?;
        let began = Instant::now();
        while client.lag().await? > 0 {
            if began.elapsed() > SETTLE_LIMIT {
                return Err("the projector does not make up for its lag".to_owned());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    })
}

/// Appends at a steady rate, to fresh aggregates and to known ones in turn, and reads one in five back.
pub fn visible(address: SocketAddr, duration: Duration) -> Result<Visible, String> {
    let visible = Rc::new(RefCell::new(Vec::new()));
    let errors = Rc::new(RefCell::new(Vec::new()));
    let appended = on_this_thread(async {
        let tasks: Vec<_> = (0..PACED_CONNECTIONS)
            .map(|number| {
                let (visible, errors) = (visible.clone(), errors.clone());
                tokio::task::spawn_local(async move {
                    let paced = paced(address, number, duration, &visible).await;
                    paced.unwrap_or_else(|error| {
                        errors.borrow_mut().push(error);
                        0
                    })
                })
            })
            .collect();
        let mut appended = 0;
        for task in tasks {
            appended += task.await.expect("a client does not panic");
        }
        appended
    });
    let mut visible = visible.take();
    visible.sort_by(f64::total_cmp);
    let errors = errors.take();
    if let Some(error) = errors.first() {
        eprintln!("  {error}");
    }
    Ok(Visible {
        rate: f64::from(appended) / duration.as_secs_f64(),
        p50_ms: quantile(&visible, 0.5),
        p99_ms: quantile(&visible, 0.99),
        most_ms: visible.last().copied().unwrap_or_default(),
        errors: errors.len(),
    })
}

async fn paced(
    address: SocketAddr,
    number: u32,
    duration: Duration,
    visible: &RefCell<Vec<f64>>,
) -> Result<u32, String> {
    let mut client = Client::open(address).await?;
    let aggregate = if number.is_multiple_of(2) {
        FRESH_ID
    } else {
        KNOWN_ID
    };
    let mut request = Request::new(address, &append_event_of(TYPE, aggregate));
    let each = Duration::from_secs(1) * PACED_CONNECTIONS / PACED_EVENTS_A_SECOND;
    // Not all at the same instant.
    tokio::time::sleep(each * number / PACED_CONNECTIONS).await;
    let mut ticks = tokio::time::interval(each);
    let mut appended = 0;
    let began = Instant::now();
    while began.elapsed() < duration {
        ticks.tick().await;
        let answer = client.exchange(&mut request).await?;
        let event = &answer["data"]["appendEvent"]["event"];
        appended += 1;
        if appended % READ_BACK_EACH == 0 {
            let answered = Instant::now();
            client.read_back(event).await?;
            visible.borrow_mut().push(milliseconds(answered.elapsed()));
        }
    }
    Ok(appended)
}

/// A client that looks at its answers.
pub struct Client {
    address: SocketAddr,
    connection: Connection,
}

impl Client {
    pub async fn open(address: SocketAddr) -> Result<Client, String> {
        let connection = Connection::open(address).await;
        Ok(Client {
            address,
            connection: connection.map_err(|error| error.to_string())?,
        })
    }

    async fn exchange(&mut self, request: &mut Request) -> Result<Value, String> {
        let exchange = self.connection.exchange(request).await;
        let (_, body) = exchange.map_err(|error| error.to_string())?;
        let answer: Value = serde_json::from_slice(body).map_err(|error| error.to_string())?;
        match answer.get("errors") {
            None => Ok(answer),
            Some(_) => Err(format!("not what was asked for: {answer}")),
        }
    }

    pub async fn ask(&mut self, query: &'static str, variables: Value) -> Result<Value, String> {
        let work = Work {
            query,
            variables,
            is_right: |_| true,
        };
        let mut request = Request::new(self.address, &work);
        self.exchange(&mut request).await
    }

    async fn lag(&mut self) -> Result<u64, String> {
        let answer = self.ask("{ projection { lagEvents } }", json!({})).await?;
        let lag = answer["data"]["projection"]["lagEvents"].as_u64();
        lag.ok_or_else(|| format!("not what was asked for: {answer}"))
    }

    async fn read_back(&mut self, event: &Value) -> Result<(), String> {
        let query = "query($id: UUID!, $min: Int!) { readModel(aggregateId: $id, minVersion: $min, waitMs: 10000) { version } }";
        let variables = json!({ "id": event["aggregateId"], "min": event["version"] });
        let answer = self.ask(query, variables).await?;
        let version = answer["data"]["readModel"]["version"].as_i64();
        if version < event["version"].as_i64() {
            return Err(format!("not what was asked for: {answer}"));
        }
        Ok(())
    }
}

/// Appends events until there are so many: ten of each aggregate.
pub fn fill(address: SocketAddr, missing: u64) -> Result<(), String> {
    const EACH: u64 = 10;
    let request = Request::new(
        address,
        &crate::work::append_events_of(TYPE, FRESH_ID, EACH as usize),
    );
    let requests = (0..missing.div_ceil(EACH))
        .map(|_| request.clone())
        .collect();
    send_times(address, 16, requests)?;
    settle(address)
}

/// Makes every read model another one than its events come to, so that each has to be written.
pub fn spoil(database_url: &str) {
    let mut sql = Sql::connect(database_url);
    sql.execute("UPDATE read_models SET model_data = '{}'");
    sql.execute("VACUUM ANALYZE");
    sql.execute("CHECKPOINT");
}

/// `tidings rebuild`, as a process whose memory is looked at.
pub fn rebuild(database_url: &str) -> Result<Rebuilt, String> {
    let mut child = Command::new(env!("CARGO_BIN_EXE_tidings"))
        .args(["rebuild", "--database-url", database_url])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| error.to_string())?;
    let status = format!("/proc/{}/status", child.id());
    let mut peak_kib = 0;
    let began = Instant::now();
    loop {
        if let Some(ended) = child.try_wait().map_err(|error| error.to_string())? {
            let seconds = began.elapsed().as_secs_f64();
            let mut said = String::new();
            if let Some(mut out) = child.stdout.take() {
                out.read_to_string(&mut said)
                    .map_err(|error| error.to_string())?;
            }
            if !ended.success() {
                return Err(format!("tidings rebuild ended with {ended}: {said}"));
            }
            let events = said
                .split_once("from ")
                .and_then(|(_, rest)| rest.split(' ').next()?.parse().ok());
            return Ok(Rebuilt {
                events: events.ok_or_else(|| format!("not what was to be said: {said}"))?,
                seconds,
                peak_mib: f64::from(peak_kib) / 1024.0,
            });
        }
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let peak = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let peak = peak.and_then(|rest| rest.split_whitespace().next()?.parse::<u32>().ok());
        peak_kib = peak_kib.max(peak.unwrap_or_default());
        std::thread::sleep(Duration::from_millis(10));
    }
}

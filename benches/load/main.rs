//! The load benchmark: the release server, its database and its clients on one machine, side by side with pgbench on the
//! same PostgreSQL cluster. Prints medians, ratios, and whether each target is met; a missed target is no failure.
//!
//! `make bench`, or `cargo bench --bench load -- [scenario…] [--seconds N] [--rounds N]`.
#![expect(dead_code, reason = "parts of the tests' ground are not needed here")]
#![expect(
    clippy::disallowed_methods,
    reason = "a benchmark measures by the real clock, with fresh ids"
)]

use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::http_load::{Load, Request, send_times};
use crate::measure::{Measurement, milliseconds};
use crate::pgbench::Guide;
use crate::postgres::{Cluster, Database};
use crate::report::{Idle, Results};
use crate::server::TestServer;
use crate::sql::{HeldSnapshot, Sql};
use crate::work::{
    FRESH_ID, KNOWN_AGGREGATES, KNOWN_EVENTS, Work, append_event, append_events, append_to_stream,
    execute_command,
};

mod collector;
mod handlers;
mod http_load;
mod measure;
mod pgbench;
#[path = "../../tests/it/support/postgres.rs"]
mod postgres;
mod projection;
mod report;
#[path = "../../tests/it/support/server.rs"]
mod server;
mod soak;
mod sql;
mod subscribers;
mod transfer;
mod work;

const CONNECTIONS: usize = 64;
/// pgbench is fastest with these at 100 rows a statement.
const BATCH_CONNECTIONS: usize = 16;
const BATCH: usize = 100;
const SUBSCRIBERS: usize = 1000;
const ENTRIES_A_SECOND: u32 = 10;
/// Of another server, where how soon they are given something is what counts.
const FEW_SUBSCRIBERS: usize = 10;
const APPENDS_A_SECOND: u32 = 40;
/// What pg_dump has to get through.
const DUMPED_EVENTS: u64 = 300_000;
/// What is folded anew.
const REBUILT_EVENTS: u64 = 1_000_000;
/// What is carried elsewhere.
const TRANSFERRED_EVENTS: u64 = 1_000_000;
const OPEN_FILES: u64 = 4096;

const SCENARIOS: [(&str, &str); 15] = [
    (
        "append",
        "appendEvent on fresh aggregates at 64 connections, beside pgbench with the guide's function",
    ),
    (
        "hot",
        "the same on one aggregate, and appendToStream on one stream",
    ),
    (
        "commands",
        "executeCommand on fresh aggregates at 64 connections, beside appendEvent",
    ),
    (
        "batch",
        "appendEvents with 100 events a call, beside a bare INSERT of 100 rows",
    ),
    (
        "read",
        "the events of one aggregate with 50 events, beside the same SELECT",
    ),
    ("single", "one client alone, beside one pgbench client"),
    (
        "snapshot",
        "the same while a snapshot is held as by pg_dump, and while pg_dump runs",
    ),
    (
        "metrics",
        "appendEvent and appendEvents with the counts of events by type and without, and the collector alone",
    ),
    ("sqlite", "appendEvent at 64 connections on SQLite"),
    (
        "subscribers",
        "1,000 subscribers of one stream: latency and memory",
    ),
    (
        "servers",
        "subscribers of one server while another one appends, with the doorbell between them and without",
    ),
    (
        "projection",
        "read models: keeping up with appends, how soon one is visible, and folding a million events anew",
    ),
    (
        "handlers",
        "a hundred event handlers, ten of them with dead endpoints: what appends and the other ninety feel of them",
    ),
    (
        "transfer",
        "a million events by export | import from SQLite with 1 partition to PostgreSQL with 16; once, whatever the rounds",
    ),
    (
        "idle",
        "memory and time to start of a server that does nothing",
    ),
];

struct Options {
    scenarios: Vec<String>,
    duration: Duration,
    rounds: usize,
}

fn main() {
    raise_open_files();
    let options = Options::read();
    if options.scenarios.iter().any(|name| name == "soak") {
        soak::run(options.duration);
        return;
    }
    let cluster = Cluster::private();
    println!(
        "{} on {} cores; rounds: {}, each piece {} s",
        version_of(&cluster),
        std::thread::available_parallelism().map_or(0, usize::from),
        options.rounds,
        options.duration.as_secs()
    );
    let mut bench = Bench::new(cluster, options.duration);
    for round in 1..=options.rounds {
        eprintln!("round {round} of {}", options.rounds);
        bench.run_round(&options);
    }
    bench.results.print();
}

impl Options {
    fn read() -> Options {
        let mut options = Options {
            scenarios: Vec::new(),
            duration: Duration::from_secs(5),
            rounds: 3,
        };
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            let mut number = || {
                let value = arguments.next().and_then(|value| value.parse::<u32>().ok());
                value
                    .filter(|value| *value > 0)
                    .unwrap_or_else(|| usage(&format!("{argument} takes a number above 0")))
            };
            match argument.as_str() {
                // cargo adds this.
                "--bench" => {}
                "--seconds" => options.duration = Duration::from_secs(number().into()),
                "--rounds" => options.rounds = number() as usize,
                name if name == "soak" || SCENARIOS.iter().any(|(known, _)| *known == name) => {
                    options.scenarios.push(argument);
                }
                _ => usage(&format!("unknown argument {argument}")),
            }
        }
        options
    }

    fn has(&self, scenario: &str) -> bool {
        // Others are measured against appends on fresh aggregates.
        let is_base = scenario == "append"
            && ["hot", "commands", "snapshot", "sqlite"]
                .iter()
                .any(|name| self.names(name));
        self.scenarios.is_empty() || self.names(scenario) || is_base
    }

    fn names(&self, scenario: &str) -> bool {
        self.scenarios.iter().any(|name| name == scenario)
    }
}

fn usage(error: &str) -> ! {
    eprintln!("{error}\n\ncargo bench --bench load -- [scenario…] [--seconds N] [--rounds N]\n");
    SCENARIOS
        .iter()
        .for_each(|(name, what)| eprintln!("  {name:<12} {what}"));
    eprintln!(
        "  {:<12} appends, reads and subscribers for as long as --seconds says; not run unless named",
        "soak"
    );
    std::process::exit(2);
}

struct Bench {
    cluster: Cluster,
    guide: Guide,
    database: Database,
    folder: tempfile::TempDir,
    duration: Duration,
    appended: u64,
    has_known: bool,
    results: Results,
}

impl Bench {
    fn new(cluster: Cluster, duration: Duration) -> Bench {
        let guide = Guide::new(&cluster);
        let database = cluster.create_database();
        let folder = tempfile::tempdir().expect("a temp folder can be made");
        Bench {
            cluster,
            guide,
            database,
            folder,
            duration,
            appended: 0,
            has_known: false,
            results: Results::default(),
        }
    }

    fn run_round(&mut self, options: &Options) {
        let on_postgres = [
            "append", "hot", "commands", "batch", "read", "single", "snapshot",
        ];
        if on_postgres.iter().any(|scenario| options.has(scenario)) {
            let server = log_alone(&self.database.url);
            let pieces = [
                ("append", Bench::append as fn(&mut Bench, &TestServer)),
                ("hot", Bench::hot),
                ("commands", Bench::commands),
                ("batch", Bench::batch),
                ("read", Bench::read),
                ("single", Bench::single),
                ("snapshot", Bench::snapshot),
            ];
            for (scenario, run) in pieces {
                if options.has(scenario) {
                    run(self, &server);
                }
            }
            stop(server);
        }
        if options.has("sqlite") {
            self.sqlite();
        }
        if options.has("metrics") {
            self.metrics();
        }
        if options.has("subscribers") {
            self.subscribers();
        }
        if options.has("servers") {
            self.servers();
        }
        if options.has("projection")
            && let Err(error) = self.projection()
        {
            self.results.failures.push(format!("projection: {error}"));
        }
        if options.has("handlers")
            && let Err(error) = self.handlers()
        {
            self.results.failures.push(format!("handlers: {error}"));
        }
        if options.has("transfer") && self.results.transferred.is_none() {
            self.transfer();
        }
        if options.has("idle") {
            self.idle();
        }
    }

    fn transfer(&mut self) {
        let source = self.sqlite_url("transfer");
        transfer::fill(&source, TRANSFERRED_EVENTS);
        let target = self.cluster.create_database();
        Sql::connect(&target.url).execute("CHECKPOINT");
        match transfer::run(&source, &target.url, TRANSFERRED_EVENTS) {
            Ok(run) => {
                eprintln!("  {:<24} {run:.1?}", "transfer");
                self.results.transferred = Some(run);
            }
            Err(error) => self.results.failures.push(format!("transfer: {error}")),
        }
    }

    /// On a database of its own, so that a rebuild has just the events that are meant.
    fn projection(&mut self) -> Result<(), String> {
        let database = self.cluster.create_database();
        let server = TestServer::start(&database.url);
        let load = |connections| Load {
            address: server.address(),
            connections,
            duration: self.duration.max(Duration::from_secs(10)),
            server: server.pid(),
            postgres: Some(self.cluster.pid()),
        };
        for (name, aggregate_type) in [("notes", projection::TYPE), ("users", "user")] {
            Sql::connect(&database.url).execute("CHECKPOINT");
            let run = projection::keep_up(&server, load(CONNECTIONS), aggregate_type)?;
            eprintln!("  {:<24} {run:.1?}", format!("keeping up, {name}"));
            self.results.keeping_up.push((name, run));
        }
        Sql::connect(&database.url).execute("CHECKPOINT");
        let visible = projection::visible(server.address(), load(0).duration)?;
        eprintln!("  {:<24} {visible:.2?}", "visible");
        self.results.visible.push(visible);
        stop(server);

        let database = self.cluster.create_database();
        let server = TestServer::start(&database.url);
        let mut filled = 0;
        for events in [REBUILT_EVENTS / 10, REBUILT_EVENTS] {
            projection::fill(server.address(), events - filled)?;
            filled = events;
            projection::spoil(&database.url);
            for is_spoilt in [true, false] {
                let rebuilt = projection::rebuild(&database.url)?;
                eprintln!(
                    "  {:<24} {rebuilt:.1?}, all to be written: {is_spoilt}",
                    "rebuild"
                );
                self.results.rebuilds.push((is_spoilt, rebuilt));
            }
        }
        stop(server);
        Ok(())
    }

    /// Each on a database of its own, so that none handles the events of another.
    fn handlers(&mut self) -> Result<(), String> {
        for (name, living, dead) in [
            ("none", false, false),
            ("90", true, false),
            ("90 and 10 dead", true, true),
        ] {
            let database = self.cluster.create_database();
            let server = handlers::serve(&database.url);
            Sql::connect(&database.url).execute("CHECKPOINT");
            let load = Load {
                address: server.address(),
                connections: CONNECTIONS,
                duration: self.duration,
                server: server.pid(),
                postgres: Some(self.cluster.pid()),
            };
            let run = handlers::run(server.address(), &load, living, dead)?;
            eprintln!("  {:<24} {run:.1?}", format!("handlers: {name}"));
            self.results.handled.push((name, run));
            stop(server);
        }
        Ok(())
    }

    fn append(&mut self, server: &TestServer) {
        let other = self.guide.append(&self.cluster, CONNECTIONS, self.duration);
        self.results.add("pgbench append", other);
        self.measure("append", server, CONNECTIONS, &append_event(FRESH_ID));
    }

    fn hot(&mut self, server: &TestServer) {
        let aggregate_id = uuid::Uuid::new_v4().to_string();
        self.measure(
            "one aggregate",
            server,
            CONNECTIONS,
            &append_event(&aggregate_id),
        );
        self.measure("one stream", server, CONNECTIONS, &append_to_stream("hot"));
    }

    fn commands(&mut self, server: &TestServer) {
        self.measure("commands", server, CONNECTIONS, &execute_command(FRESH_ID));
    }

    fn batch(&mut self, server: &TestServer) {
        let other = self
            .guide
            .insert_hundred(&self.cluster, BATCH_CONNECTIONS, self.duration);
        self.results.add("pgbench insert", other);
        let measurement = self
            .load(server, BATCH_CONNECTIONS, &append_events(FRESH_ID, BATCH))
            .times(BATCH as u64);
        self.appended += measurement.operations;
        self.results.add("hundred", measurement);
    }

    fn read(&mut self, server: &TestServer) {
        if !self.has_known {
            self.guide.fill_known();
            let aggregates = (1..=KNOWN_AGGREGATES).map(work::known_id);
            let requests = aggregates.map(|id| append_events(&id, KNOWN_EVENTS as usize));
            let requests = requests
                .map(|work| Request::new(server.address(), &work))
                .collect();
            if let Err(error) = send_times(server.address(), BATCH_CONNECTIONS, requests) {
                return self.results.failures.push(format!(
                    "read: the events to be read could not be made: {error}"
                ));
            }
            Sql::connect(&self.database.url).execute("VACUUM ANALYZE");
            self.has_known = true;
        }
        let other = self.guide.read(&self.cluster, CONNECTIONS, self.duration);
        self.results.add("pgbench read", other);
        for (name, work) in [
            ("read", work::read_events()),
            ("read aggregate", work::read_aggregate()),
        ] {
            let measurement = self.load(server, CONNECTIONS, &work);
            self.results.add(name, measurement);
        }
    }

    fn single(&mut self, server: &TestServer) {
        let other = self.guide.append(&self.cluster, 1, self.duration);
        self.results.add("pgbench single", other);
        self.measure("single", server, 1, &append_event(FRESH_ID));
    }

    /// Everything under a snapshot that was taken before a burst of appends, which is when a design that updates rows
    /// slows down; then beside a real pg_dump.
    fn snapshot(&mut self, server: &TestServer) {
        let snapshot = HeldSnapshot::take(&self.guide.database.url);
        self.guide.append(&self.cluster, CONNECTIONS, self.duration);
        let other = self.guide.append(&self.cluster, 1, self.duration);
        self.results.add("pgbench, snapshot", other);
        snapshot.release();

        let snapshot = HeldSnapshot::take(&self.database.url);
        self.measure(
            "append, snapshot",
            server,
            CONNECTIONS,
            &append_event(FRESH_ID),
        );
        self.measure("single, snapshot", server, 1, &append_event(FRESH_ID));
        snapshot.release();

        self.guide.fill_to(DUMPED_EVENTS);
        let missing = DUMPED_EVENTS
            .saturating_sub(self.appended)
            .div_ceil(BATCH as u64);
        let request = Request::new(server.address(), &append_events(FRESH_ID, BATCH));
        let requests = (0..missing).map(|_| request.clone()).collect();
        if let Err(error) = send_times(server.address(), BATCH_CONNECTIONS, requests) {
            return self
                .results
                .failures
                .push(format!("snapshot: the table could not be filled: {error}"));
        }
        self.appended += missing * BATCH as u64;

        let dump = Dump::start(&self.cluster, &self.guide.database.url);
        let other = self.guide.append(&self.cluster, 1, self.duration);
        self.results.add("pgbench, pg_dump", other);
        dump.stop();
        let dump = Dump::start(&self.cluster, &self.database.url);
        self.measure("single, pg_dump", server, 1, &append_event(FRESH_ID));
        dump.stop();
    }

    /// Processor time for each event, with the counts and without: the difference is what they cost.
    fn metrics(&mut self) {
        for (names, event_metrics) in [
            (["append, counted", "hundred, counted"], "true"),
            (["append, uncounted", "hundred, uncounted"], "false"),
        ] {
            let server = TestServer::on(&self.database.url)
                .arguments(["--background=false"])
                .arguments([format!("--event-metrics={event_metrics}")])
                .start();
            self.measure(names[0], &server, CONNECTIONS, &append_event(FRESH_ID));
            let work = append_events(FRESH_ID, BATCH);
            let hundred = self.load(&server, BATCH_CONNECTIONS, &work);
            self.results.add(names[1], hundred.times(BATCH as u64));
            stop(server);
        }
        match collector::run(&self.sqlite_url("collector")) {
            Ok(collecting) => {
                eprintln!("  {:<24} {collecting:.0?}", "collector");
                self.results.collecting.push(collecting);
            }
            Err(error) => self.results.failures.push(format!("metrics: {error}")),
        }
    }

    fn sqlite(&mut self) {
        let server = log_alone(&self.sqlite_url("load"));
        let load = Load {
            address: server.address(),
            connections: CONNECTIONS,
            duration: self.duration,
            server: server.pid(),
            postgres: None,
        };
        self.results
            .add("append on SQLite", load.run(&append_event(FRESH_ID)));
        stop(server);
    }

    /// On a server of its own, whose memory nothing else has touched.
    fn subscribers(&mut self) {
        // Of its own: what the others have appended would still be projected meanwhile.
        let database = self.cluster.create_database();
        let server = TestServer::start(&database.url);
        let duration = self.duration.max(Duration::from_secs(5));
        let result = subscribers::run(
            &server,
            &server,
            self.cluster.pid(),
            SUBSCRIBERS,
            ENTRIES_A_SECOND,
            duration,
        );
        match result {
            Ok(delivery) => {
                eprintln!("  {:<24} {delivery:.2?}", "subscribers");
                self.results.deliveries.push(delivery);
            }
            Err(error) => self.results.failures.push(format!("subscribers: {error}")),
        }
        stop(server);
    }

    /// What one server appends, at the subscribers of another one.
    fn servers(&mut self) {
        let heard = self.cluster.create_database();
        let unheard = self.cluster.create_database();
        // Found before PostgreSQL's own: whoever rings is answered, and nobody hears it.
        Sql::connect(&unheard.url).execute(&format!(
            "CREATE FUNCTION public.pg_notify(text, text) RETURNS void LANGUAGE sql AS ''; \
             ALTER DATABASE {} SET search_path = public, pg_catalog",
            unheard.name
        ));
        let duration = self.duration.max(Duration::from_secs(5));
        for (database, deliveries) in [
            (heard, &mut self.results.doorbell),
            (unheard, &mut self.results.no_doorbell),
        ] {
            let [near, far] = [0, 1].map(|_| TestServer::start(&database.url));
            let postgres = self.cluster.pid();
            let (count, rate) = (FEW_SUBSCRIBERS, APPENDS_A_SECOND);
            match subscribers::run(&near, &far, postgres, count, rate, duration) {
                Ok(delivery) => {
                    eprintln!("  {:<24} {delivery:.2?}", "servers");
                    deliveries.push(delivery);
                }
                Err(error) => self.results.failures.push(format!("servers: {error}")),
            }
            stop(near);
            stop(far);
        }
    }

    fn idle(&mut self) {
        let url = self.sqlite_url("idle");
        let first = TestServer::start(&url);
        let first_start_ms = milliseconds(first.start_time());
        stop(first);
        let later = TestServer::start(&url);
        let later_start_ms = milliseconds(later.start_time());
        let sqlite_mib = settled_mib(&later);
        stop(later);
        let database = self.cluster.create_database();
        let server = TestServer::start(&database.url);
        let postgres_mib = settled_mib(&server);
        stop(server);
        let idle = Idle {
            first_start_ms,
            later_start_ms,
            sqlite_mib,
            postgres_mib,
        };
        eprintln!("  {:<24} {idle:.1?}", "idle");
        self.results.idle.push(idle);
    }

    fn measure(
        &mut self,
        name: &'static str,
        server: &TestServer,
        connections: usize,
        work: &Work,
    ) {
        let measurement = self.load(server, connections, work);
        self.appended += measurement.operations;
        self.results.add(name, measurement);
    }

    fn load(&self, server: &TestServer, connections: usize, work: &Work) -> Measurement {
        // As before each run of pgbench, so that no piece pays for the writes of the one before.
        Sql::connect(&self.database.url).execute("CHECKPOINT");
        let load = Load {
            address: server.address(),
            connections,
            duration: self.duration,
            server: server.pid(),
            postgres: Some(self.cluster.pid()),
        };
        load.run(work)
    }

    /// A file that is not there yet.
    fn sqlite_url(&self, name: &str) -> String {
        let file = format!("{name}-{}.db", uuid::Uuid::new_v4());
        format!("sqlite://{}", self.folder.path().join(file).display())
    }
}

/// pg_dump, again and again.
struct Dump {
    is_over: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Dump {
    fn start(cluster: &Cluster, url: &str) -> Dump {
        let is_over = Arc::new(AtomicBool::new(false));
        let mut command = Command::new(cluster.bin("pg_dump"));
        command
            .arg("--file=/dev/null")
            .arg(format!("--dbname={url}"));
        let until = is_over.clone();
        let thread = std::thread::spawn(move || {
            while !until.load(Ordering::Relaxed) {
                assert!(
                    command.status().expect("pg_dump starts").success(),
                    "pg_dump fails"
                );
            }
        });
        Dump { is_over, thread }
    }

    fn stop(self) {
        self.is_over.store(true, Ordering::Relaxed);
        self.thread.join().expect("pg_dump succeeds");
    }
}

/// A server without what works in the background: folding read models takes as much of two cores as appending does. The
/// scenario `projection` measures both together.
fn log_alone(database_url: &str) -> TestServer {
    TestServer::on(database_url)
        .arguments(["--background=false"])
        .start()
}

fn stop(mut server: TestServer) {
    let status = server.sigterm_and_wait(Duration::from_secs(15));
    if !status.success() {
        eprintln!("  the server ended with {status}:\n{}", server.output());
    }
}

fn settled_mib(server: &TestServer) -> f64 {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime starts");
    runtime.block_on(subscribers::settled_bytes(server)) as f64 / (1024.0 * 1024.0)
}

fn version_of(cluster: &Cluster) -> String {
    let output = Command::new(cluster.bin("postgres"))
        .arg("--version")
        .output()
        .expect("postgres starts");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// A thousand sockets at both ends need more open files than many systems allow at first: starts itself again with
/// as many as it may have.
fn raise_open_files() {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let line = limits
        .lines()
        .find(|line| line.starts_with("Max open files"))
        .unwrap_or_default();
    let mut numbers = line
        .split_whitespace()
        .filter_map(|word| word.parse::<u64>().ok());
    let (soft, hard) = (
        numbers.next().unwrap_or(u64::MAX),
        numbers.next().unwrap_or(u64::MAX),
    );
    if soft < OPEN_FILES && soft < hard {
        let program = std::env::current_exe().expect("this program has a path");
        let error = Command::new("/bin/sh")
            .args(["-c", "ulimit -n \"$(ulimit -H -n)\" && exec \"$0\" \"$@\""])
            .arg(program)
            .args(std::env::args_os().skip(1))
            .exec();
        eprintln!("the limit of open files cannot be raised: {error}");
    }
}

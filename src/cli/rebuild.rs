//! `tidings rebuild`: folds read models anew, and says how far it is. Floor 8.

use std::{
    io::{self, IsTerminal, Write},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tidings::{
    app::App,
    config::{Config, Database, DomainFile, Log},
    domain::{AggregateId, AggregateType},
    store::{RebuildScope, RebuildSize},
};

/// How often it is said in lines how far it is, where there is no terminal to draw a bar on.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// Which read models are folded anew, in which database.
#[derive(Args)]
pub(super) struct Rebuild {
    /// Only the read model of this aggregate: its id, or the key that stands for it
    #[arg(long, value_name = "ID")]
    aggregate: Option<String>,

    /// Only the read models of aggregates of this type
    #[arg(long = "type", value_name = "TYPE", conflicts_with = "aggregate", value_parser = parse_type)]
    aggregate_type: Option<AggregateType>,

    #[command(flatten)]
    database: Database,
    #[command(flatten)]
    domain: DomainFile,
    #[command(flatten)]
    log: Log,
}

fn parse_type(text: &str) -> Result<AggregateType, String> {
    AggregateType::new(text).map_err(|error| format!("it {error}"))
}

impl Rebuild {
    /// The configuration, and which read models are meant.
    pub(super) fn read(self) -> (Config, RebuildScope) {
        let scope = match (self.aggregate, self.aggregate_type) {
            (Some(key), _) => RebuildScope::Aggregate(AggregateId::from_key(&key)),
            (None, Some(aggregate_type)) => RebuildScope::Type(aggregate_type),
            (None, None) => RebuildScope::All,
        };
        let config = Config {
            database: self.database,
            domain: self.domain,
            log: self.log,
            ..Config::default()
        };
        (config, scope)
    }
}

/// Folds read models anew.
pub(super) async fn run(config: Config, scope: RebuildScope) -> anyhow::Result<()> {
    let progress = Progress::new();
    let count = App::rebuild(&config, &scope, |size| progress.begin(size), &|events| {
        progress.advance(events);
    })
    .await?;
    progress.end();
    if let RebuildScope::Aggregate(id) = scope
        && count == 0
    {
        anyhow::bail!(
            "there is no aggregate {id} with events in {}",
            config.database.url
        );
    }
    let elapsed = progress.started.elapsed().as_secs_f64();
    let events = progress.done.load(Ordering::Relaxed);
    writeln!(
        io::stdout(),
        "Read models folded again: {count} (from {events} events, in {elapsed:.1} s)"
    )
    .ok();
    Ok(())
}

/// How far it is: a bar on a terminal, a line now and then elsewhere.
struct Progress {
    bar: ProgressBar,
    is_drawn: bool,
    started: Instant,
    all: AtomicU64,
    done: AtomicU64,
    said_at: Mutex<Instant>,
}

impl Progress {
    fn new() -> Self {
        let is_drawn = io::stderr().is_terminal();
        let target = match is_drawn {
            true => ProgressDrawTarget::stderr(),
            false => ProgressDrawTarget::hidden(),
        };
        Self {
            bar: ProgressBar::with_draw_target(None, target),
            is_drawn,
            started: Instant::now(),
            all: AtomicU64::new(0),
            done: AtomicU64::new(0),
            said_at: Mutex::new(Instant::now()),
        }
    }

    fn begin(&self, size: RebuildSize) {
        let RebuildSize { aggregates, events } = size;
        self.all.store(events, Ordering::Relaxed);
        let style = "{wide_bar} {percent}% of {human_len} events, {per_sec}, {eta} to go";
        if let Ok(style) = ProgressStyle::with_template(style) {
            self.bar.set_style(style);
        }
        self.bar.set_length(events);
        self.say(&format!(
            "Folding {events} events of {aggregates} aggregates again …"
        ));
    }

    fn advance(&self, events: u64) {
        let done = self.done.fetch_add(events, Ordering::Relaxed) + events;
        self.bar.inc(events);
        let mut said_at = self.said_at.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.is_drawn && said_at.elapsed() >= LINE_EVERY {
            *said_at = Instant::now();
            let all = self.all.load(Ordering::Relaxed);
            self.say(&format!("{done} of {all} events"));
        }
    }

    fn end(&self) {
        self.bar.finish_and_clear();
    }

    fn say(&self, line: &str) {
        if !self.is_drawn {
            writeln!(io::stderr(), "{line}").ok();
        }
    }
}

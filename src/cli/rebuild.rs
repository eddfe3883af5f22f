//! `tidings rebuild`: folds read models anew, and says how far it is. Floor 8.

use std::io::{self, Write};

use clap::Args;
use tidings::{
    app::App,
    config::{Config, Database, DomainFile, Log},
    domain::{AggregateId, AggregateType},
    store::{RebuildScope, RebuildSize},
};

use super::progress::Progress;

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
    let progress = Progress::new("events");
    let begin = |size| {
        let RebuildSize { aggregates, events } = size;
        let announcement = format!("Folding {events} events of {aggregates} aggregates again …");
        progress.begin(events, &announcement);
    };
    let count = App::rebuild(&config, &scope, begin, &|events| progress.advance(events)).await?;
    progress.end();
    if let RebuildScope::Aggregate(id) = scope
        && count == 0
    {
        anyhow::bail!(
            "there is no aggregate {id} with events in {}",
            config.database.url
        );
    }
    let (elapsed, events) = (progress.seconds(), progress.done());
    writeln!(
        io::stdout(),
        "Read models folded again: {count} (from {events} events, in {elapsed:.1} s)"
    )
    .ok();
    Ok(())
}

//! A domain that counts events, so that an event that is folded twice, left out or out of order shows; and the server with it
//! as a process of its own: this test binary, started again.

use serde_json::{Value, json};
use std::sync::Arc;
use tidings::{
    app::App,
    config::Config,
    domain::{
        AggregateType, CommandDescription, CommandInHand, DecidedEvent, Decider, Domain, FoldFault,
        PastEvent, Rejection, State, StreamName, SystemClock,
    },
    graphql::Graphql,
    http,
};

use super::{log::StoredEvent, server::COUNTING_ARGUMENTS};

/// The type of the aggregates that are counted, and the stream that their events are published to.
pub const TYPE: &str = "load";
pub const STREAM: &str = "loads";

/// Counts the events of an aggregate. `removed` deletes it, `broken` cannot be folded, `panicked` makes it panic.
pub struct Counting {
    /// Whether `broken` events can be folded as well.
    pub folds_all: bool,
}

impl Decider for Counting {
    fn aggregate_type(&self) -> AggregateType {
        AggregateType::new(TYPE).unwrap()
    }

    fn commands(&self) -> Vec<CommandDescription> {
        Vec::new()
    }

    fn publish_to(&self) -> Option<StreamName> {
        Some(StreamName::new(STREAM).unwrap())
    }

    fn decide(&self, _: &State, _: &CommandInHand<'_>) -> Result<Vec<DecidedEvent>, Rejection> {
        Ok(Vec::new())
    }

    fn evolve(&self, state: State, event: PastEvent<'_>) -> Result<State, FoldFault> {
        match event.event_type.as_str() {
            "broken" if !self.folds_all => Err(FoldFault("this event is broken".to_owned())),
            "panicked" => panic!("this event makes it panic"),
            kind => Ok(counted(&state, kind, event.version.0)),
        }
    }
}

/// The state after one more event.
fn counted(state: &Value, kind: &str, version: i32) -> Value {
    if kind == "removed" {
        return Value::Null;
    }
    let count = state["count"].as_i64().unwrap_or_default() + 1;
    let digest = state["digest"].as_i64().unwrap_or_default();
    let digest = (digest * 31 + i64::from(version)) % 1_000_000_007;
    json!({ "count": count, "digest": digest })
}

/// What the events of one aggregate come to, from the first one.
pub fn folded<'e>(events: impl IntoIterator<Item = &'e StoredEvent>) -> Value {
    let fold =
        |state: Value, event: &StoredEvent| counted(&state, &event.event_type, event.version);
    events.into_iter().fold(Value::Null, fold)
}

/// A domain of it alone.
pub fn domain() -> Domain {
    Domain::new(vec![Arc::new(Counting { folds_all: false })]).unwrap()
}

/// The same with rules by which every event can be folded.
pub fn mended_domain() -> Domain {
    Domain::new(vec![Arc::new(Counting { folds_all: true })]).unwrap()
}

/// The server as a process: started by `TestServer::counting`, never as a test.
#[test]
#[ignore = "it is the server of other tests, and ends only when it is told to"]
fn serve() {
    let Ok(arguments) = std::env::var(COUNTING_ARGUMENTS) else {
        return;
    };
    let config = parse(&arguments);
    let filter = std::env::var("COUNTING_SERVER_LOG").unwrap_or_else(|_| "info".to_owned());
    let lines = tracing_subscriber::fmt().with_env_filter(filter);
    lines.with_writer(std::io::stderr).with_ansi(false).init();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let clock = Arc::new(SystemClock);
        let app = App::start_with(&config, domain(), clock).await.unwrap();
        let graphql = Graphql::new(Arc::clone(&app), &config.limits);
        let listener = http::bind(&config).await.unwrap();
        let server = http::serve(listener, graphql, Arc::clone(&app), &config).unwrap();
        println!("\nlistens on http://{}\n", server.local_addr());
        let terminate = tokio::signal::unix::SignalKind::terminate();
        tokio::signal::unix::signal(terminate).unwrap().recv().await;
        server.stop().await;
        app.stop().await;
    });
}

fn parse(arguments: &str) -> Config {
    use clap::{Args, Command, FromArgMatches};
    let command = Config::augment_args(Command::new("counting").no_binary_name(true));
    let matches = command.try_get_matches_from(arguments.lines());
    let config = Config::from_arg_matches(&matches.unwrap()).unwrap();
    config.check().unwrap();
    config
}

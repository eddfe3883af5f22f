//! Writers that append as fast as they are answered, and a ledger of what each of them was told.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use tidings::domain::{AggregateId, PartitionCount};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::client::{Client, Failure, LIMIT};
use super::log::StoredLog;

const APPEND_EVENT: &str = "mutation($input: AppendEventInput!) { appendEvent(input: $input) { duplicate event { id version } } }";
const APPEND_EVENTS: &str = "mutation($input: AppendEventsInput!) { appendEvents(input: $input) { events { id version } } }";
const APPEND_ENTRY: &str = "mutation($input: AppendToStreamInput!) { appendToStream(input: $input) { duplicate entry { eventId position } } }";
/// Between a failure and the next try, so that a server that is away is not asked without pause.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_millis(20);

/// One call, which can be repeated.
#[derive(Clone, Debug)]
pub enum Append {
    Event(NewEvent),
    /// All or none.
    Events(Vec<NewEvent>),
    Entry {
        id: Uuid,
        stream: String,
        data: Value,
    },
}

#[derive(Clone, Debug)]
pub struct NewEvent {
    pub id: Uuid,
    pub aggregate: Uuid,
    pub aggregate_type: String,
    pub data: Value,
    /// The version that its aggregate must have.
    pub expected: Option<i64>,
}

/// What a call was answered.
#[derive(Clone, Debug)]
pub enum Told {
    /// Each id with its version or position, and whether it was there already.
    Acknowledged(Vec<(Uuid, i64)>, bool),
    /// UNAVAILABLE, and known to be undone.
    NotDone(Failure),
    /// UNAVAILABLE, and whether it was done is unknown.
    Unknown(Failure),
    /// No answer.
    Cut(String),
    /// Anything else.
    Refused(Failure),
}

impl NewEvent {
    pub fn new(aggregate: Uuid, data: Value) -> NewEvent {
        NewEvent {
            id: Uuid::new_v4(),
            aggregate,
            aggregate_type: "load".to_owned(),
            data,
            expected: None,
        }
    }

    fn input(&self) -> Value {
        json!({
            "id": self.id,
            "aggregateId": self.aggregate,
            "aggregateType": self.aggregate_type,
            "type": "counted",
            "data": self.data,
            "expectedVersion": self.expected,
        })
    }
}

impl Append {
    pub fn entry(stream: impl Into<String>, data: Value) -> Append {
        Append::Entry {
            id: Uuid::new_v4(),
            stream: stream.into(),
            data,
        }
    }

    /// The ids of its events.
    pub fn ids(&self) -> Vec<Uuid> {
        match self {
            Append::Event(event) => vec![event.id],
            Append::Events(events) => events.iter().map(|event| event.id).collect(),
            Append::Entry { id, .. } => vec![*id],
        }
    }

    /// Sends it once.
    pub async fn send(&self, client: &Client) -> Told {
        let (query, input) = match self {
            Append::Event(event) => (APPEND_EVENT, event.input()),
            Append::Events(events) => {
                let events: Vec<Value> = events.iter().map(NewEvent::input).collect();
                (APPEND_EVENTS, json!({ "events": events }))
            }
            Append::Entry { id, stream, data } => (
                APPEND_ENTRY,
                json!({ "streamName": stream, "eventId": id, "type": "counted", "data": data }),
            ),
        };
        match client.query(query, json!({ "input": input })).await {
            Ok(data) => self.acknowledged(&data),
            Err(Failure::Transport(cause)) => Told::Cut(cause),
            Err(failure) if failure.code() == "UNAVAILABLE" => self.unavailable(failure),
            Err(failure) => Told::Refused(failure),
        }
    }

    /// Sends it until it is acknowledged.
    ///
    /// # Panics
    ///
    /// Where it is refused, or not acknowledged within [`LIMIT`].
    pub async fn send_until_acknowledged(&self, client: &Client) -> (Vec<(Uuid, i64)>, bool) {
        let repeat = async {
            loop {
                match self.send(client).await {
                    Told::Acknowledged(places, duplicate) => return (places, duplicate),
                    Told::Refused(failure) => panic!("{self:?} was refused: {failure:?}"),
                    _ => tokio::time::sleep(PAUSE_AFTER_FAILURE).await,
                }
            }
        };
        tokio::time::timeout(LIMIT, repeat)
            .await
            .expect("the append is acknowledged in the end")
    }

    fn acknowledged(&self, data: &Value) -> Told {
        let (answers, duplicate, id, place) = match self {
            Append::Event(_) => {
                let answer = &data["appendEvent"];
                (
                    vec![&answer["event"]],
                    answer["duplicate"] == true,
                    "id",
                    "version",
                )
            }
            Append::Events(_) => {
                let events = data["appendEvents"]["events"]
                    .as_array()
                    .expect("a list of events");
                (events.iter().collect(), false, "id", "version")
            }
            Append::Entry { .. } => {
                let answer = &data["appendToStream"];
                (
                    vec![&answer["entry"]],
                    answer["duplicate"] == true,
                    "eventId",
                    "position",
                )
            }
        };
        let places: Vec<(Uuid, i64)> = answers
            .into_iter()
            .map(|answer| {
                let id = answer[id].as_str().and_then(|id| id.parse().ok());
                (
                    id.expect("an id"),
                    answer[place].as_i64().expect("a version or position"),
                )
            })
            .collect();
        let ids: Vec<Uuid> = places.iter().map(|(id, _)| *id).collect();
        assert_eq!(ids, self.ids(), "the answer is about what was sent");
        Told::Acknowledged(places, duplicate)
    }

    fn unavailable(&self, failure: Failure) -> Told {
        let outcome = failure.extension("outcome");
        assert!(
            failure.extension("retryAfterMs").is_u64(),
            "UNAVAILABLE says when to try again: {failure:?}"
        );
        if outcome == "NOT_DONE" {
            return Told::NotDone(failure);
        }
        assert_eq!(
            outcome, "UNKNOWN",
            "UNAVAILABLE says what is known: {failure:?}"
        );
        assert_eq!(
            failure.extension("ids"),
            json!(self.ids()),
            "an unknown outcome comes with the ids: {failure:?}"
        );
        Told::Unknown(failure)
    }
}

/// How often each outcome came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub acknowledged: usize,
    pub not_done: usize,
    pub unknown: usize,
    pub cut: usize,
    pub refused: usize,
}

impl Counts {
    /// Calls that were not acknowledged, for whatever passes.
    pub fn failed(&self) -> usize {
        self.not_done + self.unknown + self.cut
    }
}

/// What the writers were told.
#[derive(Debug, Default)]
pub struct Ledger {
    /// Where each acknowledged event or entry went.
    pub acknowledged: HashMap<Uuid, i64>,
    pub not_done: Vec<Append>,
    /// Those without an answer too.
    pub unknown: Vec<Append>,
    pub refused: Vec<(Append, Failure)>,
    pub counts: Counts,
    /// How often each message came with UNAVAILABLE.
    pub reasons: BTreeMap<String, usize>,
}

/// Writers at work.
pub struct Load {
    ledger: Arc<Mutex<Ledger>>,
    counts: watch::Receiver<Counts>,
    stopping: CancellationToken,
    writers: JoinSet<()>,
}

impl Load {
    /// Starts writers, each of which sends what `next` gives it for its number and the number of the call, one call after
    /// the other. A call that fails is not repeated.
    pub fn start(
        client: &Client,
        writers: usize,
        next: impl Fn(usize, usize) -> Append + Send + Sync + 'static,
    ) -> Load {
        Load::start_until(client, writers, move |writer, call| {
            Some(next(writer, call))
        })
    }

    /// The same with writers that end where `next` gives nothing more.
    pub fn start_until(
        client: &Client,
        writers: usize,
        next: impl Fn(usize, usize) -> Option<Append> + Send + Sync + 'static,
    ) -> Load {
        let ledger = Arc::new(Mutex::new(Ledger::default()));
        let (told, counts) = watch::channel(Counts::default());
        let (told, next) = (Arc::new(told), Arc::new(next));
        let stopping = CancellationToken::new();
        let mut tasks = JoinSet::new();
        for writer in 0..writers {
            let (client, ledger, told, next, stopping) = (
                client.clone(),
                ledger.clone(),
                told.clone(),
                next.clone(),
                stopping.clone(),
            );
            tasks.spawn(async move {
                for call in 0.. {
                    if stopping.is_cancelled() {
                        return;
                    }
                    let Some(append) = next(writer, call) else {
                        return;
                    };
                    let outcome = append.send(&client).await;
                    let has_failed = !matches!(outcome, Told::Acknowledged(..));
                    let counts = lock(&ledger).enter(append, outcome);
                    told.send_replace(counts);
                    if has_failed {
                        tokio::time::sleep(PAUSE_AFTER_FAILURE).await;
                    }
                }
            });
        }
        Load {
            ledger,
            counts,
            stopping,
            writers: tasks,
        }
    }

    pub fn counts(&self) -> Counts {
        *self.counts.borrow()
    }

    /// Waits until the counts are as wanted.
    ///
    /// # Panics
    ///
    /// Where they are not within [`LIMIT`].
    pub async fn until(&self, what: &str, mut reached: impl FnMut(&Counts) -> bool) -> Counts {
        let mut counts = self.counts.clone();
        let waited = tokio::time::timeout(LIMIT, counts.wait_for(|counts| reached(counts))).await;
        match waited {
            Ok(Ok(counts)) => *counts,
            Ok(Err(_)) => panic!(
                "the writers ended before {what}; they were told {:?}",
                self.counts()
            ),
            Err(_) => panic!("no {what} within {LIMIT:?}: {:?}", self.counts()),
        }
    }

    /// Waits until so many more calls were acknowledged.
    pub async fn until_more_acknowledged(&self, more: usize) -> Counts {
        let enough = self.counts().acknowledged + more;
        self.until(&format!("{more} more acknowledged appends"), |counts| {
            counts.acknowledged >= enough
        })
        .await
    }

    /// Lets every writer end its last call.
    ///
    /// # Panics
    ///
    /// Where a call has no answer within [`LIMIT`].
    pub async fn stop(self) -> Ledger {
        self.stopping.cancel();
        self.finish().await
    }

    /// Waits until all writers have come to their end.
    ///
    /// # Panics
    ///
    /// Where they have not within ten times [`LIMIT`].
    pub async fn finish(mut self) -> Ledger {
        let ended = async {
            while let Some(ended) = self.writers.join_next().await {
                ended.expect("no writer panics");
            }
        };
        tokio::time::timeout(LIMIT * 10, ended)
            .await
            .expect("every call ends");
        std::mem::take(&mut *lock(&self.ledger))
    }
}

impl Ledger {
    fn enter(&mut self, append: Append, told: Told) -> Counts {
        match told {
            Told::Acknowledged(places, _) => {
                self.counts.acknowledged += 1;
                self.acknowledged.extend(places);
            }
            Told::NotDone(failure) => {
                self.count_reason(&failure);
                self.counts.not_done += 1;
                self.not_done.push(append);
            }
            Told::Unknown(failure) => {
                self.count_reason(&failure);
                self.counts.unknown += 1;
                self.unknown.push(append);
            }
            Told::Cut(_) => {
                self.counts.cut += 1;
                self.unknown.push(append);
            }
            Told::Refused(failure) => {
                self.counts.refused += 1;
                self.refused.push((append, failure));
            }
        }
        self.counts
    }

    fn count_reason(&mut self, failure: &Failure) {
        *self
            .reasons
            .entry(failure.message().to_owned())
            .or_default() += 1;
    }

    /// Takes in what other writers were told.
    pub fn add(&mut self, other: Ledger) {
        self.acknowledged.extend(other.acknowledged);
        self.not_done.extend(other.not_done);
        self.unknown.extend(other.unknown);
        self.refused.extend(other.refused);
        for (reason, count) in other.reasons {
            *self.reasons.entry(reason).or_default() += count;
        }
        self.counts.acknowledged += other.counts.acknowledged;
        self.counts.not_done += other.counts.not_done;
        self.counts.unknown += other.counts.unknown;
        self.counts.cut += other.counts.cut;
        self.counts.refused += other.counts.refused;
    }

    /// Repeats every call whose outcome is unknown with the same ids, and then knows them. Returns how many of them had
    /// been done (of those whose answer says so).
    pub async fn repeat_unknown(&mut self, client: &Client) -> usize {
        let mut done = 0;
        for append in std::mem::take(&mut self.unknown) {
            let (places, duplicate) = append.send_until_acknowledged(client).await;
            done += usize::from(duplicate);
            self.acknowledged.extend(places);
        }
        done
    }

    /// Everything acknowledged is in the log where its writer was told, nothing that is known to be undone is, and what
    /// is unknown is there as a whole or not at all.
    ///
    /// # Panics
    ///
    /// Where that is not so.
    pub fn assert_kept_in(&self, log: &StoredLog) {
        assert!(
            self.refused.is_empty(),
            "no append was to be refused, and {} were, the first: {:?}",
            self.refused.len(),
            self.refused[0]
        );
        let events = log
            .events
            .iter()
            .map(|event| (event.id, i64::from(event.version)));
        let entries = log
            .entries
            .iter()
            .map(|entry| (entry.event_id, entry.position));
        let places: HashMap<Uuid, i64> = events.chain(entries).collect();
        let lost: Vec<_> = self
            .acknowledged
            .iter()
            .filter(|(id, place)| places.get(*id) != Some(*place))
            .take(5)
            .map(|(id, place)| (id, place, places.get(id)))
            .collect();
        assert!(
            lost.is_empty(),
            "acknowledged (id, place, and where it is stored) and not there: {lost:?}"
        );
        for append in &self.not_done {
            let is_stored = append.ids().iter().any(|id| places.contains_key(id));
            assert!(
                !is_stored,
                "its writer was told that it was not done: {append:?}"
            );
        }
        for append in &self.unknown {
            let stored = append
                .ids()
                .iter()
                .filter(|id| places.contains_key(*id))
                .count();
            assert!(
                stored == 0 || stored == append.ids().len(),
                "only a part was done: {append:?}"
            );
        }
    }

    /// Nothing but what the writers have sent and what is known of it: for use when no outcome is unknown.
    ///
    /// # Panics
    ///
    /// Where the log has more or less.
    pub fn assert_is_all_of(&self, log: &StoredLog) {
        assert!(self.unknown.is_empty());
        self.assert_kept_in(log);
        assert_eq!(
            log.events.len() + log.entries.len(),
            self.acknowledged.len(),
            "everything that is stored was acknowledged"
        );
    }
}

fn lock(ledger: &Mutex<Ledger>) -> std::sync::MutexGuard<'_, Ledger> {
    ledger.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Appends of every kind, over a few aggregates and streams, so that writers meet: single events, several events over two
/// aggregates, and stream entries.
pub fn mixed() -> impl Fn(usize, usize) -> Append + Send + Sync + 'static {
    let aggregates: Vec<Uuid> = (0..16).map(|number| aggregate_in(number % 4)).collect();
    move |writer, call| {
        let aggregate = |step: usize| aggregates[(writer + call + step) % aggregates.len()];
        let data = json!({ "writer": writer, "call": call, "text": "x".repeat(100) });
        match call % 8 {
            3 | 6 => Append::entry(format!("stream-{}", writer % 4), data),
            5 => Append::Events(
                [0, 3, 0]
                    .map(|step| NewEvent::new(aggregate(step), data.clone()))
                    .to_vec(),
            ),
            _ => Append::Event(NewEvent::new(aggregate(0), data)),
        }
    }
}

/// A new aggregate in one of four partitions (and in the only one where there is one).
pub fn aggregate_in(partition: usize) -> Uuid {
    let partitions = PartitionCount::new(4).expect("there can be four partitions");
    let mut ids = std::iter::repeat_with(Uuid::new_v4);
    ids.find(|id| partitions.of_aggregate(AggregateId(*id)).index() == partition)
        .expect("there is no end of ids")
}

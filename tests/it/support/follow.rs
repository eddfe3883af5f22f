//! Subscribers that note what they are given, and whether that is everything that is theirs, once, in order.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use uuid::Uuid;

use super::client::{Socket, Step};
use super::log::{StoredEvent, StoredLog};

const EVENTS: &str = "subscription($filter: EventFilter, $after: String, $progress: Boolean!) { \
     events(filter: $filter, after: $after, progress: $progress) { cursor caughtUp event { id version } } }";
const ENTRIES: &str = "subscription($stream: String!, $after: Long) { \
     streamEntries(streamName: $stream, after: $after) { eventId position data } }";
/// How long to wait for what is to come: a slow subscriber may be far behind.
const LIMIT: Duration = Duration::from_secs(120);
const PAUSE_BEFORE_RECONNECT: Duration = Duration::from_millis(20);

/// What is followed.
#[derive(Clone, Debug)]
pub enum Follow {
    Events { filter: Filter, progress: bool },
    Stream(String),
}

/// The parts of an `EventFilter` that the tests use. Empty: every one.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    pub aggregate: Option<Uuid>,
    pub aggregate_types: Vec<String>,
}

/// From where and how it is followed.
#[derive(Clone, Debug, Default)]
pub struct Manner {
    /// The place to begin behind: a cursor or a position. None: with what comes next.
    pub after: Option<Value>,
    /// What of the log lies before that place.
    pub skipped: HashSet<Uuid>,
    /// So often it cuts the connection and resumes behind the last place, each time after so many entries.
    pub cuts: usize,
    pub cut_each: usize,
    /// Resumes where the server has closed, or is away.
    pub resumes: bool,
    /// A pause after each entry, until this says that it may hurry.
    pub pause: Option<(Duration, watch::Receiver<bool>)>,
    /// Nothing is read before this says so.
    pub held_until: Option<watch::Receiver<bool>>,
    /// Takes little at a time.
    pub is_narrow: bool,
}

impl Manner {
    /// From the beginning.
    pub fn all(follow: &Follow) -> Manner {
        Manner {
            after: Some(match follow {
                Follow::Events { .. } => json!(""),
                Follow::Stream(_) => json!(0),
            }),
            ..Manner::default()
        }
    }
}

/// A subscriber at work. Dropping it cuts its connection.
pub struct Follower {
    follow: Follow,
    manner: Manner,
    state: Arc<Mutex<State>>,
    count: watch::Receiver<usize>,
    task: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct State {
    /// Each event or entry with its version or position, in the order in which they came.
    seen: Vec<(Uuid, i64)>,
    ids: HashSet<Uuid>,
    resumed: usize,
    failure: Option<String>,
    /// The place to go on behind.
    place: Option<Value>,
}

impl Follow {
    pub fn everything() -> Follow {
        Follow::Events {
            filter: Filter::default(),
            progress: false,
        }
    }

    fn operation(&self, after: &Option<Value>) -> (&'static str, Value) {
        match self {
            Follow::Events { filter, progress } => (
                EVENTS,
                json!({ "filter": filter.input(), "after": after, "progress": progress }),
            ),
            Follow::Stream(name) => (ENTRIES, json!({ "stream": name, "after": after })),
        }
    }

    /// All of it that is stored: lists, each of which has an order, of ids and versions or positions.
    fn stored(&self, log: &StoredLog) -> Vec<Vec<(Uuid, i64)>> {
        match self {
            Follow::Events { filter, .. } => {
                let mut partitions: BTreeMap<i16, Vec<(Uuid, i64)>> = BTreeMap::new();
                for event in log.events.iter().filter(|event| filter.matches(event)) {
                    partitions
                        .entry(event.partition)
                        .or_default()
                        .push((event.id, i64::from(event.version)));
                }
                partitions.into_values().collect()
            }
            Follow::Stream(name) => {
                let entries = log.of_stream(name);
                vec![
                    entries
                        .iter()
                        .map(|entry| (entry.event_id, entry.position))
                        .collect(),
                ]
            }
        }
    }
}

impl Filter {
    fn input(&self) -> Value {
        let mut input = json!({});
        if let Some(aggregate) = self.aggregate {
            input["aggregateId"] = json!(aggregate);
        }
        if !self.aggregate_types.is_empty() {
            input["aggregateTypes"] = json!(self.aggregate_types);
        }
        input
    }

    fn matches(&self, event: &StoredEvent) -> bool {
        self.aggregate.is_none_or(|id| event.aggregate_id == id)
            && (self.aggregate_types.is_empty()
                || self.aggregate_types.contains(&event.aggregate_type))
    }
}

impl Follower {
    pub fn start(ws_url: &str, follow: Follow, manner: Manner) -> Follower {
        let state = Arc::new(Mutex::new(State {
            place: manner.after.clone(),
            ..State::default()
        }));
        let (told, count) = watch::channel(0);
        let task = tokio::spawn(run(
            ws_url.to_owned(),
            follow.clone(),
            manner.clone(),
            state.clone(),
            told,
        ));
        Follower {
            follow,
            manner,
            state,
            count,
            task,
        }
    }

    /// How many events or entries it has been given.
    pub fn count(&self) -> usize {
        *self.count.borrow()
    }

    /// How often it has resumed.
    pub fn resumed(&self) -> usize {
        lock(&self.state).resumed
    }

    /// Waits until it was given the last of everything that is its own, then checks that it was given all of that, once,
    /// in order.
    ///
    /// # Panics
    ///
    /// Where that is not so.
    pub async fn assert_was_given_all_of(&self, log: &StoredLog) -> usize {
        let expected: Vec<Vec<(Uuid, i64)>> = self
            .follow
            .stored(log)
            .into_iter()
            .map(|list| {
                list.into_iter()
                    .filter(|(id, _)| !self.manner.skipped.contains(id))
                    .collect()
            })
            .filter(|list: &Vec<_>| !list.is_empty())
            .collect();
        let last: Vec<Uuid> = expected
            .iter()
            .filter_map(|list| Some(list.last()?.0))
            .collect();
        let mut count = self.count.clone();
        let complete = count.wait_for(|_| {
            let state = lock(&self.state);
            state.failure.is_some() || last.iter().all(|id| state.ids.contains(id))
        });
        let waited = tokio::time::timeout(LIMIT, complete).await;
        let state = lock(&self.state);
        let about = format!(
            "{:?} after {:?}, resumed {} times: {} seen, {} expected",
            self.follow,
            self.manner.after,
            state.resumed,
            state.seen.len(),
            expected.iter().map(Vec::len).sum::<usize>()
        );
        assert_eq!(state.failure, None, "{about}");
        assert!(waited.is_ok(), "the last of it does not come: {about}");

        let list_of: HashMap<Uuid, usize> = expected
            .iter()
            .enumerate()
            .flat_map(|(index, list)| list.iter().map(move |(id, _)| (*id, index)))
            .collect();
        let mut given = vec![Vec::new(); expected.len()];
        for (id, place) in &state.seen {
            let list = list_of
                .get(id)
                .unwrap_or_else(|| panic!("{id} at {place} is not its own: {about}"));
            given[*list].push((*id, *place));
        }
        for (mut expected, given) in expected.into_iter().zip(given) {
            if self.manner.after.is_none() {
                // It began with what came next, whatever that was.
                expected.drain(..expected.len().saturating_sub(given.len()));
            }
            let differs = (0..expected.len().max(given.len()))
                .find(|&index| expected.get(index) != given.get(index));
            if let Some(index) = differs {
                let around = index.saturating_sub(3)..index + 3;
                let show = |list: &[(Uuid, i64)]| {
                    list.iter()
                        .enumerate()
                        .filter(|(index, _)| around.contains(index))
                        .map(|(index, (id, place))| format!("{index}: {id} at {place}"))
                        .collect::<Vec<_>>()
                };
                panic!(
                    "{about}\nexpected {:#?}\ngiven {:#?}",
                    show(&expected),
                    show(&given)
                );
            }
        }
        state.seen.len()
    }
}

impl fmt::Debug for Follower {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Follower")
            .field("follow", &self.follow)
            .field("after", &self.manner.after)
            .field("count", &self.count())
            .field("resumed", &self.resumed())
            .field("failure", &lock(&self.state).failure)
            .finish_non_exhaustive()
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn run(
    ws_url: String,
    follow: Follow,
    mut manner: Manner,
    state: Arc<Mutex<State>>,
    told: watch::Sender<usize>,
) {
    let fail = |failure: String| {
        lock(&state).failure = Some(failure);
        told.send_modify(|_| {});
    };
    let mut cuts_left = manner.cuts;
    loop {
        let after = lock(&state).place.clone();
        let mut socket = match connect(&ws_url, &manner).await {
            Ok(socket) => socket,
            Err(_) if manner.resumes => {
                tokio::time::sleep(PAUSE_BEFORE_RECONNECT).await;
                continue;
            }
            Err(error) => return fail(error),
        };
        let (query, variables) = follow.operation(&after);
        socket.start("1", query, variables).await;
        if let Some(mut may_read) = manner.held_until.take()
            && may_read.wait_for(|may_read| *may_read).await.is_err()
        {
            return;
        }
        let mut given = 0;
        loop {
            match socket.next().await.1 {
                Step::Next(payload) if payload.get("errors").is_none() => {
                    if let Some(count) = note(&state, &payload["data"]) {
                        given += 1;
                        told.send_replace(count);
                    }
                }
                Step::Closed { code, reason } => {
                    if manner.resumes {
                        break;
                    }
                    return fail(format!("closed with {code}: {reason}"));
                }
                step => return fail(format!("{step:?}")),
            }
            if let Some((pause, may_hurry)) = &manner.pause
                && !*may_hurry.borrow()
            {
                tokio::time::sleep(*pause).await;
            }
            if cuts_left > 0 && given >= manner.cut_each {
                cuts_left -= 1;
                break;
            }
        }
        lock(&state).resumed += 1;
    }
}

async fn connect(ws_url: &str, manner: &Manner) -> Result<Socket, String> {
    let opened = if manner.is_narrow {
        Socket::open_narrow(ws_url, "graphql-transport-ws").await
    } else {
        Socket::open(ws_url, "graphql-transport-ws", &[]).await
    };
    let mut socket = opened.map_err(|error| error.to_string())?;
    socket.init().await.map_err(|step| format!("{step:?}"))?;
    Ok(socket)
}

/// Enters what was given; the count of all, where it was an event or entry and not only progress.
fn note(state: &Mutex<State>, data: &Value) -> Option<usize> {
    let mut state = lock(state);
    let (id, place) = match data.get("streamEntries") {
        Some(entry) => {
            state.place = Some(entry["position"].clone());
            (&entry["eventId"], &entry["position"])
        }
        None => {
            let update = &data["events"];
            state.place = Some(update["cursor"].clone());
            if update["event"].is_null() {
                return None;
            }
            (&update["event"]["id"], &update["event"]["version"])
        }
    };
    let id: Uuid = id
        .as_str()
        .and_then(|id| id.parse().ok())
        .expect("an id comes with it");
    let place = place.as_i64().expect("a version or position comes with it");
    state.seen.push((id, place));
    state.ids.insert(id);
    Some(state.seen.len())
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

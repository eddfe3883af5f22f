//! The two logs that are appended to: what a queue needs to know of each. Floor 3.

use std::{sync::Arc, time::Duration};

use uuid::Uuid;

use crate::{
    domain::{
        CommandId, Entry, Event, EventId, NewEntry, NewEvent, Partition, StreamName, TraceParent,
        append::{
            AppendRequest, AppendedEntry, AppendedEvent, CommandChange, Committed, LogName, Outcome,
        },
    },
    store::{GivingWay, Store, StoreError},
};

/// One partition of one log.
pub(super) trait Log: Send + Sync + 'static {
    /// What a writer hands in.
    type Request: Send + Sync + 'static;
    /// Where one of its events or entries went.
    type Place: Send + 'static;
    /// An event or entry once it is stored.
    type Stored: Send + Sync + 'static;
    /// What must not come twice in a batch.
    type Key: Eq + std::hash::Hash + Send;

    /// Its name.
    const NAME: LogName;

    /// The partition.
    fn partition(&self) -> Partition;

    /// For a batch that is about to be committed.
    fn giving_way(&self) -> GivingWay;

    /// The events among what was stored.
    fn events(stored: &[Arc<Self::Stored>]) -> &[Arc<Event>];

    /// Lets a trace go on with what the request stores.
    fn trace(request: &mut Self::Request, parent: TraceParent);

    /// How many events or entries a request has.
    fn count(request: &Self::Request) -> usize;

    /// About how many bytes a request takes.
    fn size_bytes(request: &Self::Request) -> usize;

    /// The ids of a request, for an error that leaves its outcome unknown.
    fn ids(request: &Self::Request) -> Vec<Uuid>;

    /// The keys that the client chose, and that may stand for something already.
    fn keys(request: &Self::Request) -> Vec<Self::Key>;

    /// Commits a batch.
    fn commit(
        &self,
        batch: &[&Self::Request],
    ) -> impl Future<Output = Result<Vec<Outcome<Self::Place>>, StoreError>> + Send;

    /// What is stored now of a request that was appended.
    fn stored(&self, request: Self::Request, places: Vec<Self::Place>) -> Vec<Arc<Self::Stored>>;

    /// What a request that was appended does to a command.
    fn command(request: &Self::Request) -> Option<CommandChange>;

    /// What was committed, for others.
    fn committed(&self, done: Done<Self::Stored>) -> Vec<Committed>;
}

/// What one batch or more have come to, in the order of the log.
pub(super) struct Done<S> {
    pub(super) stored: Vec<Arc<S>>,
    pub(super) commands: Vec<CommandChange>,
    /// Of each request: how long it took from taking it to its commit, and how much of `stored` is its own.
    pub(super) requests: Vec<(Duration, usize)>,
}

impl<S> Default for Done<S> {
    fn default() -> Self {
        Self {
            stored: Vec::new(),
            commands: Vec::new(),
            requests: Vec::new(),
        }
    }
}

impl<S> Done<S> {
    pub(super) fn extend(&mut self, later: Self) {
        self.stored.extend(later.stored);
        self.commands.extend(later.commands);
        self.requests.extend(later.requests);
    }
}

/// What must not come twice in a batch of the log of events.
#[derive(PartialEq, Eq, Hash)]
pub(super) enum EventKey {
    Event(EventId),
    Command(CommandId),
}

/// The events of a partition.
pub(super) struct EventLog {
    store: Store,
    partition: Partition,
}

impl EventLog {
    pub(super) fn new(store: &Store, partition: Partition) -> Self {
        Self {
            store: store.clone(),
            partition,
        }
    }
}

impl Log for EventLog {
    type Request = AppendRequest;
    type Place = AppendedEvent;
    type Stored = Event;
    type Key = EventKey;

    const NAME: LogName = LogName::Events;

    fn partition(&self) -> Partition {
        self.partition
    }

    fn giving_way(&self) -> GivingWay {
        self.store.giving_way()
    }

    fn events(stored: &[Arc<Event>]) -> &[Arc<Event>] {
        stored
    }

    fn trace(request: &mut Self::Request, parent: TraceParent) {
        trace_events(&mut request.events, parent);
        let step = request.command.as_mut();
        if let Some(command) = step.and_then(|step| step.record.as_mut())
            && let Some(traced) = parent.put_into(&command.metadata)
        {
            Arc::make_mut(command).metadata = traced;
        }
    }

    fn count(request: &Self::Request) -> usize {
        request.events.len() + usize::from(request.command.is_some())
    }

    fn size_bytes(request: &Self::Request) -> usize {
        request.size_bytes()
    }

    fn ids(request: &Self::Request) -> Vec<Uuid> {
        match &request.command {
            // Its events are made anew by a repeat: the command is what makes that safe.
            Some(step) => vec![step.id.0],
            None => request.events.iter().map(|event| event.id.0).collect(),
        }
    }

    fn keys(request: &Self::Request) -> Vec<EventKey> {
        let given = request.events.iter().filter(|event| event.id_is_given);
        let command = request.command.as_ref().filter(|step| {
            let record = step.record.as_ref();
            record.is_none_or(|command| command.id_is_given)
        });
        given
            .map(|event| EventKey::Event(event.id))
            .chain(command.map(|step| EventKey::Command(step.id)))
            .collect()
    }

    async fn commit(
        &self,
        batch: &[&Self::Request],
    ) -> Result<Vec<Outcome<AppendedEvent>>, StoreError> {
        self.store.append_events(self.partition, batch).await
    }

    fn stored(&self, request: Self::Request, places: Vec<AppendedEvent>) -> Vec<Arc<Event>> {
        stored_events(self.partition, request.events, places)
    }

    fn command(request: &Self::Request) -> Option<CommandChange> {
        request.command.as_ref().map(|step| CommandChange {
            id: step.id,
            status: step.status,
        })
    }

    fn committed(&self, done: Done<Event>) -> Vec<Committed> {
        let mut committed = Vec::with_capacity(2);
        if !done.stored.is_empty() {
            committed.push(Committed::Events(self.partition, done.stored));
        }
        if !done.commands.is_empty() {
            committed.push(Committed::Commands(self.partition, done.commands));
        }
        committed
    }
}

/// Puts a place in a trace into the metadata of events, so that whoever reads them goes on with it.
pub(super) fn trace_events(events: &mut [NewEvent], parent: TraceParent) {
    for event in events {
        if let Some(traced) = parent.put_into(&event.metadata) {
            event.metadata = traced;
        }
    }
}

/// Events at the places where they went.
pub(super) fn stored_events(
    partition: Partition,
    events: Vec<NewEvent>,
    places: Vec<AppendedEvent>,
) -> Vec<Arc<Event>> {
    let stored = |(event, place): (NewEvent, AppendedEvent)| {
        Arc::new(Event {
            partition,
            position: place.position,
            id: event.id,
            aggregate_id: event.aggregate_id,
            aggregate_type: event.aggregate_type,
            event_type: event.event_type,
            data: event.data,
            metadata: event.metadata,
            version: place.version,
            created_at: place.created_at,
        })
    };
    events.into_iter().zip(places).map(stored).collect()
}

/// The stream entries of a partition.
pub(super) struct EntryLog {
    store: Store,
    partition: Partition,
}

impl EntryLog {
    pub(super) fn new(store: &Store, partition: Partition) -> Self {
        Self {
            store: store.clone(),
            partition,
        }
    }
}

impl Log for EntryLog {
    type Request = NewEntry;
    type Place = AppendedEntry;
    type Stored = Entry;
    type Key = (StreamName, EventId);

    const NAME: LogName = LogName::Entries;

    fn partition(&self) -> Partition {
        self.partition
    }

    fn giving_way(&self) -> GivingWay {
        self.store.giving_way()
    }

    fn events(_: &[Arc<Entry>]) -> &[Arc<Event>] {
        &[]
    }

    /// An entry has no metadata to put it into.
    fn trace(_: &mut Self::Request, _: TraceParent) {}

    fn count(_: &Self::Request) -> usize {
        1
    }

    fn size_bytes(request: &Self::Request) -> usize {
        request.size_bytes()
    }

    fn ids(request: &Self::Request) -> Vec<Uuid> {
        vec![request.event_id.0]
    }

    fn keys(request: &Self::Request) -> Vec<Self::Key> {
        vec![(request.stream_name.clone(), request.event_id)]
    }

    async fn commit(
        &self,
        batch: &[&Self::Request],
    ) -> Result<Vec<Outcome<AppendedEntry>>, StoreError> {
        self.store.append_entries(self.partition, batch).await
    }

    fn stored(&self, request: Self::Request, places: Vec<AppendedEntry>) -> Vec<Arc<Entry>> {
        let stored = |place: AppendedEntry| {
            Arc::new(Entry {
                partition: self.partition,
                entry_position: place.entry_position,
                stream_name: request.stream_name.clone(),
                position: place.position,
                event_id: request.event_id,
                event_type: request.event_type.clone(),
                data: request.data.clone(),
                created_at: place.created_at,
            })
        };
        places.into_iter().map(stored).collect()
    }

    fn command(_: &Self::Request) -> Option<CommandChange> {
        None
    }

    fn committed(&self, done: Done<Entry>) -> Vec<Committed> {
        if done.stored.is_empty() {
            return Vec::new();
        }
        vec![Committed::Entries(self.partition, done.stored)]
    }
}

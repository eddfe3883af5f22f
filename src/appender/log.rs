//! The two logs that are appended to: what a queue needs to know of each. Floor 3.

use std::sync::Arc;

use crate::{
    domain::{
        Entry, Event, EventId, NewEntry, NewEvent, Partition, StreamName,
        append::{AppendedEntry, AppendedEvent, Committed, Outcome},
    },
    store::{Store, StoreError},
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

    /// How many events or entries a request has.
    fn count(request: &Self::Request) -> usize;

    /// About how many bytes a request takes.
    fn size_bytes(request: &Self::Request) -> usize;

    /// The ids of a request, for an error that leaves its outcome unknown.
    fn ids(request: &Self::Request) -> Vec<EventId>;

    /// The keys that the client chose, and that may stand for something already.
    fn keys(request: &Self::Request) -> Vec<Self::Key>;

    /// Commits a batch.
    fn commit(
        &self,
        batch: &[&Self::Request],
    ) -> impl Future<Output = Result<Vec<Outcome<Self::Place>>, StoreError>> + Send;

    /// What is stored now of a request that was appended.
    fn stored(&self, request: Self::Request, places: Vec<Self::Place>) -> Vec<Arc<Self::Stored>>;

    /// What was committed, for others.
    fn committed(&self, stored: Vec<Arc<Self::Stored>>) -> Committed;
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
    type Request = Vec<NewEvent>;
    type Place = AppendedEvent;
    type Stored = Event;
    type Key = EventId;

    fn count(request: &Self::Request) -> usize {
        request.len()
    }

    fn size_bytes(request: &Self::Request) -> usize {
        request.iter().map(NewEvent::size_bytes).sum()
    }

    fn ids(request: &Self::Request) -> Vec<EventId> {
        request.iter().map(|event| event.id).collect()
    }

    fn keys(request: &Self::Request) -> Vec<EventId> {
        request
            .iter()
            .filter(|event| event.id_is_given)
            .map(|event| event.id)
            .collect()
    }

    async fn commit(
        &self,
        batch: &[&Self::Request],
    ) -> Result<Vec<Outcome<AppendedEvent>>, StoreError> {
        let requests: Vec<&[NewEvent]> = batch.iter().map(|request| request.as_slice()).collect();
        self.store.append_events(self.partition, &requests).await
    }

    fn stored(&self, request: Self::Request, places: Vec<AppendedEvent>) -> Vec<Arc<Event>> {
        stored_events(self.partition, request, places)
    }

    fn committed(&self, stored: Vec<Arc<Event>>) -> Committed {
        Committed::Events(self.partition, stored)
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

    fn count(_: &Self::Request) -> usize {
        1
    }

    fn size_bytes(request: &Self::Request) -> usize {
        request.size_bytes()
    }

    fn ids(request: &Self::Request) -> Vec<EventId> {
        vec![request.event_id]
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

    fn committed(&self, stored: Vec<Arc<Entry>>) -> Committed {
        Committed::Entries(self.partition, stored)
    }
}

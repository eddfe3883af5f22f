//! The states that commands are decided on, kept for the next command on the same aggregate. Floor 4.
//!
//! A state that is out of date does no harm: the append that follows expects its version, and is refused.

use std::sync::Arc;

use quick_cache::{Weighter, sync::Cache};
use serde_json::Value;
use tokio::time::{Instant, timeout_at};

use super::{CommandError, loads::Loads};
use crate::{
    appender::AppendError,
    domain::{AggregateId, AggregateType, Domain, Event, FoldFault, State, Version},
    store::Store,
};

/// An aggregate as it is known.
#[derive(Clone)]
pub(super) struct Known {
    /// The version of the last event in the state.
    pub(super) version: Version,
    pub(super) state: Arc<State>,
    /// Its type, as its events say; none before the first.
    pub(super) aggregate_type: Option<AggregateType>,
}

impl Known {
    /// Whether it is the state of an aggregate of this type, or of one that is not there yet.
    fn is_a(&self, aggregate_type: &AggregateType) -> bool {
        self.aggregate_type
            .as_ref()
            .is_none_or(|own| own == aggregate_type)
    }
}

/// What is kept of an aggregate. What was appended last is folded in when somebody asks, which for most never happens.
#[derive(Clone)]
struct Kept {
    known: Known,
    behind: Vec<Arc<Event>>,
}

impl Kept {
    fn memory_bytes(&self) -> usize {
        let events = self.behind.iter();
        let events = events.map(|event| event.data.as_str().len() + event.metadata.as_str().len());
        BYTES_EACH + memory_bytes(&self.known.state) + events.sum::<usize>()
    }
}

/// For so many there is room from the beginning.
const EXPECTED_STATES: usize = 1000;
/// What an aggregate takes in memory beside its state, roughly.
const BYTES_EACH: usize = 300;

#[derive(Clone)]
struct MemoryBytes;

impl Weighter<AggregateId, Kept> for MemoryBytes {
    fn weight(&self, _: &AggregateId, kept: &Kept) -> u64 {
        u64::try_from(kept.memory_bytes()).unwrap_or(u64::MAX)
    }
}

/// The states of a server.
pub(super) struct States {
    domain: Arc<Domain>,
    loads: Arc<Loads>,
    kept: Cache<AggregateId, Kept, MemoryBytes>,
}

impl States {
    pub(super) fn new(store: &Store, domain: Arc<Domain>, max_bytes: usize) -> Self {
        Self {
            domain,
            loads: Loads::new(store),
            kept: Cache::with_weighter(
                EXPECTED_STATES,
                u64::try_from(max_bytes).unwrap_or(u64::MAX),
                MemoryBytes,
            ),
        }
    }

    /// An aggregate as it was known last, if it was.
    pub(super) fn kept(&self, id: AggregateId) -> Option<Known> {
        let Kept { known, behind } = self.kept.get(&id)?;
        if behind.is_empty() {
            return Some(known);
        }
        let folded = self.folded(known, behind.iter().map(Arc::as_ref));
        match folded {
            Ok(known) => {
                self.keep(id, known.clone(), Vec::new());
                Some(known)
            }
            // Whoever reads it is told.
            Err(_) => {
                self.kept.remove(&id);
                None
            }
        }
    }

    fn keep(&self, id: AggregateId, known: Known, behind: Vec<Arc<Event>>) {
        self.kept.insert(id, Kept { known, behind });
    }

    /// An aggregate of which nothing has been heard.
    pub(super) fn initial(&self, aggregate_type: &AggregateType) -> Known {
        Known {
            version: Version::NONE,
            state: Arc::new(self.domain.initial(aggregate_type)),
            aggregate_type: None,
        }
    }

    /// Reads what has happened to an aggregate since it was known last.
    ///
    /// # Errors
    /// When the database fails or does not answer by the deadline, or an event cannot be folded.
    pub(super) async fn load(
        &self,
        id: AggregateId,
        aggregate_type: &AggregateType,
        deadline: Instant,
    ) -> Result<Known, CommandError> {
        let mut known = self
            .kept(id)
            .unwrap_or_else(|| self.initial(aggregate_type));
        loop {
            let page = timeout_at(deadline, self.loads.page(id, known.version)).await;
            let page = page
                .map_err(|_| AppendError::overdue())?
                .map_err(AppendError::while_reading)?;
            known = self.folded(known, &page.events).map_err(|fault| {
                self.kept.remove(&id);
                CommandError::Faulted {
                    reason: fault.to_string(),
                }
            })?;
            // Also what was read of a long one so far: whoever comes next goes on there. What was begun as another type is not
            // the aggregate's state.
            if known.is_a(aggregate_type) {
                self.keep(id, known.clone(), Vec::new());
            }
            if page.is_last {
                return Ok(known);
            }
        }
    }

    /// Takes in what was appended behind what is known.
    pub(super) fn advance(&self, id: AggregateId, known: Known, events: &[Arc<Event>]) {
        self.keep(id, known, events.to_vec());
    }

    /// Forgets what is known of an aggregate.
    pub(super) fn forget(&self, id: AggregateId) {
        self.kept.remove(&id);
    }

    fn folded<'e>(
        &self,
        known: Known,
        events: impl IntoIterator<Item = &'e Event>,
    ) -> Result<Known, FoldFault> {
        let mut events = events.into_iter().peekable();
        if events.peek().is_none() {
            return Ok(known);
        }
        let mut state = Arc::unwrap_or_clone(known.state);
        let (mut version, mut aggregate_type) = (known.version, known.aggregate_type);
        for event in events {
            state = self.domain.fold(state, event)?;
            version = event.version;
            aggregate_type.get_or_insert_with(|| event.aggregate_type.clone());
        }
        Ok(Known {
            version,
            state: Arc::new(state),
            aggregate_type,
        })
    }
}

/// How much memory a value takes, roughly.
fn memory_bytes(value: &Value) -> usize {
    const NODE: usize = 32;
    NODE + match value {
        Value::String(text) => text.len(),
        Value::Array(elements) => elements.iter().map(memory_bytes).sum(),
        Value::Object(entries) => entries
            .iter()
            .map(|(key, value)| NODE + key.len() + memory_bytes(value))
            .sum(),
        Value::Null | Value::Bool(_) | Value::Number(_) => 0,
    }
}

//! States of aggregates, folded from their events: as they are now, as they were at a version, or at an instant. Floor 3.
//!
//! Events are read a page at a time, of many aggregates in one statement, and dropped as soon as they are folded.

use std::{
    collections::HashMap,
    sync::atomic::{AtomicUsize, Ordering},
};

use crate::{
    domain::{
        AggregateId, AggregateType, Domain, Event, FoldFault, Json, State, Timestamp, Version,
    },
    store::{EventRange, Store, StoreError},
};

/// So many events are read in one statement at most.
const PAGE_EVENTS: usize = 1000;
/// A page ends with the event that reaches this many bytes.
const PAGE_BYTES: usize = 4 << 20;

/// One state that somebody asks for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct StateAt {
    /// The aggregate.
    pub aggregate_id: AggregateId,
    /// What it is.
    pub aggregate_type: AggregateType,
    /// The version of the last event in the state; the aggregate has it.
    pub version: Version,
    /// The instant of the last event in the state, where that comes first.
    pub at: Option<Timestamp>,
}

/// Why there is no such state.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// An event could not be folded.
    #[error("the event of version {} cannot be folded: {fault}", .version.next())]
    Faulted {
        /// The version up to which there is a state.
        version: Version,
        /// Why the next event cannot be folded.
        fault: FoldFault,
    },
    /// More would have to be folded than one answer may.
    #[error("more than {limit} events would have to be folded for this answer")]
    TooMuch {
        /// How many may be.
        limit: usize,
    },
}

/// What may still be folded for one answer.
#[derive(Debug)]
pub struct FoldBudget {
    limit: usize,
    left: AtomicUsize,
}

impl FoldBudget {
    /// A budget of so many events.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self {
            limit,
            left: AtomicUsize::new(limit),
        }
    }

    /// Begins anew, for another answer.
    pub fn renew(&self) {
        self.left.store(self.limit, Ordering::Relaxed);
    }

    fn spend(&self, events: usize) -> Result<(), StateError> {
        let spend = |left: usize| left.checked_sub(events);
        self.left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, spend)
            .map(drop)
            .map_err(|_| StateError::TooMuch { limit: self.limit })
    }
}

/// A state as JSON, or why there is none.
pub type Folded = Result<Json, StateError>;

/// Folds states. An aggregate that is asked for at several places is folded once.
///
/// # Errors
/// When the database fails.
pub async fn fold(
    store: &Store,
    domain: &Domain,
    budget: &FoldBudget,
    wanted: Vec<StateAt>,
) -> Result<HashMap<StateAt, Folded>, StoreError> {
    let mut of_aggregates: HashMap<AggregateId, Vec<StateAt>> = HashMap::new();
    for state in wanted {
        of_aggregates
            .entry(state.aggregate_id)
            .or_default()
            .push(state);
    }
    let mut done = HashMap::new();
    let mut open: Vec<Folding> = of_aggregates
        .into_values()
        .map(|wanted| Folding::begin(wanted, domain, budget))
        .collect();
    // Which of them the budget is spent on does not depend on chance.
    open.sort_unstable_by_key(|folding| folding.aggregate_id);
    for folding in &mut open {
        folding.reserve();
    }
    loop {
        open.retain_mut(|folding| {
            folding.finish_reached(None);
            done.extend(folding.done.drain(..));
            !folding.wanted.is_empty()
        });
        if open.is_empty() {
            return Ok(done);
        }
        let mut room = PAGE_EVENTS;
        let ranges: Vec<EventRange> = open
            .iter()
            .map_while(|folding| folding.next_range(&mut room))
            .collect();
        let events = store.events_to_fold(&ranges, PAGE_BYTES).await?;
        if events.is_empty() {
            let id = open[0].aggregate_id;
            return Err(StoreError::Inconsistent(format!(
                "the aggregate {id} lacks events"
            )));
        }
        let mut of_aggregates: HashMap<AggregateId, Vec<Event>> = HashMap::new();
        for event in events {
            of_aggregates
                .entry(event.aggregate_id)
                .or_default()
                .push(event);
        }
        for folding in &mut open {
            for event in of_aggregates
                .remove(&folding.aggregate_id)
                .unwrap_or_default()
            {
                folding.take(&event)?;
            }
        }
    }
}

/// One aggregate on its way through its events.
struct Folding<'a> {
    domain: &'a Domain,
    budget: &'a FoldBudget,
    aggregate_id: AggregateId,
    state: State,
    version: Version,
    /// How many events the budget was asked for.
    reserved: i32,
    wanted: Vec<StateAt>,
    done: Vec<(StateAt, Folded)>,
}

impl<'a> Folding<'a> {
    fn begin(wanted: Vec<StateAt>, domain: &'a Domain, budget: &'a FoldBudget) -> Self {
        let first = &wanted[0];
        Self {
            domain,
            budget,
            aggregate_id: first.aggregate_id,
            state: domain.initial(&first.aggregate_type),
            version: Version::NONE,
            reserved: 0,
            wanted,
            done: Vec::new(),
        }
    }

    /// Asks the budget for what is known to be needed, before anything is read. How many events lie before an instant is
    /// not known: these are asked for one by one.
    fn reserve(&mut self) {
        let known = self.wanted.iter().filter(|wanted| wanted.at.is_none());
        let last = known.map(|wanted| wanted.version.0).max().unwrap_or(0);
        match self.budget.spend(usize::try_from(last).unwrap_or(0)) {
            Ok(()) => self.reserved = last,
            Err(error) => self.finish(&error),
        }
    }

    /// The next events that it needs, as far as there is room in a page.
    fn next_range(&self, room: &mut usize) -> Option<EventRange> {
        let last = self.wanted.iter().map(|wanted| wanted.version.0).max()?;
        let count = usize::try_from(last - self.version.0).ok()?.min(*room);
        *room -= count;
        let last = self.version.0 + i32::try_from(count).ok()?;
        (count > 0).then_some(EventRange {
            aggregate_id: self.aggregate_id,
            first: self.version.next(),
            last: Version(last),
        })
    }

    fn take(&mut self, event: &Event) -> Result<(), StoreError> {
        self.finish_reached(Some(event.created_at));
        if self.wanted.is_empty() {
            return Ok(());
        }
        if event.version != self.version.next() {
            return Err(StoreError::Inconsistent(format!(
                "the aggregate {} has no event of version {}",
                self.aggregate_id,
                self.version.next()
            )));
        }
        if self.reserved < event.version.0 {
            self.reserved = event.version.0;
            if let Err(error) = self.budget.spend(1) {
                self.finish(&error);
                return Ok(());
            }
        }
        match self.domain.fold(std::mem::take(&mut self.state), event) {
            Ok(state) => {
                self.state = state;
                self.version = event.version;
            }
            Err(fault) => {
                let version = self.version;
                self.finish(&StateError::Faulted { version, fault });
            }
        }
        Ok(())
    }

    /// Answers what is asked for at this version, and before the instant of the next event.
    fn finish_reached(&mut self, next_at: Option<Timestamp>) {
        let version = self.version;
        let is_reached = |wanted: &mut StateAt| {
            wanted.version <= version
                || next_at.is_some_and(|next| wanted.at.is_some_and(|at| at < next))
        };
        for wanted in self.wanted.extract_if(.., is_reached) {
            let folded = if version == Version::NONE {
                Domain::state_to_json(&State::Null)
            } else {
                Domain::state_to_json(&self.state)
            };
            let folded = folded.map_err(|fault| StateError::Faulted { version, fault });
            self.done.push((wanted, folded));
        }
    }

    /// Answers all that is still asked for with an error.
    fn finish(&mut self, error: &StateError) {
        let failed = self.wanted.drain(..);
        self.done
            .extend(failed.map(|wanted| (wanted, Err(error.clone()))));
    }
}

//! States of aggregates between two batches, and how events are folded into one. Floor 4.

use std::collections::HashMap;

use crate::domain::{
    AggregateId, AggregateType, Domain, Event, FoldFault, Folded, Json, Position, ReadModel,
    ReadModelSource, State, Timestamp, Version,
};

/// The longest text of a fault, in characters.
const MAX_FAULT_CHARS: usize = 1000;

/// The state of one aggregate as its read model has it.
#[derive(Debug)]
pub(super) struct Held {
    /// What the aggregate is.
    pub(super) aggregate_type: AggregateType,
    /// The change that the read model has; none where there is none.
    pub(super) change_position: Option<Position>,
    /// Whether the projector leaves it alone until it is rebuilt.
    pub(super) is_left_alone: bool,
    /// Whether a client has written it: then it is left alone until its aggregate is deleted, too.
    is_external: bool,
    pub(super) state: State,
    pub(super) version: Version,
    pub(super) created_at: Timestamp,
    pub(super) updated_at: Timestamp,
    /// About how large the state is as text.
    pub(super) bytes: usize,
}

impl Held {
    /// An aggregate of which nothing is stored, before its first event.
    pub(super) fn before(event: &Event, domain: &Domain) -> Self {
        Self {
            aggregate_type: event.aggregate_type.clone(),
            change_position: None,
            is_left_alone: false,
            is_external: false,
            state: domain.initial(&event.aggregate_type),
            version: Version::NONE,
            created_at: event.created_at,
            updated_at: event.created_at,
            bytes: 0,
        }
    }

    /// What is stored of it.
    ///
    /// # Errors
    /// When what is stored is no JSON.
    pub(super) fn stored(model: &ReadModel) -> Result<Self, crate::domain::JsonError> {
        // What stands still is not folded on.
        let state = match model.fault.is_some() {
            true => State::Null,
            false => model.data.to_value()?,
        };
        Ok(Self {
            aggregate_type: model.aggregate_type.clone(),
            change_position: Some(model.change_position),
            is_left_alone: model.is_left_alone(),
            is_external: model.source == ReadModelSource::External,
            state,
            version: model.version,
            created_at: model.created_at,
            updated_at: model.updated_at,
            bytes: model.data.as_str().len(),
        })
    }

    /// Folds an event into the state, unless it is passed by: a rebuild had it already, or the read model is left alone. A
    /// deletion is passed by only where the read model stands still: what a client wrote about an aggregate ends with it.
    pub(super) fn fold_next(
        &mut self,
        event: &Event,
        domain: &Domain,
    ) -> Option<Result<(), FoldFault>> {
        if event.version <= self.version {
            return None;
        }
        if !self.is_left_alone {
            return Some(self.fold(event, domain));
        }
        let is_deletion = || matches!(domain.fold(self.state.clone(), event), Ok(State::Null));
        if !self.is_external || !is_deletion() {
            return None;
        }
        self.is_left_alone = false;
        self.is_external = false;
        self.state = State::Null;
        self.version = event.version;
        self.updated_at = event.created_at;
        Some(Ok(()))
    }

    /// Folds the next event into the state.
    ///
    /// # Errors
    /// When it cannot be folded: the state is gone then.
    pub(super) fn fold(&mut self, event: &Event, domain: &Domain) -> Result<(), FoldFault> {
        if event.version != self.version.next() {
            let (first, last) = (self.version.next(), event.version.0 - 1);
            return Err(FoldFault(format!(
                "the events {first} to {last} are not in it: it has to be rebuilt"
            )));
        }
        let was_there = !self.state.is_null();
        let state = std::mem::take(&mut self.state);
        self.state = domain.fold(state, event)?;
        if !was_there {
            // It came to be by this event, or came back after a deletion.
            self.created_at = event.created_at;
        }
        self.version = event.version;
        self.updated_at = event.created_at;
        Ok(())
    }

    /// The read model as it is to be stored.
    ///
    /// # Errors
    /// When the state is too deep or too large.
    pub(super) fn folded(&mut self) -> Result<Folded, FoldFault> {
        let data = match self.state.is_null() {
            true => None,
            false => Some(Domain::state_to_json(&self.state)?),
        };
        self.bytes = data.as_ref().map_or(0, |data| data.as_str().len());
        Ok(Folded {
            aggregate_type: self.aggregate_type.clone(),
            data,
            version: self.version,
            fault: None,
            created_at: self.created_at,
            updated_at: self.updated_at,
        })
    }

    /// The read model as it stands still behind a fault: with what was folded before it.
    ///
    /// # Errors
    /// When the state is too deep or too large.
    pub(super) fn faulted(&mut self, fault: &FoldFault) -> Result<Folded, FoldFault> {
        let folded = self.folded()?;
        // Where nothing could be folded at all, an empty read model shows why.
        let is_nothing = folded.data.is_none() && folded.version == Version::NONE;
        self.state = State::Null;
        self.is_left_alone = true;
        Ok(Folded {
            data: is_nothing.then(Json::empty_object).or(folded.data),
            fault: Some(fault_text(fault)),
            ..folded
        })
    }
}

/// A fault as it is stored: bounded, and without what a database cannot store.
fn fault_text(fault: &FoldFault) -> String {
    let text = fault.0.chars().filter(|char| *char != '\0');
    text.take(MAX_FAULT_CHARS).collect()
}

/// States that are likely to be wanted again, bounded in bytes: those that nobody wanted for long go first.
#[derive(Debug)]
pub(super) struct States {
    /// Wanted lately, and before that: when the first is full the second goes.
    young: HashMap<AggregateId, Held>,
    old: HashMap<AggregateId, Held>,
    young_bytes: usize,
    max_bytes: usize,
}

impl States {
    pub(super) fn new(max_bytes: usize) -> Self {
        Self {
            young: HashMap::new(),
            old: HashMap::new(),
            young_bytes: 0,
            max_bytes,
        }
    }

    /// Takes a state out, to be put back once it is saved.
    pub(super) fn take(&mut self, id: AggregateId) -> Option<Held> {
        let young = self.young.remove(&id);
        if let Some(held) = &young {
            self.young_bytes = self.young_bytes.saturating_sub(memory_bytes(held));
        }
        young.or_else(|| self.old.remove(&id))
    }

    pub(super) fn put(&mut self, id: AggregateId, held: Held) {
        self.young_bytes += memory_bytes(&held);
        self.old.remove(&id);
        self.young.insert(id, held);
        if self.young_bytes > self.max_bytes / 2 {
            self.old = std::mem::take(&mut self.young);
            self.young_bytes = 0;
        }
    }
}

/// A state takes several times the memory of its text.
fn memory_bytes(held: &Held) -> usize {
    4 * held.bytes + 500
}

//! One batch of events and what it comes to: loading what is stored of its aggregates, and folding. Floor 4.

use std::collections::{HashMap, HashSet};

use super::{
    Projections,
    states::{Held, States},
};
use crate::{
    domain::{
        AggregateId, Domain, Event, FoldFault, JsonError, Partition, Position, Projected, Version,
    },
    store::StoreError,
    tail::EventBatch,
};

/// Read models that are loaded at a time, as text.
const LOAD_BYTES: usize = 16 << 20;

/// How a batch is folded.
pub(super) struct Folding<'p> {
    pub(super) projections: &'p Projections,
    pub(super) partition: Partition,
    /// Whether the read models of all aggregates are looked for. Otherwise those that have just begun are taken to have none;
    /// where that is wrong, it shows when the batch is saved.
    pub(super) takes_nothing_for_granted: bool,
}

/// Events, and what they have come to.
pub(super) struct Batch {
    events: EventBatch,
    /// The place up to which the log was read for it.
    pub(super) last: Position,
    /// What is to be saved, in the order in which the aggregates came.
    pub(super) projected: Vec<Projected>,
    /// The states behind it.
    pub(super) held: HashMap<AggregateId, Held>,
}

/// One aggregate of a batch while events are folded into it.
struct Touched {
    held: Held,
    based_on: Option<Position>,
    has_moved: bool,
    is_faulted: bool,
}

impl Touched {
    fn of(held: Held) -> Self {
        Self {
            based_on: held.change_position,
            held,
            has_moved: false,
            is_faulted: false,
        }
    }

    fn fold(&mut self, event: &Event, domain: &Domain) {
        if self.is_faulted {
            return;
        }
        if let Some(folded) = self.held.fold_next(event, domain) {
            self.has_moved = true;
            self.is_faulted = folded.is_err();
        }
    }
}

impl Folding<'_> {
    /// Folds as many of the events as there is room for: what is stored of their aggregates may be large.
    pub(super) async fn fold(
        &self,
        mut events: EventBatch,
        states: &mut States,
    ) -> Result<Batch, StoreError> {
        let mut touched = self.load(&mut events, states).await?;
        let domain = &self.projections.domain;
        let mut order = Vec::with_capacity(touched.len());
        for event in &events {
            let id = event.aggregate_id;
            let aggregate = touched.entry(id).or_insert_with(|| {
                // Its first event is in this batch, and nothing is stored of it.
                Touched::of(Held::before(event, domain))
            });
            if order.last() != Some(&id) {
                order.push(id);
            }
            aggregate.fold(event, domain);
        }
        let mut batch = Batch {
            last: events
                .last()
                .map_or(Position::START, |event| event.position),
            events,
            projected: Vec::with_capacity(touched.len()),
            held: HashMap::with_capacity(touched.len()),
        };
        for id in order {
            let Some(mut aggregate) = touched.remove(&id) else {
                continue;
            };
            let folded = match (aggregate.is_faulted, aggregate.has_moved) {
                (true, _) => None,
                (false, false) => Some(None),
                (false, true) => aggregate.held.folded().ok().map(Some),
            };
            let Some(folded) = folded else {
                self.fold_up_to_fault(&mut batch, id, None).await?;
                continue;
            };
            batch.projected.push(Projected {
                aggregate_id: id,
                based_on: aggregate.based_on,
                folded,
            });
            batch.held.insert(id, aggregate.held);
        }
        Ok(batch)
    }

    /// What a batch of one event comes to where the database does not take its state.
    pub(super) async fn refuse(&self, batch: &mut Batch) -> Result<(), StoreError> {
        batch.projected.clear();
        batch.held.clear();
        if let Some(event) = batch.events.first() {
            let (id, version) = (event.aggregate_id, event.version);
            let fault = FoldFault("the database cannot store the state".to_owned());
            self.fold_up_to_fault(batch, id, Some((version, fault)))
                .await?;
        }
        Ok(())
    }

    /// Takes the states of the events' aggregates, or loads them. Events behind the last for whose aggregates there was room
    /// are left out.
    async fn load(
        &self,
        events: &mut EventBatch,
        states: &mut States,
    ) -> Result<HashMap<AggregateId, Touched>, StoreError> {
        let mut touched = HashMap::with_capacity(events.len());
        let mut missing = Vec::new();
        let mut begun = HashSet::new();
        for event in events.iter() {
            let id = event.aggregate_id;
            if touched.contains_key(&id) || begun.contains(&id) {
                continue;
            }
            if let Some(held) = states.take(id) {
                touched.insert(id, Touched::of(held));
            } else if event.version > Version(1) || self.takes_nothing_for_granted {
                missing.push((event.position, id));
            } else {
                begun.insert(id);
            }
        }
        if missing.is_empty() {
            return Ok(touched);
        }
        let mut seen = HashSet::with_capacity(missing.len());
        let ids = missing.iter().map(|(_, id)| *id);
        let ids: Vec<AggregateId> = ids.filter(|id| seen.insert(*id)).collect();
        let store = &self.projections.store;
        let loaded = store.load_models(self.partition, &ids, LOAD_BYTES).await?;
        for (id, model) in &loaded.models {
            let held = Held::stored(model).map_err(|error| unreadable(*id, error))?;
            touched.insert(*id, Touched::of(held));
        }
        if let Some(left_out) = ids.get(loaded.answered) {
            let first = missing.iter().find(|(_, id)| id == left_out);
            if let Some((position, _)) = first {
                events.retain(|event| event.position < *position);
            }
        }
        Ok(touched)
    }

    /// Folds the events of one aggregate up to the one that cannot be folded, from what is stored.
    async fn fold_up_to_fault(
        &self,
        batch: &mut Batch,
        id: AggregateId,
        known: Option<(Version, FoldFault)>,
    ) -> Result<(), StoreError> {
        let domain = &self.projections.domain;
        let store = &self.projections.store;
        let stored = store.load_models(self.partition, &[id], LOAD_BYTES).await?;
        let stored = stored.models.get(&id);
        let events: Vec<&Event> = batch
            .events
            .iter()
            .map(AsRef::as_ref)
            .filter(|event: &&Event| event.aggregate_id == id)
            .collect();
        let Some(first) = events.first() else {
            return Ok(());
        };
        let base = || match stored {
            Some(model) => Held::stored(model).map_err(|error| unreadable(id, error)),
            None => Ok(Held::before(first, domain)),
        };
        let mut held = base()?;
        let mut has_moved = false;
        let mut fault = known;
        if fault.is_none() {
            for event in &events {
                let Some(folded) = held.fold_next(event, domain) else {
                    continue;
                };
                has_moved = true;
                if let Err(reason) = folded.and_then(|()| held.folded().map(drop)) {
                    fault = Some((event.version, reason));
                    break;
                }
            }
        }
        let based_on = base()?.change_position;
        let impossible = |fault: FoldFault| {
            StoreError::Inconsistent(format!("what is stored of {id} cannot be stored: {fault}"))
        };
        let folded = match fault {
            Some((version, reason)) => {
                held = base()?;
                for event in &events {
                    if event.version < version {
                        let folded = held.fold_next(event, domain);
                        folded.transpose().map_err(impossible)?;
                    }
                }
                let stands_still = !held.is_left_alone;
                let faulted = held.faulted(&reason).map_err(impossible)?;
                stands_still.then_some(faulted)
            }
            None if has_moved => Some(held.folded().map_err(impossible)?),
            None => None,
        };
        batch.projected.push(Projected {
            aggregate_id: id,
            based_on,
            folded,
        });
        batch.held.insert(id, held);
        Ok(())
    }
}

fn unreadable(id: AggregateId, error: JsonError) -> StoreError {
    StoreError::Inconsistent(format!("the read model of {id} {error}"))
}

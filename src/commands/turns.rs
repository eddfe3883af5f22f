//! Turns on aggregates: commands on one aggregate come one after another, in the order in which they came. Floor 4.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::{
    sync::{OwnedMutexGuard, Semaphore, SemaphorePermit},
    time::{Instant, timeout_at},
};

use crate::{appender::AppendError, domain::AggregateId};

/// The aggregates that somebody has the turn on, or waits for it.
pub(super) struct Turns {
    aggregates: Mutex<HashMap<AggregateId, Arc<tokio::sync::Mutex<()>>>>,
    /// How many may have a turn or wait for one, over all aggregates.
    places: Semaphore,
}

/// The turn on one aggregate, until it is dropped.
pub(super) struct Turn<'t> {
    turns: &'t Turns,
    aggregate_id: AggregateId,
    held: Option<OwnedMutexGuard<()>>,
    _place: SemaphorePermit<'t>,
}

impl Turns {
    pub(super) fn new(places: usize) -> Self {
        Self {
            aggregates: Mutex::default(),
            places: Semaphore::new(places.min(Semaphore::MAX_PERMITS)),
        }
    }

    /// Waits for the turn on an aggregate.
    ///
    /// # Errors
    /// When too many wait already, or it does not come by the deadline.
    pub(super) async fn take(
        &self,
        aggregate_id: AggregateId,
        deadline: Instant,
    ) -> Result<Turn<'_>, AppendError> {
        let place = self.places.try_acquire().map_err(|_| AppendError::full())?;
        let mut turn = Turn {
            turns: self,
            aggregate_id,
            held: None,
            _place: place,
        };
        let aggregate = self.lock().entry(aggregate_id).or_default().clone();
        // Given up while it waits, it tidies up as any turn does.
        let held = timeout_at(deadline, aggregate.lock_owned()).await;
        turn.held = Some(held.map_err(|_| AppendError::contended())?);
        Ok(turn)
    }

    // Nothing panics while it holds the lock.
    fn lock(&self) -> MutexGuard<'_, HashMap<AggregateId, Arc<tokio::sync::Mutex<()>>>> {
        self.aggregates
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut aggregates = self.turns.lock();
        drop(self.held.take());
        // Whoever waits or has the turn has a share in it, and takes it under this same lock.
        if let Some(aggregate) = aggregates.get(&self.aggregate_id)
            && Arc::strong_count(aggregate) == 1
        {
            aggregates.remove(&self.aggregate_id);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use uuid::Uuid;

    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_millis(20)
    }

    #[tokio::test]
    async fn one_has_the_turn_and_nothing_stays_behind() {
        let turns = Turns::new(10);
        let (one, other) = (
            AggregateId(Uuid::from_u128(1)),
            AggregateId(Uuid::from_u128(2)),
        );
        let first = turns.take(one, soon()).await.expect("it is free");
        assert!(
            turns.take(one, soon()).await.is_err(),
            "somebody has the turn"
        );
        let beside = turns.take(other, soon()).await.expect("it is free");
        assert_eq!(turns.lock().len(), 2);
        drop(first);
        let next = turns.take(one, soon()).await.expect("it is free again");
        drop((next, beside));
        assert!(turns.lock().is_empty());
    }

    #[tokio::test]
    async fn too_many_are_refused_at_once() {
        let turns = Turns::new(1);
        let first = turns.take(AggregateId(Uuid::from_u128(1)), soon()).await;
        let second = turns.take(AggregateId(Uuid::from_u128(2)), soon()).await;
        assert!(first.is_ok() && second.is_err());
    }

    #[tokio::test]
    async fn turns_come_in_the_order_in_which_they_were_asked_for() {
        let turns = Turns::new(100);
        let id = AggregateId(Uuid::from_u128(1));
        let done = Mutex::new(Vec::new());
        let later = Instant::now() + Duration::from_secs(10);
        let all = (0..20).map(|number| {
            let (turns, done) = (&turns, &done);
            async move {
                let turn = turns.take(id, later).await.expect("its turn comes");
                tokio::task::yield_now().await;
                done.lock().expect("nobody panics").push(number);
                drop(turn);
            }
        });
        futures_util::future::join_all(all).await;
        assert_eq!(
            *done.lock().expect("nobody panics"),
            (0..20).collect::<Vec<_>>()
        );
    }
}

//! Folding read models anew from the first event, beside the projector and without holding it up. Floor 4.
//!
//! Aggregates are gone through in the order of their ids, and their events read in pages that are bounded, so memory does not
//! grow with the log. What was folded is saved behind the change that the read model had before: where the projector or a client
//! has written meanwhile, the fold goes on with what was appended since, and is saved again. Read models that come out as they
//! were are not written.

use std::{collections::VecDeque, mem, sync::Arc, time::Duration};

use tokio::time::sleep;

use super::{states::Held, stored_model};
use crate::{
    domain::{
        AggregateId, Domain, Event, FoldFault, Folded, Partition, Projected, ReadModel,
        RebuildOutcome, Version, append::Committed,
    },
    store::{EventRange, RebuildScope, RebuildTarget, Store, StoreError},
};

/// Aggregates that are listed at a time.
const LISTED: u64 = 500;
/// Events that are read at a time, at most, and about how large they are together.
const PAGE_EVENTS: i32 = 2000;
const PAGE_BYTES: usize = 4 << 20;
/// Read models that are saved at a time, at most, and about how large they are together.
const SAVED: usize = 500;
const SAVED_BYTES: usize = 4 << 20;
/// How often in a row the database may fail at the same thing.
const TRIES: usize = 20;
const PAUSE_AFTER_FAULT: Duration = Duration::from_millis(250);
const PAUSE_BEFORE_SAVING_AGAIN: Duration = Duration::from_millis(2);

/// Folds read models anew.
pub struct Rebuild<'r> {
    /// What it reads from and writes to.
    pub store: &'r Store,
    /// By whose rules.
    pub domain: &'r Domain,
    /// Told what was written, after each commit.
    pub on_commit: &'r (dyn Fn(Committed) + Sync),
    /// Told how many events were folded since it was told last.
    pub on_progress: &'r (dyn Fn(u64) + Sync),
}

/// One aggregate while its events are folded.
struct Fold {
    target: RebuildTarget,
    held: Held,
    /// What it has come to; none while there are events to fold.
    folded: Option<Folded>,
}

impl Fold {
    fn begin(target: RebuildTarget, first: &Event, domain: &Domain) -> Self {
        Self {
            held: Held::before(first, domain),
            target,
            folded: None,
        }
    }

    fn is_over(&self) -> bool {
        self.folded.is_some() || self.held.version == self.target.version
    }

    fn projected(&self) -> Projected {
        Projected {
            aggregate_id: self.target.aggregate_id,
            based_on: self.target.change_position,
            folded: self.folded.clone(),
        }
    }
}

impl Rebuild<'_> {
    /// Folds the read models of a scope anew. Answers how many there are.
    ///
    /// # Errors
    /// When the database fails again and again.
    pub async fn run(&self, scope: &RebuildScope) -> Result<u64, StoreError> {
        let partitions = self.store.partitions();
        let mut count = 0;
        for partition in partitions.iter() {
            let is_elsewhere = |id: &AggregateId| partitions.of_aggregate(*id) != partition;
            if matches!(scope, RebuildScope::Aggregate(id) if is_elsewhere(id)) {
                continue;
            }
            let mut after = None;
            loop {
                let targets = self.targets(partition, scope, after).await?;
                let Some(last) = targets.last() else { break };
                after = Some(last.aggregate_id);
                count += targets.len() as u64;
                self.fold_all(partition, targets.into()).await?;
            }
        }
        Ok(count)
    }

    async fn targets(
        &self,
        partition: Partition,
        scope: &RebuildScope,
        after: Option<AggregateId>,
    ) -> Result<Vec<RebuildTarget>, StoreError> {
        again(|| self.store.rebuild_targets(partition, scope, after, LISTED)).await
    }

    /// Folds aggregates, one after the other.
    async fn fold_all(
        &self,
        partition: Partition,
        mut waiting: VecDeque<RebuildTarget>,
    ) -> Result<(), StoreError> {
        let mut folds: Vec<Fold> = Vec::new();
        let mut bytes = 0;
        let mut current: Option<Fold> = None;
        let mut page = PageSize::default();
        while current.is_some() || !waiting.is_empty() {
            let ranges = page.ranges(current.as_ref(), &waiting);
            let events = self.events(&ranges).await?;
            page.adapt(&ranges, events.len());
            if events.is_empty() {
                return Err(missing(&ranges));
            }
            (self.on_progress)(events.len() as u64);
            for event in &events {
                let is_current = |fold: &Fold| fold.target.aggregate_id == event.aggregate_id;
                let mut fold = match current.take() {
                    Some(fold) if is_current(&fold) => fold,
                    // What is left of one that has come to its end at a fault.
                    None if waiting
                        .front()
                        .is_none_or(|target| target.aggregate_id != event.aggregate_id) =>
                    {
                        continue;
                    }
                    None => match waiting.pop_front() {
                        Some(target) => Fold::begin(target, event, self.domain),
                        None => continue,
                    },
                    Some(_) => return Err(missing(&ranges)),
                };
                if let Err(fault) = fold.held.fold(event, self.domain) {
                    self.stand_still(&mut fold, event.version, fault).await?;
                }
                if !fold.is_over() {
                    current = Some(fold);
                    continue;
                }
                self.finish(&mut fold).await?;
                bytes += fold.held.bytes;
                folds.push(fold);
                if folds.len() >= SAVED || bytes >= SAVED_BYTES {
                    self.save(partition, mem::take(&mut folds)).await?;
                    bytes = 0;
                }
            }
        }
        self.save(partition, folds).await
    }

    /// Writes down what an aggregate has come to.
    async fn finish(&self, fold: &mut Fold) -> Result<(), StoreError> {
        if fold.folded.is_some() {
            return Ok(());
        }
        match fold.held.folded() {
            Ok(folded) => fold.folded = Some(folded),
            Err(_) => {
                // One of its states is too large: which one, shows when each is written down.
                let (version, fault) = self.first_unfit(fold).await?;
                self.stand_still(fold, version, fault).await?;
            }
        }
        Ok(())
    }

    /// Lets an aggregate stand still before the event that cannot be folded: with what it was until then.
    async fn stand_still(
        &self,
        fold: &mut Fold,
        mut version: Version,
        mut fault: FoldFault,
    ) -> Result<(), StoreError> {
        loop {
            let mut held = self.begin_again(fold).await?;
            let up_to = Version(version.0 - 1);
            let mut impossible = None;
            self.each_event(fold, up_to, |event| {
                impossible = held.fold(event, self.domain).err();
                impossible.is_none()
            })
            .await?;
            match (impossible, held.faulted(&fault)) {
                (None, Ok(folded)) => {
                    fold.held = held;
                    fold.folded = Some(folded);
                    return Ok(());
                }
                _ => (version, fault) = self.first_unfit(fold).await?,
            }
        }
    }

    /// The first event after which there is no state that can be stored, and why.
    async fn first_unfit(&self, fold: &Fold) -> Result<(Version, FoldFault), StoreError> {
        let mut held = self.begin_again(fold).await?;
        let mut found = None;
        self.each_event(fold, fold.target.version, |event| {
            let folded = held.fold(event, self.domain);
            let fault = folded.and_then(|()| held.folded().map(drop)).err();
            found = fault.map(|fault| (event.version, fault));
            found.is_none()
        })
        .await?;
        found.ok_or_else(|| {
            let id = fold.target.aggregate_id;
            StoreError::Inconsistent(format!("{id} is folded in one way now and in another then"))
        })
    }

    async fn begin_again(&self, fold: &Fold) -> Result<Held, StoreError> {
        let range = EventRange {
            aggregate_id: fold.target.aggregate_id,
            first: Version(1),
            last: Version(1),
        };
        let first = self.events(&[range]).await?;
        let first = first.first().ok_or_else(|| missing(&[range]))?;
        Ok(Held::before(first, self.domain))
    }

    /// Goes through the events of one aggregate from the first one, until `each` has enough.
    async fn each_event(
        &self,
        fold: &Fold,
        up_to: Version,
        mut each: impl FnMut(&Event) -> bool,
    ) -> Result<(), StoreError> {
        let mut next = Version(1);
        while next <= up_to {
            let range = EventRange {
                aggregate_id: fold.target.aggregate_id,
                first: next,
                last: up_to.min(Version(next.0.saturating_add(PAGE_EVENTS - 1))),
            };
            let events = self.events(&[range]).await?;
            let last = events.last().ok_or_else(|| missing(&[range]))?;
            next = last.version.next();
            if !events.iter().all(&mut each) {
                return Ok(());
            }
        }
        Ok(())
    }

    async fn events(&self, ranges: &[EventRange]) -> Result<Vec<Event>, StoreError> {
        again(|| self.store.events_to_fold(ranges, PAGE_BYTES)).await
    }

    async fn save(&self, partition: Partition, folds: Vec<Fold>) -> Result<(), StoreError> {
        for fold in self.save_once(partition, folds).await? {
            self.save_in_the_end(partition, fold).await?;
        }
        Ok(())
    }

    /// Saves what was folded; those that have changed meanwhile come back.
    async fn save_once(
        &self,
        partition: Partition,
        folds: Vec<Fold>,
    ) -> Result<Vec<Fold>, StoreError> {
        if folds.is_empty() {
            return Ok(folds);
        }
        let projected: Vec<Projected> = folds.iter().map(Fold::projected).collect();
        let outcomes = again(|| self.store.save_rebuilt(partition, &projected)).await?;
        let mut written: Vec<Arc<ReadModel>> = Vec::new();
        let mut changed = Vec::new();
        for (mut fold, outcome) in folds.into_iter().zip(outcomes) {
            match (outcome, fold.folded.take()) {
                (RebuildOutcome::Written(position), Some(folded)) => {
                    let id = fold.target.aggregate_id;
                    written.push(Arc::new(stored_model(partition, id, folded, position)));
                }
                (RebuildOutcome::Changed, folded) => {
                    // A fold that stands still has come to its end, whatever was appended since.
                    fold.folded = folded.filter(|folded| folded.fault.is_some());
                    changed.push(fold);
                }
                _ => {}
            }
        }
        if !written.is_empty() {
            (self.on_commit)(Committed::Changes(partition, written));
        }
        Ok(changed)
    }

    /// Goes on folding one aggregate until it is saved.
    async fn save_in_the_end(
        &self,
        partition: Partition,
        mut fold: Fold,
    ) -> Result<(), StoreError> {
        loop {
            let scope = RebuildScope::Aggregate(fold.target.aggregate_id);
            let target = self.targets(partition, &scope, None).await?.pop();
            fold.target = target.ok_or_else(|| {
                StoreError::Inconsistent("an aggregate was there and is not any more".to_owned())
            })?;
            while !fold.is_over() {
                let range = EventRange {
                    aggregate_id: fold.target.aggregate_id,
                    first: fold.held.version.next(),
                    last: fold
                        .target
                        .version
                        .min(Version(fold.held.version.0.saturating_add(PAGE_EVENTS))),
                };
                let events = self.events(&[range]).await?;
                if events.is_empty() {
                    return Err(missing(&[range]));
                }
                for event in &events {
                    if let Err(fault) = fold.held.fold(event, self.domain) {
                        self.stand_still(&mut fold, event.version, fault).await?;
                        break;
                    }
                }
            }
            self.finish(&mut fold).await?;
            match self.save_once(partition, vec![fold]).await?.pop() {
                Some(changed) => fold = changed,
                None => return Ok(()),
            }
            sleep(PAUSE_BEFORE_SAVING_AGAIN).await;
        }
    }
}

/// How many events are read at a time: fewer where they are large.
struct PageSize(i32);

impl Default for PageSize {
    fn default() -> Self {
        Self(PAGE_EVENTS)
    }
}

impl PageSize {
    /// The next events to read: what is left of the current aggregate, and then those that wait.
    fn ranges(&self, current: Option<&Fold>, waiting: &VecDeque<RebuildTarget>) -> Vec<EventRange> {
        let current = current.map(|fold| (&fold.target, fold.held.version.next()));
        let waiting = waiting.iter().map(|target| (target, Version(1)));
        let mut room = self.0;
        let mut ranges = Vec::new();
        for (target, first) in current.into_iter().chain(waiting) {
            if room <= 0 {
                break;
            }
            let last = target
                .version
                .min(Version(first.0.saturating_add(room - 1)));
            room -= last.0 - first.0 + 1;
            ranges.push(EventRange {
                aggregate_id: target.aggregate_id,
                first,
                last,
            });
        }
        ranges
    }

    /// What did not fit was read by the database for nothing.
    fn adapt(&mut self, ranges: &[EventRange], read: usize) {
        let count = |range: &EventRange| range.last.0 - range.first.0 + 1;
        let asked: i32 = ranges.iter().map(count).sum();
        let read = i32::try_from(read).unwrap_or(i32::MAX);
        self.0 = if read < asked {
            read.max(1)
        } else {
            self.0.saturating_mul(2).min(PAGE_EVENTS)
        };
    }
}

fn missing(ranges: &[EventRange]) -> StoreError {
    let ids: Vec<String> = ranges
        .iter()
        .take(3)
        .map(|range| range.aggregate_id.to_string())
        .collect();
    StoreError::Inconsistent(format!("events are missing of {}", ids.join(", ")))
}

/// Tries again what the database fails at for a while.
async fn again<T, F: Future<Output = Result<T, StoreError>>>(
    work: impl Fn() -> F,
) -> Result<T, StoreError> {
    let mut tries = 0;
    loop {
        match work().await {
            Err(error) if error.is_passing() && tries < TRIES => {
                tries += 1;
                tracing::debug!(
                    error = &error as &dyn std::error::Error,
                    "a rebuild waits for the database"
                );
                sleep(PAUSE_AFTER_FAULT).await;
            }
            answer => return answer,
        }
    }
}

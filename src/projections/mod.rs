//! Read models: folding events into them, folding them anew, writing them from outside, waiting for them; and publishing events
//! as stream entries. Floor 4.

mod batch;
mod projector;
mod publisher;
mod reading;
mod rebuild;
mod states;
mod status;

use std::{panic::resume_unwind, sync::Arc};

use tokio::{sync::Semaphore, task::JoinError};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument;

pub use projector::run_projector;
pub use publisher::run_publisher;
pub use reading::WaitError;
pub use rebuild::Rebuild;
pub use status::ProjectionStatus;

use crate::{
    domain::{
        AggregateId, Domain, ExternalModel, ExternalOutcome, Folded, Json, Partition, Position,
        ReadModel, ReadModelSource, append::Committed,
    },
    store::{RebuildScope, Store, StoreError},
    tail::Tail,
    traces::Traces,
};

/// Rebuilds of single aggregates that run at a time, at most: each has a page of events in memory.
const SINGLE_REBUILDS: usize = 8;

/// How a runner of a partition ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It was asked to.
    Stopped,
    /// Another runner has taken its place.
    FencedOff,
}

/// Why read models are not folded anew.
#[derive(Debug, thiserror::Error)]
pub enum RebuildError {
    /// Many are folded anew already, or many single ones.
    #[error("read models are being rebuilt already")]
    Busy,
    /// The server stops: what was folded until then is saved.
    #[error("the server is stopping")]
    Stopping,
    /// There is no such aggregate, or it has no event.
    #[error("there is no aggregate {0} with events")]
    NotFound(AggregateId),
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It has panicked.
    #[error("a rebuild of read models has failed")]
    Failed(#[source] JoinError),
}

/// All that has to do with the read models of a database.
pub struct Projections {
    store: Store,
    tail: Arc<Tail>,
    domain: Arc<Domain>,
    traces: Traces,
    /// Many read models are folded anew by one at a time, and single ones by a few.
    rebuilding_many: Arc<Semaphore>,
    rebuilding_one: Arc<Semaphore>,
    stopping: CancellationToken,
    tasks: TaskTracker,
}

impl Projections {
    /// The projections of a domain.
    #[must_use]
    pub fn new(store: Store, tail: Arc<Tail>, domain: Arc<Domain>, traces: Traces) -> Arc<Self> {
        Arc::new(Self {
            store,
            tail,
            domain,
            traces,
            rebuilding_many: Arc::new(Semaphore::new(1)),
            rebuilding_one: Arc::new(Semaphore::new(SINGLE_REBUILDS)),
            stopping: CancellationToken::new(),
            tasks: TaskTracker::new(),
        })
    }

    /// Writes a read model from outside: the projector leaves it alone from then on. Those who wait for it hear of it also
    /// where whoever wrote it has gone away.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn write_external(
        self: &Arc<Self>,
        model: ExternalModel,
    ) -> Result<ExternalOutcome, StoreError> {
        let projections = self.clone();
        let written = async move { projections.write_and_tell(model).await };
        let task = self.tasks.spawn(written.in_current_span());
        match task.await {
            Ok(written) => written,
            Err(ended) => resume_unwind(ended.into_panic()),
        }
    }

    async fn write_and_tell(&self, model: ExternalModel) -> Result<ExternalOutcome, StoreError> {
        let mut giving_way = self.store.giving_way();
        let outcome = loop {
            match self.store.write_read_model(model.clone()).await {
                Err(StoreError::GaveWay(_)) if giving_way.pause().await => {}
                outcome => break outcome?,
            }
        };
        if let ExternalOutcome::Written(model) = &outcome {
            let changes = vec![Arc::new(model.clone())];
            self.tail
                .take_committed(Committed::Changes(model.partition, changes));
        }
        Ok(outcome)
    }

    /// Folds read models anew from their first event, while the projector goes on, and answers how many. It goes on to its end
    /// also where whoever asked has gone away.
    ///
    /// # Errors
    /// When as many as may be are folded anew already, the aggregate is not there, the server stops, or the database fails.
    pub async fn rebuild(self: &Arc<Self>, scope: RebuildScope) -> Result<u64, RebuildError> {
        let turns = match &scope {
            RebuildScope::Aggregate(_) => &self.rebuilding_one,
            RebuildScope::Type(_) | RebuildScope::All => &self.rebuilding_many,
        };
        let turn = turns.clone().try_acquire_owned();
        let turn = turn.map_err(|_| RebuildError::Busy)?;
        if let RebuildScope::Aggregate(id) = &scope
            && self.store.rebuild_size(&scope).await?.aggregates == 0
        {
            return Err(RebuildError::NotFound(*id));
        }
        let projections = self.clone();
        run_to_end(&self.tasks, self.stopping.clone(), async move {
            let count = projections.rebuild_now(&scope).await;
            drop(turn);
            Ok(count?)
        })
        .await
    }

    async fn rebuild_now(&self, scope: &RebuildScope) -> Result<u64, StoreError> {
        let rebuild = Rebuild {
            store: &self.store,
            domain: &self.domain,
            on_commit: &|committed| self.tail.take_committed(committed),
            on_progress: &|_| {},
        };
        let count = rebuild.run(scope).await;
        match &count {
            Ok(count) => tracing::info!(count, ?scope, "read models were rebuilt"),
            Err(error) => tracing::error!(
                ?scope,
                error = error as &dyn std::error::Error,
                "read models could not be rebuilt"
            ),
        }
        count
    }

    /// Ends what is under way. What was saved stays; the rest is as it was.
    pub async fn stop(&self) {
        self.stopping.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// Runs a rebuild as a task of its own, which the stop of the server ends and nothing else.
async fn run_to_end(
    tasks: &TaskTracker,
    stopping: CancellationToken,
    rebuild: impl Future<Output = Result<u64, RebuildError>> + Send + 'static,
) -> Result<u64, RebuildError> {
    let task = tasks.spawn(async move {
        let rebuilt = stopping.run_until_cancelled(rebuild).await;
        rebuilt.unwrap_or(Err(RebuildError::Stopping))
    });
    let ended = task.await;
    ended.unwrap_or_else(|error| Err(RebuildError::Failed(error)))
}

/// A read model as it is stored now.
fn stored_model(
    partition: Partition,
    aggregate_id: AggregateId,
    folded: Folded,
    change_position: Position,
) -> ReadModel {
    ReadModel {
        partition,
        aggregate_id,
        aggregate_type: folded.aggregate_type,
        deleted_at: folded.data.is_none().then_some(folded.updated_at),
        data: folded.data.unwrap_or_else(Json::null),
        version: folded.version,
        source: ReadModelSource::Projected,
        fault: folded.fault,
        change_position,
        created_at: folded.created_at,
        updated_at: folded.updated_at,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_rebuild_that_panics_has_failed_and_one_that_is_stopped_has_not() {
        let (tasks, stopping) = (TaskTracker::new(), CancellationToken::new());
        let panics = run_to_end(&tasks, stopping.clone(), async { panic!("for a test") });
        let failed = panics.await;
        assert!(matches!(failed, Err(RebuildError::Failed(_))), "{failed:?}");
        let counted = run_to_end(&tasks, stopping.clone(), async { Ok(7) }).await;
        assert_eq!(counted.unwrap(), 7);
        stopping.cancel();
        let stopped = run_to_end(&tasks, stopping, std::future::pending()).await;
        assert!(
            matches!(stopped, Err(RebuildError::Stopping)),
            "{stopped:?}"
        );
    }
}

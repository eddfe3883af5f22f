//! Reading a read model that has come to a version, so that a client reads its own writes. Floor 4.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, timeout_at};

use super::Projections;
use crate::{
    domain::{AggregateId, ReadModel, Version},
    store::StoreError,
};

/// Why a read model has not come to a version.
#[derive(Debug, thiserror::Error)]
pub enum WaitError {
    /// It has not come so far in time.
    #[error("the read model is at version {version} and did not come further in time")]
    Behind {
        /// The version that it has; 0 where there is none.
        version: Version,
    },
    /// It does not come further by itself.
    #[error("the read model stands still at version {version}: {fault}")]
    Faulted {
        /// The version that it has.
        version: Version,
        /// Why the event after it could not be folded.
        fault: String,
    },
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Projections {
    /// Waits until a read model has come to a version, and answers it; none where its aggregate was deleted at that version or
    /// later.
    ///
    /// # Errors
    /// When it does not come to that version by itself or within `limit`, or the database fails.
    pub async fn read_model_at(
        &self,
        id: AggregateId,
        version: Version,
        limit: Duration,
    ) -> Result<Option<Arc<ReadModel>>, WaitError> {
        let mut watch = self.tail.watch_read_model(id);
        let deadline = Instant::now() + limit;
        // What is there already is answered whatever the limit is: that is for waiting, not for reading.
        let mut model = watch.next().await?;
        loop {
            let reached = model.as_ref().map_or(Version::NONE, |model| model.version);
            match model {
                Some(model) if model.version >= version => {
                    return Ok(model.is_there().then_some(model));
                }
                None if version == Version::NONE => return Ok(None),
                Some(model) if model.fault.is_some() => {
                    // The window may lag behind a rebuild: what is stored decides.
                    let stored = self.store.read_model(id).await?;
                    if let Some(stored) = stored
                        && let Some(fault) = stored.fault
                    {
                        let version = stored.version;
                        return Err(WaitError::Faulted { version, fault });
                    }
                }
                _ => {}
            }
            model = match timeout_at(deadline, watch.next()).await {
                Ok(model) => model?,
                Err(_) => return Err(WaitError::Behind { version: reached }),
            };
        }
    }
}

//! What goes on in the background for as long as the server runs: started again where it panics. Floor 5.

use std::{error::Error, future::Future, time::Duration};

use tokio::time::sleep;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// The pause after a panic.
const PAUSE_AFTER_PANIC: Duration = Duration::from_secs(1);

/// The tasks of a server.
pub(super) struct Supervision {
    pub(super) tasks: TaskTracker,
    pub(super) stopping: CancellationToken,
}

impl Supervision {
    /// Starts a task, which gets a token that tells it to end. One that panics is told at the level of errors, and started
    /// again after a pause; one that ends has ended.
    pub(super) fn start<F>(
        &self,
        name: &'static str,
        begin: impl Fn(CancellationToken) -> F + Send + 'static,
    ) where
        F: Future<Output = ()> + Send + 'static,
    {
        let stopping = self.stopping.clone();
        self.tasks.spawn(async move {
            while let Err(error) = tokio::spawn(begin(stopping.clone())).await {
                tracing::error!(
                    name,
                    error = &error as &dyn Error,
                    "a task of the server has ended with a fault; it is started again"
                );
                tokio::select! {
                    () = stopping.cancelled() => return,
                    () = sleep(PAUSE_AFTER_PANIC) => {}
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_task_that_panics_is_started_again_until_the_server_stops() {
        let supervision = Supervision {
            tasks: TaskTracker::new(),
            stopping: CancellationToken::new(),
        };
        let begun = Arc::new(AtomicUsize::new(0));
        let (counted, running) = (begun.clone(), Arc::new(tokio::sync::Notify::new()));
        let runs = running.clone();
        supervision.start("stumbling", move |stop| {
            let number = counted.fetch_add(1, Ordering::Relaxed);
            let runs = runs.clone();
            async move {
                assert!(number >= 2, "it stumbles");
                runs.notify_one();
                stop.cancelled().await;
            }
        });
        tokio::time::timeout(Duration::from_secs(60), running.notified())
            .await
            .expect("it runs in the end");
        assert_eq!(begun.load(Ordering::Relaxed), 3);
        supervision.stopping.cancel();
        supervision.tasks.close();
        supervision.tasks.wait().await;
        assert_eq!(begun.load(Ordering::Relaxed), 3, "it has ended for good");
    }
}

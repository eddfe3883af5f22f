//! Giving one event again to whoever handles its type, now and whatever was done with it before. Floor 4.

use std::{panic::resume_unwind, sync::Arc};

use futures_util::{StreamExt, stream};
use tokio::time::timeout;
use tracing::Instrument;

use super::{Handlers, batches::entry_of, delays::retry_delay};
use crate::{
    domain::{
        Delivery, DeliveryId, DeliveryStatus, Event, EventHandler, HandlerFunction, LastError,
        StreamName,
    },
    store::StoreError,
};

/// So many handlers are given the event at a time.
const AT_A_TIME: usize = 64;
/// Why an event was not given again.
const BUSY: &str = "the handler was busy with other events for as long as one may take";

impl Handlers {
    /// Gives an event to every active handler of its type, and answers what came of it, sorted by their names. What fails is
    /// stored, and tried again as any other delivery.
    ///
    /// # Errors
    /// When the database fails: some handlers may have been given it.
    pub async fn give_again(
        self: &Arc<Self>,
        event: Arc<Event>,
    ) -> Result<Vec<(Arc<EventHandler>, Delivery)>, StoreError> {
        let handlers = self.refresh().await?;
        let wanting: Vec<Arc<EventHandler>> = handlers
            .iter()
            .filter(|handler| handler.is_active && handler.wants(&event))
            .cloned()
            .collect();
        let given: Vec<_> = stream::iter(wanting)
            .map(|handler| {
                let (handlers, event) = (self.clone(), event.clone());
                let given = async move { handlers.give_to(handler, event).await };
                // What a call has come to is stored also where whoever asked for it has gone away.
                let task = tokio::spawn(given.in_current_span());
                async {
                    task.await
                        .unwrap_or_else(|ended| resume_unwind(ended.into_panic()))
                }
            })
            .buffered(AT_A_TIME)
            .collect()
            .await;
        let given: Result<Vec<_>, StoreError> = given.into_iter().collect();
        let given = given?;
        self.refresh().await?;
        Ok(given)
    }

    async fn give_to(
        &self,
        handler: Arc<EventHandler>,
        event: Arc<Event>,
    ) -> Result<(Arc<EventHandler>, Delivery), StoreError> {
        let spans = match handler.function {
            // Each call has a span of its own.
            HandlerFunction::Webhook(_) | HandlerFunction::Rust(_) => None,
            _ => Some(self.begin_batch(std::slice::from_ref(&event))),
        };
        let endpoint = self.endpoint(&handler);
        let called = timeout(self.config.time_out, endpoint.wait_out_of_turn());
        let Ok(_turn) = called.await else {
            return self
                .store_failed(handler, &event, LastError::new(BUSY))
                .await;
        };
        let outcome = match &handler.function {
            HandlerFunction::Log => {
                self.log(&handler, &event);
                Ok(())
            }
            HandlerFunction::Publish(stream) => self.publish(stream, &event).await,
            HandlerFunction::Sql(function) => {
                let _permit = self.sql_calls.acquire().await;
                let time_out = self.config.time_out;
                self.store
                    .call_sql_function(function, &event, time_out)
                    .await?
            }
            HandlerFunction::Webhook(_) | HandlerFunction::Rust(_) => {
                self.call(&handler, event.clone()).await
            }
        };
        if let Some(spans) = spans {
            let told = |_| Some(outcome.as_ref().copied().map_err(ToString::to_string));
            self.end_batch(spans, &handler, told);
        }
        let delivery = match outcome {
            Ok(()) => self.told(&handler, &event, DeliveryStatus::Delivered, None),
            Err(error) => return self.store_failed(handler, &event, error).await,
        };
        Ok((handler, delivery))
    }

    async fn store_failed(
        &self,
        handler: Arc<EventHandler>,
        event: &Event,
        error: LastError,
    ) -> Result<(Arc<EventHandler>, Delivery), StoreError> {
        let id = DeliveryId(self.clock.new_id());
        let delay = retry_delay(&self.config, 1, id.0);
        let stored = self
            .store
            .store_failed(handler.id, event, id, &error, delay)
            .await?;
        // One that is not stored the handler comes to by itself.
        let delivery = stored
            .unwrap_or_else(|| self.told(&handler, event, DeliveryStatus::Retrying, Some(error)));
        Ok((handler, delivery))
    }

    /// What is answered of a delivery that is not stored.
    fn told(
        &self,
        handler: &EventHandler,
        event: &Event,
        status: DeliveryStatus,
        last_error: Option<LastError>,
    ) -> Delivery {
        Delivery {
            partition: event.partition,
            id: DeliveryId(self.clock.new_id()),
            handler_id: handler.id,
            position: event.position,
            aggregate_id: event.aggregate_id,
            status,
            attempts: 1,
            last_error,
            next_attempt_at: None,
            updated_at: self.clock.now(),
        }
    }

    /// Appends as anybody does; what the server cannot take now is tried again like any other delivery.
    async fn publish(&self, stream: &StreamName, event: &Event) -> Result<(), LastError> {
        let appended = self.appender.append_entry(entry_of(event, stream)).await;
        appended
            .map(drop)
            .map_err(|error| LastError::new(&error.to_string()))
    }
}

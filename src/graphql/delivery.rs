//! Deliveries: events that were given to a handler. Floor 6.

use std::sync::Arc;

use async_graphql::{Context, Enum, Object, Result, parser::types::Field};

use super::{
    errors::ApiError,
    event::EventObject,
    event_handler::EventHandlerObject,
    loaders::Loaders,
    pagination::connection,
    plain::{Fragments, Node, Plain, write_object},
    scalars::{DateTimeScalar, UuidScalar},
    text::JsonText,
};
use crate::{
    domain::{Cursor, CursorError, Delivery, DeliveryId, DeliveryStatus as Status, EventHandler},
    store::{Store, StoreError},
};

/// How far a delivery is.
#[derive(Clone, Copy, Debug, Enum, PartialEq, Eq)]
#[graphql(remote = "Status")]
pub enum DeliveryStatus {
    /// It is done.
    Delivered,
    /// It waits behind another one of the same aggregate.
    Waiting,
    /// It is tried (again) when its time has come.
    Retrying,
    /// Its last attempt failed.
    Dead,
}

/// One event given to one handler. Only those that are not done are stored: RETRYING after a failure, WAITING behind a
/// RETRYING one of the same aggregate, DEAD after the last attempt. A DELIVERED one is only ever the answer of processEvent.
#[derive(Clone)]
pub struct DeliveryObject {
    handler: Arc<EventHandler>,
    delivery: Arc<Delivery>,
}

impl DeliveryObject {
    pub(super) fn new(handler: Arc<EventHandler>, delivery: Delivery) -> Self {
        Self {
            handler,
            delivery: Arc::new(delivery),
        }
    }
}

/// One event given to one handler. Only those that are not done are stored: RETRYING after a failure, WAITING behind a
/// RETRYING one of the same aggregate, DEAD after the last attempt. A DELIVERED one is only ever the answer of processEvent.
#[Object(name = "Delivery")]
impl DeliveryObject {
    /// Its id.
    async fn id(&self) -> UuidScalar {
        UuidScalar(self.delivery.id.0)
    }

    /// Whom the event was given to.
    async fn handler(&self) -> Node<EventHandlerObject> {
        Node(EventHandlerObject(self.handler.clone()))
    }

    /// What was given.
    async fn event(&self, ctx: &Context<'_>) -> Result<Node<EventObject>> {
        let loaders = ctx.data_unchecked::<Arc<Loaders>>();
        let place = (self.delivery.partition, self.delivery.position);
        let event = loaders.events_at.one(place).await?;
        event
            .map(|event| Node(EventObject(event)))
            .ok_or_else(|| StoreError::Inconsistent("a delivery has no event".to_owned()))
            .map_err(|error| ApiError::from(error).into())
    }

    /// How far it is.
    async fn status(&self) -> DeliveryStatus {
        self.delivery.status.into()
    }

    /// How often it was tried.
    async fn attempts(&self) -> i32 {
        self.delivery.attempts
    }

    /// Why the last attempt failed.
    async fn last_error(&self) -> Option<&str> {
        self.delivery
            .last_error
            .as_ref()
            .map(|error| error.as_str())
    }

    /// When it is tried next.
    async fn next_attempt_at(&self) -> Option<DateTimeScalar> {
        self.delivery.next_attempt_at.map(DateTimeScalar)
    }

    /// When any of this changed.
    async fn updated_at(&self) -> DateTimeScalar {
        DateTimeScalar(self.delivery.updated_at)
    }
}

impl Plain for DeliveryObject {
    fn write(&self, field: &Field, fragments: &Fragments, text: &mut JsonText) -> Option<()> {
        let delivery = self.delivery.as_ref();
        match field.name.node.as_str() {
            "id" => text.uuid(delivery.id.0),
            "status" => text.text(delivery.status.as_str()),
            "attempts" => text.number(delivery.attempts),
            "lastError" => text.optional(delivery.last_error.as_ref(), |text, error| {
                text.text(error.as_str())
            }),
            "nextAttemptAt" => text.optional(delivery.next_attempt_at, JsonText::instant),
            "updatedAt" => text.instant(delivery.updated_at),
            "handler" => {
                let handler = EventHandlerObject(self.handler.clone());
                write_object(&handler, &field.selection_set.node, fragments, text)
            }
            _ => None,
        }
    }
}

connection!(
    DeliveryConnection,
    DeliveryEdge,
    DeliveryObject,
    "deliveries"
);

/// The delivery behind which a list goes on.
pub(super) fn parse_after(
    store: &Store,
    after: Option<&str>,
) -> Result<Option<DeliveryId>, ApiError> {
    let Some(text) = after.filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    match Cursor::decode(text, store.database_id(), store.partitions()) {
        Ok(Cursor::Deliveries(id)) => Ok(Some(id)),
        Ok(_) => Err(ApiError::bad_input("after", CursorError::OtherKind)),
        Err(error) => Err(ApiError::bad_input("after", error)),
    }
}

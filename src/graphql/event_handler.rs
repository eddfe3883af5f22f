//! Event handlers: their type, and the queries and mutations for them. Floor 6.

use std::sync::Arc;

use async_graphql::{Context, InputObject, Object, Result, SimpleObject, parser::types::Field};

use super::{
    access::require,
    delivery::{DeliveryConnection, DeliveryObject, DeliveryStatus, parse_after},
    errors::ApiError,
    event::check_length,
    loaders::{DeliveriesAsked, Loaders},
    pagination::{check_first, list_cost, place_of},
    plain::{Fragments, Node, Nodes, Plain},
    scalars::{DateTimeScalar, Long, UuidScalar},
    text::JsonText,
};
use crate::{
    app::App,
    domain::{
        Cursor, CursorError, DeliveryId, DeliveryStatus as Status, EventHandler, EventId,
        EventType, HandlerFunction, HandlerName, Place, Position, Role, check_handler_name,
    },
    handlers::{RegisterError, Registration},
    store::Store,
};

/// Runs its function for every event of its types, at least once each, in order for each aggregate.
#[derive(Clone)]
pub struct EventHandlerObject(pub(super) Arc<EventHandler>);

/// Runs its function for every event of its types, at least once each, in order for each aggregate.
#[Object(name = "EventHandler")]
impl EventHandlerObject {
    /// Its id.
    async fn id(&self) -> UuidScalar {
        UuidScalar(self.0.id.0)
    }

    /// Its name; no two have the same.
    async fn name(&self) -> &str {
        self.0.name.as_str()
    }

    /// Empty: every type.
    async fn event_types(&self) -> Vec<&str> {
        self.0.event_types.iter().map(EventType::as_str).collect()
    }

    /// log, publish:STREAM, http(s)://…, sql:FUNCTION (PostgreSQL only), or the name of a function that the server has in Rust.
    async fn function(&self) -> String {
        self.0.function.to_string()
    }

    /// Whether it is given events; one that is not goes on where it was once it is active again.
    async fn is_active(&self) -> bool {
        self.0.is_active
    }

    /// True while it waits at its place because its endpoint failed many times in a row; it is probed until it answers.
    async fn is_paused(&self, ctx: &Context<'_>) -> bool {
        ctx.data_unchecked::<Arc<App>>()
            .handlers()
            .is_paused(&self.0)
    }

    /// When it was registered.
    async fn created_at(&self) -> DateTimeScalar {
        DateTimeScalar(self.0.created_at)
    }

    /// Events of the log, of any type, that it has still to look at.
    async fn lag_events(&self, ctx: &Context<'_>) -> Result<Long> {
        let loaders = ctx.data_unchecked::<Arc<Loaders>>();
        let lag = loaders
            .handler_lags
            .one(self.0.id)
            .await?
            .unwrap_or_default();
        Ok(Long(i64::try_from(lag).unwrap_or(Position::MAX.0)))
    }

    /// Its deliveries that are not done.
    #[graphql(complexity = "list_cost(first, child_complexity)")]
    async fn deliveries(
        &self,
        ctx: &Context<'_>,
        status: Option<DeliveryStatus>,
        #[graphql(default = 20)] first: i32,
        after: Option<String>,
    ) -> Result<DeliveryConnection> {
        let store = ctx.data_unchecked::<Arc<App>>().store();
        let first = check_first(first)?;
        let after = parse_after(store, after.as_deref())?;
        let asked = DeliveriesAsked {
            handler_id: self.0.id,
            status: status.map(Status::from),
            after,
            first: first + 1,
        };
        let loaders = ctx.data_unchecked::<Arc<Loaders>>();
        let mut page = loaders.deliveries.one(asked).await?.unwrap_or_default();
        let has_next = page.len() > first;
        page.truncate(first);
        let nodes = page
            .into_iter()
            .map(|delivery| {
                let place = Cursor::Deliveries(delivery.id);
                (place, DeliveryObject::new(self.0.clone(), delivery))
            })
            .collect();
        Ok(DeliveryConnection::new(
            store,
            nodes,
            after.is_some(),
            has_next,
            None,
        ))
    }
}

impl Plain for EventHandlerObject {
    fn write(&self, field: &Field, _: &Fragments, text: &mut JsonText) -> Option<()> {
        let handler = self.0.as_ref();
        match field.name.node.as_str() {
            "id" => text.uuid(handler.id.0),
            "name" => text.text(handler.name.as_str()),
            "eventTypes" => text.list(&handler.event_types, |name, text| text.text(name.as_str())),
            "function" => text.text(&handler.function.to_string()),
            "isActive" => text.boolean(handler.is_active),
            "createdAt" => text.instant(handler.created_at),
            _ => None,
        }
    }
}

/// A handler to register.
#[derive(InputObject)]
pub struct RegisterEventHandlerInput {
    /// Its name: letters, digits and _ - . : / @ +.
    name: String,
    /// Empty or left out: every type.
    event_types: Option<Vec<String>>,
    /// What it does: log, publish:STREAM, http(s)://…, sql:FUNCTION (PostgreSQL only), or the name of a function that the server
    /// has in Rust.
    function: String,
    /// Where a new handler begins: behind this cursor, or with the first event ever for an empty text; left out, with the next
    /// event. One that is there already goes on where it is.
    start_after: Option<String>,
}

impl RegisterEventHandlerInput {
    async fn check(self, store: &Store) -> Result<Registration, ApiError> {
        let name = handler_name("input.name", &self.name)?;
        let types = self.event_types.unwrap_or_default();
        check_length("input.eventTypes", types.len())?;
        let check = |(index, name): (usize, &String)| {
            let field = || format!("input.eventTypes[{index}]");
            check_handler_name(name).map_err(|error| ApiError::bad_input(field(), error))?;
            EventType::new(name).map_err(|error| ApiError::bad_input(field(), error))
        };
        let event_types = types.iter().enumerate().map(check);
        let event_types = event_types.collect::<Result<Vec<_>, _>>()?;
        let function = HandlerFunction::parse(&self.function)
            .map_err(|error| ApiError::bad_input("input.function", error))?;
        let start = match self.start_after.as_deref() {
            None => None,
            Some(text) => Some(start_place(store, text).await?),
        };
        Ok(Registration {
            name,
            event_types,
            function,
            start,
        })
    }
}

async fn start_place(store: &Store, text: &str) -> Result<Vec<Position>, ApiError> {
    let (database, partitions) = (store.database_id(), store.partitions());
    if text.is_empty() {
        return Ok(Place::start(partitions).behind);
    }
    let wrong = |error: CursorError| ApiError::bad_input("input.startAfter", error);
    let cursor = Cursor::decode(text, database, partitions).map_err(wrong)?;
    let place = place_of(cursor).ok_or_else(|| wrong(CursorError::OtherKind))?;
    let heads = store.heads().await?.events;
    if place
        .behind
        .iter()
        .zip(&heads)
        .any(|(place, head)| place > head)
    {
        return Err(ApiError::not_reached(
            Place::behind(heads),
            database,
            partitions,
        ));
    }
    Ok(place.behind)
}

fn handler_name(field: &str, text: &str) -> Result<HandlerName, ApiError> {
    let name = HandlerName::new(text).map_err(|error| ApiError::bad_input(field, error))?;
    check_handler_name(text).map_err(|error| ApiError::bad_input(field, error))?;
    Ok(name)
}

/// The handlers that want events of a type.
fn wanting(
    registered: &[Arc<EventHandler>],
    event_type: Option<&EventType>,
) -> Vec<EventHandlerObject> {
    let wants = |handler: &&Arc<EventHandler>| match event_type {
        Some(name) => handler.event_types.is_empty() || handler.event_types.contains(name),
        None => true,
    };
    let wanted = registered.iter().filter(wants).cloned();
    wanted.map(EventHandlerObject).collect()
}

fn no_handler(field: &str, name: &HandlerName) -> ApiError {
    ApiError::not_found(field, format!("there is no event handler {name}"))
}

/// A handler to switch on or off.
#[derive(InputObject)]
pub struct SetEventHandlerActiveInput {
    /// Its name.
    name: String,
    /// Whether it is to be given events.
    is_active: bool,
}

/// A handler to remove.
#[derive(InputObject)]
pub struct RemoveEventHandlerInput {
    /// Its name.
    name: String,
}

/// An event to give again.
#[derive(InputObject)]
pub struct ProcessEventInput {
    /// Its id.
    event_id: UuidScalar,
}

/// Deliveries to try again.
#[derive(InputObject)]
pub struct RetryDeadDeliveriesInput {
    /// The name of their handler.
    handler_name: String,
    /// Which ones; left out: all dead ones.
    delivery_ids: Option<Vec<UuidScalar>>,
}

/// The handler as it is now.
#[derive(SimpleObject)]
pub struct RegisterEventHandlerPayload {
    /// The handler.
    event_handler: Node<EventHandlerObject>,
}

/// The handler as it is now.
#[derive(SimpleObject)]
pub struct SetEventHandlerActivePayload {
    /// The handler.
    event_handler: Node<EventHandlerObject>,
}

/// What became of it.
#[derive(SimpleObject)]
pub struct RemoveEventHandlerPayload {
    /// False where there was none of that name.
    removed: bool,
}

/// What became of it.
#[derive(SimpleObject)]
pub struct ProcessEventPayload {
    /// False where there is no such event.
    processed: bool,
    /// What came of it, one for each active handler of the event's type.
    deliveries: Nodes<DeliveryObject>,
}

/// What became of it.
#[derive(SimpleObject)]
pub struct RetryDeadDeliveriesPayload {
    /// How many are tried again.
    count: i32,
}

/// How many handlers a list of all of them is taken to have for the limit of complexity: more than most databases.
const ASSUMED_HANDLERS: i32 = 100;

#[derive(Default)]
pub struct EventHandlerQuery;

#[Object]
impl EventHandlerQuery {
    /// The event handlers, sorted by name; with `eventType`, those that want events of this type.
    #[graphql(complexity = "list_cost(ASSUMED_HANDLERS, child_complexity)")]
    async fn event_handlers(
        &self,
        ctx: &Context<'_>,
        event_type: Option<String>,
    ) -> Result<Nodes<EventHandlerObject>> {
        require(ctx, Role::Read)?;
        let handlers = ctx.data_unchecked::<Arc<App>>().handlers();
        let event_type = event_type
            .map(|name| EventType::new(&name))
            .transpose()
            .map_err(|error| ApiError::bad_input("eventType", error))?;
        let registered = handlers.all().await.map_err(ApiError::from)?;
        Ok(Nodes(wanting(&registered, event_type.as_ref())))
    }

    /// One event handler.
    async fn event_handler(
        &self,
        ctx: &Context<'_>,
        name: String,
    ) -> Result<Option<Node<EventHandlerObject>>> {
        require(ctx, Role::Read)?;
        let handlers = ctx.data_unchecked::<Arc<App>>().handlers();
        let name = handler_name("name", &name)?;
        let found = handlers.find(&name).await.map_err(ApiError::from)?;
        Ok(found.map(|handler| Node(EventHandlerObject(handler))))
    }
}

#[derive(Default)]
pub struct EventHandlerMutation;

#[Object]
impl EventHandlerMutation {
    /// Registers a handler, or changes the one of that name.
    async fn register_event_handler(
        &self,
        ctx: &Context<'_>,
        input: RegisterEventHandlerInput,
    ) -> Result<RegisterEventHandlerPayload> {
        require(ctx, Role::Admin)?;
        let app = ctx.data_unchecked::<Arc<App>>();
        let registration = input.check(app.store()).await?;
        let registered = app.handlers().register(registration).await;
        let handler = registered.map_err(|error| match error {
            RegisterError::Function(message) => ApiError::bad_input("input.function", message),
            RegisterError::TooMany => ApiError::bad_input("input.name", error),
            RegisterError::Read(error) => error.into(),
            RegisterError::Write(error) => ApiError::of_write(error),
        })?;
        Ok(RegisterEventHandlerPayload {
            event_handler: Node(EventHandlerObject(handler)),
        })
    }

    /// Makes a handler active, or not. One that becomes active goes on where it was.
    async fn set_event_handler_active(
        &self,
        ctx: &Context<'_>,
        input: SetEventHandlerActiveInput,
    ) -> Result<SetEventHandlerActivePayload> {
        require(ctx, Role::Admin)?;
        let handlers = ctx.data_unchecked::<Arc<App>>().handlers();
        let name = handler_name("input.name", &input.name)?;
        let handler = handlers
            .set_active(&name, input.is_active)
            .await
            .map_err(ApiError::of_write)?
            .ok_or_else(|| no_handler("input.name", &name))?;
        Ok(SetEventHandlerActivePayload {
            event_handler: Node(EventHandlerObject(handler)),
        })
    }

    /// Removes a handler with all that is stored of it.
    async fn remove_event_handler(
        &self,
        ctx: &Context<'_>,
        input: RemoveEventHandlerInput,
    ) -> Result<RemoveEventHandlerPayload> {
        require(ctx, Role::Admin)?;
        let handlers = ctx.data_unchecked::<Arc<App>>().handlers();
        let name = handler_name("input.name", &input.name)?;
        let removed = handlers.remove(&name).await.map_err(ApiError::of_write)?;
        Ok(RemoveEventHandlerPayload { removed })
    }

    /// Gives one event again to every active handler of its type, out of order. `processed` is false where there is no such
    /// event.
    async fn process_event(
        &self,
        ctx: &Context<'_>,
        input: ProcessEventInput,
    ) -> Result<ProcessEventPayload> {
        require(ctx, Role::Admin)?;
        let app = ctx.data_unchecked::<Arc<App>>();
        let id = EventId(input.event_id.0);
        let found = app.store().events_by_id(&[id]).await;
        let Some(event) = found.map_err(ApiError::from)?.remove(&id) else {
            return Ok(ProcessEventPayload {
                processed: false,
                deliveries: Nodes(Vec::new()),
            });
        };
        let given = app.handlers().give_again(Arc::new(event)).await;
        let given = given.map_err(ApiError::of_write)?.into_iter();
        let deliveries = given.map(|(handler, delivery)| DeliveryObject::new(handler, delivery));
        Ok(ProcessEventPayload {
            processed: true,
            deliveries: Nodes(deliveries.collect()),
        })
    }

    /// Puts dead deliveries of one handler back in line.
    async fn retry_dead_deliveries(
        &self,
        ctx: &Context<'_>,
        input: RetryDeadDeliveriesInput,
    ) -> Result<RetryDeadDeliveriesPayload> {
        require(ctx, Role::Admin)?;
        let handlers = ctx.data_unchecked::<Arc<App>>().handlers();
        let name = handler_name("input.handlerName", &input.handler_name)?;
        let ids: Option<Vec<DeliveryId>> = input
            .delivery_ids
            .map(|ids| ids.into_iter().map(|id| DeliveryId(id.0)).collect());
        check_length("input.deliveryIds", ids.as_ref().map_or(0, Vec::len))?;
        let count = handlers
            .retry_dead(&name, ids.as_deref())
            .await
            .map_err(ApiError::of_write)?
            .ok_or_else(|| no_handler("input.handlerName", &name))?;
        Ok(RetryDeadDeliveriesPayload {
            count: i32::try_from(count).unwrap_or(i32::MAX),
        })
    }
}

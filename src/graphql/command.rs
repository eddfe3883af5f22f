//! Commands: their types, the queries and mutations for them, and the subscription to one. Floor 6.

use std::sync::Arc;

use async_graphql::{
    Context, Enum, InputObject, Object, Result, SimpleObject, Subscription, parser::types::Field,
};
use futures_util::stream::{self, Stream};

use super::{
    Limited,
    access::require,
    aggregate::AggregateObject,
    errors::ApiError,
    event::{EventObject, check_correlation_id, check_length},
    loaders::{CommandsAsked, Loaders},
    pagination::{Order, check_first, connection, list_cost},
    plain::{Fragments, Node, Nodes, Plain, write_object},
    scalars::{DateTimeScalar, JsonScalar, UuidScalar},
    text::JsonText,
};
use crate::{
    app::App,
    commands::Executed,
    domain::{
        AggregateId, Command, CommandId, CommandKind, CommandStatus as Status,
        CommandType as TypeName, Cursor, CursorError, Event, Json, NewCommand, Role,
    },
    store::{CommandFilter, CommandPlace, EventRange, Store},
};

/// PENDING until it is decided; PROCESSED with its events; REJECTED by a rule of the domain; FAILED after the last try.
#[derive(Clone, Copy, Debug, Enum, PartialEq, Eq)]
#[graphql(remote = "Status")]
pub enum CommandStatus {
    /// It is not decided yet.
    Pending,
    /// It was decided, and its events are appended.
    Processed,
    /// A rule of the domain rejected it.
    Rejected,
    /// Its last try failed.
    Failed,
}

/// A request to change one aggregate.
#[derive(Clone)]
pub struct CommandObject {
    command: Arc<Command>,
    /// Its events, where they are at hand.
    events: Option<Vec<Arc<Event>>>,
}

impl From<Command> for CommandObject {
    fn from(command: Command) -> Self {
        Self {
            command: Arc::new(command),
            events: None,
        }
    }
}

/// A request to change one aggregate.
#[Object(name = "Command")]
impl CommandObject {
    /// Its id. It makes a command idempotent.
    async fn id(&self) -> UuidScalar {
        UuidScalar(self.command.id.0)
    }

    /// What is asked for, in the imperative: create_user.
    #[graphql(name = "type")]
    async fn command_type(&self) -> &str {
        self.command.command_type.as_str()
    }

    /// What is to be known about it.
    async fn data(&self) -> JsonScalar {
        JsonScalar(self.command.data.clone())
    }

    /// The aggregate that is to change.
    async fn aggregate_id(&self) -> UuidScalar {
        UuidScalar(self.command.aggregate_id.0)
    }

    /// How far it is.
    async fn status(&self) -> CommandStatus {
        self.command.status.into()
    }

    /// Why it was rejected (the domain's rule that it broke) or failed; null otherwise.
    async fn reason(&self) -> Option<&str> {
        self.command.reason.as_deref()
    }

    /// How often it was tried.
    async fn attempts(&self) -> i32 {
        self.command.attempts
    }

    /// When it was recorded.
    async fn created_at(&self) -> DateTimeScalar {
        DateTimeScalar(self.command.created_at)
    }

    /// It is not processed before this instant.
    async fn not_before(&self) -> Option<DateTimeScalar> {
        self.command.not_before.map(DateTimeScalar)
    }

    /// When it was processed, rejected or failed.
    async fn processed_at(&self) -> Option<DateTimeScalar> {
        self.command.processed_at.map(DateTimeScalar)
    }

    /// The events that it caused.
    async fn events(&self, ctx: &Context<'_>) -> Result<Nodes<EventObject>> {
        let events = match (&self.events, self.command.versions) {
            (Some(events), _) => events.clone(),
            (None, None) => Vec::new(),
            (None, Some((first, last))) => {
                let range = EventRange {
                    aggregate_id: self.command.aggregate_id,
                    first,
                    last,
                };
                let loaders = ctx.data_unchecked::<Arc<Loaders>>();
                loaders.event_ranges.one(range).await?.unwrap_or_default()
            }
        };
        Ok(Nodes(events.into_iter().map(EventObject).collect()))
    }

    /// The aggregate, if it is there.
    async fn aggregate(&self, ctx: &Context<'_>) -> Result<Option<Node<AggregateObject>>> {
        let loaders = ctx.data_unchecked::<Arc<Loaders>>();
        let aggregate = loaders.aggregates.one(self.command.aggregate_id).await?;
        Ok(aggregate.map(|aggregate| Node(AggregateObject(aggregate))))
    }
}

impl Plain for CommandObject {
    fn write(&self, field: &Field, fragments: &Fragments, text: &mut JsonText) -> Option<()> {
        let command = self.command.as_ref();
        match field.name.node.as_str() {
            "id" => text.uuid(command.id.0),
            "type" => text.text(command.command_type.as_str()),
            "data" => text.json(&command.data),
            "aggregateId" => text.uuid(command.aggregate_id.0),
            "status" => text.text(command.status.as_str()),
            "reason" => text.optional(command.reason.as_deref(), JsonText::text),
            "attempts" => text.number(command.attempts),
            "createdAt" => text.instant(command.created_at),
            "notBefore" => text.optional(command.not_before, JsonText::instant),
            "processedAt" => text.optional(command.processed_at, JsonText::instant),
            "events" => match (&self.events, command.versions) {
                (Some(events), _) => text.list(events, |event, text| {
                    let event = EventObject(event.clone());
                    write_object(&event, &field.selection_set.node, fragments, text)
                }),
                (None, None) => text.list::<()>(&[], |(), _| None),
                (None, Some(_)) => None,
            },
            _ => None,
        }
    }
}

connection!(CommandConnection, CommandEdge, CommandObject, "commands");

/// A type of command that this server accepts.
#[derive(SimpleObject)]
#[graphql(name = "CommandType")]
pub struct CommandTypeObject {
    /// Its name.
    name: String,
    /// The type of the aggregates that it changes.
    aggregate_type: String,
    /// The events that it can cause.
    event_types: Vec<String>,
    /// The JSON Schema that its data must meet.
    data_schema: Option<JsonScalar>,
}

impl From<&CommandKind> for CommandTypeObject {
    fn from(kind: &CommandKind) -> Self {
        let event_types = kind.event_types().iter();
        let schema = kind.description.data_schema.as_ref();
        Self {
            name: kind.description.name.to_string(),
            aggregate_type: kind.aggregate_type.to_string(),
            event_types: event_types.map(ToString::to_string).collect(),
            data_schema: schema.and_then(|schema| Json::of_value(schema).ok().map(JsonScalar)),
        }
    }
}

/// A command to record.
#[derive(InputObject)]
pub struct CreateCommandInput {
    /// Makes the command idempotent: the same id again returns the first one's outcome.
    id: Option<UuidScalar>,
    /// The aggregate that is to change.
    aggregate_id: UuidScalar,
    /// What is asked for, in the imperative.
    #[graphql(name = "type")]
    command_type: String,
    /// What is to be known about it.
    data: JsonScalar,
    /// Facts about the command itself, which its events get too: a JSON object.
    metadata: Option<JsonScalar>,
    /// It is not processed before this instant.
    not_before: Option<DateTimeScalar>,
}

impl CreateCommandInput {
    fn check(self, ctx: &Context<'_>) -> Result<NewCommand, ApiError> {
        let app = ctx.data_unchecked::<Arc<App>>();
        let limits = ctx.data_unchecked::<Limited>();
        let metadata = self
            .metadata
            .map_or_else(Json::empty_object, |metadata| metadata.0);
        if !metadata.is_object() {
            return Err(ApiError::bad_input(
                "input.metadata",
                "must be a JSON object",
            ));
        }
        limits.check_bytes("input.data", &self.data.0)?;
        limits.check_bytes("input.metadata", &metadata)?;
        check_correlation_id("input.metadata.correlationId", &metadata)?;
        Ok(NewCommand {
            id: CommandId(self.id.map_or_else(|| app.clock().new_id(), |id| id.0)),
            id_is_given: self.id.is_some(),
            aggregate_id: AggregateId(self.aggregate_id.0),
            command_type: TypeName::new(&self.command_type)
                .map_err(|error| ApiError::bad_input("input.type", error))?,
            data: self.data.0,
            metadata,
            not_before: self.not_before.map(|instant| instant.0),
        })
    }
}

/// A command to process.
#[derive(InputObject)]
pub struct ProcessCommandInput {
    /// Its id.
    id: UuidScalar,
}

/// What became of it.
#[derive(SimpleObject)]
pub struct CreateCommandPayload {
    /// The command.
    command: Node<CommandObject>,
}

/// What became of it.
#[derive(SimpleObject)]
pub struct ProcessCommandPayload {
    /// The command.
    command: Option<Node<CommandObject>>,
    /// False where it was not pending (any more).
    processed: bool,
}

/// What became of it.
#[derive(SimpleObject)]
pub struct ExecuteCommandPayload {
    /// The command.
    command: Node<CommandObject>,
    /// The events that it caused.
    events: Nodes<EventObject>,
}

/// The commands of an aggregate, in the order in which they were made.
pub(super) async fn commands_of(
    ctx: &Context<'_>,
    aggregate_id: AggregateId,
    first: i32,
    after: Option<&str>,
) -> Result<CommandConnection> {
    let store = ctx.data_unchecked::<Arc<App>>().store();
    let first = check_first(first)?;
    let after = parse_after(store, after)?;
    let asked = CommandsAsked {
        aggregate_id,
        after,
        first: first + 1,
    };
    let loaders = ctx.data_unchecked::<Arc<Loaders>>();
    let mut commands = loaders.commands.one(asked).await?.unwrap_or_default();
    let has_next = commands.len() > first;
    commands.truncate(first);
    Ok(page_of(store, commands, after.is_some(), has_next))
}

fn parse_after(store: &Store, after: Option<&str>) -> Result<Option<CommandPlace>, ApiError> {
    let Some(text) = after.filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    match Cursor::decode(text, store.database_id(), store.partitions()) {
        Ok(Cursor::Commands { created_at, id }) => Ok(Some((created_at, id))),
        Ok(_) => Err(ApiError::bad_input("after", CursorError::OtherKind)),
        Err(error) => Err(ApiError::bad_input("after", error)),
    }
}

fn page_of(
    store: &Store,
    commands: Vec<Command>,
    has_previous: bool,
    has_next: bool,
) -> CommandConnection {
    let nodes = commands
        .into_iter()
        .map(|command| {
            let place = Cursor::Commands {
                created_at: command.created_at,
                id: command.id,
            };
            (place, CommandObject::from(command))
        })
        .collect();
    CommandConnection::new(store, nodes, has_previous, has_next, None)
}

#[derive(Default)]
pub struct CommandQuery;

#[Object]
impl CommandQuery {
    /// One command.
    async fn command(
        &self,
        ctx: &Context<'_>,
        id: UuidScalar,
    ) -> Result<Option<Node<CommandObject>>> {
        require(ctx, Role::Read)?;
        let id = CommandId(id.0);
        let store = ctx.data_unchecked::<Arc<App>>().store();
        let mut found = store.commands_by_id(&[id]).await.map_err(ApiError::from)?;
        Ok(found.remove(&id).map(|command| Node(command.into())))
    }

    /// Commands in the order in which they were made.
    #[graphql(complexity = "list_cost(first, child_complexity)")]
    async fn commands(
        &self,
        ctx: &Context<'_>,
        statuses: Option<Vec<CommandStatus>>,
        types: Option<Vec<String>>,
        #[graphql(default_with = "Order::OldestFirst")] order: Order,
        #[graphql(default = 100)] first: i32,
        after: Option<String>,
    ) -> Result<CommandConnection> {
        require(ctx, Role::Read)?;
        let store = ctx.data_unchecked::<Arc<App>>().store();
        let types = types.map(|types| type_names("types", &types)).transpose()?;
        let statuses = statuses.map(|statuses| {
            let is_asked = |status: &Status| statuses.contains(&(*status).into());
            Status::ALL.into_iter().filter(is_asked).collect()
        });
        let filter = CommandFilter { statuses, types };
        let first = check_first(first)?;
        let after = parse_after(store, after.as_deref())?;
        let page = store
            .commands_page(&filter, order.into(), after, first)
            .await
            .map_err(ApiError::from)?;
        Ok(page_of(
            store,
            page.commands,
            after.is_some(),
            page.has_next,
        ))
    }

    /// The types of commands that this server accepts, sorted by name.
    async fn command_types(&self, ctx: &Context<'_>) -> Result<Vec<CommandTypeObject>> {
        require(ctx, Role::Read)?;
        let domain = ctx.data_unchecked::<Arc<App>>().executor().domain();
        Ok(domain
            .command_types()
            .map(CommandTypeObject::from)
            .collect())
    }
}

fn type_names(field: &str, types: &[String]) -> Result<Vec<TypeName>, ApiError> {
    check_length(field, types.len())?;
    let check = |(index, name): (usize, &String)| {
        TypeName::new(name).map_err(|error| ApiError::bad_input(format!("{field}[{index}]"), error))
    };
    types.iter().enumerate().map(check).collect()
}

#[derive(Default)]
pub struct CommandMutation;

#[Object]
impl CommandMutation {
    /// Records a command as PENDING; the server processes it soon, or from `notBefore` on.
    async fn create_command(
        &self,
        ctx: &Context<'_>,
        input: CreateCommandInput,
    ) -> Result<CreateCommandPayload> {
        require(ctx, Role::Write)?;
        let command = input.check(ctx)?;
        let executor = ctx.data_unchecked::<Arc<App>>().executor();
        let command = executor.create(command).await.map_err(ApiError::from)?;
        Ok(CreateCommandPayload {
            command: Node(command.into()),
        })
    }

    /// Processes a pending command now. `processed` is false where it was not pending (any more).
    async fn process_command(
        &self,
        ctx: &Context<'_>,
        input: ProcessCommandInput,
    ) -> Result<ProcessCommandPayload> {
        require(ctx, Role::Write)?;
        let executor = ctx.data_unchecked::<Arc<App>>().executor();
        let id = CommandId(input.id.0);
        let processed = executor.process(id).await.map_err(ApiError::from)?;
        Ok(ProcessCommandPayload {
            command: Some(Node(processed.executed.command.into())),
            processed: processed.processed,
        })
    }

    /// Records a command and processes it in the same call.
    async fn execute_command(
        &self,
        ctx: &Context<'_>,
        input: CreateCommandInput,
    ) -> Result<ExecuteCommandPayload> {
        require(ctx, Role::Write)?;
        let command = input.check(ctx)?;
        let app = ctx.data_unchecked::<Arc<App>>();
        let executed = app.executor().execute(command).await;
        let Executed { command, events } = executed.map_err(ApiError::from)?;
        Ok(ExecuteCommandPayload {
            command: Node(CommandObject {
                command: Arc::new(command),
                events: Some(events.clone()),
            }),
            events: Nodes(events.into_iter().map(EventObject).collect()),
        })
    }
}

#[derive(Default)]
pub struct CommandSubscription;

#[Subscription]
impl CommandSubscription {
    /// The command now, and again at each change of its status; ends when it is no longer PENDING.
    async fn command(
        &self,
        ctx: &Context<'_>,
        id: UuidScalar,
    ) -> Result<impl Stream<Item = Result<Node<CommandObject>>>> {
        require(ctx, Role::Read)?;
        let id = CommandId(id.0);
        let watch = ctx.data_unchecked::<Arc<App>>().watch();
        let follower = watch.follow(id).await.map_err(ApiError::from)?;
        let follower = follower
            .ok_or_else(|| ApiError::not_found("id", format!("there is no command {id}")))?;
        Ok(stream::unfold(Some(follower), |follower| async move {
            let mut follower = follower?;
            match follower.next().await {
                Ok(command) => command.map(|command| (Ok(Node(command.into())), Some(follower))),
                Err(error) => Some((Err(ApiError::from(error).into()), None)),
            }
        }))
    }
}

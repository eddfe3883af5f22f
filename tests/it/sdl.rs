//! schema.graphql is what the server serves, and holds what the API promises.

use std::collections::BTreeMap;

const COMMITTED: &str = include_str!("../../schema.graphql");

/// What clients rely on: `Type.field(arguments): type`. Fields and arguments may be added, none may go or change.
const PROMISED: &str = "
Query.aggregateId(key: String!): UUID!
Query.event(id: UUID!): Event
Query.events(filter: EventFilter, order: Order! = OLDEST_FIRST, first: Int! = 100, after: String): EventConnection!
Query.aggregate(id: UUID!): Aggregate
Query.aggregates(types: [String!], order: Order! = OLDEST_FIRST, first: Int! = 100, after: String): AggregateConnection!
Query.command(id: UUID!): Command
Query.commands(statuses: [CommandStatus!], types: [String!], order: Order! = OLDEST_FIRST, first: Int! = 100, after: String): CommandConnection!
Query.commandTypes: [CommandType!]!
Query.stream(name: String!): Stream
Query.streams(first: Int! = 100, after: String): StreamConnection!
Query.readModel(aggregateId: UUID!, minVersion: Int, waitMs: Int! = 2000): ReadModel
Query.readModels(filter: ReadModelFilter, orderBy: ReadModelOrder! = CREATED_NEWEST_FIRST, first: Int! = 100, after: String): ReadModelConnection!
Query.projection: ProjectionStatus!
Query.eventHandlers(eventType: String): [EventHandler!]!
Query.eventHandler(name: String!): EventHandler
Query.server: Server!
Query.eventMetrics(from: DateTime, to: DateTime): [EventMetric!]!
Query.eventMetricsOverTime(from: DateTime, to: DateTime, interval: MetricInterval! = MINUTE): [EventMetricBucket!]!
Mutation.createAggregate(input: CreateAggregateInput!): CreateAggregatePayload!
Mutation.appendEvent(input: AppendEventInput!): AppendEventPayload!
Mutation.appendEvents(input: AppendEventsInput!): AppendEventsPayload!
Mutation.createCommand(input: CreateCommandInput!): CreateCommandPayload!
Mutation.processCommand(input: ProcessCommandInput!): ProcessCommandPayload!
Mutation.executeCommand(input: CreateCommandInput!): ExecuteCommandPayload!
Mutation.appendToStream(input: AppendToStreamInput!): AppendToStreamPayload!
Mutation.updateReadModel(input: UpdateReadModelInput!): UpdateReadModelPayload!
Mutation.rebuildReadModels(input: RebuildReadModelsInput!): RebuildReadModelsPayload!
Mutation.recordEventMetric(input: RecordEventMetricInput!): RecordEventMetricPayload!
EventMetric.eventType: String!
EventMetric.aggregateType: String!
EventMetric.eventCount: Long!
EventMetric.avgProcessingTimeMs: Float
EventMetric.maxProcessingTimeMs: Float
EventMetric.minProcessingTimeMs: Float
EventMetricBucket.start: DateTime!
EventMetricBucket.metrics: [EventMetric!]!
RecordEventMetricPayload.recorded: Boolean!
RecordEventMetricInput.eventType: String!
RecordEventMetricInput.aggregateType: String!
RecordEventMetricInput.processingTimeMs: Float
Mutation.registerEventHandler(input: RegisterEventHandlerInput!): RegisterEventHandlerPayload!
Mutation.setEventHandlerActive(input: SetEventHandlerActiveInput!): SetEventHandlerActivePayload!
Mutation.removeEventHandler(input: RemoveEventHandlerInput!): RemoveEventHandlerPayload!
Mutation.processEvent(input: ProcessEventInput!): ProcessEventPayload!
Mutation.retryDeadDeliveries(input: RetryDeadDeliveriesInput!): RetryDeadDeliveriesPayload!
Subscription.readModels(aggregateId: UUID, filter: ReadModelFilter, after: String): ReadModelChange!
Subscription.streamEntries(streamName: String!, after: Long): StreamEntry!
Subscription.events(filter: EventFilter, after: String, progress: Boolean! = false): EventUpdate!
Subscription.command(id: UUID!): Command!
EventHandler.id: UUID!
EventHandler.name: String!
EventHandler.eventTypes: [String!]!
EventHandler.function: String!
EventHandler.isActive: Boolean!
EventHandler.isPaused: Boolean!
EventHandler.createdAt: DateTime!
EventHandler.lagEvents: Long!
EventHandler.deliveries(status: DeliveryStatus, first: Int! = 20, after: String): DeliveryConnection!
Delivery.id: UUID!
Delivery.handler: EventHandler!
Delivery.event: Event!
Delivery.status: DeliveryStatus!
Delivery.attempts: Int!
Delivery.lastError: String
Delivery.nextAttemptAt: DateTime
Delivery.updatedAt: DateTime!
RegisterEventHandlerPayload.eventHandler: EventHandler!
SetEventHandlerActivePayload.eventHandler: EventHandler!
RemoveEventHandlerPayload.removed: Boolean!
ProcessEventPayload.processed: Boolean!
ProcessEventPayload.deliveries: [Delivery!]!
RetryDeadDeliveriesPayload.count: Int!
Event.id: UUID!
Event.type: String!
Event.data: JSON!
Event.metadata: JSON!
Event.aggregateId: UUID!
Event.aggregateType: String!
Event.version: Int!
Event.createdAt: DateTime!
Event.aggregate: Aggregate!
EventUpdate.cursor: String!
EventUpdate.event: Event
EventUpdate.caughtUp: Boolean!
Aggregate.id: UUID!
Aggregate.type: String!
Aggregate.version: Int!
Aggregate.createdAt: DateTime!
Aggregate.updatedAt: DateTime!
Aggregate.readModel: ReadModel
ReadModel.aggregateId: UUID!
ReadModel.aggregateType: String!
ReadModel.data: JSON!
ReadModel.version: Int!
ReadModel.source: ReadModelSource!
ReadModel.fault: String
ReadModel.createdAt: DateTime!
ReadModel.updatedAt: DateTime!
ReadModel.aggregate: Aggregate
ReadModelChange.cursor: String!
ReadModelChange.aggregateId: UUID!
ReadModelChange.readModel: ReadModel
ReadModelConnection.edges: [ReadModelEdge!]!
ReadModelConnection.nodes: [ReadModel!]!
ReadModelConnection.pageInfo: PageInfo!
ReadModelEdge.cursor: String!
ReadModelEdge.node: ReadModel!
ReadModelFilter.aggregateTypes: [String!]
ReadModelFilter.contains: JSON
ProjectionStatus.lagEvents: Long!
ProjectionStatus.lagMs: Float!
ProjectionStatus.faulted: Long!
UpdateReadModelInput.aggregateId: UUID!
UpdateReadModelInput.aggregateType: String!
UpdateReadModelInput.data: JSON!
UpdateReadModelInput.version: Int!
UpdateReadModelPayload.readModel: ReadModel!
UpdateReadModelPayload.updated: Boolean!
RebuildReadModelsInput.aggregateId: UUID
RebuildReadModelsInput.aggregateType: String
RebuildReadModelsPayload.count: Long!
Aggregate.events(afterVersion: Int, first: Int! = 100, order: Order! = OLDEST_FIRST): [Event!]!
Aggregate.state(atVersion: Int, at: DateTime): JSON
Aggregate.commands(first: Int! = 20, after: String): CommandConnection!
Command.id: UUID!
Command.type: String!
Command.data: JSON!
Command.aggregateId: UUID!
Command.status: CommandStatus!
Command.reason: String
Command.attempts: Int!
Command.createdAt: DateTime!
Command.notBefore: DateTime
Command.processedAt: DateTime
Command.events: [Event!]!
Command.aggregate: Aggregate
CommandType.name: String!
CommandType.aggregateType: String!
CommandType.eventTypes: [String!]!
CommandType.dataSchema: JSON
EventFilter.aggregateId: UUID
EventFilter.aggregateTypes: [String!]
EventFilter.eventTypes: [String!]
EventFilter.correlationId: String
EventFilter.createdFrom: DateTime
EventFilter.createdBefore: DateTime
Stream.name: String!
Stream.lastPosition: Long!
Stream.entries(after: Long! = 0, first: Int! = 100): [StreamEntry!]!
StreamEntry.streamName: String!
StreamEntry.position: Long!
StreamEntry.eventId: UUID!
StreamEntry.type: String!
StreamEntry.data: JSON!
StreamEntry.createdAt: DateTime!
StreamEntry.event: Event
Server.version: String!
Server.database: String!
Server.partitions: Int!
Server.headCursor: String!
Server.startedAt: DateTime!
CreateAggregateInput.id: UUID
CreateAggregateInput.type: String!
AppendEventInput.id: UUID
AppendEventInput.aggregateId: UUID!
AppendEventInput.aggregateType: String!
AppendEventInput.type: String!
AppendEventInput.data: JSON!
AppendEventInput.metadata: JSON
AppendEventInput.expectedVersion: Int
AppendEventsInput.events: [AppendEventInput!]!
CreateCommandInput.id: UUID
CreateCommandInput.aggregateId: UUID!
CreateCommandInput.type: String!
CreateCommandInput.data: JSON!
CreateCommandInput.metadata: JSON
CreateCommandInput.notBefore: DateTime
ProcessCommandInput.id: UUID!
AppendToStreamInput.streamName: String!
AppendToStreamInput.eventId: UUID!
AppendToStreamInput.type: String!
AppendToStreamInput.data: JSON!
AppendToStreamInput.expectedPosition: Long
CreateAggregatePayload.aggregate: Aggregate!
CreateAggregatePayload.created: Boolean!
AppendEventPayload.event: Event!
AppendEventPayload.duplicate: Boolean!
AppendEventsPayload.events: [Event!]!
CreateCommandPayload.command: Command!
ProcessCommandPayload.command: Command
ProcessCommandPayload.processed: Boolean!
ExecuteCommandPayload.command: Command!
ExecuteCommandPayload.events: [Event!]!
AppendToStreamPayload.entry: StreamEntry!
AppendToStreamPayload.duplicate: Boolean!
EventConnection.edges: [EventEdge!]!
EventConnection.nodes: [Event!]!
EventConnection.pageInfo: PageInfo!
EventEdge.cursor: String!
EventEdge.node: Event!
AggregateConnection.edges: [AggregateEdge!]!
AggregateConnection.nodes: [Aggregate!]!
AggregateConnection.pageInfo: PageInfo!
AggregateEdge.cursor: String!
AggregateEdge.node: Aggregate!
CommandConnection.edges: [CommandEdge!]!
CommandConnection.nodes: [Command!]!
CommandConnection.pageInfo: PageInfo!
CommandEdge.cursor: String!
CommandEdge.node: Command!
StreamConnection.edges: [StreamEdge!]!
StreamConnection.nodes: [Stream!]!
StreamConnection.pageInfo: PageInfo!
StreamEdge.cursor: String!
StreamEdge.node: Stream!
PageInfo.hasNextPage: Boolean!
PageInfo.hasPreviousPage: Boolean!
PageInfo.startCursor: String
PageInfo.endCursor: String
";

/// Each field of each type, and each value of each enum, as the schema has it.
fn fields_of(sdl: &str) -> BTreeMap<String, String> {
    let mut fields = BTreeMap::new();
    let mut of_type = String::new();
    let mut in_description = false;
    for line in sdl.lines().map(str::trim) {
        if line.starts_with("\"\"\"") {
            let one_line = line.len() > 3 && line.ends_with("\"\"\"");
            in_description = !in_description && !one_line;
            continue;
        }
        if in_description || line.is_empty() {
            continue;
        }
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["type" | "input" | "enum" | "interface", name, .., "{"] => {
                of_type = (*name).to_owned();
            }
            ["scalar", name] => {
                fields.insert(format!("scalar {name}"), String::new());
            }
            ["}"] => of_type.clear(),
            _ if !of_type.is_empty() => {
                let end = line.find(['(', ':']).unwrap_or(line.len());
                let (name, rest) = line.split_at(end);
                fields.insert(format!("{of_type}.{name}"), rest.to_owned());
            }
            _ => {}
        }
    }
    fields
}

#[test]
fn schema_graphql_is_what_the_server_serves() {
    let served = tidings::graphql::sdl();
    assert_eq!(
        served.trim_end(),
        COMMITTED.trim_end(),
        "run make schema, and look at the difference"
    );
}

#[test]
fn the_schema_holds_what_is_promised() {
    let fields = fields_of(COMMITTED);
    for scalar in ["UUID", "DateTime", "JSON", "Long"] {
        assert!(fields.contains_key(&format!("scalar {scalar}")), "{scalar}");
    }
    for value in [
        "Order.OLDEST_FIRST",
        "Order.NEWEST_FIRST",
        "ReadModelSource.PROJECTED",
        "ReadModelSource.EXTERNAL",
        "ReadModelOrder.CREATED_NEWEST_FIRST",
        "ReadModelOrder.CREATED_OLDEST_FIRST",
        "ReadModelOrder.UPDATED_NEWEST_FIRST",
        "ReadModelOrder.UPDATED_OLDEST_FIRST",
        "CommandStatus.PENDING",
        "CommandStatus.PROCESSED",
        "CommandStatus.REJECTED",
        "CommandStatus.FAILED",
    ] {
        assert!(fields.contains_key(value), "{value}");
    }
    let missing: Vec<&str> = PROMISED
        .lines()
        .filter(|line| !line.is_empty())
        .filter(|line| {
            let end = line.find(['(', ':']).unwrap_or(line.len());
            let (name, rest) = line.split_at(end);
            fields.get(name).is_none_or(|found| found != rest)
        })
        .collect();
    assert!(
        missing.is_empty(),
        "these have gone or changed:\n{}",
        missing.join("\n")
    );
}

/// A domain's names become types and fields beside these some day.
#[test]
fn names_of_the_api_are_kept_from_domain_files() {
    use tidings::domain::declared::{API_ROOT_FIELDS, API_TYPES};
    let mut free = Vec::new();
    for name in fields_of(COMMITTED).keys() {
        let (of_type, field) = name.split_once('.').unwrap_or((name, ""));
        let of_type = of_type.trim_start_matches("scalar ");
        if !API_TYPES.contains(&of_type) {
            free.push(of_type.to_owned());
        }
        let of_root = ["Query", "Mutation", "Subscription"].contains(&of_type);
        if of_root && !API_ROOT_FIELDS.contains(&field) {
            free.push(name.clone());
        }
    }
    assert!(
        free.is_empty(),
        "add these to src/domain/declared/names.rs: {}",
        free.join(", ")
    );
    assert!(API_TYPES.is_sorted() && API_ROOT_FIELDS.is_sorted());
}

#[test]
fn a_changed_field_is_found() {
    let sdl = "type A {\n\t\"\"\"\n\tx: Y\n\t\"\"\"\n\tx(y: Int! = 1): Z!\n}\nscalar Z\n";
    let fields = fields_of(sdl);
    assert_eq!(fields["A.x"], "(y: Int! = 1): Z!");
    assert_eq!(fields.len(), 2);
}

//! Names in a domain file: snake_case, and free to become GraphQL types and fields of their own. Floor 0.

/// The types of this server's own API.
pub const API_TYPES: &[&str] = &[
    "Aggregate",
    "AggregateConnection",
    "AggregateEdge",
    "AppendEventInput",
    "AppendEventPayload",
    "AppendEventsInput",
    "AppendEventsPayload",
    "AppendToStreamInput",
    "AppendToStreamPayload",
    "Boolean",
    "Command",
    "CommandConnection",
    "CommandEdge",
    "CommandStatus",
    "CommandType",
    "CreateAggregateInput",
    "CreateAggregatePayload",
    "CreateCommandInput",
    "CreateCommandPayload",
    "DateTime",
    "Delivery",
    "DeliveryConnection",
    "DeliveryEdge",
    "DeliveryStatus",
    "Event",
    "EventConnection",
    "EventEdge",
    "EventFilter",
    "EventHandler",
    "EventMetric",
    "EventMetricBucket",
    "EventUpdate",
    "ExecuteCommandPayload",
    "Float",
    "ID",
    "Int",
    "JSON",
    "Long",
    "MetricInterval",
    "Mutation",
    "Order",
    "PageInfo",
    "ProcessCommandInput",
    "ProcessCommandPayload",
    "ProcessEventInput",
    "ProcessEventPayload",
    "ProjectionStatus",
    "Query",
    "ReadModel",
    "ReadModelChange",
    "ReadModelConnection",
    "ReadModelEdge",
    "ReadModelFilter",
    "ReadModelOrder",
    "ReadModelSource",
    "RebuildReadModelsInput",
    "RebuildReadModelsPayload",
    "RecordEventMetricInput",
    "RecordEventMetricPayload",
    "RegisterEventHandlerInput",
    "RegisterEventHandlerPayload",
    "RemoveEventHandlerInput",
    "RemoveEventHandlerPayload",
    "RetryDeadDeliveriesInput",
    "RetryDeadDeliveriesPayload",
    "Server",
    "SetEventHandlerActiveInput",
    "SetEventHandlerActivePayload",
    "Stream",
    "StreamConnection",
    "StreamEdge",
    "StreamEntry",
    "String",
    "Subscription",
    "UUID",
    "UpdateReadModelInput",
    "UpdateReadModelPayload",
];

/// The fields of its roots.
pub const API_ROOT_FIELDS: &[&str] = &[
    "aggregate",
    "aggregateId",
    "aggregates",
    "appendEvent",
    "appendEvents",
    "appendToStream",
    "command",
    "commandTypes",
    "commands",
    "createAggregate",
    "createCommand",
    "event",
    "eventHandler",
    "eventHandlers",
    "eventMetrics",
    "eventMetricsOverTime",
    "events",
    "executeCommand",
    "processCommand",
    "processEvent",
    "projection",
    "readModel",
    "readModels",
    "rebuildReadModels",
    "recordEventMetric",
    "registerEventHandler",
    "removeEventHandler",
    "retryDeadDeliveries",
    "server",
    "setEventHandlerActive",
    "stream",
    "streamEntries",
    "streams",
    "updateReadModel",
];

/// What a name in a domain file is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// A type of aggregate.
    Aggregate,
    /// A command.
    Command,
    /// A type of event.
    Event,
    /// A schema that others share.
    Definition,
}

impl Use {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Aggregate => "aggregate",
            Self::Command => "command",
            Self::Event => "event",
            Self::Definition => "definition",
        }
    }

    fn example(self) -> &'static str {
        match self {
            Self::Aggregate => "bank_account",
            Self::Command => "create_user",
            Self::Event => "user_created",
            Self::Definition => "postal_address",
        }
    }

    /// The GraphQL types that a name would make.
    pub fn types(self, name: &str) -> Vec<String> {
        let pascal = pascal_case(name);
        match self {
            Self::Command => vec![format!("{pascal}Input"), format!("{pascal}Payload")],
            Self::Aggregate | Self::Event | Self::Definition => vec![pascal],
        }
    }

    /// The field of a GraphQL root that a name would make.
    fn root_field(self, name: &str) -> Option<String> {
        matches!(self, Self::Aggregate | Self::Command).then(|| camel_case(name))
    }
}

/// Checks a name.
///
/// # Errors
/// When it is not in snake_case, or would become a name of the API's own.
pub fn check(name: &str, used_for: Use) -> Result<(), String> {
    let kind = used_for.as_str();
    if !is_snake_case(name) {
        return Err(format!(
            "`{name}` cannot be the name of the {kind}: use lower-case letters, digits and single underscores, a letter \
             first, such as {}",
            used_for.example()
        ));
    }
    if name.len() > super::super::name::MAX_NAME_CHARS {
        let most = super::super::name::MAX_NAME_CHARS;
        return Err(format!(
            "the name of the {kind} has {} characters: {most} are allowed",
            name.len()
        ));
    }
    let taken = used_for
        .types(name)
        .into_iter()
        .find(|made| API_TYPES.contains(&made.as_str()))
        .map(|made| format!("type {made}"))
        .or_else(|| {
            let field = used_for.root_field(name)?;
            API_ROOT_FIELDS
                .contains(&field.as_str())
                .then(|| format!("field {field}"))
        });
    match taken {
        Some(taken) => Err(format!(
            "the {kind} `{name}` would collide with the {taken} of the API: give it another name"
        )),
        None => Ok(()),
    }
}

fn is_snake_case(name: &str) -> bool {
    name.starts_with(|first: char| first.is_ascii_lowercase())
        && !name.ends_with('_')
        && !name.contains("__")
        && name
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
}

fn pascal_case(name: &str) -> String {
    name.split('_')
        .flat_map(|word| {
            let (first, rest) = word.split_at(word.len().min(1));
            [first.to_ascii_uppercase(), rest.to_owned()]
        })
        .collect()
}

fn camel_case(name: &str) -> String {
    let pascal = pascal_case(name);
    let (first, rest) = pascal.split_at(pascal.len().min(1));
    first.to_ascii_lowercase() + rest
}

/// The one of `known` that is probably meant, where one is near.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known
        .into_iter()
        .map(|other| (distance(&name.to_lowercase(), &other.to_lowercase()), other))
        .filter(|(distance, _)| *distance <= 2)
        .min()
        .map(|(_, other)| other)
}

/// How many characters have to be added, removed, exchanged or swapped with their neighbour.
fn distance(left: &str, right: &str) -> usize {
    let (left, right): (Vec<char>, Vec<char>) = (left.chars().collect(), right.chars().collect());
    let mut rows: Vec<Vec<usize>> = vec![(0..=right.len()).collect()];
    for (i, a) in left.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, b) in right.iter().enumerate() {
            let mut least = (rows[i][j] + usize::from(a != b))
                .min(rows[i][j + 1] + 1)
                .min(row[j] + 1);
            if i > 0 && j > 0 && *a == right[j - 1] && left[i - 1] == *b {
                least = least.min(rows[i - 1][j - 1] + 1);
            }
            row.push(least);
        }
        rows.push(row);
    }
    rows[left.len()][right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_in_snake_case() {
        for good in ["user", "create_user", "step2", "a_2"] {
            assert_eq!(check(good, Use::Command), Ok(()), "{good}");
        }
        for wrong in ["", "User", "_user", "user_", "user__x", "2user", "ü", "a-b"] {
            assert!(check(wrong, Use::Command).is_err(), "{wrong}");
        }
    }

    #[test]
    fn names_of_the_api_are_taken() {
        let taken = |name, used_for| check(name, used_for).expect_err(name);
        assert!(taken("read_model", Use::Aggregate).contains("type ReadModel"));
        assert!(taken("event_update", Use::Event).contains("type EventUpdate"));
        assert!(taken("projection", Use::Aggregate).contains("field projection"));
        assert!(taken("append_event", Use::Command).contains("type AppendEventInput"));
        assert!(taken("order", Use::Definition).contains("type Order"));
        assert_eq!(check("append_event", Use::Event), Ok(()));
    }

    #[test]
    fn the_name_that_is_meant_is_found() {
        let known = ["minLength", "maxLength", "required"];
        assert_eq!(nearest("minLenght", known), Some("minLength"));
        assert_eq!(nearest("requierd", known), Some("required"));
        assert_eq!(nearest("definitions", known), None);
    }
}

//! The declared domain: the guide's users, and what a file can say beside.

use serde_json::{Value, json};
use tidings::domain::{AggregateType, CommandType, Domain};

use super::given::{Then, event, given, rejected};

fn ada() -> Value {
    json!({ "username": "ada", "email": "ada@example.com" })
}

#[test]
fn a_user_is_created_once() {
    let domain = Domain::guide();
    let nobody = given(&domain, "user", &[]);
    assert_eq!(
        nobody.when("create_user", ada()),
        event("user_created", ada())
    );

    let user = nobody.happens("user_created", ada());
    assert_eq!(user.state, Ok(ada()));
    assert_eq!(
        user.when("create_user", ada()),
        rejected("the user is there already")
    );
}

#[test]
fn a_user_is_updated_by_what_is_given() {
    let domain = Domain::guide();
    let user = given(&domain, "user", &[("user_created", ada())]);
    let change = json!({ "username": "ada.l" });
    assert_eq!(
        user.when("update_user", change.clone()),
        event("user_updated", change.clone())
    );
    let user = user.happens("user_updated", change);
    assert_eq!(
        user.state,
        Ok(json!({ "username": "ada.l", "email": "ada@example.com" }))
    );
}

#[test]
fn a_user_who_is_not_there_is_neither_updated_nor_deleted() {
    let domain = Domain::guide();
    let nobody = given(&domain, "user", &[]);
    let rejection = rejected("there is no user of this id");
    assert_eq!(nobody.when("update_user", ada()), rejection);
    assert_eq!(nobody.when("delete_user", json!({})), rejection);
}

#[test]
fn a_deleted_user_is_gone_and_may_come_back() {
    let domain = Domain::guide();
    let user = given(&domain, "user", &[("user_created", ada())]);
    assert_eq!(
        user.when("delete_user", json!({})),
        event("user_deleted", json!({}))
    );
    let gone = user.happens("user_deleted", json!({}));
    assert_eq!(gone.state, Ok(Value::Null));
    assert_eq!(
        gone.when("update_user", ada()),
        rejected("there is no user of this id")
    );
    let bob = json!({ "username": "bob" });
    assert_eq!(
        gone.when("create_user", bob.clone()),
        event("user_created", bob.clone())
    );
    assert_eq!(gone.happens("user_created", bob.clone()).state, Ok(bob));
}

#[test]
fn data_that_the_schema_does_not_take_is_told_with_what_would_be_right() {
    let domain = Domain::guide();
    let nobody = given(&domain, "user", &[]);
    let wrong = |data, text: &str| {
        assert_eq!(
            nobody.when("create_user", data),
            Then::Wrong(vec![text.to_owned()])
        );
    };
    wrong(json!({}), "username must be given");
    wrong(
        json!({ "username": "" }),
        "username must have at least 1 character",
    );
    wrong(
        json!({ "username": "a", "email": null }),
        "email must be a text, not null",
    );
    wrong(json!("ada"), "must be an object, not a text");
}

#[test]
fn an_unknown_command_is_none() {
    let domain = Domain::guide();
    assert_eq!(
        given(&domain, "user", &[]).when("rename_user", ada()),
        Then::Unknown
    );
}

#[test]
fn events_that_nobody_has_declared_are_merged() {
    let domain = Domain::guide();
    let user = given(
        &domain,
        "user",
        &[("user_created", ada()), ("user_seen", json!({ "page": 1 }))],
    );
    assert_eq!(
        user.state,
        Ok(json!({ "username": "ada", "email": "ada@example.com", "page": 1 }))
    );
    let order = given(
        &domain,
        "order",
        &[
            ("placed", json!({ "total": 5, "note": "x" })),
            ("changed", json!({ "note": null })),
        ],
    );
    assert_eq!(order.state, Ok(json!({ "total": 5 })));
}

#[test]
fn data_that_is_no_object_cannot_be_a_state() {
    let domain = Domain::guide();
    for (event_type, text) in [
        (
            "user_created",
            "the data of user_created is an array, and only an object can be the new state",
        ),
        (
            "user_updated",
            "the data of user_updated is an array, and only an object can be merged into a state",
        ),
        (
            "user_seen",
            "the data of user_seen is an array, and only an object can be merged into a state",
        ),
    ] {
        let fault = given(&domain, "user", &[(event_type, json!([1]))])
            .state
            .unwrap_err();
        assert_eq!(fault.to_string(), text);
    }
    let deleted = given(
        &domain,
        "user",
        &[("user_created", ada()), ("user_deleted", json!([1]))],
    );
    assert_eq!(deleted.state, Ok(Value::Null));
}

const SHOP: &str = r##"
[defs.postal_address]
type = "object"
required = ["city"]
properties = { city = { type = "string" }, country = { "$ref" = "#/$defs/country" } }

[defs.country]
enum = ["DE", "NL"]

[defs.unused]
type = "string"

[aggregates.customer.commands.register_customer]
event = "customer_registered"
schema = { required = ["name"], properties = { name = { type = "string" }, address = { "$ref" = "#/$defs/postal_address" } } }
data = { label = "$.name", city = "$.address.city", source = "shop", given = "$", costs = "$$5" }

[aggregates.customer.commands.move_customer]
event = "customer_moved"
requires = "present"

[aggregates.customer.events.customer_registered]
state = "replace"
"##;

#[test]
fn an_events_data_is_made_from_the_commands() {
    let domain = Domain::declared(SHOP).unwrap();
    let nobody = given(&domain, "customer", &[]);
    let data = json!({ "name": "Ada", "address": { "city": "Bonn" } });
    assert_eq!(
        nobody.when("register_customer", data.clone()),
        event(
            "customer_registered",
            json!({ "label": "Ada", "city": "Bonn", "source": "shop", "given": data, "costs": "$5" })
        )
    );
    let data = json!({ "name": "Ada" });
    assert_eq!(
        nobody.when("register_customer", data.clone()),
        event(
            "customer_registered",
            json!({ "label": "Ada", "source": "shop", "given": data, "costs": "$5" })
        )
    );
}

#[test]
fn schemas_share_definitions_and_are_whole_with_those_that_they_use() {
    let domain = Domain::declared(SHOP).unwrap();
    let nobody = given(&domain, "customer", &[]);
    let wrong = json!({ "name": "Ada", "address": { "country": "FR" } });
    assert_eq!(
        nobody.when("register_customer", wrong),
        Then::Wrong(vec![
            "address.city must be given".to_owned(),
            "address.country must be one of \"DE\", \"NL\"".to_owned(),
        ])
    );
    let kind = domain
        .command(&CommandType::new("register_customer").unwrap())
        .unwrap();
    let schema = kind.description.data_schema.as_ref().unwrap();
    let names = |value: &Value| {
        value
            .as_object()
            .unwrap()
            .keys()
            .cloned()
            .collect::<Vec<_>>()
    };
    assert_eq!(names(&schema["$defs"]), ["postal_address", "country"]);
    assert_eq!(
        names(&schema["properties"]),
        ["name", "address"],
        "in their order"
    );
    assert_eq!(schema["type"], "object");
}

#[test]
fn what_is_left_out_has_its_default() {
    let domain = Domain::declared(SHOP).unwrap();
    let kind = domain
        .command(&CommandType::new("move_customer").unwrap())
        .unwrap();
    assert_eq!(
        kind.description.data_schema,
        Some(json!({ "type": "object" }))
    );
    assert!(!kind.description.creates);
    assert_eq!(kind.event_types()[0].as_str(), "customer_moved");
    let customer = AggregateType::new("customer").unwrap();
    assert_eq!(domain.publish_to(&customer), None);
    let moved = given(
        &domain,
        "customer",
        &[
            ("customer_registered", json!({ "a": 1 })),
            ("customer_moved", json!({ "b": 2 })),
        ],
    );
    assert_eq!(moved.state, Ok(json!({ "a": 1, "b": 2 })));
}

#[test]
fn domains_are_told_apart_by_what_they_say_and_not_by_how_it_is_written() {
    let guide = Domain::guide();
    let same = Domain::declared(
        r#"
        [aggregates.user.events]
        user_deleted = { state = "delete" }
        user_updated.state = "merge"
        user_created.state = "replace"
        [aggregates.user]
        publish_to = "user_events"
        [aggregates.user.commands]
        delete_user = { event = "user_deleted", requires = "present", schema = { type = "object" } }
        [aggregates.user.commands.update_user]
        requires = "present"
        event = "user_updated"
        [aggregates.user.commands.update_user.schema]
        properties.email = { type = "string" }
        properties.username = { minLength = 1, type = "string" }
        [aggregates.user.commands.create_user]
        requires = "absent"
        event = "user_created"
        [aggregates.user.commands.create_user.schema]
        required = ["username"]
        properties.username = { type = "string", minLength = 1 }
        properties.email = { type = "string" }
        "#,
    )
    .unwrap();
    assert_eq!(guide.fingerprint(), same.fingerprint());
    let other = tidings::domain::declared::GUIDE.replace("minLength = 1", "minLength = 2");
    assert_ne!(
        guide.fingerprint(),
        Domain::declared(&other).unwrap().fingerprint()
    );
}

#[test]
fn a_domain_is_stored_with_nothing_left_out() {
    let domain =
        Domain::declared("[aggregates.a.commands.do_it]\nevent = \"done\"\ndata = { x = \"$\" }")
            .unwrap();
    assert_eq!(
        domain.content().to_value().unwrap(),
        json!({
            "format": 1,
            "aggregates": { "a": {
                "commands": { "do_it": {
                    "event": "done",
                    "requires": "any",
                    "schema": { "type": "object" },
                    "data": { "x": "$" },
                } },
                "events": { "done": { "state": "merge" } },
            } },
        })
    );
}

#[test]
fn the_files_in_the_documentation_are_right() {
    let documentation = include_str!("../../../docs/domain.md");
    let files: Vec<&str> = documentation
        .split("```toml\n")
        .skip(1)
        .filter_map(|rest| rest.split("```").next())
        .collect();
    assert_eq!(files[0], tidings::domain::declared::GUIDE);
    for file in files {
        Domain::declared(file).unwrap();
    }
}

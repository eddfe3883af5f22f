//! Domain files that are wrong: each problem is told with its line and what would be right.

use tidings::domain::{Domain, declared::WrongDeclaration};

fn problems(file: &str) -> Vec<String> {
    match Domain::declared(file) {
        Ok(_) => Vec::new(),
        Err(WrongDeclaration { problems }) => problems.iter().map(ToString::to_string).collect(),
    }
}

/// A file with one command, whose table begins in line 4.
fn with_command(lines: &str) -> String {
    format!(
        "[aggregates.user]\npublish_to = \"user_events\"\n\n[aggregates.user.commands.create_user]\nevent = \"user_created\"\n{lines}\n"
    )
}

#[test]
fn every_problem_is_told_with_its_line_and_what_would_be_right() {
    let cases: &[(&str, String, &str, &str)] = &[
        ("not TOML", "[aggregates.user\n".into(), "1:", "not TOML"),
        ("nothing", String::new(), "1:1: ", "no aggregate is declared: add a table such as [aggregates.user]"),
        ("no aggregate", "aggregates = {}".into(), "1:14: ", "no aggregate is declared"),
        ("a table is none", "aggregates = 1".into(), "1:14: ", "`aggregates` must be a table, not a number"),
        ("a key of the file", "[aggregate.user]".into(), "1:2: ", "unknown key `aggregate`: a domain file has aggregates, defs"),
        ("a key of an aggregate", "[aggregates.user]\npublish = \"x\"".into(), "2:1: ", "unknown key `publish`: an aggregate has publish_to, commands, events"),
        ("a key of a command", with_command("  require = \"any\""), "6:3: ", "unknown key `require`: a command has event, requires, schema, data"),
        ("a key of an event", "[aggregates.user.events.user_created]\nchange = \"merge\"".into(), "2:1: ", "unknown key `change`: an event has state"),
        ("no event", "[aggregates.user.commands.create_user]".into(), "1:27: ", "create_user does not say which event it causes: add event ="),
        ("requires", with_command("requires = \"missing\""), "6:12: ", "`requires` must be one of \"absent\", \"present\", \"any\""),
        ("requires is no text", with_command("requires = true"), "6:12: ", "`requires` must be one of"),
        ("state", "[aggregates.user.events.user_created]\nstate = \"patch\"".into(), "2:9: ", "`state` must be one of \"replace\", \"merge\", \"delete\""),
        ("publish_to is empty", "[aggregates.user]\npublish_to = \"\"".into(), "2:14: ", "`publish_to` is the name of a stream and must not be empty"),
        ("publish_to is a number", "[aggregates.user]\npublish_to = 1".into(), "2:14: ", "`publish_to` must be a text, not a number"),
        ("a name of an aggregate", "[aggregates.User]".into(), "1:13: ", "`User` cannot be the name of the aggregate: use lower-case letters"),
        ("a name of a command", "[aggregates.user.commands.createUser]\nevent = \"user_created\"".into(), "1:27: ", "`createUser` cannot be the name of the command"),
        ("a name of an event", "[aggregates.user.commands.create_user]\nevent = \"UserCreated\"".into(), "2:9: ", "`UserCreated` cannot be the name of the event"),
        ("a name that is too long", format!("[aggregates.{}]", "a".repeat(101)), "1:13: ", "has 101 characters: 100 are allowed"),
        ("a type of the API", "[aggregates.stream]".into(), "1:13: ", "the aggregate `stream` would collide with the type Stream of the API"),
        ("a field of the API", "[aggregates.user.commands.append_event]\nevent = \"appended\"".into(), "1:27: ", "`append_event` would collide with the type AppendEventInput of the API"),
        ("two names for one type", "[aggregates.user_created]\n[aggregates.user.events.user_created]".into(), "2:25: ", "the event `user_created` and the aggregate `user_created` would both be the type UserCreated"),
        (
            "a command twice",
            "[aggregates.a.commands.do_it]\nevent = \"done\"\n[aggregates.b.commands.do_it]\nevent = \"done\"".into(),
            "3:24: ",
            "the command do_it is declared for a in line 1 already: names of commands are unique over all aggregates",
        ),
        ("a schema is none", with_command("schema = \"object\""), "6:10: ", "`schema` must be a table, not a text"),
        ("a schema of no object", with_command("schema = { type = \"array\" }"), "6:19: ", "a command's data is an object: `type` must be \"object\""),
        ("a keyword", with_command("schema = { properties = { username = { minLenght = 1 } } }"), "6:40: ", "`minLenght` is not a keyword of JSON Schema that can be used here: perhaps minLength is meant"),
        ("a keyword of one's own", with_command("schema = { label = \"User\" }"), "6:12: ", "keywords of your own begin with x-"),
        ("a type", with_command("schema = { properties = { username = { type = \"text\" } } }"), "6:47: ", "`type` must be one of array, boolean, integer, null, number, object, string"),
        ("a keyword's value", with_command("schema = { properties = { username = { minLength = -1 } } }"), "6:52: ", "`minLength`: -1 is less than the minimum of 0"),
        ("properties", with_command("schema = { properties = [\"username\"] }"), "6:25: ", "`properties` must be a table, not an array"),
        ("allOf", with_command("schema = { allOf = { type = \"object\" } }"), "6:20: ", "`allOf` must be an array of schemas, not a table"),
        ("a pattern", with_command("schema = { properties = { username = { pattern = \"(\" } } }"), "6:50: ", "`pattern`: \"(\" is no regular expression that can be used"),
        ("a format", with_command("schema = { properties = { email = { format = \"mail\" } } }"), "6:46: ", "`format`: there is no format \"mail\""),
        ("a reference to elsewhere", with_command("schema = { properties = { a = { \"$ref\" = \"https://example.com/a.json\" } } }"), "6:42: ", "`$ref` must be \"#/$defs/NAME\""),
        ("a definition that is not there", with_command("schema = { properties = { a = { \"$ref\" = \"#/$defs/adress\" } } }\n[defs.address]\ntype = \"object\""), "6:42: ", "where NAME is one of address"),
        ("definitions of its own", with_command("schema = { \"$defs\" = {} }"), "6:12: ", "give schemas that others share a table [defs.NAME] of the file"),
        ("a definition", "[defs.address]\ntype = \"objekt\"\n[aggregates.user]".into(), "2:8: ", "`type` must be one of"),
        ("a keyword's value in a definition", "[defs.address]\nrequired = \"street\"\n[aggregates.user]".into(), "2:12: ", "`required`: \"street\" is not of type \"array\""),
        ("a name of a definition", "[defs.order]\ntype = \"object\"\n[aggregates.user]".into(), "1:7: ", "the definition `order` would collide with the type Order of the API"),
        ("an instant", with_command("schema = { properties = { a = { const = 2026-01-31 } } }"), "6:41: ", "JSON has no instants"),
        ("infinity", with_command("schema = { properties = { a = { maximum = inf } } }"), "6:43: ", "must be a number that JSON can hold"),
        ("data is none", with_command("data = \"$\""), "6:8: ", "`data` must be a table, not a text"),
        ("data takes nothing", with_command("data = { name = \"$username\" }"), "6:17: ", "`$username` takes nothing from the command: write $.key"),
        ("data takes what the schema does not have", with_command("schema = { properties = { username = {} } }\ndata = { name = \"$.user\" }"), "7:8: ", "`data` takes $.user, which is not among the properties of the schema: username"),
    ];
    let wrong: Vec<String> = cases
        .iter()
        .filter_map(|(case, file, place, text)| {
            let found = problems(file);
            let is_right =
                found.len() == 1 && found[0].starts_with(place) && found[0].contains(text);
            (!is_right).then(|| format!("{case}: expected {place}…{text}, found {found:#?}"))
        })
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn several_problems_are_told_in_the_order_of_their_lines() {
    let file = "[aggregates.user]\npublish = 1\n[aggregates.user.commands.create_user]\nrequires = \"no\"\n";
    let found = problems(file);
    let places: Vec<&str> = found
        .iter()
        .filter_map(|text| text.split(' ').next())
        .collect();
    assert_eq!(places, ["2:1:", "3:27:", "4:12:"], "{found:#?}");
}

#[test]
fn columns_count_characters() {
    let found = problems("[aggregates.user]\npublish_to = \"ä\" # ö\n\"ü\" = 1");
    assert!(found[0].starts_with("3:1: "), "{found:?}");
    let found = problems("aggregates = { \"ü\" = { x = 1 } }");
    assert!(found[1].starts_with("1:24: "), "{found:?}");
}

#[test]
fn a_very_deep_file_is_refused() {
    let deep = format!(
        "[aggregates.user.commands.a]\nevent = \"b\"\nschema = {}{{}}{}",
        "{ not = ".repeat(60),
        " }".repeat(60)
    );
    let found = problems(&deep);
    assert!(!found.is_empty());
    let deeper = format!(
        "[aggregates.user]\na = {}{}",
        "[".repeat(100_000),
        "]".repeat(100_000)
    );
    assert!(problems(&deeper)[0].contains("not TOML"));
}

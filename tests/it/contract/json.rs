//! JSON comes back equal in value: numbers, texts, keys and levels.
//!
//! Numbers are compared as text that the standard library reads, since a JSON library may itself be what rounds them.

use std::fmt::Write;

use serde::Deserialize;
use serde_json::{Value, json, value::RawValue};
use uuid::Uuid;

use super::{Contract, event, with};

cases!(
    integers_up_to_64_bits_come_back,
    doubles_come_back,
    nested_values_and_texts_come_back,
    of_equal_keys_the_last_counts,
    a_key_that_a_library_gives_a_meaning_of_its_own_is_just_a_key,
    sixty_four_levels_come_back,
    metadata_and_stream_entries_hold_the_same_values,
    a_repeat_is_recognised_by_its_value,
);

/// Appends the text as an event's data. How it is answered, then read again, and then delivered.
async fn round_trip(contract: &Contract, data: &str) -> [String; 3] {
    let id = Uuid::new_v4();
    let input = with(event(Uuid::new_v4()), json!({ "id": id, "data": "DATA" }));
    let query =
        "mutation($input: AppendEventInput!) { appendEvent(input: $input) { event { data } } }";
    let head = contract.head().await;
    let request = json!({ "query": query, "variables": { "input": input } }).to_string();
    let answer = send(contract, request.replace("\"DATA\"", data)).await;
    let answered = dig(&answer, &["data", "appendEvent", "event", "data"]);

    let query = format!("{{ event(id: \"{id}\") {{ data }} }}");
    let answer = send(contract, json!({ "query": query }).to_string()).await;
    let stored = dig(&answer, &["data", "event", "data"]);

    let query = format!("{{ events(after: \"{head}\") {{ nodes {{ data }} }} }}");
    let answer = send(contract, json!({ "query": query }).to_string()).await;
    let nodes: Vec<&RawValue> =
        serde_json::from_str(dig(&answer, &["data", "events", "nodes"])).unwrap();
    let listed = dig(nodes[0].get(), &["data"]);
    [answered, stored, listed].map(str::to_owned)
}

async fn send(contract: &Contract, body: String) -> String {
    let request = reqwest::Client::new()
        .post(format!("{}/graphql", contract.server.url))
        .header("content-type", "application/json")
        .body(body);
    request.send().await.unwrap().text().await.unwrap()
}

/// The text of what lies in an object.
fn dig<'a>(text: &'a str, path: &[&str]) -> &'a str {
    #[derive(Deserialize)]
    struct Object<'a>(#[serde(borrow)] std::collections::HashMap<&'a str, &'a RawValue>);
    path.iter().fold(text, |text, key| {
        let Object(fields) = serde_json::from_str(text).unwrap_or_else(|_| panic!("{text}"));
        fields.get(key).unwrap_or_else(|| panic!("{text}")).get()
    })
}

/// The text of an object without spaces, its fields in one order.
fn fields(object: &str) -> Vec<String> {
    let compact = object.replace(' ', "");
    let inside = compact
        .strip_prefix('{')
        .and_then(|rest| rest.strip_suffix('}'));
    let mut fields: Vec<String> = inside
        .unwrap_or_else(|| panic!("not an object: {object}"))
        .split(",\"")
        .map(|field| field.trim_start_matches('"').to_owned())
        .collect();
    fields.sort();
    fields
}

fn numbers(array: &str) -> Vec<String> {
    let inside = array.trim_start_matches('[').trim_end_matches(']');
    inside
        .split(',')
        .map(|number| number.trim().to_owned())
        .collect()
}

async fn integers_up_to_64_bits_come_back(contract: Contract) {
    let integers: [i128; 12] = [
        0,
        1,
        -1,
        2_147_483_648,
        9_007_199_254_740_991,
        9_007_199_254_740_993,
        -9_007_199_254_740_993,
        i128::from(i64::MAX),
        i128::from(i64::MIN),
        i128::from(i64::MAX) + 1,
        i128::from(u64::MAX),
        i128::from(u64::MAX) - 1,
    ];
    let sent = format!("{integers:?}");
    for text in round_trip(&contract, &sent).await {
        let back: Vec<i128> = numbers(&text)
            .iter()
            .map(|number| number.parse().unwrap_or_else(|_| panic!("{number}")))
            .collect();
        assert_eq!(back, integers);
    }
}

async fn doubles_come_back(contract: Contract) {
    let mut texts: Vec<String> = [
        "1e308",
        "-1e308",
        "1.7976931348623157e308",
        "5e-324",
        "-5e-324",
        "2.2250738585072014e-308",
        "2.2250738585072011e-308",
        "0.0",
        "-0.0",
        "1.0",
        "0.1",
        "0.30000000000000004",
        "1e23",
        "1E+2",
        "9007199254740993.0",
        "18446744073709551616",
        "-9223372036854775809",
        "31.245270191439438",
        "121.48791951161945",
        "100.28399999999999",
        "0.000001",
        "123456789.12345679",
    ]
    .map(str::to_owned)
    .to_vec();
    // Doubles of all sizes, each in the shortest text that stands for it.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    while texts.len() < 500 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let double = f64::from_bits(state);
        if double.is_finite() {
            texts.push(format!("{double:e}"));
        }
    }
    let mut sent = String::from("[");
    for (no, text) in texts.iter().enumerate() {
        write!(sent, "{}{text}", if no == 0 { "" } else { "," }).unwrap();
    }
    sent.push(']');
    for answer in round_trip(&contract, &sent).await {
        let back = numbers(&answer);
        assert_eq!(back.len(), texts.len());
        for (sent, back) in texts.iter().zip(back) {
            let value = |text: &str| text.parse::<f64>().unwrap();
            assert_eq!(value(sent), value(&back), "{sent} came back as {back}");
        }
    }
}

async fn nested_values_and_texts_come_back(contract: Contract) {
    for value in [
        json!(true),
        json!(""),
        json!("null"),
        json!([]),
        json!({}),
        json!([[], {}, [[null]], { "a": { "b": [{ "c": false }] } }]),
        json!("\" \\ / \n \r \t \u{8} \u{c} \u{1} \u{1f} \u{7f} \u{2028} \u{2029} </script>"),
        json!("ä ö ü 日本 😀 \u{10ffff} \u{200d} \u{feff} \u{e000}"),
        json!({ "": 1, " ": 2, "ä\n\"": 3, "😀": { "__proto__": 4, "data": 5, "$ref": 6 } }),
        json!("{\"looks\": \"like JSON\"}"),
        json!("x".repeat(500_000)),
    ] {
        for back in round_trip(&contract, &value.to_string()).await {
            assert_eq!(serde_json::from_str::<Value>(&back).unwrap(), value);
        }
    }
    // The same texts escaped, as other clients write them.
    let escaped = r#"{"\u0061":"\ud83d\ude00\u00e4\/\u0008","b":"\u007F"}"#;
    for back in round_trip(&contract, escaped).await {
        let back: Value = serde_json::from_str(&back).unwrap();
        assert_eq!(back, json!({ "a": "😀ä/\u{8}", "b": "\u{7f}" }));
    }
}

async fn of_equal_keys_the_last_counts(contract: Contract) {
    let sent = r#"{"z":1,"a":1,"z":{"b":1,"b":2},"a":3,"m":[{"x":1,"x":null}]}"#;
    for back in round_trip(&contract, sent).await {
        assert_eq!(back.matches("\"z\"").count(), 1, "{back}");
        assert_eq!(back.matches("\"x\"").count(), 1, "{back}");
        let back: Value = serde_json::from_str(&back).unwrap();
        assert_eq!(
            back,
            json!({ "a": 3, "z": { "b": 2 }, "m": [{ "x": null }] })
        );
    }
}

async fn a_key_that_a_library_gives_a_meaning_of_its_own_is_just_a_key(contract: Contract) {
    for key in [
        "$serde_json::private::RawValue",
        "$serde_json::private::Number",
    ] {
        for inside in [
            r#""[1,2]""#,
            r#""{\"a\":1}""#,
            r#""not JSON""#,
            r#"{"a":1}"#,
            "1",
        ] {
            for sent in [
                format!(r#"{{"{key}":{inside}}}"#),
                format!(r#"{{"in":[{{"{key}":{inside}}}]}}"#),
                format!(r#"{{"{key}":{inside},"z":1}}"#),
            ] {
                for back in round_trip(&contract, &sent).await {
                    assert_eq!(fields(&back), fields(&sent));
                }
            }
        }
    }
}

async fn sixty_four_levels_come_back(contract: Contract) {
    let lists = format!("{}7{}", "[".repeat(64), "]".repeat(64));
    let objects = format!("{}[]{}", r#"{"a":"#.repeat(63), "}".repeat(63));
    for sent in [lists, objects] {
        for back in round_trip(&contract, &sent).await {
            assert_eq!(back.replace(' ', ""), sent);
        }
    }
}

async fn metadata_and_stream_entries_hold_the_same_values(contract: Contract) {
    let value = json!({
        "number": 1.5e300, "integer": 9_007_199_254_740_993_i64, "text": "ä\n😀",
        "list": [null, true, { "a": [] }], "correlationId": "c",
    });
    let aggregate = Uuid::new_v4();
    let input = with(event(aggregate), json!({ "metadata": value }));
    let payload = contract.append(input).await;
    assert_eq!(payload["event"]["metadata"], value);
    let stored = contract.event(&payload["event"]["id"]).await;
    assert_eq!(stored["metadata"], value);

    let input = with(super::entry("a"), json!({ "data": value }));
    let payload = contract.append_entry(input).await;
    assert_eq!(payload["entry"]["data"], value);
    let stream = contract.stream("a").await;
    assert_eq!(stream["entries"][0]["data"], value);
}

async fn a_repeat_is_recognised_by_its_value(contract: Contract) {
    let (aggregate, id) = (Uuid::new_v4(), Uuid::new_v4());
    let append = async |data: &str| {
        let query =
            "mutation($input: AppendEventInput!) { appendEvent(input: $input) { duplicate } }";
        let input = with(event(aggregate), json!({ "id": id, "data": "DATA" }));
        let request = json!({ "query": query, "variables": { "input": input } }).to_string();
        let answer = send(&contract, request.replace("\"DATA\"", data)).await;
        serde_json::from_str::<Value>(&answer).unwrap()
    };
    let first =
        r#"{"a":[1.0,1e2,9007199254740993],"b":{"c":"ä","$serde_json::private::RawValue":"[1]"}}"#;
    assert_eq!(
        append(first).await["data"]["appendEvent"]["duplicate"],
        false
    );
    for same in [
        first,
        r#"{"b":{"$serde_json::private::RawValue":"[1]","c":"\u00e4"},"a":[1,100,9007199254740993]}"#,
        r#"{"b":1,"a":[1.00,100.0,9007199254740993],"b":{"$serde_json::private::RawValue":"[1]","c":"ä"}}"#,
    ] {
        let answer = append(same).await;
        assert_eq!(
            answer["data"]["appendEvent"]["duplicate"], true,
            "{same}: {answer}"
        );
    }
    for other in [
        r#"{"a":[1.0,1e2,9007199254740992],"b":{"c":"ä","$serde_json::private::RawValue":"[1]"}}"#,
        r#"{"a":[1.0,1e2,9007199254740993],"b":{"c":"ä","$serde_json::private::RawValue":"[2]"}}"#,
        r#"{"a":[1.0,1e2,9007199254740993],"b":[1]}"#,
        r#"{"a":["1",1e2,9007199254740993],"b":{"c":"ä","$serde_json::private::RawValue":"[1]"}}"#,
    ] {
        let answer = append(other).await;
        assert_eq!(
            answer["errors"][0]["extensions"]["code"], "ID_REUSED",
            "{other}: {answer}"
        );
    }
    assert_eq!(contract.aggregate(aggregate).await["version"], 1);
}

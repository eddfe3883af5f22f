//! The functions take nothing that nobody has given, and nothing of a client's own in the place of theirs.

use serde_json::Value;

use super::{Sql, on_postgres, start};

on_postgres!(
    null_is_an_error_or_the_default,
    nothing_of_a_clients_own_takes_the_place_of_what_the_functions_use,
);

/// A value for each parameter, with which every call succeeds.
const VALUES: &[(&str, &str)] = &[
    ("p_aggregate_id", "tidings_id_of_key('a')"),
    ("p_aggregate_type", "'user'"),
    ("p_event_type", "'seen'"),
    ("p_event_data", "'{}'"),
    ("p_event_metadata", "'{\"a\": 1}'"),
    ("p_expected_version", "2"),
    ("p_from_version", "1"),
    ("p_new_version", "2"),
    ("p_command_type", "'update_user'"),
    ("p_command_data", "'{}'"),
    ("p_command_id", "(SELECT id FROM commands)"),
    ("p_model_data", "'{}'"),
    ("p_version", "1"),
    ("p_stream_name", "'s'"),
    ("p_event_id", "(SELECT id FROM events WHERE version = 1)"),
    ("p_from_position", "1"),
    ("p_limit", "1"),
    ("p_handler_name", "'h'"),
    ("p_handler_function", "'log'"),
    ("p_processing_time_ms", "1"),
    ("p_start_date", "now() - interval '1 day'"),
    ("p_end_date", "now()"),
];

/// What can be told apart of all that the functions store.
const STORED: &str = "SELECT 'event' AS kind, event_type AS name, event_data AS a, event_metadata AS b, version AS n FROM events \
     UNION ALL SELECT 'metric', event_type, to_jsonb(timed_count), to_jsonb(processing_time_ms), event_count::int FROM event_metrics \
     ORDER BY 1, 2, 5";

/// A form of a function of the guide.
struct Form {
    name: String,
    /// Of each parameter its name, its type, and whether it has a default.
    parameters: Vec<(String, String, bool)>,
}

impl Form {
    /// A call with all parameters, but with other text for the value of one, or without that one.
    fn call(&self, other: Option<(&str, Option<&str>)>) -> String {
        let mut given = Vec::new();
        for (name, kind, _) in &self.parameters {
            let value = VALUES.iter().find(|(parameter, _)| parameter == name);
            let value = value.unwrap_or_else(|| panic!("no value for {name}")).1;
            let value = match other {
                Some((parameter, other)) if parameter == name => other,
                _ => Some(value),
            };
            if let Some(value) = value {
                given.push(format!("{name} => ({value})::{kind}"));
            }
        }
        format!("SELECT * FROM {}({})", self.name, given.join(", "))
    }
}

/// The functions of the guide, as they are installed.
async fn forms(sql: &mut Sql) -> Vec<Form> {
    let query = "SELECT p.proname AS name, p.proargnames[1:p.pronargs] AS names, \
         ARRAY(SELECT format_type(t, NULL) FROM unnest(p.proargtypes) WITH ORDINALITY AS k(t, no) ORDER BY no) AS types, \
         p.pronargs - p.pronargdefaults AS needed \
         FROM pg_proc p WHERE p.pronamespace = 'public'::regnamespace AND p.prorettype <> 'trigger'::regtype \
         AND p.proname !~ '^tidings_' ORDER BY p.oid";
    let rows = sql.rows(query).await;
    let texts = |list: &Value| -> Vec<String> { serde_json::from_value(list.clone()).unwrap() };
    let form = |row: &Value| {
        let needed = row["needed"].as_u64().unwrap() as usize;
        let named = texts(&row["names"]).into_iter().zip(texts(&row["types"]));
        let parameters = named.enumerate();
        Form {
            name: row["name"].as_str().unwrap().to_owned(),
            parameters: parameters
                .map(|(at, (name, kind))| (name, kind, at >= needed))
                .collect(),
        }
    };
    rows.iter().map(form).collect()
}

async fn null_is_an_error_or_the_default(partitions: u8) {
    let server = start(partitions, |config| config.background.enabled = false).await;
    let mut sql = Sql::connect(&server).await;
    sql.run(
        "SELECT append_event('a', 'user', 'seen', '{\"n\": 1}'), append_event('a', 'user', 'seen', '{\"n\": 2}'); \
         SELECT create_command('a', 'update_user', '{}'); \
         SELECT append_to_stream('s', n::text, 'seen', '{}') FROM generate_series(1, 150) AS n; \
         SELECT record_event_metrics('seen', 'user', 1); \
         INSERT INTO event_metrics (id, event_type, aggregate_type, event_count, timed_count, created_at) \
         SELECT gen_random_uuid(), 'old', 'user', 1, 0, now() - interval '2 hours' \
         UNION ALL SELECT gen_random_uuid(), 'late', 'user', 1, 0, now() + interval '1 hour'",
    )
    .await
    .unwrap();
    let forms = forms(&mut sql).await;
    assert_eq!(
        forms.len(),
        15 + 11,
        "each of the guide, and those with a key"
    );
    for form in &forms {
        // What is tried below fails for nothing else.
        sql.run("BEGIN").await.unwrap();
        let call = form.call(None);
        if let Err(refused) = sql.run(&call).await {
            panic!("{call}: {refused:?}");
        }
        sql.run("ROLLBACK").await.unwrap();
        for (parameter, _, has_default) in &form.parameters {
            let call = form.call(Some((parameter, Some("NULL"))));
            if *has_default {
                let without = form.call(Some((parameter, None)));
                let with_null = outcome(&mut sql, &call).await;
                assert_eq!(with_null, outcome(&mut sql, &without).await, "{call}");
            } else {
                let refused = sql.refused(&call).await;
                assert_eq!(refused.code, "22023", "{call}: {refused:?}");
                let expected = format!("{parameter} must not be NULL");
                assert!(
                    refused.message.starts_with(&expected),
                    "{call}: {refused:?}"
                );
            }
        }
    }
}

/// What a call answers and stores, which is undone then.
async fn outcome(sql: &mut Sql, call: &str) -> (Vec<Value>, Vec<Value>) {
    sql.run("BEGIN").await.unwrap();
    let mut answer = sql.rows(call).await;
    // It has another id each time.
    if call.contains("append_event(") {
        answer.clear();
    }
    let stored = sql.rows(STORED).await;
    sql.run("ROLLBACK").await.unwrap();
    (answer, stored)
}

/// Tables, functions and operators of somebody's own, of which each that is used fails, and a search path that puts them first.
const TRAPS: &str = "
    CREATE SCHEMA trap;
    DO $$
    DECLARE
        v_made record;
    BEGIN
        FOR v_made IN SELECT c.relname FROM pg_class c WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r' LOOP
            EXECUTE format('CREATE TABLE trap.%I ()', v_made.relname);
        END LOOP;
        FOR v_made IN
            SELECT p.proname, pg_get_function_identity_arguments(p.oid) AS arguments
            FROM pg_proc p WHERE p.pronamespace = 'public'::regnamespace AND p.proname ~ '^tidings_' AND p.prorettype <> 'trigger'::regtype
                 AND p.proargmodes IS NULL
        LOOP
            EXECUTE format('CREATE FUNCTION trap.%I(%s) RETURNS text LANGUAGE plpgsql AS %L', v_made.proname, v_made.arguments,
                           'BEGIN RAISE EXCEPTION ''trapped''; END');
        END LOOP;
        FOR v_made IN
            SELECT o.oprname, format_type(o.oprleft, NULL) AS a, format_type(o.oprright, NULL) AS b FROM pg_operator o
            WHERE o.oprnamespace = 'pg_catalog'::regnamespace AND o.oprname IN ('=', '<>', '<', '>', '||', '->', '->>', '?', '+', '-', '~', '!~')
                 AND o.oprleft = ANY ('{uuid,text,jsonb,int4,int8,int2,timestamptz}'::regtype[])
                 AND o.oprright = ANY ('{uuid,text,jsonb,int4,int8,int2,timestamptz}'::regtype[])
        LOOP
            EXECUTE format('CREATE OR REPLACE FUNCTION trap.trapped(a %s, b %s) RETURNS boolean LANGUAGE plpgsql AS %L', v_made.a, v_made.b,
                           'BEGIN RAISE EXCEPTION ''trapped''; END');
            EXECUTE format('CREATE OPERATOR trap.%s (LEFTARG = %s, RIGHTARG = %s, FUNCTION = trap.trapped)', v_made.oprname, v_made.a,
                           v_made.b);
        END LOOP;
    END $$;
    SET search_path = trap, pg_catalog, public";

async fn nothing_of_a_clients_own_takes_the_place_of_what_the_functions_use(partitions: u8) {
    let server = start(partitions, |config| config.background.enabled = false).await;
    let mut sql = Sql::connect(&server).await;
    sql.run(TRAPS).await.unwrap();
    for trap in [
        "SELECT 'a'::text = 'a'::text",
        "SELECT tidings_new_id()",
        "SELECT id FROM events",
    ] {
        sql.refused(trap).await;
    }
    sql.run("BEGIN").await.unwrap();
    for call in super::functions::CALLS {
        let call = format!("SELECT * FROM public.{call}");
        if let Err(refused) = sql.run(&call).await {
            panic!("{call}: {refused:?}");
        }
    }
    sql.run("COMMIT; SET search_path = public").await.unwrap();
    assert_eq!(sql.rows("SELECT FROM events").await.len(), 3);
    // None of them has more rights than who calls it, and each that clients call has a search path of its own.
    let unsafe_ones = "SELECT p.oid::regprocedure FROM pg_proc p WHERE p.pronamespace = 'public'::regnamespace \
         AND (p.prosecdef OR p.proname !~ '^tidings_' AND NOT coalesce(p.proconfig @> '{\"search_path=public, pg_temp\"}', false))";
    assert_eq!(sql.rows(unsafe_ones).await, [Value::Null; 0]);
}

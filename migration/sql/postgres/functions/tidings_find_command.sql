-- What the domain in force says of a type of command: the type of its aggregates, whether its rules are written in Rust
-- (is_written), and otherwise the event that it causes, what it requires, the schema of its data, the template of the event's
-- data (NULL: the command's own), and the types of events that delete an aggregate's state.
--
-- An unknown type is raised, with the code TD005.
CREATE OR REPLACE FUNCTION tidings_find_command(
    p_parameter text,
    p_command_type text,
    OUT aggregate_type text,
    OUT is_written boolean,
    OUT event_type text,
    OUT requires text,
    OUT schema jsonb,
    OUT template jsonb,
    OUT deleting text[]
)
LANGUAGE plpgsql STABLE
AS $$
DECLARE
    v_content jsonb;
    v_aggregate jsonb;
    v_command jsonb;
BEGIN
    SELECT d.content INTO v_content
    FROM domains d
    ORDER BY d.in_force_from DESC, d.fingerprint DESC
    LIMIT 1;
    IF v_content IS NULL THEN
        RAISE EXCEPTION 'no domain is in force yet: start a server, which brings one' USING ERRCODE = 'TD005';
    END IF;

    SELECT a.key, a.value, a.value -> 'commands' -> p_command_type
    INTO aggregate_type, v_aggregate, v_command
    FROM jsonb_each(v_content -> 'aggregates') AS a
    WHERE a.value -> 'commands' ? p_command_type;
    IF v_command IS NULL THEN
        RAISE EXCEPTION '% names no command of the domain in force: %', p_parameter, p_command_type
            USING ERRCODE = 'TD005',
                  HINT = 'Its commands are ' || coalesce((
                      SELECT string_agg(c, ', ' ORDER BY c)
                      FROM jsonb_each(v_content -> 'aggregates') AS a, jsonb_object_keys(a.value -> 'commands') AS c
                  ), 'none') || '.';
    END IF;

    is_written := coalesce((v_aggregate ->> 'written')::boolean, false);
    event_type := v_command ->> 'event';
    requires := v_command ->> 'requires';
    schema := v_command -> 'schema';
    template := v_command -> 'data';
    deleting := ARRAY(
        SELECT e.key FROM jsonb_each(v_aggregate -> 'events') AS e WHERE e.value ->> 'state' = 'delete' ORDER BY e.key
    );
END;
$$;

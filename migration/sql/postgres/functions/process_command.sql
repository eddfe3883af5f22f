-- Processes a pending command by the declared domain in force, as the server would. TRUE where it is PROCESSED, now or already;
-- FALSE where it is REJECTED (its `reason` says why) or FAILED. Its events and its new status are stored together.
--
-- What cannot be decided here is left PENDING for a server, and raised with the code TD007: a command whose rules are written
-- in Rust, a schema with other keywords than tidings_check_schema follows, or an aggregate whose events cannot be folded. An id
-- that no command has is raised with TD006.
--
-- Source: the guide's process_command.
CREATE OR REPLACE FUNCTION process_command(p_command_id uuid)
RETURNS boolean
LANGUAGE plpgsql VOLATILE
SET enable_seqscan = off
SET enable_sort = off
AS $$
DECLARE
    v_partition_no smallint;
    v_stored record;
    v_command record;
    v_aggregate record;
    v_newest_type text;
    v_needs text;
    v_wrong text;
    v_folded_version int;
    v_is_there boolean;
    v_reason text;
    v_data jsonb;
    v_metadata jsonb;
    v_version int;
BEGIN
    p_command_id := tidings_check_id('p_command_id', p_command_id);
    SELECT c.partition_no, c.aggregate_id, c.command_type, c.command_data, c.command_metadata, c.status INTO v_stored
    FROM commands c
    WHERE c.partition_no = ANY (ARRAY(SELECT l.partition_no FROM partition_locks l WHERE l.log = 'events'))
          AND c.id = p_command_id;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'there is no command %', p_command_id USING ERRCODE = 'TD006';
    END IF;
    v_partition_no := v_stored.partition_no;
    IF v_stored.status <> 'PENDING' THEN
        RETURN v_stored.status = 'PROCESSED';
    END IF;

    v_command := tidings_find_command('its type', v_stored.command_type);
    v_needs := CASE
        WHEN v_command.is_written THEN 'its rules are written in Rust'
        ELSE 'its schema has what only a server can check, ' || tidings_schema_needs(v_command.schema)
    END;
    IF v_needs IS NOT NULL THEN
        RAISE EXCEPTION 'the command % (%) is left PENDING for a server: %', p_command_id, v_stored.command_type, v_needs
            USING ERRCODE = 'TD007';
    END IF;
    -- Most events are looked at before the lock is held.
    v_folded_version := get_aggregate_version(v_stored.aggregate_id);
    v_wrong := tidings_unfoldable_event(v_partition_no, v_stored.aggregate_id, 0, v_command.deleting);

    PERFORM FROM partition_locks l
    WHERE l.partition_no = v_partition_no AND l.log = 'events'
    FOR UPDATE;

    SELECT c.status INTO STRICT v_stored.status
    FROM commands c
    WHERE c.partition_no = v_partition_no AND c.id = p_command_id;
    IF v_stored.status <> 'PENDING' THEN
        RETURN v_stored.status = 'PROCESSED';
    END IF;

    SELECT a.aggregate_type, a.current_version INTO v_aggregate
    FROM aggregates a
    WHERE a.partition_no = v_partition_no AND a.id = v_stored.aggregate_id;
    SELECT e.event_type INTO v_newest_type
    FROM events e
    WHERE e.partition_no = v_partition_no AND e.aggregate_id = v_stored.aggregate_id
    ORDER BY e.version DESC
    LIMIT 1;
    v_is_there := v_newest_type IS NOT NULL AND v_newest_type <> ALL (v_command.deleting);

    v_reason := 'its data: ' || tidings_check_command_data(v_command.schema, v_stored.command_data);
    IF v_reason IS NULL AND v_aggregate.aggregate_type <> v_command.aggregate_type THEN
        v_reason := format('the aggregate is a %s, not a %s', v_aggregate.aggregate_type, v_command.aggregate_type);
    END IF;
    IF v_reason IS NOT NULL THEN
        v_version := tidings_append_one(
            v_partition_no, v_stored.aggregate_id, NULL, NULL, NULL, NULL, NULL, NULL,
            p_command_id, NULL, NULL, 'REJECTED', left(v_reason, 2000)
        );
        RETURN false;
    END IF;

    v_wrong := coalesce(
        v_wrong,
        tidings_unfoldable_event(v_partition_no, v_stored.aggregate_id, v_folded_version, v_command.deleting)::text
    );
    IF v_wrong IS NOT NULL THEN
        RAISE EXCEPTION 'the command % (%) is left PENDING for a server: the event of version % of its aggregate cannot be folded',
            p_command_id, v_stored.command_type, v_wrong
            USING ERRCODE = 'TD007';
    END IF;

    IF v_command.requires = 'absent' AND v_is_there THEN
        v_reason := format('the %s is there already', v_command.aggregate_type);
    ELSIF v_command.requires = 'present' AND NOT v_is_there THEN
        v_reason := format('there is no %s of this id', v_command.aggregate_type);
    END IF;
    IF v_reason IS NOT NULL THEN
        v_version := tidings_append_one(
            v_partition_no, v_stored.aggregate_id, v_command.aggregate_type, NULL, NULL, NULL, NULL,
            coalesce(v_aggregate.current_version, 0), p_command_id, NULL, NULL, 'REJECTED', v_reason
        );
        RETURN false;
    END IF;

    v_data := v_stored.command_data;
    IF v_command.template IS NOT NULL THEN
        v_data := tidings_check_json(
            'the event''s data', coalesce(tidings_fill_template(v_command.template, v_data), 'null')
        );
    END IF;
    v_metadata := v_stored.command_metadata || jsonb_build_object(
        'correlationId',
        coalesce(nullif(v_stored.command_metadata -> 'correlationId', 'null'), to_jsonb(p_command_id::text)),
        'causationId', p_command_id::text,
        'commandId', p_command_id::text
    );
    v_version := tidings_append_one(
        v_partition_no, v_stored.aggregate_id, v_command.aggregate_type, tidings_new_id(), v_command.event_type, v_data,
        v_metadata, coalesce(v_aggregate.current_version, 0), p_command_id, NULL, NULL, 'PROCESSED'
    );
    RETURN true;
END;
$$;

CREATE OR REPLACE FUNCTION process_command(p_command_id text)
RETURNS boolean
LANGUAGE plpgsql VOLATILE
AS $$
BEGIN
    RETURN process_command(tidings_id_of_key(p_command_id));
END;
$$;

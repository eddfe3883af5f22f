-- Appends an event to an aggregate, and answers its id. With p_expected_version, only where the aggregate has that version.
--
-- Source: the guide's append_event.
CREATE OR REPLACE FUNCTION append_event(
    p_aggregate_id uuid,
    p_aggregate_type varchar,
    p_event_type varchar,
    p_event_data jsonb,
    p_event_metadata jsonb DEFAULT '{}',
    p_expected_version integer DEFAULT NULL
)
RETURNS uuid
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    v_event_id CONSTANT uuid := tidings_new_id();
    v_partition_no smallint;
    v_version int;
BEGIN
    -- Assignments: what is wrong is told without the text of a statement around it.
    v_partition_no := tidings_partition_of(uuid_send(tidings_check_id('p_aggregate_id', p_aggregate_id)));
    p_aggregate_type := tidings_check_name('p_aggregate_type', p_aggregate_type);
    p_event_type := tidings_check_name('p_event_type', p_event_type);
    p_event_data := tidings_check_json('p_event_data', p_event_data);
    p_event_metadata := tidings_check_metadata('p_event_metadata', p_event_metadata);
    p_expected_version := tidings_check_version('p_expected_version', p_expected_version);
    v_version := tidings_append_one(
        v_partition_no, p_aggregate_id, p_aggregate_type, v_event_id, p_event_type, p_event_data, p_event_metadata,
        p_expected_version
    );
    RETURN v_event_id;
END;
$$;

CREATE OR REPLACE FUNCTION append_event(
    p_aggregate_id text,
    p_aggregate_type varchar,
    p_event_type varchar,
    p_event_data jsonb,
    p_event_metadata jsonb DEFAULT '{}',
    p_expected_version integer DEFAULT NULL
)
RETURNS uuid
LANGUAGE plpgsql VOLATILE
AS $$
BEGIN
    RETURN append_event(
        tidings_id_of_key(p_aggregate_id), p_aggregate_type, p_event_type, p_event_data, p_event_metadata,
        p_expected_version
    );
END;
$$;

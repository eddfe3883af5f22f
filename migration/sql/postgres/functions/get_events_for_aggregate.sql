-- The events of an aggregate above a version, in the order of their versions.
--
-- Source: the guide's get_events_for_aggregate.
CREATE OR REPLACE FUNCTION get_events_for_aggregate(
    p_aggregate_id uuid,
    p_from_version integer DEFAULT 0
)
RETURNS TABLE (
    id uuid,
    aggregate_id uuid,
    aggregate_type varchar,
    event_type varchar,
    event_data jsonb,
    event_metadata jsonb,
    version integer,
    created_at timestamptz
)
LANGUAGE plpgsql STABLE
SET enable_seqscan = off
SET enable_sort = off
AS $$
DECLARE
    v_partition_no CONSTANT smallint := tidings_partition_of(uuid_send(tidings_check_id('p_aggregate_id', p_aggregate_id)));
BEGIN
    RETURN QUERY
    SELECT e.id, e.aggregate_id, e.aggregate_type, e.event_type, e.event_data, e.event_metadata, e.version, e.created_at
    FROM events e
    WHERE e.partition_no = v_partition_no AND e.aggregate_id = p_aggregate_id AND e.version > coalesce(p_from_version, 0)
    ORDER BY e.version;
END;
$$;

CREATE OR REPLACE FUNCTION get_events_for_aggregate(
    p_aggregate_id text,
    p_from_version integer DEFAULT 0
)
RETURNS TABLE (
    id uuid,
    aggregate_id uuid,
    aggregate_type varchar,
    event_type varchar,
    event_data jsonb,
    event_metadata jsonb,
    version integer,
    created_at timestamptz
)
LANGUAGE plpgsql STABLE
AS $$
BEGIN
    RETURN QUERY SELECT * FROM get_events_for_aggregate(tidings_id_of_key(p_aggregate_id), p_from_version);
END;
$$;

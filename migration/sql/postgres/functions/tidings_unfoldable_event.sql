-- The version of the first event of an aggregate, above another version, that no declared domain can fold: its data is no
-- object. The types in p_deleting end the state, whatever their data is. NULL where there is none.
CREATE OR REPLACE FUNCTION tidings_unfoldable_event(
    p_partition_no smallint,
    p_aggregate_id uuid,
    p_above_version int,
    p_deleting text[]
)
RETURNS int
LANGUAGE plpgsql STABLE
SET enable_seqscan = off
SET enable_sort = off
AS $$
DECLARE
    v_version int;
BEGIN
    SELECT e.version INTO v_version
    FROM events e
    WHERE e.partition_no = p_partition_no AND e.aggregate_id = p_aggregate_id AND e.version > p_above_version
          AND jsonb_typeof(e.event_data) <> 'object' AND e.event_type <> ALL (p_deleting)
    ORDER BY e.version
    LIMIT 1;
    RETURN v_version;
END;
$$;

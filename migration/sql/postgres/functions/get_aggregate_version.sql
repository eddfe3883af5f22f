-- The version of an aggregate: that of its newest event, 0 before the first.
--
-- Source: the guide's get_aggregate_version.
CREATE OR REPLACE FUNCTION get_aggregate_version(p_aggregate_id uuid)
RETURNS integer
LANGUAGE plpgsql STABLE
SET enable_seqscan = off
SET enable_sort = off
AS $$
DECLARE
    v_partition_no CONSTANT smallint := tidings_partition_of(uuid_send(tidings_check_id('p_aggregate_id', p_aggregate_id)));
    v_version int;
BEGIN
    SELECT e.version INTO v_version
    FROM events e
    WHERE e.partition_no = v_partition_no AND e.aggregate_id = p_aggregate_id
    ORDER BY e.version DESC
    LIMIT 1;
    RETURN coalesce(v_version, 0);
END;
$$;

CREATE OR REPLACE FUNCTION get_aggregate_version(p_aggregate_id text)
RETURNS integer
LANGUAGE plpgsql STABLE
AS $$
BEGIN
    RETURN get_aggregate_version(tidings_id_of_key(p_aggregate_id));
END;
$$;

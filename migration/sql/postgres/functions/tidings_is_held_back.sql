-- Whether an aggregate has a delivery of a handler that is under way or waits: what comes later has to wait behind it.
CREATE OR REPLACE FUNCTION tidings_is_held_back(p_partition_no smallint, p_handler_id uuid, p_aggregate_id uuid)
RETURNS boolean
LANGUAGE plpgsql VOLATILE
SET enable_seqscan = off
SET enable_sort = off
SET plan_cache_mode = force_generic_plan
AS $$
BEGIN
    PERFORM FROM deliveries d
    WHERE d.partition_no = p_partition_no AND d.handler_id = p_handler_id AND d.aggregate_id = p_aggregate_id
          AND d.status IN ('RETRYING', 'WAITING')
    ORDER BY d.event_position
    LIMIT 1;
    RETURN FOUND;
END;
$$;

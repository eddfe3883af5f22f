-- The first deliveries of a handler in one partition that are tried again, in the order in which they are due. A function for its
-- settings: with a plan that was made while there were few, all of the handler's deliveries would be read and sorted later.
CREATE OR REPLACE FUNCTION tidings_due_deliveries(p_partition_no smallint, p_handler_id uuid, p_limit bigint)
RETURNS SETOF deliveries
LANGUAGE plpgsql STABLE
SET enable_seqscan = off
SET enable_sort = off
SET plan_cache_mode = force_generic_plan
AS $$
BEGIN
    RETURN QUERY
    SELECT d.*
    FROM deliveries d
    WHERE d.partition_no = p_partition_no AND d.handler_id = p_handler_id AND d.status = 'RETRYING'
    ORDER BY d.next_attempt_at
    LIMIT p_limit;
END;
$$;

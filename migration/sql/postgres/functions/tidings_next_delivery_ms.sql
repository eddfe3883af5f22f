-- In which time the next delivery of a handler is due, in milliseconds; NULL where none is under way.
CREATE OR REPLACE FUNCTION tidings_next_delivery_ms(p_partition_no smallint, p_handler_id uuid)
RETURNS bigint
LANGUAGE plpgsql VOLATILE
SET enable_seqscan = off
SET enable_sort = off
SET plan_cache_mode = force_generic_plan
AS $$
BEGIN
    RETURN (
        SELECT greatest(0, ceil(extract(epoch FROM d.next_attempt_at - clock_timestamp()) * 1000))::bigint
        FROM deliveries d
        WHERE d.partition_no = p_partition_no AND d.handler_id = p_handler_id AND d.status = 'RETRYING'
        ORDER BY d.next_attempt_at
        LIMIT 1
    );
END;
$$;

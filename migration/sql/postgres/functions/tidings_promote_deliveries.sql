-- Makes the next delivery of aggregates due: of each handler and aggregate (the arrays are parallel) the oldest one that waits,
-- unless another one is under way. Whoever calls it has locked the handlers' checkpoints: otherwise two who change deliveries
-- of one aggregate at a time might each leave it to the other.
--
-- One look-up after another, each in the order of the one right index: a join that is planned while there are few deliveries
-- may begin with all of them.
CREATE OR REPLACE FUNCTION tidings_promote_deliveries(
    p_partition_no smallint,
    p_handler_id uuid[],
    p_aggregate_id uuid[]
)
RETURNS void
LANGUAGE plpgsql VOLATILE
SET enable_seqscan = off
SET enable_sort = off
SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    v_key record;
    v_id uuid;
    v_now timestamptz;
BEGIN
    FOR v_key IN
        SELECT DISTINCT k.handler_id, k.aggregate_id
        FROM unnest(p_handler_id, p_aggregate_id) AS k(handler_id, aggregate_id)
    LOOP
        PERFORM FROM deliveries r
        WHERE r.partition_no = p_partition_no AND r.handler_id = v_key.handler_id
              AND r.aggregate_id BETWEEN v_key.aggregate_id AND v_key.aggregate_id AND r.status = 'RETRYING'
        ORDER BY r.aggregate_id
        LIMIT 1;
        CONTINUE WHEN FOUND;

        SELECT w.id INTO v_id
        FROM deliveries w
        WHERE w.partition_no = p_partition_no AND w.handler_id = v_key.handler_id
              AND w.aggregate_id = v_key.aggregate_id AND w.status = 'WAITING'
        ORDER BY w.event_position
        LIMIT 1;
        CONTINUE WHEN NOT FOUND;

        -- A variable: Citus takes nothing volatile in an UPDATE.
        v_now := clock_timestamp();
        UPDATE deliveries d
        SET status = 'RETRYING', next_attempt_at = v_now, updated_at = v_now
        WHERE d.partition_no = p_partition_no AND d.id = v_id;
    END LOOP;
END;
$$;

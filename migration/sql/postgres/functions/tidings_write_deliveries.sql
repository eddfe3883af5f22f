-- Writes what has become of deliveries. Whoever calls it has locked the handlers' checkpoints.
--
-- The arrays are parallel, one element a delivery. One that is stored is changed only where it is still as it was when it
-- was tried: RETRYING, and after as many attempts. One that is DELIVERED goes.
CREATE OR REPLACE FUNCTION tidings_write_deliveries(
    p_partition_no smallint,
    p_handler_id uuid[],
    p_delivery_id uuid[],
    p_is_new boolean[],
    p_position bigint[],
    p_aggregate_id uuid[],
    p_status text[],
    p_attempts int[],
    p_last_error text[],
    p_delay_ms bigint[]
)
RETURNS void
LANGUAGE plpgsql VOLATILE
SET enable_seqscan = off
SET enable_sort = off
SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    v_now timestamptz;
    v_status text;
    v_attempts int;
    v_last_error text;
BEGIN
    FOR v_ord IN 1 .. cardinality(p_delivery_id) LOOP
        -- Variables: Citus takes nothing volatile in an UPDATE, and crashes where it sets a column to an element of an array.
        v_now := clock_timestamp();
        v_status := p_status[v_ord];
        v_attempts := p_attempts[v_ord];
        v_last_error := p_last_error[v_ord];
        IF p_is_new[v_ord] THEN
            CONTINUE WHEN p_status[v_ord] = 'DELIVERED';
            INSERT INTO deliveries (
                partition_no, id, handler_id, event_position, aggregate_id, status, attempts, last_error, next_attempt_at,
                updated_at
            )
            VALUES (
                p_partition_no, p_delivery_id[v_ord], p_handler_id[v_ord], p_position[v_ord], p_aggregate_id[v_ord],
                p_status[v_ord], p_attempts[v_ord], p_last_error[v_ord],
                v_now + p_delay_ms[v_ord] * INTERVAL '1 millisecond', v_now
            );
        ELSIF p_status[v_ord] = 'DELIVERED' THEN
            DELETE FROM deliveries d
            WHERE d.partition_no = p_partition_no AND d.id = p_delivery_id[v_ord]
                  AND d.status = 'RETRYING' AND d.attempts = p_attempts[v_ord];
        ELSE
            UPDATE deliveries d
            SET status = v_status, attempts = v_attempts, last_error = v_last_error,
                next_attempt_at = v_now + p_delay_ms[v_ord] * INTERVAL '1 millisecond',
                updated_at = v_now
            WHERE d.partition_no = p_partition_no AND d.id = p_delivery_id[v_ord]
                  AND d.status = 'RETRYING' AND d.attempts = p_attempts[v_ord] - 1;
        END IF;
    END LOOP;

    PERFORM tidings_promote_deliveries(p_partition_no, p_handler_id, p_aggregate_id);
END;
$$;

-- Calls the function of a handler for events of one partition, each with (event id, aggregate id, data), and moves the
-- handler's checkpoint: what the function does for an event is stored together with that it was done.
--
-- The arrays are parallel, one element an event, in their order:
--   p_delivery_id, p_is_new, p_attempts  the delivery that is stored for it; a new id where there is none yet
--   p_position                           the event's position
-- p_delay_ms has the pause after the first attempt that failed, the second one and so on; behind its end a delivery is DEAD. Each
-- delivery's pause is shifted by up to a fifth by chance, so that what failed together is not tried together.
-- Where a call fails, only what it did is undone, and its delivery is stored; later events of its aggregate wait. A delivery
-- that is not as it was when it was read is left alone.
--
-- The calls end after p_most_failures that fail in a row, and no call begins later than p_most_ms after the first one. One that
-- was cancelled (statement_timeout) ends them too: the first one has failed then; another one was not tried, for the time was
-- not its own alone. The checkpoint goes as far as events were looked at, and to p_to where all were.
--
-- Constraints that are deferred are checked at the end of each call: at the commit nobody could say which one broke them. And
-- what a call changes of the session's settings, which this function depends on, makes it fail.
--
-- Returns one row: reached (NULL where the checkpoint is not at p_from or has another fence: then nothing was done),
-- next_due_ms as tidings_save_handler_steps does, and for each event that was looked at its error: NULL where the call succeeded,
-- '' where there was none because an earlier event of its aggregate has failed, or its delivery is another by now.
--
-- The name is looked up in the catalog, and quoted; nothing that a client sends becomes SQL text. Settings for the look-ups are
-- those of the functions that are called for them: here they would be the handler's, too.

-- An earlier form of the function did not take p_most_ms.
DO $$
BEGIN
    IF to_regprocedure(
        'tidings_run_sql_handler(smallint,bigint,uuid,bigint,bigint,text,text,uuid[],boolean[],bigint[],int[],bigint[],int)'
    ) IS NOT NULL THEN
        DROP FUNCTION tidings_run_sql_handler(
            smallint, bigint, uuid, bigint, bigint, text, text, uuid[], boolean[], bigint[], int[], bigint[], int
        );
    END IF;
END;
$$;

CREATE OR REPLACE FUNCTION tidings_run_sql_handler(
    p_partition_no smallint,
    p_fence bigint,
    p_handler_id uuid,
    p_from bigint,
    p_to bigint,
    p_schema text,
    p_function text,
    p_delivery_id uuid[],
    p_is_new boolean[],
    p_position bigint[],
    p_attempts int[],
    p_delay_ms bigint[],
    p_most_failures int,
    p_most_ms bigint
)
RETURNS TABLE (reached bigint, next_due_ms bigint, errors text[])
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    v_settings CONSTANT text := current_user || ' ' || current_setting('search_path');
    v_call text;
    v_deferred text;
    v_has_deliveries boolean;
    v_failed uuid[] := '{}';
    v_touched uuid[] := '{}';
    v_errors text[] := '{}';
    v_error text;
    v_reached bigint := p_to;
    v_ends_at timestamptz;
    v_failures int := 0;
    v_cancelled boolean := false;
    v_has_called boolean := false;
    v_attempts int;
    v_now timestamptz;
    v_delay interval;
    v_event record;
BEGIN
    PERFORM FROM checkpoints c
    WHERE c.partition_no = p_partition_no AND c.name = 'handler:' || p_handler_id::text
          AND c.position = p_from AND c.fence = p_fence
    FOR UPDATE;
    IF NOT FOUND THEN
        RETURN QUERY SELECT NULL::bigint, NULL::bigint, NULL::text[];
        RETURN;
    END IF;

    SELECT format('SELECT %I.%I($1, $2, $3)', n.nspname, p.proname) INTO v_call
    FROM pg_catalog.pg_proc p
    JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
    WHERE p.proname = p_function AND p.prokind = 'f' AND p.proargtypes = '2950 2950 3802'::oidvector
          AND CASE WHEN p_schema IS NULL THEN pg_catalog.pg_function_is_visible(p.oid) ELSE n.nspname = p_schema END;

    -- The next call is to find them so again.
    v_deferred := tidings_defer_constraints();
    v_has_deliveries := tidings_next_delivery_ms(p_partition_no, p_handler_id) IS NOT NULL;
    v_ends_at := clock_timestamp() + p_most_ms * INTERVAL '1 millisecond';

    FOR v_ord IN 1 .. cardinality(p_position) LOOP
        SELECT e.id, e.aggregate_id, e.event_data INTO STRICT v_event
        FROM events e
        WHERE e.partition_no = p_partition_no AND e.position = p_position[v_ord];

        IF p_is_new[v_ord] AND (
            v_event.aggregate_id = ANY (v_failed)
            OR v_has_deliveries AND tidings_is_held_back(p_partition_no, p_handler_id, v_event.aggregate_id)
        ) THEN
            INSERT INTO deliveries (
                partition_no, id, handler_id, event_position, aggregate_id, status, attempts, updated_at
            )
            VALUES (
                p_partition_no, p_delivery_id[v_ord], p_handler_id, p_position[v_ord], v_event.aggregate_id, 'WAITING', 0,
                clock_timestamp()
            );
            v_touched := v_touched || v_event.aggregate_id;
            v_errors := v_errors || ''::text;
            CONTINUE;
        END IF;

        IF NOT p_is_new[v_ord] THEN
            PERFORM FROM deliveries d
            WHERE d.partition_no = p_partition_no AND d.id = p_delivery_id[v_ord] AND d.status = 'RETRYING'
                  AND d.attempts = p_attempts[v_ord];
            IF NOT FOUND THEN
                v_errors := v_errors || ''::text;
                CONTINUE;
            END IF;
        END IF;

        IF v_has_called AND clock_timestamp() > v_ends_at THEN
            v_reached := CASE WHEN p_to = p_from THEN p_from ELSE p_position[v_ord] - 1 END;
            EXIT;
        END IF;

        v_error := NULL;
        BEGIN
            IF v_call IS NULL THEN
                RAISE EXCEPTION 'there is no function %(uuid, uuid, jsonb) any more', p_function;
            END IF;
            EXECUTE v_call USING v_event.id, v_event.aggregate_id, v_event.event_data;
            SET CONSTRAINTS ALL IMMEDIATE;
            IF v_deferred IS NOT NULL THEN
                EXECUTE v_deferred;
            END IF;
            IF current_user || ' ' || current_setting('search_path') <> v_settings THEN
                RAISE EXCEPTION 'the function has changed the role or the search_path: it has to leave both as they are';
            END IF;
        EXCEPTION
            WHEN query_canceled THEN
                v_error := 'it took too long';
                v_cancelled := true;
            WHEN assert_failure OR OTHERS THEN
                v_error := coalesce(nullif(SQLERRM, ''), 'it failed without a word');
        END;
        IF v_cancelled AND v_has_called THEN
            v_reached := CASE WHEN p_to = p_from THEN p_from ELSE p_position[v_ord] - 1 END;
            EXIT;
        END IF;
        v_has_called := true;
        v_errors := v_errors || ARRAY[v_error];

        IF v_error IS NULL THEN
            v_failures := 0;
            IF NOT p_is_new[v_ord] THEN
                DELETE FROM deliveries d WHERE d.partition_no = p_partition_no AND d.id = p_delivery_id[v_ord];
                v_touched := v_touched || v_event.aggregate_id;
            END IF;
            CONTINUE;
        END IF;

        v_failures := v_failures + 1;
        v_attempts := p_attempts[v_ord] + 1;
        v_touched := v_touched || v_event.aggregate_id;
        IF p_is_new[v_ord] THEN
            INSERT INTO deliveries (
                partition_no, id, handler_id, event_position, aggregate_id, status, attempts, updated_at
            )
            VALUES (
                p_partition_no, p_delivery_id[v_ord], p_handler_id, p_position[v_ord], v_event.aggregate_id, 'RETRYING', 0,
                clock_timestamp()
            );
        END IF;
        -- Variables: Citus takes nothing volatile in an UPDATE.
        v_now := clock_timestamp();
        v_delay := p_delay_ms[v_attempts] * (0.8 + 0.4 * random()) * INTERVAL '1 millisecond';
        UPDATE deliveries d
        SET status = CASE WHEN v_attempts > cardinality(p_delay_ms) THEN 'DEAD' ELSE 'RETRYING' END,
            attempts = v_attempts,
            last_error = left(regexp_replace(v_error, '[[:cntrl:]]', ' ', 'g'), 500),
            next_attempt_at = v_now + v_delay,
            updated_at = v_now
        WHERE d.partition_no = p_partition_no AND d.id = p_delivery_id[v_ord];
        IF v_attempts <= cardinality(p_delay_ms) THEN
            v_failed := v_failed || v_event.aggregate_id;
        END IF;
        IF v_cancelled OR v_failures >= p_most_failures THEN
            IF v_ord < cardinality(p_position) THEN
                v_reached := CASE WHEN p_to = p_from THEN p_from ELSE p_position[v_ord] END;
            END IF;
            EXIT;
        END IF;
    END LOOP;

    IF v_reached <> p_from THEN
        UPDATE checkpoints c
        SET position = v_reached
        WHERE c.partition_no = p_partition_no AND c.name = 'handler:' || p_handler_id::text;
    END IF;

    IF cardinality(v_touched) > 0 THEN
        PERFORM tidings_promote_deliveries(
            p_partition_no, array_fill(p_handler_id, ARRAY[cardinality(v_touched)]), v_touched
        );
    END IF;

    RETURN QUERY SELECT v_reached, tidings_next_delivery_ms(p_partition_no, p_handler_id), v_errors;
END;
$$;

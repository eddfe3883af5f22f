-- Gives an event to every active handler of its type, whatever was done with it before. FALSE where there is no such event.
--
-- Functions in SQL are called, entries are appended, and `log` writes to the database's log, all in this transaction. What
-- fails is undone by itself, told as a warning, and stored as a delivery that a server tries again. Webhooks and functions in
-- Rust are queued for a server: as deliveries that are due now.
--
-- A function is called as tidings_run_sql_handler calls it: constraints that are deferred are checked at its end, and it leaves
-- the role and the search_path as they are. So constraints that the transaction has left open before are checked first, and are
-- no fault of the function. A deadlock or a serialization failure in it is the transaction's, and nobody's attempt.
--
-- Source: the guide's process_event.
CREATE OR REPLACE FUNCTION process_event(p_event_id uuid)
RETURNS boolean
LANGUAGE plpgsql VOLATILE
SET enable_seqscan = off
SET enable_sort = off
AS $$
DECLARE
    -- The server's own pause after a first attempt, unless it was told another one, shifted by chance as it is there.
    v_retry_delay interval;
    v_settings CONSTANT text := current_user || ' ' || current_setting('search_path');
    v_deferred text;
    v_has_called boolean := false;
    v_event record;
    v_handler record;
    v_call text;
    v_entry record;
    v_error text;
    v_is_queued boolean;
    v_waits boolean;
    v_has_locks boolean := false;
    v_partition_no smallint;
    v_revised uuid[] := '{}';
    v_now timestamptz;
BEGIN
    p_event_id := tidings_check_id('p_event_id', p_event_id);
    SELECT e.* INTO v_event
    FROM events e
    WHERE e.partition_no = ANY (ARRAY(SELECT l.partition_no FROM partition_locks l WHERE l.log = 'events'))
          AND e.id = p_event_id;
    IF NOT FOUND THEN
        RETURN false;
    END IF;

    FOR v_handler IN
        SELECT h.id, h.handler_name, h.handler_function
        FROM event_handlers h
        WHERE h.is_active AND (h.event_types = '[]' OR h.event_types ? v_event.event_type)
        -- Those that publish come last: nobody who appends to their streams waits for what the others do.
        ORDER BY h.handler_function LIKE 'publish:%', h.handler_name
    LOOP
        v_error := NULL;
        IF v_handler.handler_function LIKE 'publish:%' AND NOT v_has_locks THEN
            -- In ascending order, as for all who append to several.
            FOR v_partition_no IN
                SELECT DISTINCT tidings_partition_of(convert_to(substr(h.handler_function, 9), 'UTF8'))
                FROM event_handlers h
                WHERE h.is_active AND h.handler_function LIKE 'publish:%'
                      AND (h.event_types = '[]' OR h.event_types ? v_event.event_type)
                ORDER BY 1
            LOOP
                PERFORM FROM partition_locks l
                WHERE l.partition_no = v_partition_no AND l.log = 'entries'
                FOR UPDATE;
            END LOOP;
            v_has_locks := true;
        END IF;
        v_is_queued := false;
        IF v_handler.handler_function = 'log' THEN
            RAISE LOG 'handler %: event % (%) of the aggregate % (%), version %: %', v_handler.handler_name, v_event.id,
                v_event.event_type, v_event.aggregate_id, v_event.aggregate_type, v_event.version, v_event.event_data;
        ELSIF v_handler.handler_function LIKE 'publish:%' THEN
            v_entry := tidings_append_entry(
                substr(v_handler.handler_function, 9), v_event.id, v_event.event_type, v_event.event_data, v_event.partition_no
            );
            IF v_entry.outcome = 'id_reused' THEN
                v_error := format('the id %s stands for something else already', v_event.id);
            END IF;
        ELSIF v_handler.handler_function LIKE 'sql:%' THEN
            v_call := tidings_find_handler_function(substr(v_handler.handler_function, 5));
            IF NOT v_has_called THEN
                v_has_called := true;
                v_deferred := tidings_defer_constraints();
                SET CONSTRAINTS ALL IMMEDIATE;
                IF v_deferred IS NOT NULL THEN
                    EXECUTE v_deferred;
                END IF;
            END IF;
            BEGIN
                IF v_call IS NULL THEN
                    RAISE EXCEPTION 'there is no function %(uuid, uuid, jsonb) any more', substr(v_handler.handler_function, 5);
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
                WHEN deadlock_detected OR serialization_failure THEN
                    RAISE;
                WHEN assert_failure OR OTHERS THEN
                    v_error := coalesce(nullif(SQLERRM, ''), 'it failed without a word');
            END;
        ELSE
            v_is_queued := true;
        END IF;
        CONTINUE WHEN v_error IS NULL AND NOT v_is_queued;

        IF v_error IS NOT NULL THEN
            RAISE WARNING 'the handler % has failed, and is tried again: %', v_handler.handler_name, v_error;
            v_error := left(regexp_replace(v_error, '[[:cntrl:]]', ' ', 'g'), 500);
        END IF;
        -- Whoever changes deliveries of a handler has locked its checkpoint.
        PERFORM FROM checkpoints c
        WHERE c.partition_no = v_event.partition_no AND c.name = 'handler:' || v_handler.id::text
              AND (v_is_queued OR c.position >= v_event.position)
        FOR UPDATE;
        -- A function comes by itself to an event that it has not come to: stored too, it would be called twice. Whether a webhook
        -- has, the checkpoint does not tell, for it is written later.
        CONTINUE WHEN NOT FOUND;
        -- One that is due may be in a server's hand, which takes it away when it is done: then another one waits behind it.
        -- Citus takes nothing volatile in an UPDATE.
        v_now := clock_timestamp();
        UPDATE deliveries d
        SET status = CASE WHEN d.status = 'DEAD' THEN 'WAITING' ELSE d.status END,
            attempts = CASE WHEN d.status = 'DEAD' THEN 0 ELSE d.attempts END,
            next_attempt_at = CASE WHEN d.status = 'RETRYING' AND v_is_queued THEN v_now ELSE d.next_attempt_at END,
            last_error = coalesce(v_error, d.last_error),
            updated_at = v_now
        WHERE d.partition_no = v_event.partition_no AND d.handler_id = v_handler.id
              AND d.aggregate_id = v_event.aggregate_id AND d.event_position = v_event.position
              AND (NOT v_is_queued OR d.status <> 'RETRYING' OR d.next_attempt_at > v_now);
        IF NOT FOUND THEN
            v_retry_delay := INTERVAL '5 seconds' * (0.8 + 0.4 * random());
            -- One of an aggregate is tried at a time. What is queued, too, waits, and is made due below.
            v_waits := v_is_queued OR EXISTS (
                SELECT FROM deliveries d
                WHERE d.partition_no = v_event.partition_no AND d.handler_id = v_handler.id
                      AND d.aggregate_id = v_event.aggregate_id AND d.status IN ('RETRYING', 'WAITING')
            );
            INSERT INTO deliveries (
                partition_no, id, handler_id, event_position, aggregate_id, status, attempts, last_error, next_attempt_at,
                updated_at
            )
            VALUES (
                v_event.partition_no, tidings_new_id(), v_handler.id, v_event.position, v_event.aggregate_id,
                CASE WHEN v_waits THEN 'WAITING' ELSE 'RETRYING' END, CASE WHEN v_is_queued THEN 0 ELSE 1 END,
                v_error,
                CASE WHEN NOT v_waits THEN v_now + v_retry_delay END, v_now
            );
        END IF;
        PERFORM tidings_promote_deliveries(v_event.partition_no, ARRAY[v_handler.id], ARRAY[v_event.aggregate_id]);
        v_revised := v_revised || v_handler.id;
    END LOOP;
    -- Their dispatchers, on whichever server, look at it.
    UPDATE event_handlers h SET revision = h.revision + 1 WHERE h.id = ANY (v_revised);
    RETURN true;
END;
$$;

CREATE OR REPLACE FUNCTION process_event(p_event_id text)
RETURNS boolean
LANGUAGE plpgsql VOLATILE
AS $$
BEGIN
    RETURN process_event(tidings_id_of_key(p_event_id));
END;
$$;

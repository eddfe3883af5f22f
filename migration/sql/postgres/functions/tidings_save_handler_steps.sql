-- Stores what handlers have come to in one partition: for each its checkpoint, its deliveries and the entries that it makes.
-- Each handler's part is stored as a whole, or not at all where its checkpoint is not where it was or has another fence.
--
-- Three groups of parallel arrays:
--   p_handler_id, p_from, p_to    one element a handler
--   p_step …                      one element a delivery; p_step is the place of its handler, from 1
--   p_entry_step …                one element an entry; the delivery of an entry is what it is stored as where its stream has
--                                 another entry of its id, and what goes where it is there already
-- What is written of deliveries follows tidings_write_deliveries; p_entry_attempts is how often one was tried before. No stream
-- may get the same event id twice, and no handler may come twice.
--
-- The locks of the streams' partitions come first, in ascending order, and then nothing is waited for: a checkpoint that
-- somebody has locked, for as long as a function in SQL may take, is left out. So whoever appends waits for no handler.
--
-- Returns one row:
--   saved        for each handler, whether its part is stored; NULL where its checkpoint is locked by somebody else: then it may
--                be tried again
--   next_due_ms  for each handler that wrote deliveries, in which time its next one is due; NULL where none is
--   entry_…      for each entry, what tidings_append_entries says of it; NULL where it was not made
--
-- Its settings follow tidings_append_events, which says why.

-- An earlier form of the function did not take p_entry_attempts.
DO $$
BEGIN
    IF to_regprocedure(
        'tidings_save_handler_steps(smallint,bigint,uuid[],bigint[],bigint[],int[],uuid[],boolean[],bigint[],uuid[],text[],'
        'int[],text[],bigint[],int[],smallint[],text[],uuid[],text[],text[],uuid[],boolean[],bigint[],uuid[],text[])'
    ) IS NOT NULL THEN
        DROP FUNCTION tidings_save_handler_steps(
            smallint, bigint, uuid[], bigint[], bigint[], int[], uuid[], boolean[], bigint[], uuid[], text[], int[], text[],
            bigint[], int[], smallint[], text[], uuid[], text[], text[], uuid[], boolean[], bigint[], uuid[], text[]
        );
    END IF;
END;
$$;

CREATE OR REPLACE FUNCTION tidings_save_handler_steps(
    p_partition_no smallint,
    p_fence bigint,
    p_handler_id uuid[],
    p_from bigint[],
    p_to bigint[],
    p_step int[],
    p_delivery_id uuid[],
    p_is_new boolean[],
    p_position bigint[],
    p_aggregate_id uuid[],
    p_status text[],
    p_attempts int[],
    p_last_error text[],
    p_delay_ms bigint[],
    p_entry_step int[],
    p_stream_partition_no smallint[],
    p_stream_name text[],
    p_event_id uuid[],
    p_event_type text[],
    p_event_data text[],
    p_entry_delivery_id uuid[],
    p_entry_is_new boolean[],
    p_entry_position bigint[],
    p_entry_aggregate_id uuid[],
    p_entry_attempts int[],
    p_entry_error text[]
)
RETURNS TABLE (
    saved boolean[],
    next_due_ms bigint[],
    entry_outcome text[],
    entry_stream_position bigint[],
    entry_entry_position bigint[],
    entry_created_at timestamptz[]
)
LANGUAGE plpgsql VOLATILE
SET enable_seqscan = off
SET enable_sort = off
SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    v_steps CONSTANT int := cardinality(p_handler_id);
    v_entries CONSTANT int := cardinality(p_entry_step);
    v_saved boolean[] := array_fill(false, ARRAY[v_steps]);
    v_next_due_ms bigint[] := array_fill(NULL::bigint, ARRAY[v_steps]);
    v_touched boolean[] := array_fill(false, ARRAY[v_steps]);
    v_outcome text[] := array_fill(NULL::text, ARRAY[v_entries]);
    v_stream_position bigint[] := array_fill(NULL::bigint, ARRAY[v_entries]);
    v_entry_position bigint[] := array_fill(NULL::bigint, ARRAY[v_entries]);
    v_created_at timestamptz[] := array_fill(NULL::timestamptz, ARRAY[v_entries]);
    v_stream_partition_no smallint;
    v_places int[];
    v_kept int[];
    v_found record;
BEGIN
    IF v_entries > 0 THEN
        -- One by one: an engine that shards locks in one place at a time.
        FOR v_stream_partition_no IN SELECT DISTINCT s FROM unnest(p_stream_partition_no) AS s ORDER BY 1 LOOP
            PERFORM FROM partition_locks l
            WHERE l.partition_no = v_stream_partition_no AND l.log = 'entries'
            FOR UPDATE;
        END LOOP;
    END IF;

    FOR v_found IN
        SELECT s.ord
        FROM unnest(p_handler_id, p_from) WITH ORDINALITY AS s(handler_id, from_position, ord)
        JOIN checkpoints c
          ON c.partition_no = p_partition_no AND c.name = 'handler:' || s.handler_id::text
             AND c.position = s.from_position AND c.fence = p_fence
        ORDER BY c.name
        FOR UPDATE OF c SKIP LOCKED
    LOOP
        v_saved[v_found.ord] := true;
    END LOOP;

    -- Those that are where they were are only locked.
    FOR v_found IN
        SELECT s.ord
        FROM unnest(p_handler_id, p_from) WITH ORDINALITY AS s(handler_id, from_position, ord)
        JOIN checkpoints c
          ON c.partition_no = p_partition_no AND c.name = 'handler:' || s.handler_id::text
             AND c.position = s.from_position AND c.fence = p_fence
        WHERE NOT v_saved[s.ord]
    LOOP
        v_saved[v_found.ord] := NULL;
    END LOOP;

    UPDATE checkpoints c
    SET position = s.to_position
    FROM unnest(p_handler_id, p_to) WITH ORDINALITY AS s(handler_id, to_position, ord)
    WHERE v_saved[s.ord] AND c.partition_no = p_partition_no AND c.name = 'handler:' || s.handler_id::text
          AND c.position <> s.to_position;

    FOR v_stream_partition_no, v_places IN
        SELECT p_stream_partition_no[b.ord], array_agg(b.ord ORDER BY b.ord)
        FROM generate_series(1, v_entries) AS b(ord)
        WHERE v_saved[p_entry_step[b.ord]]
        GROUP BY p_stream_partition_no[b.ord]
        ORDER BY p_stream_partition_no[b.ord]
    LOOP
        FOR v_found IN
            SELECT e.ord, e.outcome, e.position, e.entry_position, e.created_at
            FROM tidings_append_entries(
                v_stream_partition_no,
                ARRAY(SELECT p_stream_name[o.place] FROM unnest(v_places) WITH ORDINALITY AS o(place, no) ORDER BY o.no),
                ARRAY(SELECT p_event_id[o.place] FROM unnest(v_places) WITH ORDINALITY AS o(place, no) ORDER BY o.no),
                ARRAY(SELECT p_event_type[o.place] FROM unnest(v_places) WITH ORDINALITY AS o(place, no) ORDER BY o.no),
                ARRAY(SELECT p_event_data[o.place] FROM unnest(v_places) WITH ORDINALITY AS o(place, no) ORDER BY o.no),
                array_fill(p_partition_no, ARRAY[cardinality(v_places)]),
                array_fill(NULL::bigint, ARRAY[cardinality(v_places)])
            ) AS e
        LOOP
            v_outcome[v_places[v_found.ord]] := v_found.outcome;
            v_stream_position[v_places[v_found.ord]] := v_found.position;
            v_entry_position[v_places[v_found.ord]] := v_found.entry_position;
            v_created_at[v_places[v_found.ord]] := v_found.created_at;
        END LOOP;
    END LOOP;

    -- What entries have become is a delivery like any other.
    FOR v_ord IN 1 .. v_entries LOOP
        CONTINUE WHEN v_outcome[v_ord] IS NULL OR (v_outcome[v_ord] <> 'id_reused' AND p_entry_is_new[v_ord]);
        p_step := p_step || p_entry_step[v_ord];
        p_delivery_id := p_delivery_id || p_entry_delivery_id[v_ord];
        p_is_new := p_is_new || p_entry_is_new[v_ord];
        p_position := p_position || p_entry_position[v_ord];
        p_aggregate_id := p_aggregate_id || p_entry_aggregate_id[v_ord];
        p_status := p_status || CASE WHEN v_outcome[v_ord] = 'id_reused' THEN 'DEAD' ELSE 'DELIVERED' END;
        p_attempts := p_attempts || p_entry_attempts[v_ord] + (v_outcome[v_ord] = 'id_reused')::int;
        p_last_error := p_last_error || p_entry_error[v_ord];
        p_delay_ms := p_delay_ms || NULL::bigint;
    END LOOP;

    IF cardinality(p_step) > 0 THEN
        v_kept := ARRAY(
            SELECT b.ord FROM generate_series(1, cardinality(p_step)) AS b(ord) WHERE v_saved[p_step[b.ord]] ORDER BY b.ord
        );
        PERFORM tidings_write_deliveries(
            p_partition_no,
            ARRAY(SELECT p_handler_id[p_step[k.ord]] FROM unnest(v_kept) WITH ORDINALITY AS k(ord, no) ORDER BY k.no),
            ARRAY(SELECT p_delivery_id[k.ord] FROM unnest(v_kept) WITH ORDINALITY AS k(ord, no) ORDER BY k.no),
            ARRAY(SELECT p_is_new[k.ord] FROM unnest(v_kept) WITH ORDINALITY AS k(ord, no) ORDER BY k.no),
            ARRAY(SELECT p_position[k.ord] FROM unnest(v_kept) WITH ORDINALITY AS k(ord, no) ORDER BY k.no),
            ARRAY(SELECT p_aggregate_id[k.ord] FROM unnest(v_kept) WITH ORDINALITY AS k(ord, no) ORDER BY k.no),
            ARRAY(SELECT p_status[k.ord] FROM unnest(v_kept) WITH ORDINALITY AS k(ord, no) ORDER BY k.no),
            ARRAY(SELECT p_attempts[k.ord] FROM unnest(v_kept) WITH ORDINALITY AS k(ord, no) ORDER BY k.no),
            ARRAY(SELECT p_last_error[k.ord] FROM unnest(v_kept) WITH ORDINALITY AS k(ord, no) ORDER BY k.no),
            ARRAY(SELECT p_delay_ms[k.ord] FROM unnest(v_kept) WITH ORDINALITY AS k(ord, no) ORDER BY k.no)
        );

        FOR v_ord IN 1 .. cardinality(p_step) LOOP
            v_touched[p_step[v_ord]] := true;
        END LOOP;
        FOR v_ord IN 1 .. v_steps LOOP
            CONTINUE WHEN NOT v_touched[v_ord] OR v_saved[v_ord] IS NOT TRUE;
            v_next_due_ms[v_ord] := tidings_next_delivery_ms(p_partition_no, p_handler_id[v_ord]);
        END LOOP;
    END IF;

    RETURN QUERY
    SELECT v_saved, v_next_due_ms, v_outcome, v_stream_position, v_entry_position, v_created_at;
END;
$$;

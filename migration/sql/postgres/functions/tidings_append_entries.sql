-- Appends entries to streams of one partition: the only place that writes `event_streams`.
--
-- The arrays are parallel, one element a request of one entry, in the order in which they are to be judged and stored:
--   p_event_partition_no  the partition of the event that the entry shows, if it is one of ours; otherwise NULL
--   p_expected_position   the position that the stream must have reached before this entry; NULL: any
-- The caller sees to it that no event id is twice in one stream of the batch and that every stream belongs to the
-- partition.
--
-- Returns one row an entry, in the same order. `outcome` is
--   appended           position (in the stream), entry_position (in the partition) and created_at are the new entry's
--   duplicate          the stream has this event already: position, entry_position and created_at are those of then
--   id_reused          the event id stands for another type or other data in this stream
--   position_conflict  the stream has reached another position: actual_position
-- A refused request does not touch the others.
--
-- Its steps, its lookups and its settings follow tidings_append_events, which says why.
CREATE OR REPLACE FUNCTION tidings_append_entries(
    p_partition_no smallint,
    p_stream_name text[],
    p_event_id uuid[],
    p_event_type text[],
    p_event_data text[],
    p_event_partition_no smallint[],
    p_expected_position bigint[]
)
RETURNS TABLE (
    ord int,
    outcome text,
    "position" bigint,
    entry_position bigint,
    created_at timestamptz,
    actual_position bigint
)
LANGUAGE plpgsql VOLATILE
SET enable_seqscan = off
SET enable_sort = off
SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    v_count CONSTANT int := cardinality(p_event_id);
    v_created_at timestamptz;
    v_head bigint;
    v_head_created_at timestamptz;

    -- One element an entry.
    v_slot int[];                       -- the first entry of the same stream in the batch
    v_position bigint[];                -- NULL: not appended
    v_entry_position bigint[];
    -- One element an entry, filled only where there is something to say.
    v_outcome text[];
    v_actual_position bigint[];
    v_known_position bigint[];
    v_known_entry_position bigint[];
    v_known_created_at timestamptz[];
    -- One element a stream, at its slot.
    v_stored_position bigint[];         -- NULL: the stream has no entry
    v_stream_position bigint[];

    v_at int;
    v_found record;
BEGIN
    PERFORM FROM partition_locks l
    WHERE l.partition_no = p_partition_no AND l.log = 'entries'
    FOR UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'partition % has no log of entries', p_partition_no
            USING ERRCODE = 'invalid_parameter_value';
    END IF;

    SELECT s.entry_position, s.created_at INTO v_head, v_head_created_at
    FROM event_streams s
    WHERE s.partition_no = p_partition_no
    ORDER BY s.entry_position DESC
    LIMIT 1;
    v_head := coalesce(v_head, 0);
    v_created_at := greatest(clock_timestamp(), v_head_created_at);

    FOR v_found IN
        SELECT b.ord, s.position, s.entry_position, s.created_at,
               s.event_type = p_event_type[b.ord] AND s.event_data = p_event_data[b.ord]::jsonb AS same
        FROM generate_series(1, v_count) AS b(ord)
        CROSS JOIN LATERAL (
            SELECT k.*
            FROM event_streams k
            WHERE k.partition_no = p_partition_no AND k.stream_name = p_stream_name[b.ord]
                  AND k.event_id BETWEEN p_event_id[b.ord] AND p_event_id[b.ord]
            ORDER BY k.event_id
            LIMIT 1
        ) s
    LOOP
        IF v_found.same THEN
            v_outcome[v_found.ord] := 'duplicate';
            v_known_position[v_found.ord] := v_found.position;
            v_known_entry_position[v_found.ord] := v_found.entry_position;
            v_known_created_at[v_found.ord] := v_found.created_at;
        ELSE
            v_outcome[v_found.ord] := 'id_reused';
        END IF;
    END LOOP;

    SELECT array_agg(f.slot), array_agg(f.position), array_agg(coalesce(f.position, 0))
    INTO v_slot, v_stored_position, v_stream_position
    FROM (
        SELECT n.slot, s.position
        FROM (
            SELECT b.ord, b.stream_name, min(b.ord) OVER (PARTITION BY b.stream_name)::int AS slot
            FROM unnest(p_stream_name) WITH ORDINALITY AS b(stream_name, ord)
        ) n
        LEFT JOIN LATERAL (
            SELECT k.position
            FROM event_streams k
            WHERE k.partition_no = p_partition_no AND k.stream_name = n.stream_name AND n.slot = n.ord
            ORDER BY k.position DESC
            LIMIT 1
        ) s ON true
        ORDER BY n.ord
    ) f;

    v_position := array_fill(NULL::bigint, ARRAY[v_count]);
    v_entry_position := array_fill(NULL::bigint, ARRAY[v_count]);
    FOR v_ord IN 1 .. v_count LOOP
        CONTINUE WHEN v_outcome[v_ord] IS NOT NULL;
        v_at := v_slot[v_ord];
        IF v_stream_position[v_at] <> p_expected_position[v_ord] THEN
            v_outcome[v_ord] := 'position_conflict';
            v_actual_position[v_ord] := v_stream_position[v_at];
        ELSE
            v_stream_position[v_at] := v_stream_position[v_at] + 1;
            v_position[v_ord] := v_stream_position[v_at];
            v_head := v_head + 1;
            v_entry_position[v_ord] := v_head;
        END IF;
    END LOOP;

    INSERT INTO streams (partition_no, name, created_at)
    SELECT p_partition_no, p_stream_name[b.ord], v_created_at
    FROM generate_series(1, v_count) AS b(ord)
    WHERE v_slot[b.ord] = b.ord AND v_stored_position[b.ord] IS NULL AND v_stream_position[b.ord] > 0
    ON CONFLICT DO NOTHING;

    INSERT INTO event_streams (
        partition_no, stream_name, position, entry_position, event_id, event_type, event_data, event_partition_no,
        created_at
    )
    SELECT p_partition_no, p_stream_name[b.ord], v_position[b.ord], v_entry_position[b.ord], p_event_id[b.ord],
           p_event_type[b.ord], p_event_data[b.ord]::jsonb, p_event_partition_no[b.ord], v_created_at
    FROM generate_series(1, v_count) AS b(ord)
    WHERE v_position[b.ord] IS NOT NULL;

    RETURN QUERY
    SELECT b.ord,
           coalesce(v_outcome[b.ord], 'appended'),
           coalesce(v_position[b.ord], v_known_position[b.ord]),
           coalesce(v_entry_position[b.ord], v_known_entry_position[b.ord]),
           CASE WHEN v_position[b.ord] IS NULL THEN v_known_created_at[b.ord] ELSE v_created_at END,
           v_actual_position[b.ord]
    FROM generate_series(1, v_count) AS b(ord);
END;
$$;

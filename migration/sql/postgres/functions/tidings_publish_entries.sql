-- Makes stream entries of events of one partition, and moves the checkpoint up to which that is done: both or neither.
--
-- The arrays are parallel, one element an entry, in the order of the events:
--   p_stream_partition_no   the partition of the stream
-- No stream may get the same event id twice.
--
-- Returns one row an entry, in the same order, as tidings_append_entries does; an entry that the stream has already, or
-- whose id stands for something else in it, is not made again. Returns one row whose outcome is `lost`, and does nothing,
-- where the checkpoint is not at p_from or has another fence.
--
-- The locks of the streams' partitions come first, in ascending order: whoever appends to streams waits for those alone.
CREATE OR REPLACE FUNCTION tidings_publish_entries(
    p_partition_no smallint,
    p_from bigint,
    p_to bigint,
    p_fence bigint,
    p_stream_partition_no smallint[],
    p_stream_name text[],
    p_event_id uuid[],
    p_event_type text[],
    p_event_data text[]
)
RETURNS TABLE (
    ord int,
    outcome text,
    "position" bigint,
    entry_position bigint,
    created_at timestamptz
)
LANGUAGE plpgsql VOLATILE
SET enable_seqscan = off
SET enable_sort = off
SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    v_stream_partition_no smallint;
    v_places int[];
BEGIN
    -- One by one: an engine that shards locks in one place at a time.
    FOR v_stream_partition_no IN SELECT DISTINCT s FROM unnest(p_stream_partition_no) AS s ORDER BY 1 LOOP
        PERFORM FROM partition_locks l
        WHERE l.partition_no = v_stream_partition_no AND l.log = 'entries'
        FOR UPDATE;
    END LOOP;

    UPDATE checkpoints c
    SET position = p_to
    WHERE c.partition_no = p_partition_no AND c.name = 'publish' AND c.position = p_from AND c.fence = p_fence;
    IF NOT FOUND THEN
        RETURN QUERY SELECT NULL::int, 'lost', NULL::bigint, NULL::bigint, NULL::timestamptz;
        RETURN;
    END IF;

    FOR v_stream_partition_no, v_places IN
        SELECT b.stream_partition_no, array_agg(b.ord::int ORDER BY b.ord)
        FROM unnest(p_stream_partition_no) WITH ORDINALITY AS b(stream_partition_no, ord)
        GROUP BY b.stream_partition_no
        ORDER BY b.stream_partition_no
    LOOP
        RETURN QUERY
        SELECT v_places[e.ord], e.outcome, e.position, e.entry_position, e.created_at
        FROM tidings_append_entries(
            v_stream_partition_no,
            ARRAY(SELECT p_stream_name[o.place] FROM unnest(v_places) WITH ORDINALITY AS o(place, no) ORDER BY o.no),
            ARRAY(SELECT p_event_id[o.place] FROM unnest(v_places) WITH ORDINALITY AS o(place, no) ORDER BY o.no),
            ARRAY(SELECT p_event_type[o.place] FROM unnest(v_places) WITH ORDINALITY AS o(place, no) ORDER BY o.no),
            ARRAY(SELECT p_event_data[o.place] FROM unnest(v_places) WITH ORDINALITY AS o(place, no) ORDER BY o.no),
            array_fill(p_partition_no, ARRAY[cardinality(v_places)]),
            array_fill(NULL::bigint, ARRAY[cardinality(v_places)])
        ) AS e;
    END LOOP;
END;
$$;

-- Saves read models of one partition as they were folded from its events.
--
-- With p_from the batch was folded from the events behind the checkpoint `read_models`, and is saved as a whole, together with
-- that checkpoint's move to p_to, or not at all. Without it each read model was folded anew from its first event and is saved
-- by itself.
--
-- The arrays are parallel, one element a read model, each aggregate once:
--   p_based_on    the change_position that the row had when the fold began; NULL: there was no row
--   p_version     the version of the last event in it; NULL: the row is left as it is, but it must be the same still
--   p_data        NULL: the aggregate was deleted, which leaves a tombstone
--   p_fault       why the event after p_version cannot be folded
--   p_created_at, p_updated_at   the times of the event that it begins with, and of the last one in it
--
-- Returns one row. `outcome` is
--   NULL      what follows is saved
--   changed   nothing is saved: a row is not the one any more that its fold was based on. Only with p_from
--   lost      nothing is saved: the checkpoint is not at p_from, or it has another fence
-- `change_position` has an element for each read model: where its change went; NULL: it was not written. Then, without
-- p_from, `changed` says whether it has to be folded again; otherwise the row was as it would have become.
--
-- The positions of changes are given out under the lock of the log `read_models`: the maximum in the index plus one. A row
-- whose source is not PROJECTED, or that has a fault, is left alone by the projector, which passes its events by; so an
-- event that the checkpoint has passed and that a fold anew does not have in it makes that fold stale, although the row
-- itself is the same still. (One that stands still at a fault has come to its end, whatever was appended since.)
--
-- Its steps, its lookups and its settings follow tidings_append_events, which says why.
CREATE OR REPLACE FUNCTION tidings_save_read_models(
    p_partition_no smallint,
    p_from bigint,
    p_to bigint,
    p_fence bigint,
    p_aggregate_id uuid[],
    p_based_on bigint[],
    p_aggregate_type text[],
    p_version int[],
    p_data text[],
    p_fault text[],
    p_created_at timestamptz[],
    p_updated_at timestamptz[],
    OUT outcome text,
    OUT change_position bigint[],
    OUT changed boolean[]
)
LANGUAGE plpgsql VOLATILE
SET enable_seqscan = off
SET enable_sort = off
SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    v_count CONSTANT int := cardinality(p_aggregate_id);
    v_head bigint;
    v_passed bigint;
    -- One element a read model: whether the row is already as it would become.
    v_same boolean[];
BEGIN
    PERFORM FROM partition_locks l
    WHERE l.partition_no = p_partition_no AND l.log = 'read_models'
    FOR UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'partition % has no log of read models', p_partition_no
            USING ERRCODE = 'invalid_parameter_value';
    END IF;

    IF p_from IS NOT NULL THEN
        -- A nested loop over the read models in their order: a lateral look-up leaves no other way to join.
        SELECT array_agg(m.change_position IS DISTINCT FROM p_based_on[b.ord])
        INTO changed
        FROM generate_series(1, v_count) AS b(ord)
        LEFT JOIN LATERAL (
            SELECT k.change_position
            FROM read_models k
            WHERE k.partition_no = p_partition_no
                  AND k.aggregate_id BETWEEN p_aggregate_id[b.ord] AND p_aggregate_id[b.ord]
            ORDER BY k.aggregate_id
            LIMIT 1
        ) m ON true;
        IF true = ANY (changed) THEN
            outcome := 'changed';
            RETURN;
        END IF;
        UPDATE checkpoints c
        SET position = p_to
        WHERE c.partition_no = p_partition_no AND c.name = 'read_models'
              AND c.position = p_from AND c.fence = p_fence;
        IF NOT FOUND THEN
            outcome := 'lost';
            RETURN;
        END IF;
    ELSE
        SELECT c.position INTO v_passed
        FROM checkpoints c
        WHERE c.partition_no = p_partition_no AND c.name = 'read_models';
        SELECT array_agg(
                   m.change_position IS DISTINCT FROM p_based_on[b.ord]
                   OR (p_fault[b.ord] IS NULL AND coalesce(m.source <> 'PROJECTED' OR m.fault IS NOT NULL, false) AND EXISTS (
                       SELECT
                       FROM events e
                       WHERE e.partition_no = p_partition_no AND e.aggregate_id = p_aggregate_id[b.ord]
                             AND e.version BETWEEN p_version[b.ord] + 1 AND p_version[b.ord] + 1
                             AND e.position <= v_passed
                   ))
               ),
               array_agg(coalesce(
                   m.aggregate_type = p_aggregate_type[b.ord]
                   AND m.version = p_version[b.ord]
                   AND m.model_data = coalesce(p_data[b.ord]::jsonb, 'null')
                   AND m.source = 'PROJECTED'
                   AND m.fault IS NOT DISTINCT FROM p_fault[b.ord]
                   AND (m.deleted_at IS NULL) = (p_data[b.ord] IS NOT NULL)
                   AND m.created_at = p_created_at[b.ord]
                   AND m.updated_at = p_updated_at[b.ord],
                   false
               ))
        INTO changed, v_same
        FROM generate_series(1, v_count) AS b(ord)
        LEFT JOIN LATERAL (
            SELECT k.*
            FROM read_models k
            WHERE k.partition_no = p_partition_no
                  AND k.aggregate_id BETWEEN p_aggregate_id[b.ord] AND p_aggregate_id[b.ord]
            ORDER BY k.aggregate_id
            LIMIT 1
        ) m ON true;
    END IF;

    SELECT m.change_position INTO v_head
    FROM read_models m
    WHERE m.partition_no = p_partition_no
    ORDER BY m.change_position DESC
    LIMIT 1;
    v_head := coalesce(v_head, 0);
    change_position := array_fill(NULL::bigint, ARRAY[v_count]);
    FOR v_ord IN 1 .. v_count LOOP
        IF p_version[v_ord] IS NOT NULL AND NOT changed[v_ord] AND v_same[v_ord] IS NOT TRUE THEN
            v_head := v_head + 1;
            change_position[v_ord] := v_head;
        END IF;
    END LOOP;

    INSERT INTO read_models AS m (
        partition_no, aggregate_id, aggregate_type, model_data, version, source, fault, deleted_at, change_position,
        created_at, updated_at
    )
    SELECT p_partition_no, p_aggregate_id[b.ord], p_aggregate_type[b.ord], coalesce(p_data[b.ord]::jsonb, 'null'),
           p_version[b.ord], 'PROJECTED', p_fault[b.ord], CASE WHEN p_data[b.ord] IS NULL THEN p_updated_at[b.ord] END,
           change_position[b.ord], p_created_at[b.ord], p_updated_at[b.ord]
    FROM generate_series(1, v_count) AS b(ord)
    WHERE change_position[b.ord] IS NOT NULL
    ON CONFLICT (partition_no, aggregate_id) DO UPDATE
    SET aggregate_type = excluded.aggregate_type, model_data = excluded.model_data, version = excluded.version,
        source = excluded.source, fault = excluded.fault, deleted_at = excluded.deleted_at,
        change_position = excluded.change_position, created_at = excluded.created_at,
        updated_at = excluded.updated_at;
END;
$$;

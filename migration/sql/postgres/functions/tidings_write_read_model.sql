-- Writes one read model from outside: it is EXTERNAL from then on, and the projector leaves it alone until it is rebuilt.
--
-- Returns one row. `outcome` is
--   written          it is stored, as the change change_position, with these times
--   unchanged        there is a newer one, or one from outside of the same version: nothing was written
--   version_ahead    its aggregate has only come to actual_version
--   type_mismatch    its aggregate (or, where there is none, the read model that is there) is of actual_type
-- A read model of an aggregate that the event store does not have may have any version.
CREATE OR REPLACE FUNCTION tidings_write_read_model(
    p_partition_no smallint,
    p_aggregate_id uuid,
    p_aggregate_type text,
    p_data text,
    p_version int,
    OUT outcome text,
    OUT actual_version int,
    OUT actual_type text,
    OUT change_position bigint,
    OUT created_at timestamptz,
    OUT updated_at timestamptz
)
LANGUAGE plpgsql VOLATILE
SET enable_seqscan = off
SET enable_sort = off
AS $$
DECLARE
    v_stored record;
    v_aggregate record;
BEGIN
    PERFORM FROM partition_locks l
    WHERE l.partition_no = p_partition_no AND l.log = 'read_models'
    FOR UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'partition % has no log of read models', p_partition_no
            USING ERRCODE = 'invalid_parameter_value';
    END IF;

    SELECT a.aggregate_type, a.current_version INTO v_aggregate
    FROM aggregates a
    WHERE a.partition_no = p_partition_no AND a.id = p_aggregate_id;
    SELECT m.aggregate_type, m.version, m.source, m.deleted_at, m.created_at, m.updated_at INTO v_stored
    FROM read_models m
    WHERE m.partition_no = p_partition_no AND m.aggregate_id = p_aggregate_id;

    actual_type := coalesce(v_aggregate.aggregate_type, v_stored.aggregate_type);
    actual_version := v_aggregate.current_version;
    IF actual_type <> p_aggregate_type THEN
        outcome := 'type_mismatch';
        RETURN;
    END IF;
    IF p_version > actual_version THEN
        outcome := 'version_ahead';
        RETURN;
    END IF;
    IF v_stored.version > p_version OR (v_stored.version = p_version AND v_stored.source = 'EXTERNAL') THEN
        outcome := 'unchanged';
        RETURN;
    END IF;

    SELECT m.change_position INTO change_position
    FROM read_models m
    WHERE m.partition_no = p_partition_no
    ORDER BY m.change_position DESC
    LIMIT 1;
    change_position := coalesce(change_position, 0) + 1;
    -- greatest() passes over NULL. One that is written where a tombstone was is a new one.
    updated_at := greatest(clock_timestamp(), v_stored.updated_at);
    created_at := updated_at;
    IF v_stored.deleted_at IS NULL THEN
        created_at := coalesce(v_stored.created_at, updated_at);
    END IF;

    INSERT INTO read_models AS m (
        partition_no, aggregate_id, aggregate_type, model_data, version, source, fault, deleted_at, change_position,
        created_at, updated_at
    )
    VALUES (
        p_partition_no, p_aggregate_id, p_aggregate_type, p_data::jsonb, p_version, 'EXTERNAL', NULL, NULL,
        change_position, created_at, updated_at
    )
    ON CONFLICT (partition_no, aggregate_id) DO UPDATE
    SET aggregate_type = excluded.aggregate_type, model_data = excluded.model_data, version = excluded.version,
        source = excluded.source, fault = excluded.fault, deleted_at = excluded.deleted_at,
        change_position = excluded.change_position, created_at = excluded.created_at,
        updated_at = excluded.updated_at;
    outcome := 'written';
END;
$$;

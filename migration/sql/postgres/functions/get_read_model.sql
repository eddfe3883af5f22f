-- The read model of an aggregate: no row where it has none, or was deleted.
--
-- Source: the guide's get_read_model.
CREATE OR REPLACE FUNCTION get_read_model(p_aggregate_id uuid)
RETURNS TABLE (
    aggregate_id uuid,
    aggregate_type varchar,
    model_data jsonb,
    version integer,
    updated_at timestamptz
)
LANGUAGE plpgsql STABLE
SET enable_seqscan = off
AS $$
DECLARE
    v_partition_no CONSTANT smallint := tidings_partition_of(uuid_send(tidings_check_id('p_aggregate_id', p_aggregate_id)));
BEGIN
    RETURN QUERY
    SELECT m.aggregate_id, m.aggregate_type, m.model_data, m.version, m.updated_at
    FROM read_models m
    WHERE m.partition_no = v_partition_no AND m.aggregate_id = p_aggregate_id AND m.deleted_at IS NULL;
END;
$$;

CREATE OR REPLACE FUNCTION get_read_model(p_aggregate_id text)
RETURNS TABLE (
    aggregate_id uuid,
    aggregate_type varchar,
    model_data jsonb,
    version integer,
    updated_at timestamptz
)
LANGUAGE plpgsql STABLE
AS $$
BEGIN
    RETURN QUERY SELECT * FROM get_read_model(tidings_id_of_key(p_aggregate_id));
END;
$$;

-- The partition of an aggregate (by the 16 bytes of its id) or of a stream (by its name in UTF-8).
CREATE OR REPLACE FUNCTION tidings_partition_of(p_bytes bytea)
RETURNS smallint
LANGUAGE plpgsql STABLE
AS $$
DECLARE
    v_partitions smallint;
BEGIN
    SELECT s.partitions INTO v_partitions FROM database_settings s WHERE s.id = 1;
    IF v_partitions IS NULL THEN
        RAISE EXCEPTION 'the database is not set up yet: run tidings migrate, or start a server'
            USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
    RETURN get_byte(sha256(p_bytes), 0) & (v_partitions - 1);
END;
$$;

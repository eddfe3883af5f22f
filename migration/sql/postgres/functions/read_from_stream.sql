-- Entries of a stream above a position, in their order.
--
-- Source: the guide's read_from_stream.
CREATE OR REPLACE FUNCTION read_from_stream(
    p_stream_name varchar,
    p_from_position bigint DEFAULT 0,
    p_limit integer DEFAULT 100
)
RETURNS TABLE (
    event_id uuid,
    event_type varchar,
    event_data jsonb,
    "position" bigint,
    created_at timestamptz
)
LANGUAGE plpgsql STABLE
SET enable_seqscan = off
SET enable_sort = off
AS $$
DECLARE
    v_partition_no CONSTANT smallint := tidings_partition_of(
        convert_to(tidings_check_name('p_stream_name', p_stream_name), 'UTF8')
    );
BEGIN
    IF p_limit < 0 THEN
        RAISE EXCEPTION 'p_limit must not be negative' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    RETURN QUERY
    SELECT s.event_id, s.event_type, s.event_data, s.position, s.created_at
    FROM event_streams s
    WHERE s.partition_no = v_partition_no AND s.stream_name = p_stream_name
          AND s.position > coalesce(p_from_position, 0)
    ORDER BY s.position
    LIMIT coalesce(p_limit, 100);
END;
$$;

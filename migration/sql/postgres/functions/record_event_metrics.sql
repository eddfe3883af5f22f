-- Counts one event of a type on a type of aggregate, and how long it took if that is known, in the row of this minute.
-- Sessions have rows of their own, so that none waits for another; what they count is added up by whoever reads.
--
-- Source: the guide's record_event_metrics.
CREATE OR REPLACE FUNCTION record_event_metrics(
    p_event_type varchar,
    p_aggregate_type varchar,
    p_processing_time_ms integer DEFAULT NULL
)
RETURNS void
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    v_minute CONSTANT timestamptz := date_trunc('minute', clock_timestamp(), 'UTC');
    v_id uuid;
BEGIN
    p_event_type := tidings_check_name('p_event_type', p_event_type);
    p_aggregate_type := tidings_check_name('p_aggregate_type', p_aggregate_type);
    IF p_processing_time_ms < 0 THEN
        RAISE EXCEPTION 'p_processing_time_ms must be 0 or above, not %', p_processing_time_ms
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    -- Names hold no control characters, so nothing else has the same text.
    v_id := md5(concat_ws(E'\n', 'sql', pg_backend_pid(), extract(epoch FROM v_minute), p_event_type, p_aggregate_type))::uuid;

    INSERT INTO event_metrics AS m (
        id, event_type, aggregate_type, event_count, timed_count, processing_time_ms, min_processing_time_ms,
        max_processing_time_ms, created_at
    )
    VALUES (
        v_id, p_event_type, p_aggregate_type, 1, CASE WHEN p_processing_time_ms IS NULL THEN 0 ELSE 1 END,
        p_processing_time_ms, p_processing_time_ms, p_processing_time_ms, v_minute
    )
    ON CONFLICT (id) DO UPDATE
    SET event_count = m.event_count + 1,
        timed_count = m.timed_count + excluded.timed_count,
        processing_time_ms = CASE
            WHEN excluded.timed_count = 0 THEN m.processing_time_ms
            ELSE (coalesce(m.processing_time_ms, 0) * m.timed_count + excluded.processing_time_ms) / (m.timed_count + 1)
        END,
        -- Both pass over NULL.
        min_processing_time_ms = least(m.min_processing_time_ms, excluded.min_processing_time_ms),
        max_processing_time_ms = greatest(m.max_processing_time_ms, excluded.max_processing_time_ms);
END;
$$;

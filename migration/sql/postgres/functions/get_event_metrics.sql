-- How many events of each type were counted between two instants, and how long they took, the most frequent first. Counts are
-- kept by the minute: that of p_start_date counts as a whole.
--
-- Source: the guide's get_event_metrics.
CREATE OR REPLACE FUNCTION get_event_metrics(
    p_start_date timestamptz DEFAULT CURRENT_TIMESTAMP - INTERVAL '1 hour',
    p_end_date timestamptz DEFAULT CURRENT_TIMESTAMP
)
RETURNS TABLE (
    event_type varchar,
    aggregate_type varchar,
    event_count bigint,
    avg_processing_time numeric,
    max_processing_time integer,
    min_processing_time integer
)
LANGUAGE plpgsql STABLE
AS $$
BEGIN
    RETURN QUERY
    SELECT m.event_type, m.aggregate_type, sum(m.event_count)::bigint,
           (sum(m.processing_time_ms * m.timed_count) / nullif(sum(m.timed_count), 0))::numeric,
           round(max(m.max_processing_time_ms))::integer,
           round(min(m.min_processing_time_ms))::integer
    FROM event_metrics m
    WHERE m.created_at BETWEEN date_trunc('minute', coalesce(p_start_date, CURRENT_TIMESTAMP - INTERVAL '1 hour'), 'UTC')
          AND coalesce(p_end_date, CURRENT_TIMESTAMP)
    GROUP BY m.event_type, m.aggregate_type
    ORDER BY 3 DESC, 1, 2;
END;
$$;

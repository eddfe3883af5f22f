-- Appends one entry to a stream: one call of tidings_append_entries, which takes the partition's lock first and says what
-- the answer means.
CREATE OR REPLACE FUNCTION tidings_append_entry(
    p_stream_name text,
    p_event_id uuid,
    p_event_type text,
    p_event_data jsonb,
    p_event_partition_no smallint DEFAULT NULL,
    p_is_guarded boolean DEFAULT false,
    OUT outcome text,
    OUT "position" bigint
)
LANGUAGE plpgsql VOLATILE
AS $$
BEGIN
    -- As in tidings_append_one.
    IF NOT p_is_guarded AND current_setting('transaction_isolation') IN ('repeatable read', 'serializable') THEN
        BEGIN
            SELECT e.outcome, e.position INTO STRICT outcome, "position"
            FROM tidings_append_entry(
                p_stream_name, p_event_id, p_event_type, p_event_data, p_event_partition_no, true
            ) AS e;
            RETURN;
        EXCEPTION WHEN unique_violation THEN
            RAISE EXCEPTION 'others have appended since this transaction began: try it again'
                USING ERRCODE = 'serialization_failure', HINT = 'At READ COMMITTED nobody has to.';
        END;
    END IF;

    SELECT e.outcome, e.position INTO STRICT outcome, "position"
    FROM tidings_append_entries(
        tidings_partition_of(convert_to(p_stream_name, 'UTF8')), ARRAY[p_stream_name], ARRAY[p_event_id],
        ARRAY[p_event_type], ARRAY[p_event_data::text], ARRAY[p_event_partition_no], ARRAY[NULL::bigint]
    ) AS e;
END;
$$;

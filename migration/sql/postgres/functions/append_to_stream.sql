-- Appends an entry to a stream, and answers its position there. The same event again is not appended: the position is the one
-- that it has.
--
-- Source: the guide's append_to_stream.
CREATE OR REPLACE FUNCTION append_to_stream(
    p_stream_name varchar,
    p_event_id uuid,
    p_event_type varchar,
    p_event_data jsonb
)
RETURNS bigint
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    v_answer record;
BEGIN
    p_stream_name := tidings_check_name('p_stream_name', p_stream_name);
    p_event_id := tidings_check_id('p_event_id', p_event_id);
    p_event_type := tidings_check_name('p_event_type', p_event_type);
    p_event_data := tidings_check_json('p_event_data', p_event_data);
    v_answer := tidings_append_entry(p_stream_name, p_event_id, p_event_type, p_event_data);
    IF v_answer.outcome = 'id_reused' THEN
        RAISE EXCEPTION 'the id % stands for something else already', p_event_id USING ERRCODE = 'TD004';
    END IF;
    RETURN v_answer.position;
END;
$$;

CREATE OR REPLACE FUNCTION append_to_stream(
    p_stream_name varchar,
    p_event_id text,
    p_event_type varchar,
    p_event_data jsonb
)
RETURNS bigint
LANGUAGE plpgsql VOLATILE
AS $$
BEGIN
    RETURN append_to_stream(p_stream_name, tidings_id_of_key(p_event_id), p_event_type, p_event_data);
END;
$$;

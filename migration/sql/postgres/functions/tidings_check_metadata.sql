-- Refuses what the server would not take as metadata of an event. Answers them; NULL is an empty object.
CREATE OR REPLACE FUNCTION tidings_check_metadata(p_parameter text, p_metadata jsonb)
RETURNS jsonb
LANGUAGE plpgsql STABLE
AS $$
DECLARE
    -- It has an index, which takes no larger ones.
    c_most_correlation_bytes CONSTANT int := 500;
    v_bytes int;
BEGIN
    IF p_metadata IS NULL THEN
        RETURN '{}';
    END IF;
    IF jsonb_typeof(p_metadata) <> 'object' THEN
        RAISE EXCEPTION '% must be a JSON object', p_parameter USING ERRCODE = 'invalid_parameter_value';
    END IF;
    PERFORM tidings_check_json(p_parameter, p_metadata);
    v_bytes := octet_length((p_metadata -> 'correlationId')::text);
    IF v_bytes > c_most_correlation_bytes THEN
        RAISE EXCEPTION '%.correlationId has % bytes as JSON: at most % are allowed',
            p_parameter, v_bytes, c_most_correlation_bytes
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    RETURN p_metadata;
END;
$$;

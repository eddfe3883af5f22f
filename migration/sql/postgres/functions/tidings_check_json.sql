-- Refuses JSON that the server would not take, in its words: what PostgreSQL stores and cannot print again, or no reader can
-- read, would stop every reader of the log. U+0000 and lone surrogates are no JSONB in the first place. Answers the value.
--
-- Numbers come first: some are short as JSONB and very long as text.
CREATE OR REPLACE FUNCTION tidings_check_json(p_parameter text, p_value jsonb)
RETURNS jsonb
LANGUAGE plpgsql STABLE
AS $$
DECLARE
    -- Half a unit above the greatest double: from there on, a number rounds to infinity.
    c_number CONSTANT jsonpath := 'strict $.** ? (@.type() == "number" && (@ >= 1.797693134862315807e308 || @ <= -1.797693134862315807e308))';
    c_depth CONSTANT jsonpath := 'strict $.**{64 to last} ? (@.type() == "array" || @.type() == "object")';
    v_bytes int;
    v_limit bigint;
    v_problem text;
BEGIN
    IF p_value IS NULL THEN
        v_problem := 'must not be NULL: JSON has a null of its own';
    ELSIF jsonb_path_exists(p_value, c_number) THEN
        v_problem := 'holds a number beyond the range of a double, which no reader could read';
    ELSIF jsonb_path_exists(p_value, c_depth) THEN
        v_problem := 'has more than 64 levels of arrays and objects: 64 are allowed';
    ELSE
        v_bytes := octet_length(p_value::text);
        SELECT s.max_event_bytes INTO v_limit FROM database_settings s WHERE s.id = 1;
        v_limit := coalesce(v_limit, 1048576);
        IF v_bytes <= v_limit THEN
            RETURN p_value;
        END IF;
        v_problem := format('has %s bytes as JSON text: at most %s are allowed', v_bytes, v_limit);
    END IF;
    RAISE EXCEPTION '% %', p_parameter, v_problem USING ERRCODE = 'invalid_parameter_value';
END;
$$;

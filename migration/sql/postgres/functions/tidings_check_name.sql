-- Refuses what is no name of a type or a stream, by the rules and in the words of the server. Answers the name.
CREATE OR REPLACE FUNCTION tidings_check_name(p_parameter text, p_name text)
RETURNS text
LANGUAGE plpgsql IMMUTABLE
AS $$
DECLARE
    v_problem text;
BEGIN
    IF p_name IS NULL THEN
        v_problem := 'must not be NULL: give it 1 to 100 characters';
    ELSIF p_name = '' THEN
        v_problem := 'must not be empty: give it 1 to 100 characters';
    ELSIF char_length(p_name) > 100 THEN
        v_problem := format('has %s characters: give it 1 to 100', char_length(p_name));
    ELSIF p_name ~ '[\x01-\x1f\x7f]' THEN
        v_problem := format(
            'holds the control character U+%s: leave it out',
            lpad(upper(to_hex(ascii(substring(p_name FROM '[\x01-\x1f\x7f]')))), 4, '0')
        );
    ELSE
        RETURN p_name;
    END IF;
    RAISE EXCEPTION '% %', p_parameter, v_problem USING ERRCODE = 'invalid_parameter_value';
END;
$$;

-- Refuses an id that is NULL. Answers it.
CREATE OR REPLACE FUNCTION tidings_check_id(p_parameter text, p_id uuid)
RETURNS uuid
LANGUAGE plpgsql IMMUTABLE
AS $$
BEGIN
    IF p_id IS NULL THEN
        RAISE EXCEPTION '% must not be NULL', p_parameter USING ERRCODE = 'invalid_parameter_value';
    END IF;
    RETURN p_id;
END;
$$;

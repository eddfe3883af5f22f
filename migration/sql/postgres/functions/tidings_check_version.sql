-- Refuses a version that no aggregate can have. Answers it; NULL is NULL.
CREATE OR REPLACE FUNCTION tidings_check_version(p_parameter text, p_version integer)
RETURNS integer
LANGUAGE plpgsql IMMUTABLE
AS $$
BEGIN
    IF p_version < 0 THEN
        RAISE EXCEPTION '% must be 0 or above, not %', p_parameter, p_version USING ERRCODE = 'invalid_parameter_value';
    END IF;
    RETURN p_version;
END;
$$;

-- The first place in a JSON Schema that tidings_check_schema cannot follow; NULL where it can follow all of it. Words about a
-- schema, which allow and forbid nothing, are no hindrance.
CREATE OR REPLACE FUNCTION tidings_schema_needs(p_schema jsonb)
RETURNS text
LANGUAGE plpgsql IMMUTABLE
AS $$
DECLARE
    v_keyword text;
    v_value jsonb;
    v_inner text;
BEGIN
    IF jsonb_typeof(p_schema) <> 'object' THEN
        RETURN CASE WHEN p_schema <> 'true' THEN 'false' END;
    END IF;
    FOR v_keyword, v_value IN SELECT k.key, k.value FROM jsonb_each(p_schema) AS k LOOP
        IF v_keyword = 'properties' THEN
            FOR v_inner IN
                SELECT p.key || ': ' || tidings_schema_needs(p.value) FROM jsonb_each(v_value) AS p ORDER BY p.key
            LOOP
                IF v_inner IS NOT NULL THEN
                    RETURN v_inner;
                END IF;
            END LOOP;
        ELSIF v_keyword NOT IN (
            'type', 'required', 'minLength', 'maxLength', 'minimum', 'maximum', 'enum',
            'title', 'description', '$comment', 'default', 'examples', 'deprecated', 'readOnly', 'writeOnly'
        ) AND v_keyword NOT LIKE 'x-%' THEN
            RETURN v_keyword;
        END IF;
    END LOOP;
    RETURN NULL;
END;
$$;

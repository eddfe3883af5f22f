-- What is wrong with a value by a JSON Schema, in the words of the server: one row for each. Only of schemas for which
-- tidings_schema_needs is NULL.
--
-- Source: JSON Schema 2020-12, the keywords type, required, properties, minLength, maxLength, minimum, maximum and enum.
CREATE OR REPLACE FUNCTION tidings_check_schema(p_schema jsonb, p_value jsonb, p_path text DEFAULT '')
RETURNS SETOF text
LANGUAGE plpgsql IMMUTABLE
AS $$
DECLARE
    v_kind CONSTANT text := jsonb_typeof(p_value);
    v_at CONSTANT text := CASE WHEN p_path = '' THEN '' ELSE p_path || ' ' END;
    v_types text[];
    v_number numeric;
    v_key text;
    v_is_right boolean;
BEGIN
    IF jsonb_typeof(p_schema) <> 'object' THEN
        RETURN;
    END IF;

    IF p_schema ? 'type' THEN
        v_types := CASE jsonb_typeof(p_schema -> 'type')
            WHEN 'array' THEN ARRAY(SELECT t FROM jsonb_array_elements_text(p_schema -> 'type') AS t ORDER BY t COLLATE "C")
            ELSE ARRAY[p_schema ->> 'type']
        END;
        v_is_right := v_kind = ANY (v_types);
        IF v_kind = 'number' AND 'integer' = ANY (v_types) AND NOT v_is_right THEN
            v_number := p_value::numeric;
            v_is_right := v_number = trunc(v_number);
        END IF;
        IF NOT v_is_right THEN
            IF v_types = ARRAY['integer'] AND v_kind = 'number' THEN
                RETURN NEXT v_at || 'must be a whole number';
            ELSE
                RETURN NEXT v_at || format(
                    'must be %s, not %s',
                    (SELECT string_agg(tidings_kind_of(t), ' or ' ORDER BY t COLLATE "C") FROM unnest(v_types) AS t),
                    tidings_kind_of(v_kind)
                );
            END IF;
        END IF;
    END IF;

    IF p_schema ? 'enum' AND NOT EXISTS (
        SELECT FROM jsonb_array_elements(p_schema -> 'enum') AS e WHERE e = p_value
    ) THEN
        RETURN NEXT v_at || 'must be one of ' || (
            SELECT string_agg(CASE WHEN char_length(e.text) > 60 THEN left(e.text, 60) || '…' ELSE e.text END, ', ' ORDER BY e.ord)
            FROM (
                SELECT k.value::text AS text, k.ord
                FROM jsonb_array_elements(p_schema -> 'enum') WITH ORDINALITY AS k(value, ord)
                WHERE k.ord <= 20
            ) e
        ) || CASE WHEN jsonb_array_length(p_schema -> 'enum') > 20 THEN ', …' ELSE '' END;
    END IF;

    IF v_kind = 'string' THEN
        IF char_length(p_value #>> '{}') < (p_schema ->> 'minLength')::numeric THEN
            RETURN NEXT v_at || format('must have at least %s', tidings_counted((p_schema ->> 'minLength')::numeric, 'character'));
        END IF;
        IF char_length(p_value #>> '{}') > (p_schema ->> 'maxLength')::numeric THEN
            RETURN NEXT v_at || format('must have at most %s', tidings_counted((p_schema ->> 'maxLength')::numeric, 'character'));
        END IF;
    ELSIF v_kind = 'number' THEN
        IF p_value::numeric < (p_schema ->> 'minimum')::numeric THEN
            RETURN NEXT v_at || format('must be at least %s', p_schema ->> 'minimum');
        END IF;
        IF p_value::numeric > (p_schema ->> 'maximum')::numeric THEN
            RETURN NEXT v_at || format('must be at most %s', p_schema ->> 'maximum');
        END IF;
    ELSIF v_kind = 'object' THEN
        FOR v_key IN SELECT r FROM jsonb_array_elements_text(p_schema -> 'required') AS r LOOP
            IF NOT p_value ? v_key THEN
                RETURN NEXT tidings_path(p_path, v_key) || ' must be given';
            END IF;
        END LOOP;
        FOR v_key IN SELECT k FROM jsonb_object_keys(p_schema -> 'properties') AS k LOOP
            IF p_value ? v_key THEN
                RETURN QUERY
                SELECT * FROM tidings_check_schema(
                    p_schema -> 'properties' -> v_key, p_value -> v_key, tidings_path(p_path, v_key)
                );
            END IF;
        END LOOP;
    END IF;
END;
$$;

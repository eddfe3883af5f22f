-- The value that a template makes of a command's data; NULL where it takes what is not there. In a template a text `$.a.b` is
-- the command's value at these keys, `$` is all of it, and `$$` at the start of a text stands for one `$`.
CREATE OR REPLACE FUNCTION tidings_fill_template(p_template jsonb, p_data jsonb)
RETURNS jsonb
LANGUAGE plpgsql IMMUTABLE
AS $body$
DECLARE
    v_text text;
    v_value jsonb;
BEGIN
    CASE jsonb_typeof(p_template)
        WHEN 'string' THEN
            v_text := p_template #>> '{}';
            IF left(v_text, 1) <> '$' THEN
                RETURN p_template;
            ELSIF v_text = '$' THEN
                RETURN p_data;
            ELSIF left(v_text, 2) = '$$' THEN
                RETURN to_jsonb(substr(v_text, 2));
            END IF;
            v_value := p_data;
            FOREACH v_text IN ARRAY string_to_array(substr(v_text, 3), '.') LOOP
                -- Elements of arrays cannot be taken.
                v_value := CASE WHEN jsonb_typeof(v_value) = 'object' THEN v_value -> v_text END;
            END LOOP;
            RETURN v_value;
        WHEN 'array' THEN
            RETURN (
                SELECT coalesce(jsonb_agg(e.filled ORDER BY e.ord) FILTER (WHERE e.filled IS NOT NULL), '[]')
                FROM (
                    SELECT tidings_fill_template(k.value, p_data) AS filled, k.ord
                    FROM jsonb_array_elements(p_template) WITH ORDINALITY AS k(value, ord)
                ) e
            );
        WHEN 'object' THEN
            RETURN (
                SELECT coalesce(jsonb_object_agg(e.key, e.filled) FILTER (WHERE e.filled IS NOT NULL), '{}')
                FROM (SELECT k.key, tidings_fill_template(k.value, p_data) AS filled FROM jsonb_each(p_template) AS k) e
            );
        ELSE
            RETURN p_template;
    END CASE;
END;
$body$;

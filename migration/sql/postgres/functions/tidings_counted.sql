-- A number of things, for people: `1 character`.
CREATE OR REPLACE FUNCTION tidings_counted(p_count numeric, p_unit text)
RETURNS text
LANGUAGE sql IMMUTABLE
AS $$
    SELECT trim_scale(p_count)::text || ' ' || p_unit || CASE WHEN p_count = 1 THEN '' ELSE 's' END
$$;

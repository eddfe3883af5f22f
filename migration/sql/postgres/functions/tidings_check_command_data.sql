-- What is wrong with a command's data by its schema, in the words of the server, ten things at most; NULL where nothing is.
CREATE OR REPLACE FUNCTION tidings_check_command_data(p_schema jsonb, p_data jsonb)
RETURNS text
LANGUAGE sql IMMUTABLE
AS $$
    SELECT string_agg(w.violation, '; ' ORDER BY w.violation COLLATE "C")
    FROM (
        SELECT DISTINCT v.violation COLLATE "C" AS violation
        FROM tidings_check_schema(p_schema, p_data) AS v(violation)
        ORDER BY 1
        LIMIT 10
    ) w
$$;

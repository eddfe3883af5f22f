-- What a type of JSON is, for people: `a text`.
CREATE OR REPLACE FUNCTION tidings_kind_of(p_type text)
RETURNS text
LANGUAGE sql IMMUTABLE
AS $$
    SELECT CASE p_type
        WHEN 'array' THEN 'an array'
        WHEN 'boolean' THEN 'true or false'
        WHEN 'integer' THEN 'a whole number'
        WHEN 'null' THEN 'null'
        WHEN 'number' THEN 'a number'
        WHEN 'object' THEN 'an object'
        WHEN 'string' THEN 'a text'
    END
$$;

-- The path of a key below another path: `address.street`.
CREATE OR REPLACE FUNCTION tidings_path(p_path text, p_key text)
RETURNS text
LANGUAGE sql IMMUTABLE
AS $$
    SELECT CASE WHEN p_path = '' THEN '' ELSE p_path || '.' END
           || CASE WHEN char_length(p_key) > 60 THEN left(p_key, 60) || '…' ELSE p_key END
$$;

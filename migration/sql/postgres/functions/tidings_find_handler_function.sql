-- The call of a function that a handler names (`sales.notify`, `notify`) with (event id, aggregate id, data) as $1 to $3; NULL
-- where there is none. The name is looked up in the catalog, as it is stored there, and quoted.
CREATE OR REPLACE FUNCTION tidings_find_handler_function(p_function text)
RETURNS text
LANGUAGE sql STABLE
AS $$
    SELECT format('SELECT %I.%I($1, $2, $3)', n.nspname, p.proname)
    FROM pg_catalog.pg_proc p
    JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
    WHERE p.prokind = 'f' AND p.proargtypes = '2950 2950 3802'::oidvector
          AND CASE
              WHEN p_function LIKE '%.%' THEN
                  n.nspname = split_part(p_function, '.', 1) AND p.proname = split_part(p_function, '.', 2)
              ELSE p.proname = p_function AND pg_catalog.pg_function_is_visible(p.oid)
          END
$$;

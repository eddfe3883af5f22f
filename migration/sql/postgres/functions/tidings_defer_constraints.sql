-- The statement that defers the constraints that are deferred unless somebody says otherwise, for behind `SET CONSTRAINTS ALL
-- IMMEDIATE`; NULL where there are none.
CREATE OR REPLACE FUNCTION tidings_defer_constraints()
RETURNS text
LANGUAGE sql STABLE
AS $$
    SELECT 'SET CONSTRAINTS ' || string_agg(format('%I.%I', k.nspname, k.conname), ', ') || ' DEFERRED'
    FROM (
        SELECT n.nspname, c.conname
        FROM pg_catalog.pg_constraint c
        JOIN pg_catalog.pg_namespace n ON n.oid = c.connamespace
        WHERE NOT pg_catalog.pg_is_other_temp_schema(n.oid) AND pg_catalog.has_schema_privilege(n.oid, 'USAGE')
        GROUP BY n.nspname, c.conname
        -- Of a name that is also that of another kind of constraint none can be deferred.
        HAVING bool_or(c.condeferred) AND bool_and(c.condeferrable)
    ) k
$$;

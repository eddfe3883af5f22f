-- Where the functions of SQL clients look for tables and for each other: in the schema that they stand in, whatever the
-- client's own search path is, and in no temporary table. What they call inherits it. The server has a search path of its
-- own and calls other functions, so it pays nothing for this. Functions in SQL that handlers name are looked for in the same
-- way, unless their name has a schema.
--
-- Compiling is out of the question: where a small table is read whole while that is discouraged (`enable_seqscan = off`), the
-- planner takes it for so dear that each call would be compiled, which takes a second.
DO $$
DECLARE
    v_function regprocedure;
BEGIN
    FOR v_function IN
        SELECT p.oid
        FROM pg_proc p
        WHERE p.pronamespace = current_schema()::regnamespace
              AND p.proname IN (
                  'append_event', 'get_events_for_aggregate', 'create_aggregate', 'get_aggregate_version',
                  'update_aggregate_version', 'create_command', 'process_command', 'update_read_model', 'get_read_model',
                  'append_to_stream', 'read_from_stream', 'register_event_handler', 'process_event', 'record_event_metrics',
                  'get_event_metrics'
              )
    LOOP
        EXECUTE format('ALTER FUNCTION %s SET search_path = %I, pg_temp', v_function, current_schema());
        EXECUTE format('ALTER FUNCTION %s SET jit = off', v_function);
    END LOOP;
END;
$$;

-- Citus cannot make a generic plan of most statements before it knows the partition: it refuses where one is forced, and where
-- none is, it sees to it that a plan is made for the values.
DO $$
DECLARE
    v_function regprocedure;
BEGIN
    IF NOT EXISTS (SELECT FROM pg_extension e WHERE e.extname = 'citus') THEN
        RETURN;
    END IF;
    FOR v_function IN
        SELECT p.oid
        FROM pg_proc p
        WHERE p.pronamespace = current_schema()::regnamespace AND 'plan_cache_mode=force_generic_plan' = ANY (p.proconfig)
    LOOP
        EXECUTE format('ALTER FUNCTION %s RESET plan_cache_mode', v_function);
    END LOOP;
END;
$$;

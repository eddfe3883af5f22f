-- Where the functions of SQL clients look for tables and for each other: in the schema that they stand in, whatever the
-- client's own search path is, and in no temporary table. What they call inherits it. The server has a search path of its
-- own and calls other functions, so it pays nothing for this. Functions in SQL that handlers name are looked for in the same
-- way, unless their name has a schema.
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
    END LOOP;
END;
$$;

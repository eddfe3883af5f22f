-- Tells the planner what it cannot know of empty tables: that `partition_no` has few values, and ids many. Called once, when
-- a database has just been made and its tables are empty.
--
-- Without statistics the planner takes one row in 200 to have any given value. Every index begins with `partition_no`, so
-- for a table of some hundred rows any of them seems to lead to one or two rows by that column alone, and the smallest index
-- wins, whatever else is asked for. Such a plan is kept while the table grows, and reads the whole partition each time, until
-- autovacuum comes by. So some rows are put in, these columns are analyzed, and the rows are taken out again. A table that has
-- rows is left alone: it has statistics of its own, or soon will.
CREATE OR REPLACE FUNCTION tidings_describe_partitions(p_partitions int)
RETURNS void
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    v_table regclass;
    v_columns text;
    v_values text;
    v_known text;
    v_has_rows boolean;
BEGIN
    IF p_partitions IS NULL OR p_partitions < 1 THEN
        RAISE 'the number of partitions is 1 at least' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    FOR v_table IN
        SELECT c.oid
        FROM pg_class c
        JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'partition_no'
        WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind = 'r' AND c.relname <> 'partition_locks'
        ORDER BY c.relname
    LOOP
        SELECT string_agg(quote_ident(a.attname), ', '),
               string_agg(
                   CASE
                       WHEN a.attname = 'partition_no' THEN 'p'
                       WHEN a.atttypid IN ('smallint'::regtype, 'int'::regtype, 'bigint'::regtype) THEN 'n'
                       WHEN a.atttypid = 'uuid'::regtype THEN 'gen_random_uuid()'
                       WHEN a.atttypid = 'jsonb'::regtype THEN '''null'''
                       WHEN a.atttypid = 'boolean'::regtype THEN 'false'
                       WHEN a.atttypid = 'timestamptz'::regtype THEN 'now()'
                       ELSE 'n::text'
                   END,
                   ', '
               ),
               string_agg(quote_ident(a.attname), ', ')
                   FILTER (WHERE a.attname = 'partition_no' OR a.atttypid = 'uuid'::regtype)
        INTO v_columns, v_values, v_known
        FROM pg_attribute a
        WHERE a.attrelid = v_table AND a.attnum > 0 AND a.attnotnull AND NOT a.attisdropped;
        -- Nobody writes to it from here on.
        EXECUTE format('LOCK TABLE %s IN SHARE ROW EXCLUSIVE MODE', v_table);
        EXECUTE format('SELECT EXISTS (SELECT FROM %s)', v_table) INTO v_has_rows;
        CONTINUE WHEN v_has_rows;
        -- One of them refuses to be changed.
        EXECUTE format('ALTER TABLE %s DISABLE TRIGGER USER', v_table);
        EXECUTE format(
            'INSERT INTO %s (%s) SELECT %s FROM generate_series(0, %s) AS p, generate_series(1, 100) AS n',
            v_table, v_columns, v_values, p_partitions - 1
        );
        EXECUTE format('ANALYZE %s (%s)', v_table, v_known);
        EXECUTE format('DELETE FROM %s', v_table);
        EXECUTE format('ALTER TABLE %s ENABLE TRIGGER USER', v_table);
    END LOOP;
END;
$$;

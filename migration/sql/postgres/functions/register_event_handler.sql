-- Registers an event handler, or changes the one of its name, which goes on where it is. A new one begins with the next event.
-- A function is `log`, `publish:STREAM`, `http(s)://…`, or one in SQL: `sql:FUNCTION`, or its name alone.
--
-- Source: the guide's register_event_handler.
CREATE OR REPLACE FUNCTION register_event_handler(
    p_handler_name varchar,
    p_event_type varchar,
    p_handler_function varchar
)
RETURNS void
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    c_plain CONSTANT text := '^[[:alnum:]_.:/@+-]*$';
    c_sql_name CONSTANT text := '^[[:alpha:]_][[:alnum:]_]*([.][[:alpha:]_][[:alnum:]_]*)?$';
    c_problem CONSTANT text := 'may hold letters, digits and _ - . : / @ + only, and no two dots in a row';
    v_id CONSTANT uuid := tidings_new_id();
    v_function text := p_handler_function;
    v_name text;
    v_problem text;
    v_others text;
    v_registered uuid;
BEGIN
    p_handler_name := tidings_check_name('p_handler_name', p_handler_name);
    p_event_type := tidings_check_name('p_event_type', p_event_type);
    IF p_handler_name !~ c_plain OR p_handler_name LIKE '%..%' THEN
        RAISE EXCEPTION 'p_handler_name %', c_problem USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF p_event_type !~ c_plain OR p_event_type LIKE '%..%' THEN
        RAISE EXCEPTION 'p_event_type %', c_problem USING ERRCODE = 'invalid_parameter_value';
    END IF;

    IF v_function IS NULL THEN
        RAISE EXCEPTION 'p_handler_function must not be NULL' USING ERRCODE = 'invalid_parameter_value';
    ELSIF v_function = 'log' THEN
        NULL;
    ELSIF v_function LIKE 'publish:%' THEN
        v_name := tidings_check_name(
            'p_handler_function names no stream behind `publish:`: the name', substr(v_function, 9)
        );
    ELSIF v_function LIKE '%://%' AND v_function NOT LIKE 'sql:%' THEN
        v_problem := tidings_url_problem(v_function);
        IF v_problem IS NOT NULL THEN
            RAISE EXCEPTION 'p_handler_function is no URL that can be posted to: %', v_problem
                USING ERRCODE = 'invalid_parameter_value';
        END IF;
    ELSE
        -- A bare name is that of a function in SQL.
        v_name := CASE WHEN v_function LIKE 'sql:%' THEN substr(v_function, 5) ELSE v_function END;
        IF v_name !~ c_sql_name
           OR octet_length(split_part(v_name, '.', 1)) > 63 OR octet_length(split_part(v_name, '.', 2)) > 63 THEN
            v_problem := CASE
                WHEN v_function LIKE 'sql:%' THEN
                    'names no SQL function behind `sql:`: use the name alone, with its schema if need be (sql:notify_sales, '
                    'sql:sales.notify), of letters, digits and underscores'
                ELSE
                    'is no function: use log, publish:STREAM, http(s)://… or the name of a function in SQL, with its schema if '
                    'need be, of letters, digits and underscores'
            END;
            RAISE EXCEPTION 'p_handler_function %', v_problem USING ERRCODE = 'invalid_parameter_value';
        END IF;
        v_function := 'sql:' || v_name;
        IF tidings_find_handler_function(v_name) IS NULL THEN
            SELECT string_agg(o.name, ', ' ORDER BY o.name) INTO v_others
            FROM (
                SELECT n.nspname || '.' || p.proname AS name
                FROM pg_catalog.pg_proc p
                JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
                WHERE p.prokind = 'f' AND p.proargtypes = '2950 2950 3802'::oidvector
                ORDER BY 1
                LIMIT 10
            ) o;
            RAISE EXCEPTION 'p_handler_function: the database has no function %(uuid, uuid, jsonb); %', v_name,
                coalesce('with these parameters there are: ' || v_others,
                         'there is none with these parameters yet: create it first')
                USING ERRCODE = 'undefined_function';
        END IF;
    END IF;

    IF (SELECT count(*) >= 10000 FROM event_handlers h)
       AND NOT EXISTS (SELECT FROM event_handlers h WHERE h.handler_name = p_handler_name) THEN
        RAISE EXCEPTION 'there are 10000 event handlers already: remove one first' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    INSERT INTO event_handlers AS h (id, handler_name, event_types, handler_function, is_active, created_at, revision)
    VALUES (v_id, p_handler_name, jsonb_build_array(p_event_type), v_function, true, clock_timestamp(), 0)
    ON CONFLICT (handler_name) DO UPDATE
    SET event_types = excluded.event_types,
        handler_function = excluded.handler_function,
        paused_until = CASE WHEN h.handler_function = excluded.handler_function THEN h.paused_until END,
        revision = h.revision + 1
    RETURNING h.id INTO v_registered;

    -- Also those of one whose removal was broken off.
    INSERT INTO checkpoints (partition_no, name, position, fence)
    SELECT l.partition_no, 'handler:' || v_registered::text, coalesce(e.position, 0), 0
    FROM partition_locks l
    LEFT JOIN LATERAL (
        SELECT k.position FROM events k WHERE k.partition_no = l.partition_no ORDER BY k.position DESC LIMIT 1
    ) e ON true
    WHERE l.log = 'events'
    ON CONFLICT DO NOTHING;
END;
$$;

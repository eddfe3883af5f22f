-- Records a command as PENDING, and answers its id. A server processes it soon, unless process_command comes first. Data that
-- the command does not take is refused at once, as far as the schema can be followed here.
--
-- Source: the guide's create_command.
CREATE OR REPLACE FUNCTION create_command(
    p_aggregate_id uuid,
    p_command_type varchar,
    p_command_data jsonb
)
RETURNS uuid
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    v_command_id CONSTANT uuid := tidings_new_id();
    v_partition_no CONSTANT smallint := tidings_partition_of(uuid_send(tidings_check_id('p_aggregate_id', p_aggregate_id)));
    v_command record;
    v_wrong text;
    v_version int;
BEGIN
    p_command_type := tidings_check_name('p_command_type', p_command_type);
    p_command_data := tidings_check_json('p_command_data', p_command_data);
    v_command := tidings_find_command('p_command_type', p_command_type);
    IF v_command.schema IS NOT NULL AND tidings_schema_needs(v_command.schema) IS NULL THEN
        v_wrong := tidings_check_command_data(v_command.schema, p_command_data);
        IF v_wrong IS NOT NULL THEN
            RAISE EXCEPTION 'p_command_data is not what % takes: %', p_command_type, v_wrong
                USING ERRCODE = 'invalid_parameter_value';
        END IF;
    END IF;
    v_version := tidings_append_one(
        v_partition_no, p_aggregate_id, v_command.aggregate_type, NULL, NULL, NULL, NULL, NULL,
        v_command_id, p_command_type, p_command_data, 'PENDING'
    );
    RETURN v_command_id;
END;
$$;

CREATE OR REPLACE FUNCTION create_command(
    p_aggregate_id text,
    p_command_type varchar,
    p_command_data jsonb
)
RETURNS uuid
LANGUAGE plpgsql VOLATILE
AS $$
BEGIN
    RETURN create_command(tidings_id_of_key(p_aggregate_id), p_command_type, p_command_data);
END;
$$;

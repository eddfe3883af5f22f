-- Writes a read model from outside: the projector leaves it alone from then on. A version below the stored one, or equal to
-- one that came from outside too, changes nothing; one above the aggregate's own is an error.
--
-- Source: the guide's update_read_model.
CREATE OR REPLACE FUNCTION update_read_model(
    p_aggregate_id uuid,
    p_aggregate_type varchar,
    p_model_data jsonb,
    p_version integer
)
RETURNS void
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    v_partition_no CONSTANT smallint := tidings_partition_of(uuid_send(tidings_check_id('p_aggregate_id', p_aggregate_id)));
    v_answer record;
BEGIN
    p_aggregate_type := tidings_check_name('p_aggregate_type', p_aggregate_type);
    p_model_data := tidings_check_json('p_model_data', p_model_data);
    p_version := tidings_check_version('p_version', p_version);
    IF p_version IS NULL THEN
        RAISE EXCEPTION 'p_version must not be NULL' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF current_setting('transaction_isolation') IN ('repeatable read', 'serializable') THEN
        -- The transaction reads by a snapshot from before the lock: the place that comes out may be taken.
        BEGIN
            v_answer := tidings_write_read_model(
                v_partition_no, p_aggregate_id, p_aggregate_type, p_model_data::text, p_version
            );
        EXCEPTION WHEN unique_violation THEN
            RAISE EXCEPTION 'others have written since this transaction began: try it again'
                USING ERRCODE = 'serialization_failure', HINT = 'At READ COMMITTED nobody has to.';
        END;
    ELSE
        v_answer := tidings_write_read_model(v_partition_no, p_aggregate_id, p_aggregate_type, p_model_data::text, p_version);
    END IF;
    IF v_answer.outcome = 'version_ahead' THEN
        RAISE EXCEPTION 'p_version is %, and the aggregate has only come to version %: append its events first',
            p_version, v_answer.actual_version
            USING ERRCODE = 'invalid_parameter_value';
    ELSIF v_answer.outcome = 'type_mismatch' THEN
        RAISE EXCEPTION 'the aggregate is a %, not a %', v_answer.actual_type, p_aggregate_type USING ERRCODE = 'TD002';
    END IF;
END;
$$;

CREATE OR REPLACE FUNCTION update_read_model(
    p_aggregate_id text,
    p_aggregate_type varchar,
    p_model_data jsonb,
    p_version integer
)
RETURNS void
LANGUAGE plpgsql VOLATILE
AS $$
BEGIN
    PERFORM update_read_model(tidings_id_of_key(p_aggregate_id), p_aggregate_type, p_model_data, p_version);
END;
$$;

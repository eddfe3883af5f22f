-- Says which version an aggregate has. An append has stored it already, so nothing changes; any other version than that of its
-- newest event is an error, for an aggregate cannot disagree with its events.
--
-- Source: the guide's update_aggregate_version.
CREATE OR REPLACE FUNCTION update_aggregate_version(p_aggregate_id uuid, p_new_version integer)
RETURNS void
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    v_version CONSTANT int := get_aggregate_version(p_aggregate_id);
BEGIN
    IF p_new_version IS NULL THEN
        RAISE EXCEPTION 'p_new_version must not be NULL' USING ERRCODE = 'invalid_parameter_value';
    ELSIF p_new_version <> v_version THEN
        RAISE EXCEPTION 'the aggregate is at version %, not %', v_version, p_new_version
            USING ERRCODE = 'TD001', HINT = 'An append changes the version by itself.';
    END IF;
END;
$$;

CREATE OR REPLACE FUNCTION update_aggregate_version(p_aggregate_id text, p_new_version integer)
RETURNS void
LANGUAGE plpgsql VOLATILE
AS $$
BEGIN
    PERFORM update_aggregate_version(tidings_id_of_key(p_aggregate_id), p_new_version);
END;
$$;

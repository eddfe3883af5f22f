-- Appends one event, or records or settles one command with the event that it causes, for a SQL client: one call of
-- tidings_append_events, which takes the partition's lock first, as the server does it. Answers the version of the event.
--
--   p_event_type NULL      there is no event, but a command alone; p_aggregate_type and p_expected_version may be NULL: any
--   p_command_id NULL      there is no command
--   p_command_type NULL    the command is there, and is to be settled
--
-- A refusal is raised, with a code of its own: TD001 the aggregate has another version than was expected, TD002 it is of
-- another type, TD003 the command is not pending any more.
CREATE OR REPLACE FUNCTION tidings_append_one(
    p_partition_no smallint,
    p_aggregate_id uuid,
    p_aggregate_type text,
    p_event_id uuid,
    p_event_type text,
    p_event_data jsonb,
    p_event_metadata jsonb,
    p_expected_version int,
    p_command_id uuid DEFAULT NULL,
    p_command_type text DEFAULT NULL,
    p_command_data jsonb DEFAULT NULL,
    p_command_status text DEFAULT NULL,
    p_command_reason text DEFAULT NULL,
    p_is_guarded boolean DEFAULT false
)
RETURNS int
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    v_answer record;
BEGIN
    -- The whole transaction reads by one snapshot, from before the lock: what others have appended since is not seen, and the
    -- positions that come out are taken. At READ COMMITTED that cannot happen, and a subtransaction is saved.
    IF NOT p_is_guarded AND current_setting('transaction_isolation') IN ('repeatable read', 'serializable') THEN
        BEGIN
            RETURN tidings_append_one(
                p_partition_no, p_aggregate_id, p_aggregate_type, p_event_id, p_event_type, p_event_data, p_event_metadata,
                p_expected_version, p_command_id, p_command_type, p_command_data, p_command_status, p_command_reason, true
            );
        EXCEPTION WHEN unique_violation THEN
            RAISE EXCEPTION 'others have appended since this transaction began: try it again'
                USING ERRCODE = 'serialization_failure', HINT = 'At READ COMMITTED nobody has to.';
        END;
    END IF;

    IF p_command_id IS NULL THEN
        SELECT a.outcome[1] AS outcome, a.version[1] AS version, a.actual_version[1] AS actual_version,
               a.actual_type[1] AS actual_type
        INTO STRICT v_answer
        FROM tidings_append_events(
            p_partition_no, ARRAY[1], ARRAY[1], ARRAY[p_event_id], ARRAY[false], ARRAY[p_aggregate_id],
            ARRAY[p_aggregate_type], ARRAY[p_event_type], ARRAY[p_event_data::text], ARRAY[p_event_metadata::text],
            ARRAY[p_expected_version]
        ) AS a;
    ELSE
        SELECT a.outcome[1] AS outcome, a.version[1] AS version, a.actual_version[1] AS actual_version,
               a.actual_type[1] AS actual_type
        INTO STRICT v_answer
        FROM tidings_append_events(
            p_partition_no, ARRAY[1], ARRAY[1], ARRAY[p_event_id], ARRAY[false], ARRAY[p_aggregate_id],
            ARRAY[p_aggregate_type], ARRAY[p_event_type], ARRAY[p_event_data::text], ARRAY[p_event_metadata::text],
            ARRAY[p_expected_version],
            ARRAY[1], ARRAY[CASE WHEN p_event_type IS NULL THEN 0 ELSE 1 END], ARRAY[p_command_id],
            ARRAY[p_command_type IS NULL], ARRAY[p_command_type], ARRAY[p_command_data::text], '{}', '{}',
            ARRAY[p_command_status], ARRAY[p_command_reason]
        ) AS a;
    END IF;

    CASE
        WHEN v_answer.outcome IS NULL OR v_answer.outcome = 'command' THEN
            RETURN v_answer.version;
        WHEN v_answer.outcome = 'version_conflict' THEN
            RAISE EXCEPTION 'the aggregate is at version %, not %', v_answer.actual_version, p_expected_version
                USING ERRCODE = 'TD001';
        WHEN v_answer.outcome = 'type_mismatch' THEN
            RAISE EXCEPTION 'the aggregate is a %, not a %', v_answer.actual_type, p_aggregate_type USING ERRCODE = 'TD002';
        WHEN v_answer.outcome = 'command_settled' THEN
            RAISE EXCEPTION 'the command % is not pending any more', p_command_id USING ERRCODE = 'TD003';
        ELSE
            RAISE EXCEPTION 'tidings_append_events answers %', v_answer.outcome USING ERRCODE = 'internal_error';
    END CASE;
END;
$$;

-- Makes an aggregate without events. Making the same one again changes nothing; of another type, it is an error.
--
-- Source: the guide's create_aggregate.
CREATE OR REPLACE FUNCTION create_aggregate(p_aggregate_id uuid, p_aggregate_type varchar)
RETURNS void
LANGUAGE plpgsql VOLATILE
SET enable_seqscan = off
AS $$
DECLARE
    v_partition_no CONSTANT smallint := tidings_partition_of(uuid_send(tidings_check_id('p_aggregate_id', p_aggregate_id)));
    v_actual_type text;
BEGIN
    p_aggregate_type := tidings_check_name('p_aggregate_type', p_aggregate_type);
    PERFORM FROM partition_locks l
    WHERE l.partition_no = v_partition_no AND l.log = 'events'
    FOR UPDATE;

    INSERT INTO aggregates (partition_no, id, aggregate_type, current_version, created_at, updated_at)
    SELECT v_partition_no, p_aggregate_id, p_aggregate_type, 0, t.now, t.now
    FROM (SELECT clock_timestamp() AS now) t
    ON CONFLICT DO NOTHING;
    IF NOT FOUND THEN
        SELECT a.aggregate_type INTO v_actual_type
        FROM aggregates a
        WHERE a.partition_no = v_partition_no AND a.id = p_aggregate_id;
        IF v_actual_type <> p_aggregate_type THEN
            RAISE EXCEPTION 'the aggregate is a %, not a %', v_actual_type, p_aggregate_type USING ERRCODE = 'TD002';
        END IF;
    END IF;
END;
$$;

CREATE OR REPLACE FUNCTION create_aggregate(p_aggregate_id text, p_aggregate_type varchar)
RETURNS void
LANGUAGE plpgsql VOLATILE
AS $$
BEGIN
    PERFORM create_aggregate(tidings_id_of_key(p_aggregate_id), p_aggregate_type);
END;
$$;

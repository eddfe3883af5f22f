-- Appends a batch of requests to the event log of one partition: the only place that writes `events`. A request may also
-- record a command or settle one, in the same transaction and judged with its events.
--
-- The arrays are parallel, one element an event, in the order in which the events are to be judged and stored:
--   p_request           the number of the request that the event belongs to, ascending, its events side by side
--   p_slot              the place in the batch, from 1, of the first event of the same aggregate
--   p_id, p_check_id    the event's id, and whether a client chose it, so that it may be known already
--   p_expected_version  the version that the aggregate must have before this event; NULL: any
-- The caller sees to it that no id is in the batch twice and that every aggregate belongs to the partition.
--
-- The arrays of commands are parallel too, one element a command; a request has one at most, whose events are all of its
-- aggregate. A command that causes no event has an element of its own in the arrays of events, which names its aggregate, that
-- one's type and expected version (either may be NULL: any), and whose p_id and p_event_type are NULL: it takes no position.
--   p_command_at        the place of the first (or only) element of its request in the arrays of events, from 1
--   p_command_events    how many events it causes
--   p_command_id, p_check_command
--                       its id, and whether it may be known already; that of one to settle has to be checked
--   p_command_type      what is asked for; NULL: the command is there, and is to be settled
--   p_command_data, p_command_metadata, p_command_not_before
--                       of one that is recorded; data NULL: that of its first event; metadata NULL: {}
--   p_command_status, p_command_reason
--                       what it becomes: PENDING, PROCESSED, REJECTED or FAILED, and why
-- Where p_check_command is false for all, or another of these NULL for all (but the first ones up to p_command_id, the type and
-- the status), the array may be empty: what is not sent need not be read.
--
-- Returns one row with an array for each column, one element an event in the same order. (A row an event would cost a lone
-- writer another statement.) `outcome` is
--   NULL                appended at position and version, at the instant created_at; or, where position is NULL too,
--                       refused: nothing is wrong with this event, but with another one of its request
--   duplicate           the request was appended earlier: read it by its ids
--   id_reused           the id stands for another event, or for one that was appended without the rest of the request
--   type_mismatch       the aggregate has another type: actual_type, actual_version
--   version_conflict    the aggregate has another version: actual_type, actual_version
--   command_known       the command was to be recorded and is there already
--   command_settled     the command was to be settled and is not there, or not pending
--   command             (of an element without an event) its command was recorded or settled
-- A request is appended as a whole or not at all, and a refused one does not touch the others.
--
-- Every step is a statement of its own: at READ COMMITTED each takes a fresh snapshot, so all that follow the lock see
-- what the previous holder committed. Plans are made once, while the tables may still be empty, and have to be good when
-- these have grown, whatever the length of the arrays: hence generic plans, no sequential scans, no sorts, and
-- `BETWEEN … ORDER BY … LIMIT 1` in the lookups. With a plain equality or join a small table makes every index that
-- begins with partition_no look equally good, and the one that is taken may read the whole partition for each event;
-- only the index on the whole key yields the order, where sorting is out of the question. For the same reason a command is
-- settled by an INSERT that conflicts, which has no index to choose. See also tidings_describe_partitions.

-- An earlier form of the function took events alone. Beside this one, a call with its arguments would be ambiguous.
DO $$
BEGIN
    IF to_regprocedure(
        'tidings_append_events(smallint,int[],int[],uuid[],boolean[],uuid[],text[],text[],text[],text[],int[])'
    ) IS NOT NULL THEN
        DROP FUNCTION tidings_append_events(
            smallint, int[], int[], uuid[], boolean[], uuid[], text[], text[], text[], text[], int[]
        );
    END IF;
END;
$$;

CREATE OR REPLACE FUNCTION tidings_append_events(
    p_partition_no smallint,
    p_request int[],
    p_slot int[],
    p_id uuid[],
    p_check_id boolean[],
    p_aggregate_id uuid[],
    p_aggregate_type text[],
    p_event_type text[],
    p_event_data text[],
    p_event_metadata text[],
    p_expected_version int[],
    p_command_at int[] DEFAULT '{}',
    p_command_events int[] DEFAULT '{}',
    p_command_id uuid[] DEFAULT '{}',
    p_check_command boolean[] DEFAULT '{}',
    p_command_type text[] DEFAULT '{}',
    p_command_data text[] DEFAULT '{}',
    p_command_metadata text[] DEFAULT '{}',
    p_command_not_before timestamptz[] DEFAULT '{}',
    p_command_status text[] DEFAULT '{}',
    p_command_reason text[] DEFAULT '{}',
    OUT outcome text[],
    OUT "position" bigint[],
    OUT version int[],
    OUT created_at timestamptz,
    OUT actual_version int[],
    OUT actual_type text[]
)
LANGUAGE plpgsql VOLATILE
SET enable_seqscan = off
SET enable_sort = off
SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    v_count CONSTANT int := cardinality(p_id);
    v_commands CONSTANT int := cardinality(p_command_id);
    v_head bigint;
    v_head_created_at timestamptz;

    -- One element an event, filled only where its id is known: whether it stands for the same.
    v_known_same boolean[];
    v_known_count int := 0;
    -- One element an aggregate, at its slot.
    v_stored_version int[];             -- NULL: the aggregate is not known
    v_current_version int[];
    v_current_type text[];

    -- Filled only where there are commands that may be known.
    v_command_of int[];                 -- one element an event: the number of the command that begins there
    v_known_status text[];              -- one element a command: how far the one is that is there
    v_pending_since timestamptz;

    v_request int;
    v_request_start int;
    v_request_position bigint;          -- the head before the request
    v_request_known int;
    v_settled boolean;
    v_command int;
    v_at int;
    v_found record;
BEGIN
    PERFORM FROM partition_locks l
    WHERE l.partition_no = p_partition_no AND l.log = 'events'
    FOR UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'partition % has no event log', p_partition_no USING ERRCODE = 'invalid_parameter_value';
    END IF;

    SELECT e.position, e.created_at INTO v_head, v_head_created_at
    FROM events e
    WHERE e.partition_no = p_partition_no
    ORDER BY e.position DESC
    LIMIT 1;
    v_head := coalesce(v_head, 0);
    -- greatest() passes over NULL. The clock may have been set back: time must not run backwards in the log.
    created_at := greatest(clock_timestamp(), v_head_created_at);

    IF true = ANY (p_check_id) THEN
        FOR v_found IN
            SELECT b.ord,
                   e.aggregate_id = p_aggregate_id[b.ord]
                   AND e.aggregate_type = p_aggregate_type[b.ord]
                   AND e.event_type = p_event_type[b.ord]
                   AND e.event_data = p_event_data[b.ord]::jsonb AS same
            FROM generate_series(1, v_count) AS b(ord)
            CROSS JOIN LATERAL (
                SELECT k.*
                FROM events k
                WHERE k.partition_no = p_partition_no AND k.id BETWEEN p_id[b.ord] AND p_id[b.ord]
                ORDER BY k.id
                LIMIT 1
            ) e
            WHERE p_check_id[b.ord]
        LOOP
            v_known_count := v_known_count + 1;
            v_known_same[v_found.ord] := v_found.same;
        END LOOP;
    END IF;

    IF v_commands > 0 THEN
        IF 'PENDING' = ANY (p_command_status) THEN
            -- Pending commands are processed in the order of their creation, also where the clock was set back.
            SELECT k.created_at + interval '1 microsecond' INTO v_pending_since
            FROM commands k
            WHERE k.partition_no = p_partition_no AND k.status BETWEEN 'PENDING' AND 'PENDING'
            ORDER BY k.status DESC, k.created_at DESC, k.id DESC
            LIMIT 1;
            created_at := greatest(created_at, v_pending_since);
        END IF;
        IF true = ANY (p_check_command) THEN
            v_command_of := array_fill(NULL::int, ARRAY[v_count]);
            v_known_status := array_fill(NULL::text, ARRAY[v_commands]);
            FOR v_ord IN 1 .. v_commands LOOP
                v_command_of[p_command_at[v_ord]] := v_ord;
            END LOOP;
            FOR v_found IN
                SELECT b.ord, c.status
                FROM generate_series(1, v_commands) AS b(ord)
                CROSS JOIN LATERAL (
                    SELECT k.status
                    FROM commands k
                    WHERE k.partition_no = p_partition_no AND k.id BETWEEN p_command_id[b.ord] AND p_command_id[b.ord]
                    ORDER BY k.id
                    LIMIT 1
                ) c
                WHERE p_check_command[b.ord]
            LOOP
                v_known_status[v_found.ord] := v_found.status;
            END LOOP;
        END IF;
    END IF;

    -- A nested loop over the events in their order: a lateral look-up leaves no other way to join.
    SELECT array_agg(a.current_version), array_agg(coalesce(a.current_version, 0)), array_agg(a.aggregate_type)
    INTO v_stored_version, v_current_version, v_current_type
    FROM generate_series(1, v_count) AS b(ord)
    LEFT JOIN LATERAL (
        SELECT k.current_version, k.aggregate_type
        FROM aggregates k
        WHERE k.partition_no = p_partition_no AND k.id BETWEEN p_aggregate_id[b.ord] AND p_aggregate_id[b.ord]
              AND p_slot[b.ord] = b.ord
        ORDER BY k.id
        LIMIT 1
    ) a ON true;

    -- An array that is made by setting its third element would begin there.
    "position" := array_fill(NULL::bigint, ARRAY[v_count]);
    version := array_fill(NULL::int, ARRAY[v_count]);
    outcome := array_fill(NULL::text, ARRAY[v_count]);
    actual_version := version;
    actual_type := outcome;
    v_request_position := v_head;
    FOR v_ord IN 1 .. v_count LOOP
        IF p_request[v_ord] IS DISTINCT FROM v_request THEN
            v_request := p_request[v_ord];
            v_request_start := v_ord;
            v_request_position := v_head;
            v_settled := false;
            IF v_known_count > 0 THEN
                v_request_known := 0;
                v_at := v_ord;
                WHILE p_request[v_at] = v_request LOOP
                    IF v_known_same[v_at] IS NOT NULL THEN
                        v_request_known := v_request_known + 1;
                        -- Where one id stands for something else, it is the one to name, not those that match.
                        IF NOT v_known_same[v_at] AND NOT v_settled THEN
                            v_settled := true;
                            outcome[v_at] := 'id_reused';
                        END IF;
                    END IF;
                    v_at := v_at + 1;
                END LOOP;
                IF v_request_known > 0 AND NOT v_settled THEN
                    v_settled := true;
                    v_at := v_at - 1;
                    FOR v_event IN v_request_start .. v_at LOOP
                        IF v_request_known = v_at - v_request_start + 1 THEN
                            outcome[v_event] := 'duplicate';
                        ELSIF v_known_same[v_event] THEN
                            outcome[v_event] := 'id_reused';
                            EXIT;
                        END IF;
                    END LOOP;
                END IF;
            END IF;
            IF v_command_of IS NOT NULL AND NOT v_settled THEN
                v_command := v_command_of[v_ord];
                IF v_command IS NOT NULL AND p_command_type[v_command] IS NULL THEN
                    IF v_known_status[v_command] IS DISTINCT FROM 'PENDING' THEN
                        v_settled := true;
                        outcome[v_ord] := 'command_settled';
                    END IF;
                ELSIF v_known_status[v_command] IS NOT NULL THEN
                    v_settled := true;
                    outcome[v_ord] := 'command_known';
                END IF;
            END IF;
        END IF;
        CONTINUE WHEN v_settled;

        v_at := p_slot[v_ord];
        IF v_current_type[v_at] <> p_aggregate_type[v_ord] THEN
            outcome[v_ord] := 'type_mismatch';
        ELSIF v_current_version[v_at] <> p_expected_version[v_ord] THEN
            outcome[v_ord] := 'version_conflict';
        ELSIF p_event_type[v_ord] IS NULL THEN
            outcome[v_ord] := 'command';
            CONTINUE;
        ELSE
            IF v_current_type[v_at] IS NULL THEN
                v_current_type[v_at] := p_aggregate_type[v_ord];
            END IF;
            v_current_version[v_at] := v_current_version[v_at] + 1;
            version[v_ord] := v_current_version[v_at];
            v_head := v_head + 1;
            "position"[v_ord] := v_head;
            CONTINUE;
        END IF;

        v_settled := true;
        actual_version[v_ord] := v_current_version[v_at];
        actual_type[v_ord] := v_current_type[v_at];
        -- Take back what the earlier events of the request were given.
        v_head := v_request_position;
        FOR v_event IN v_request_start .. v_ord - 1 LOOP
            v_at := p_slot[v_event];
            v_current_version[v_at] := v_current_version[v_at] - 1;
            IF v_current_version[v_at] = 0 AND v_stored_version[v_at] IS NULL THEN
                v_current_type[v_at] := NULL;
            END IF;
            version[v_event] := NULL;
            "position"[v_event] := NULL;
        END LOOP;
    END LOOP;

    INSERT INTO aggregates AS a (partition_no, id, aggregate_type, current_version, created_at, updated_at)
    SELECT p_partition_no, p_aggregate_id[b.ord], v_current_type[b.ord], v_current_version[b.ord],
           created_at, created_at
    FROM generate_series(1, v_count) AS b(ord)
    WHERE p_slot[b.ord] = b.ord AND v_current_version[b.ord] > coalesce(v_stored_version[b.ord], 0)
    ON CONFLICT (partition_no, id)
    DO UPDATE SET current_version = excluded.current_version, updated_at = excluded.updated_at;

    INSERT INTO events (
        partition_no, position, id, aggregate_id, aggregate_type, event_type, event_data, event_metadata, version,
        created_at
    )
    SELECT p_partition_no, "position"[b.ord], p_id[b.ord], p_aggregate_id[b.ord], p_aggregate_type[b.ord],
           p_event_type[b.ord], p_event_data[b.ord]::jsonb, p_event_metadata[b.ord]::jsonb, version[b.ord],
           created_at
    FROM generate_series(1, v_count) AS b(ord)
    WHERE "position"[b.ord] IS NOT NULL;

    IF v_commands > 0 THEN
        INSERT INTO commands (
            partition_no, id, aggregate_id, command_type, command_data, command_metadata, status, reason, attempts,
            not_before, first_version, last_version, created_at, processed_at
        )
        SELECT p_partition_no, p_command_id[b.ord], p_aggregate_id[c.place], p_command_type[b.ord],
               coalesce(p_command_data[b.ord], p_event_data[c.place])::jsonb,
               coalesce(p_command_metadata[b.ord], '{}')::jsonb, p_command_status[b.ord], p_command_reason[b.ord], CASE WHEN c.pending THEN 0 ELSE 1 END, p_command_not_before[b.ord],
               version[c.place], version[c.place] + p_command_events[b.ord] - 1, created_at,
               CASE WHEN NOT c.pending THEN created_at END
        FROM generate_series(1, v_commands) AS b(ord)
        CROSS JOIN LATERAL (
            SELECT p_command_at[b.ord] AS place, p_command_status[b.ord] = 'PENDING' AS pending
        ) c
        WHERE p_command_type[b.ord] IS NOT NULL AND ("position"[c.place] IS NOT NULL OR outcome[c.place] = 'command');
    END IF;

    -- There is a NULL among the types.
    IF array_position(p_command_type, NULL) IS NOT NULL THEN
        INSERT INTO commands AS c (
            partition_no, id, aggregate_id, command_type, command_data, command_metadata, status, reason, attempts,
            not_before, first_version, last_version, created_at, processed_at
        )
        SELECT s.partition_no, s.id, s.aggregate_id, s.command_type, s.command_data, s.command_metadata,
               p_command_status[b.ord], p_command_reason[b.ord], s.attempts, s.not_before, version[p_command_at[b.ord]],
               version[p_command_at[b.ord]] + p_command_events[b.ord] - 1, s.created_at, tidings_append_events.created_at
        FROM generate_series(1, v_commands) AS b(ord)
        CROSS JOIN LATERAL (
            SELECT k.*
            FROM commands k
            WHERE k.partition_no = p_partition_no AND k.id BETWEEN p_command_id[b.ord] AND p_command_id[b.ord]
            ORDER BY k.id
            LIMIT 1
        ) s
        WHERE p_command_type[b.ord] IS NULL
              AND ("position"[p_command_at[b.ord]] IS NOT NULL OR outcome[p_command_at[b.ord]] = 'command')
        ON CONFLICT (partition_no, id)
        DO UPDATE SET status = excluded.status, reason = excluded.reason, attempts = c.attempts + 1,
            first_version = excluded.first_version, last_version = excluded.last_version,
            processed_at = excluded.processed_at;
    END IF;
END;
$$;

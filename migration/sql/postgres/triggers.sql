-- Every trigger stands in this file: an engine that shards needs leave for triggers, in one place.
-- Events never change: no program may, not even by mistake.
CREATE OR REPLACE FUNCTION tidings_refuse_event_change() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'events are never changed or deleted: append another event instead'
        USING ERRCODE = 'restrict_violation';
END;
$$;

-- Once only: to replace it is to wait for every transaction that has appended, and to have all appends wait behind that.
-- In a block of its own also for Citus, which hands the text of the whole query on to each shard: it takes one statement.
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = 'events'::regclass AND tgname = 'events_refuse_change') THEN
        CREATE TRIGGER events_refuse_change
            BEFORE UPDATE OR DELETE OR TRUNCATE ON events
            FOR EACH STATEMENT EXECUTE FUNCTION tidings_refuse_event_change();
    END IF;
END;
$$;

-- Every trigger stands in this file: an engine that shards needs leave for triggers, in one place.
-- Events never change: no program may, not even by mistake.
CREATE OR REPLACE FUNCTION tidings_refuse_event_change() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'events are never changed or deleted: append another event instead'
        USING ERRCODE = 'restrict_violation';
END;
$$;

CREATE OR REPLACE TRIGGER events_refuse_change
    BEFORE UPDATE OR DELETE OR TRUNCATE ON events
    FOR EACH STATEMENT EXECUTE FUNCTION tidings_refuse_event_change();

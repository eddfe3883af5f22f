-- What the server is measured against: the event table of the guide with its indexes, and a function of the shape of its
-- append_event, which takes no lock and so may give one version to two events (one of them then fails).
CREATE TABLE events (
    id UUID PRIMARY KEY DEFAULT gen_random_uuid(),
    aggregate_id UUID NOT NULL,
    aggregate_type VARCHAR(100) NOT NULL,
    event_type VARCHAR(100) NOT NULL,
    event_data JSONB NOT NULL,
    event_metadata JSONB DEFAULT '{}',
    version INTEGER NOT NULL,
    created_at TIMESTAMPTZ DEFAULT CURRENT_TIMESTAMP,
    UNIQUE (aggregate_id, version)
);

CREATE INDEX idx_events_aggregate_id ON events (aggregate_id);
CREATE INDEX idx_events_aggregate_type ON events (aggregate_type);
CREATE INDEX idx_events_event_type ON events (event_type);
CREATE INDEX idx_events_created_at ON events (created_at);

CREATE FUNCTION append_event(
    p_aggregate_id UUID,
    p_aggregate_type VARCHAR(100),
    p_event_type VARCHAR(100),
    p_event_data JSONB,
    p_event_metadata JSONB DEFAULT '{}'
) RETURNS UUID LANGUAGE plpgsql AS $$
DECLARE
    v_id UUID;
    v_version INTEGER;
BEGIN
    SELECT COALESCE(MAX(version), 0) + 1 INTO v_version FROM events WHERE aggregate_id = p_aggregate_id;

    INSERT INTO events (aggregate_id, aggregate_type, event_type, event_data, event_metadata, version)
    VALUES (p_aggregate_id, p_aggregate_type, p_event_type, p_event_data, p_event_metadata, v_version)
    RETURNING id INTO v_id;

    RETURN v_id;
END;
$$;

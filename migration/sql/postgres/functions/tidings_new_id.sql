-- A new id, as the server makes them: a UUIDv7 of this instant.
--
-- Source: RFC 9562, section 5.7.
CREATE OR REPLACE FUNCTION tidings_new_id()
RETURNS uuid
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    v_time CONSTANT bytea := int8send(floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint);
BEGIN
    -- A random one is a UUIDv4; two bits more make a 7 of its 4.
    RETURN encode(
        set_bit(set_bit(overlay(uuid_send(gen_random_uuid()) PLACING substr(v_time, 3) FROM 1 FOR 6), 52, 1), 53, 1), 'hex'
    )::uuid;
END;
$$;

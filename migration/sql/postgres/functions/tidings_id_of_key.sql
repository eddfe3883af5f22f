-- The UUID that a text names: a UUID in any of its usual forms is itself, and anything else is a key that stands for its
-- UUIDv5 in a fixed namespace, the same one as the server's `aggregate(key:)`. NULL is NULL.
--
-- Source: RFC 9562, section 5.5; FIPS 180-4, section 6.1. PostgreSQL itself has no SHA-1, and an extension would have to be
-- there in every database.
CREATE OR REPLACE FUNCTION tidings_id_of_key(p_key text)
RETURNS uuid
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE
AS $$
DECLARE
    c_namespace CONSTANT bytea := '\x9f3c1c567a0e5b1e9c397d3f6f0b6a11';
    c_mask CONSTANT bigint := 4294967295;
    v_bytes bytea;
    v_bits bigint;
    v_word bigint[];
    v_next bigint;
    v_mixed bigint;
    v_a bigint;
    v_b bigint;
    v_c bigint;
    v_d bigint;
    v_e bigint;
    v_hash0 bigint := 1732584193;
    v_hash1 bigint := 4023233417;
    v_hash2 bigint := 2562383102;
    v_hash3 bigint := 271733878;
    v_hash4 bigint := 3285377520;
BEGIN
    IF p_key ~* '^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$|^[0-9a-f]{32}$|^\{[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\}$' THEN
        RETURN p_key::uuid;
    END IF;
    IF p_key ~* '^urn:uuid:[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$' THEN
        RETURN substr(p_key, 10)::uuid;
    END IF;

    v_bytes := c_namespace || convert_to(p_key, 'UTF8');
    v_bits := length(v_bytes) * 8;
    v_bytes := v_bytes || '\x80'::bytea;
    v_bytes := v_bytes || decode(repeat('00', (120 - length(v_bytes) % 64) % 64), 'hex') || int8send(v_bits);

    -- All of PostgreSQL's operators on bits bind alike, and looser than `+`.
    FOR v_block IN 0 .. length(v_bytes) / 64 - 1 LOOP
        v_word := array_fill(0::bigint, ARRAY[80]);
        v_a := v_hash0;
        v_b := v_hash1;
        v_c := v_hash2;
        v_d := v_hash3;
        v_e := v_hash4;
        FOR v_t IN 1 .. 80 LOOP
            IF v_t <= 16 THEN
                v_next := ('x' || encode(substr(v_bytes, v_block * 64 + v_t * 4 - 3, 4), 'hex'))::bit(32)::bigint;
            ELSE
                v_next := v_word[v_t - 3] # v_word[v_t - 8] # v_word[v_t - 14] # v_word[v_t - 16];
                v_next := ((v_next << 1) | (v_next >> 31)) & c_mask;
            END IF;
            v_word[v_t] := v_next;
            v_mixed := ((v_a << 5) | (v_a >> 27)) + v_e + v_next + CASE
                WHEN v_t <= 20 THEN ((v_b & v_c) | ((v_b # c_mask) & v_d)) + 1518500249
                WHEN v_t <= 40 THEN (v_b # v_c # v_d) + 1859775393
                WHEN v_t <= 60 THEN ((v_b & v_c) | (v_b & v_d) | (v_c & v_d)) + 2400959708
                ELSE (v_b # v_c # v_d) + 3395469782
            END;
            v_e := v_d;
            v_d := v_c;
            v_c := ((v_b << 30) | (v_b >> 2)) & c_mask;
            v_b := v_a;
            v_a := v_mixed & c_mask;
        END LOOP;
        v_hash0 := (v_hash0 + v_a) & c_mask;
        v_hash1 := (v_hash1 + v_b) & c_mask;
        v_hash2 := (v_hash2 + v_c) & c_mask;
        v_hash3 := (v_hash3 + v_d) & c_mask;
        v_hash4 := (v_hash4 + v_e) & c_mask;
    END LOOP;

    -- Of the first 16 bytes, the version and the variant take the place of some bits.
    RETURN (
        lpad(to_hex(v_hash0), 8, '0')
        || lpad(to_hex((v_hash1 & 4294905855) | 20480), 8, '0')
        || lpad(to_hex((v_hash2 & 1073741823) | 2147483648), 8, '0')
        || lpad(to_hex(v_hash3), 8, '0')
    )::uuid;
END;
$$;

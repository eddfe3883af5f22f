-- What is wrong with a URL that events are to be posted to, in the words of the server; NULL where nothing is.
--
-- By the same rules as the server's (`src/domain/webhook_url.rs`), but for what only it can know: it takes hosts outside of ASCII, and
-- looks into labels that begin with xn--.
CREATE OR REPLACE FUNCTION tidings_url_problem(p_url text)
RETURNS text
LANGUAGE plpgsql IMMUTABLE
AS $$
DECLARE
    v_authority CONSTANT text := substring(p_url FROM '^[^:]*://([^/?#]*)');
    v_host text;
    v_port text;
BEGIN
    IF octet_length(p_url) > 2000 THEN
        RETURN 'it is longer than 2000 bytes';
    ELSIF p_url ~ '[\x01-\x20\x7f\\]' THEN
        RETURN 'it holds a space, a control character or a backslash: leave it out, or write it with % and its code';
    ELSIF p_url !~* '^https?://' THEN
        RETURN 'use https://… or http://…';
    ELSIF strpos(v_authority, '@') > 0 THEN
        RETURN 'it holds a user or a password, which everybody who may read would see: leave them out, and have the receiver '
            'verify the signature';
    ELSIF strpos(p_url, '#') > 0 THEN
        RETURN 'it has a fragment (#…), which is never sent: leave it out';
    END IF;

    v_host := lower(substring(v_authority FROM '^(\[[^\]]*\]?|[^:]*)') COLLATE "C");
    v_port := substr(v_authority, char_length(v_host) + 1);
    IF v_host = '' THEN
        RETURN 'it has no host; use https://HOST/PATH';
    ELSIF v_port !~ '^(:|:0*([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5]))?$' THEN
        RETURN 'its port is none: use 1 to 65535, or none';
    ELSIF octet_length(v_host) > char_length(v_host) THEN
        RETURN 'its host is not in ASCII: write it as its name servers have it (xn--…)';
    ELSIF left(v_host, 1) = '[' THEN
        BEGIN
            -- What has dots is to end in all of an IPv4 address: PostgreSQL fills it up.
            IF v_host ~ '^\[[0-9a-f:]+(:[0-9]+([.][0-9]+){3})?\]$' AND family(btrim(v_host, '[]')::inet) = 6 THEN
                RETURN NULL;
            END IF;
        EXCEPTION WHEN invalid_text_representation THEN
            NULL;
        END;
    ELSIF v_host ~ '(^|[.])([0-9]+|0x[0-9a-f]*)[.]?$' THEN
        IF v_host ~ '^((25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])([.](?!$)|$)){4}$' THEN
            RETURN NULL;
        END IF;
    ELSIF v_host ~ '^([a-z0-9_-]{1,63}([.]|$))+$' AND char_length(rtrim(v_host, '.')) <= 253 THEN
        RETURN NULL;
    END IF;
    RETURN 'its host is none: use a name of letters, digits, - and ., or an address, such as 203.0.113.7 or [2001:db8::7]';
END;
$$;

-- Rows of the inbox are only needed as long as a message may come again: never forgotten before 30 days, whoever calls. A function with
-- its owner's rights, because a service may delete old rows, and no others.
CREATE FUNCTION forget_inbox(keep_days integer, batch integer) RETURNS integer
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    WITH old AS MATERIALIZED (
        SELECT message_id FROM inbox WHERE received_at < now() - make_interval(days => greatest(keep_days, 30))
         ORDER BY received_at LIMIT least(batch, 10000) FOR UPDATE SKIP LOCKED
    ), gone AS (
        DELETE FROM inbox USING old WHERE inbox.message_id = old.message_id RETURNING 1
    )
    SELECT count(*)::integer FROM gone
$$;
REVOKE ALL ON FUNCTION forget_inbox FROM PUBLIC;

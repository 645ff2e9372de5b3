-- foreign-key: a routing key that this relay may not publish. behind: an earlier message of the same aggregate waits.
ALTER TABLE outbox_parked DROP CONSTRAINT outbox_parked_reason_check;
ALTER TABLE outbox_parked ADD CONSTRAINT outbox_parked_reason_check
    CHECK (reason IN ('unroutable', 'nacked', 'too-large', 'refused', 'crash-suspect', 'foreign-key', 'behind'));

-- The messages of one aggregate that wait, in their order.
CREATE INDEX outbox_parked_order ON outbox_parked (shard, aggregate, id) WHERE state = 'waiting';

-- Why a relay that is alive cannot publish; NULL: it can.
ALTER TABLE outbox_relay ADD COLUMN trouble text;

-- A relay may add rows here, and the text of a row comes from the outbox whatever the relay says: it cannot add a message of its own.
-- The owner, who restores dumps, is not held to that.
CREATE FUNCTION outbox_parked_is_a_copy() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF pg_has_role(current_user, (SELECT relowner FROM pg_class WHERE oid = TG_RELID), 'MEMBER') THEN
        RETURN NEW;
    END IF;
    SELECT o.event_id, o.aggregate, o.type, o.routing_key, o.correlation_id, o.headers, o.payload, o.created_at
      INTO NEW.event_id, NEW.aggregate, NEW.type, NEW.routing_key, NEW.correlation_id, NEW.headers, NEW.payload, NEW.created_at
      FROM public.outbox AS o WHERE o.shard::integer = NEW.shard::integer AND o.id = NEW.id;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'row % of shard % is not in the outbox', NEW.id, NEW.shard USING ERRCODE = 'insufficient_privilege';
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER outbox_parked_is_a_copy BEFORE INSERT ON outbox_parked FOR EACH ROW EXECUTE FUNCTION outbox_parked_is_a_copy();

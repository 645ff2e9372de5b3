"""The operator's side of the outbox: what waits, what was set aside, what can be sent again, and cursors of another cluster."""

"""The words on the wire: events, commands, envelope and broker topology, as data."""

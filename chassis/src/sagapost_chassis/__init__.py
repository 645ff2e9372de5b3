"""Mechanisms every service needs: settings, database, outbox, inbox, broker, telemetry, problems."""

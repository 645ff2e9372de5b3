"""Captures and refunds, exactly once per order."""

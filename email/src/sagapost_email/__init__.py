"""Receipts and cancellation mails."""

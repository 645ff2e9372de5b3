"""Tails one outbox and publishes it to RabbitMQ."""

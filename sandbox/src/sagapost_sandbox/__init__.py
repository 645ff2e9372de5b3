"""The outside world on one machine: private PostgreSQL and RabbitMQ, a payment provider, a mailbox."""

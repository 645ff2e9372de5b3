"""What `topology` does beyond AMQP: reads the broker over its management interface, names drift, makes the services' users."""

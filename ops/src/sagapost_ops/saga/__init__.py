"""What `saga` reads from the gateway, how it says it, and what it advises."""

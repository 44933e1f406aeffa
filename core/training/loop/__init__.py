"""What happens around the steps: measuring, saving, health checks, recovery from out-of-memory, sample answers."""

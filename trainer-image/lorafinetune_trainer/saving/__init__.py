"""Training state, made durable."""

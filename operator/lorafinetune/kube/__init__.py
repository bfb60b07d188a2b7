"""Hands on the cluster: reads and writes of the API server, without a decision in them."""

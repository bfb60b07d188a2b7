"""The webhook endpoint: what trainers tell, authenticated. What it needs of cluster and loop is injected."""

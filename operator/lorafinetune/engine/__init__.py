"""Pure decisions: an Observation in, a Decision out. No cluster, no bucket, no web, no clock."""

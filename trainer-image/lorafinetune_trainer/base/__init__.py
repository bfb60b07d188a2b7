"""The base model's files."""

"""Latents and prompt embeddings."""

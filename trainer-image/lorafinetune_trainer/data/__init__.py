"""The training images."""

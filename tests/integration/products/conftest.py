"""What comes out of a training is tested with the trainer's own fixtures."""

from __future__ import annotations

from tests.integration.trainer.conftest import name, photos, s3, tiny_model, trainers

__all__ = ["name", "photos", "s3", "tiny_model", "trainers"]

"""What the tests of this folder share beside the cluster itself."""

from tests.crds import crds

__all__ = ["crds"]

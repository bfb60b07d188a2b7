"""What users write: LoRAFineTune and GPUPool as pydantic models, and their rendering into crds/."""

from typing import Final

GROUP: Final = "lorafinetune.io"
VERSION: Final = "v1alpha1"
API_VERSION: Final = f"{GROUP}/{VERSION}"

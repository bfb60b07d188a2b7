"""lorafinetune: fine-tune SDXL LoRAs on interruptible GPUs and never lose work."""

__version__ = "0.1.0"

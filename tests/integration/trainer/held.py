"""Imported first by the process that trainers are forked from: as in theirs, the CPU is held before torch computes."""

from lorafinetune_trainer import instructions

instructions.hold(None)

"""Imported last by the process that trainers are forked from: no child need look through its imports for garbage."""

import gc

gc.collect()
gc.freeze()

"""Imported last by the process that trainers are forked from: what was imported is no child's garbage to look through."""

import gc

gc.collect()
gc.freeze()

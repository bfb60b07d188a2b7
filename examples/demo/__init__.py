"""The demo: one run on a local cluster, preempted twice, to a verified LoRA. `make demo` plays it.

`__main__` reads the command line and answers signals, `play` is the story, `stagehands` sets the scene and clears it,
`watching` follows the run, `account` says what a preemption cost, `pictures` tries the LoRA, `screen` writes.
"""

"""The demo: one run on a local cluster, preempted twice, to a verified LoRA. `make demo` plays it.

`__main__` reads the command line and answers signals; `play` is the story, on a `scene` that `stagehands` set. It goes
through `disturbing` (with `watching`, and `account` for what it cost), `lora` (with `pictures`) and `leaving`.
"""

"""What operator and trainer say to each other: run config, events, manifests, head, storage layout, exit codes."""

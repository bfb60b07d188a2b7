"""The fleet in virtual time: traces of spot availability, made or measured, and what the engine does with them."""

"""Hands on the bucket. The trainer shares :mod:`bucket` and :mod:`head`; the rest is the operator's."""

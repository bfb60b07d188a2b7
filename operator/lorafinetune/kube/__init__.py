"""Hands on the cluster: reads into stores, writes one object at a time, decides nothing."""

"""A Kubernetes on this machine: the real control plane, nodes whose pods run as processes, and a real S3 server.

Known by the demo and the tests only; see README.md in this folder. `Cluster` lives in `localcluster.cluster` and is
not imported here, so that the small programs of this package (keeper, node) start quickly.
"""

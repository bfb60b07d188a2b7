"""What all tests share: a real cluster and fresh namespaces in it, see `localcluster.fixtures`."""

pytest_plugins = ["localcluster.fixtures"]

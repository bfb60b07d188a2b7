"""A node whose pods run as processes: it keeps the kubelet's contract towards the API server. It is not a kubelet."""

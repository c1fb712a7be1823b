"""Workload: what asks the cluster for work. Traces in one canonical schema, arrival processes, token lengths."""

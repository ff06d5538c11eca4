"""Benchmarks: how fast implementations are, each measured beside the others in one run."""

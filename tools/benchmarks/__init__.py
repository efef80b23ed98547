"""Benchmarks of `tools/benchmark.py`, one module per sub-command."""

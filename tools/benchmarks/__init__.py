"""Measurements of `tools/benchmark.py`, one module a sub-command."""

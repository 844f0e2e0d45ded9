"""Benchmarks of Tightrope: one protocol, one record format, one command (``python -m benchmarks --help``)."""

"""Benchmarks: ratios on one machine in one run, each variant checked before it is timed.

``python -m tests.bench`` prints one table and writes one JSON file.
"""

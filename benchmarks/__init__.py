"""Figures for durableq, each printed by a program of its own: `python -m benchmarks.growth`."""

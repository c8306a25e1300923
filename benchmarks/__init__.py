"""Figures for durableq: `python -m benchmarks` against other queues, and programs of their own for growth and durable puts."""

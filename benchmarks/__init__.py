"""Benchmarks: one module each, JSON under `benchmarks/results/`, rendered by `benchmarks.render`."""

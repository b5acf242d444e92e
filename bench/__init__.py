"""Benchmarks, workloads and the recipe of the bundled models."""

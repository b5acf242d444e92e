"""Benchmarks, scenarios and the recipe of the bundled models."""

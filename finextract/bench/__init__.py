"""Benchmarks of the method that anyone can run; see docs/benchmarks.md."""

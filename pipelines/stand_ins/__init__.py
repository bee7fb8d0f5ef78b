"""Fake S3 servers for tests, drills and benchmarks."""

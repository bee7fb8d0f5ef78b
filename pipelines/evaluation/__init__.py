"""Measure a detector on validation shards."""

"""Verify shards, and examine what is in them."""

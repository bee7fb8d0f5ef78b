"""Verify shards, and examine their contents."""

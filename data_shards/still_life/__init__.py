"""Procedural photographs of things on a table, for the demonstration set."""

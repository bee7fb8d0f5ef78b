"""Files that a job of predictions writes, one module a format."""

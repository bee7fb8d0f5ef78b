"""From a shard's bytes to upright pixels and geometry."""

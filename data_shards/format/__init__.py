"""What is written beside the shards: the manifest and each shard's index."""

"""The files beside the shards that every reader must know: the manifest and each shard's index."""

"""Fine-tuning on a folder of annotated images: find the data, build its shards, derive every number, and say why."""

"""COCO data as WebDataset shards: building, ordering, reading, decoding and augmenting them."""

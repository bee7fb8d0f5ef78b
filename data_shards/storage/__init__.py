"""Files of a data set: in a folder, in S3, in the cache of a node."""

"""Pictures in: the data sets that are known, their shards, and batches of views."""

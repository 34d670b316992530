"""A run: blocks, folder, resumption, shards, identity."""

"""A run as it happens: blocks, folder, resumption, shards, identity."""

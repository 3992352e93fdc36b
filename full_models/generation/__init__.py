"""Large sets of samples: planned first, in shards, resumable at any point."""

"""Pictures, label maps and shards on disk."""

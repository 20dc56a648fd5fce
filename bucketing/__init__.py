"""Shape buckets, the write plan, cutting, packing, and the shard format."""

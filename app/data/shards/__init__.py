"""Tar shards: addresses, indexes, captions, manifests, surveys."""

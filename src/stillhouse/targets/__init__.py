"""Teacher targets on disk: what is kept of a distribution, how it is packed, and the cache that holds it."""

"""Adapters that put the cache into inference libraries. Each imports its library itself."""

"""Frozen, validated settings of every job, read from flags and YAML."""

"""Volumes, shards, patch caches and segmentations on disks and in object stores."""

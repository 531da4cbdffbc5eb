"""Augmentation, weight maps, metrics and the phantom: NumPy and SciPy on arrays in memory."""

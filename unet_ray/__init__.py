"""Segmentation of electron-microscopy stacks on a Ray cluster: augment, train, segment, evaluate."""

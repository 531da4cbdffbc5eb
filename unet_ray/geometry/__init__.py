"""Boxes, tile grids and receptive fields in whole numbers; standard library only."""

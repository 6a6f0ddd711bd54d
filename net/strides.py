"""Strides and radius that both the networks and the checks of options need, without torch."""

from misc.maps_io import CAM_STRIDE

OUTPUT_STRIDE = 16
"""Pixels of the picture per pixel of a backbone's deepest maps, and so of the raw class maps."""
GRID_STRIDE = CAM_STRIDE
"""Pixels per cell of the grid of IRNet's maps, on which the maps of CAM files (4) are walked."""
LARGEST_RADIUS = 64
"""Of pixel affinities, in cells: a position on a path still fits one byte."""

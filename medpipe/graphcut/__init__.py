"""Segmentation with a guarantee: minimum s-t cuts on grids and columns, CPU and GPU."""

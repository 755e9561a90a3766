"""Centerlines of tree-shaped structures: trees by construction, in millimetres."""

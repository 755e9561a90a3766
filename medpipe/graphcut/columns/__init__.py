"""Columns of nodes for optimal surfaces, one generator a module."""

from medpipe.graphcut.columns.base import Columns
from medpipe.graphcut.columns.cylindrical import cylindrical_columns
from medpipe.graphcut.columns.field import field_columns, field_of_image
from medpipe.graphcut.columns.flat import flat_columns, flattened_columns
from medpipe.graphcut.columns.inverse import InverseMap, Location
from medpipe.graphcut.columns.mesh import mesh_columns, vertex_normals
from medpipe.graphcut.columns.nearest import NearestMap
from medpipe.graphcut.columns.polar import polar_columns
from medpipe.graphcut.columns.star import icosphere, star_columns

__all__ = [
    "Columns",
    "InverseMap",
    "Location",
    "NearestMap",
    "cylindrical_columns",
    "field_columns",
    "field_of_image",
    "flat_columns",
    "flattened_columns",
    "icosphere",
    "mesh_columns",
    "polar_columns",
    "star_columns",
    "vertex_normals",
]

"""Decomposition: layers as chains of smaller ones, at ranks that are given, estimated, or chosen under a target."""

from prunus.decomposition.base import METHODS, Method, as_method
from prunus.decomposition.cp import CP
from prunus.decomposition.spatial import SpatialSVD
from prunus.decomposition.svd import SVD
from prunus.decomposition.tucker import Tucker

__all__ = ["CP", "METHODS", "SVD", "Method", "SpatialSVD", "Tucker", "as_method"]

"""Decomposition: layers as chains of smaller ones, at ranks that are given, estimated, or chosen under a target."""

from prunus.decomposition.base import METHODS, Method, as_method, register
from prunus.decomposition.cp import CP
from prunus.decomposition.ranks import EVBMF, Energy
from prunus.decomposition.recommend import rank_table
from prunus.decomposition.spatial import SpatialSVD
from prunus.decomposition.svd import SVD
from prunus.decomposition.table import RankTable
from prunus.decomposition.tucker import Tucker

__all__ = [
    "CP",
    "EVBMF",
    "METHODS",
    "SVD",
    "Energy",
    "Method",
    "RankTable",
    "SpatialSVD",
    "Tucker",
    "as_method",
    "rank_table",
    "register",
]

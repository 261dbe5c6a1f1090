"""Criteria: which units matter. One file per method; each sees numbers only."""

from prunus.criteria.base import CRITERIA, Criterion, GroupView, MemberView, as_criterion, register
from prunus.criteria.batch_norm_scale import BatchNormScale
from prunus.criteria.by_index import ByIndex
from prunus.criteria.dead import Dead
from prunus.criteria.flap import FLAP
from prunus.criteria.gathering import gather, needs_of, require_data
from prunus.criteria.geometric_median import GeometricMedian
from prunus.criteria.hrank import HRank
from prunus.criteria.magnitude import L1Norm, L2Norm, Random, check_scores
from prunus.criteria.normalize import NORMALIZERS
from prunus.criteria.nuclear_norm import NuclearNorm
from prunus.criteria.obs import OBS
from prunus.criteria.options import Options
from prunus.criteria.scoring import score_groups
from prunus.criteria.snp import SNP
from prunus.criteria.taylor import Taylor
from prunus.criteria.views import Views

__all__ = [
    "CRITERIA",
    "FLAP",
    "NORMALIZERS",
    "OBS",
    "SNP",
    "BatchNormScale",
    "ByIndex",
    "Criterion",
    "Dead",
    "GeometricMedian",
    "GroupView",
    "HRank",
    "L1Norm",
    "L2Norm",
    "MemberView",
    "NuclearNorm",
    "Options",
    "Random",
    "Taylor",
    "Views",
    "as_criterion",
    "check_scores",
    "gather",
    "needs_of",
    "register",
    "require_data",
    "score_groups",
]

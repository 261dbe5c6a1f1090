"""The steps of a compression, each of which can be looked at and edited, and all of them in one call."""

from prunus.api.pruning import analyze, compress, execute
from prunus.api.replacing import decompose
from prunus.api.replaying import apply
from prunus.api.result import Result
from prunus.decide import plan

__all__ = ["Result", "analyze", "apply", "compress", "decompose", "execute", "plan"]

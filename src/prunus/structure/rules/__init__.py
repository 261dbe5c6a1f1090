"""Rules: what each operator family does to labels. One file per family; importing this package registers them all."""

from prunus.structure.rules import (  # noqa: F401  (imported for registration)
    attention,
    constants,
    contraction,
    convolution,
    elementwise,
    fourier,
    grouped,
    indexing,
    joining,
    movement,
    normalization,
    patches,
    pooling,
    recurrent,
    reduction,
    scattering,
    weights,
)
from prunus.structure.rules.registry import RULES, Rule, rule, rule_of

__all__ = ["RULES", "Rule", "rule", "rule_of"]

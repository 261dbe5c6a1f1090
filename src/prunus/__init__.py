"""prunus: structured pruning of PyTorch networks, verified.

In one call:

    result = prunus.compress(model, example_inputs, target=prunus.Target(macs=0.5))

or in steps that can be looked at and edited:

    structure = prunus.analyze(model, example_inputs)
    plan = prunus.plan(structure, method="l2", target=prunus.Target(macs=0.5))
    result = prunus.apply(model, plan)
"""

from prunus.allocation import Target
from prunus.api import (
    Result,
    analyze,
    apply,
    compress,
    decompose,
    plan,
)  # `plan` is the function from here on, not the module
from prunus.artefact import load, load_weights
from prunus.criteria import (
    BatchNormScale,
    ByIndex,
    Criterion,
    GeometricMedian,
    GroupView,
    L1Norm,
    L2Norm,
    MemberView,
    Options,
    Random,
)
from prunus.criteria import register as register_criterion
from prunus.errors import (
    ArtefactError,
    CaptureError,
    ConfigError,
    InputError,
    PlanError,
    PrunusError,
    SourceError,
    StructureError,
    SurgeryError,
    TargetError,
    VerificationError,
)
from prunus.inputs import Inputs
from prunus.plan import GroupPlan, Plan
from prunus.recovery import recalibrate
from prunus.report import Report
from prunus.structure import Group, LayerTable, Member, Structure
from prunus.surgery import Verification

__version__ = "0.1.0"

__all__ = [
    "ArtefactError",
    "BatchNormScale",
    "ByIndex",
    "CaptureError",
    "ConfigError",
    "Criterion",
    "GeometricMedian",
    "Group",
    "GroupPlan",
    "GroupView",
    "InputError",
    "Inputs",
    "L1Norm",
    "L2Norm",
    "LayerTable",
    "Member",
    "MemberView",
    "Options",
    "Plan",
    "PlanError",
    "PrunusError",
    "Random",
    "Report",
    "Result",
    "SourceError",
    "Structure",
    "StructureError",
    "SurgeryError",
    "Target",
    "TargetError",
    "Verification",
    "VerificationError",
    "analyze",
    "apply",
    "compress",
    "decompose",
    "load",
    "load_weights",
    "plan",
    "recalibrate",
    "register_criterion",
]

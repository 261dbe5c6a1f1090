"""Recovery: accuracy won back without training, from a few hundred inputs without labels."""

from prunus.recovery.checkpoint import Checkpoint, checked_checkpoint
from prunus.recovery.outcome import STEPS, Recovery, Repair, checked_steps
from prunus.recovery.recalibrate import recalibrate
from prunus.recovery.recover import recover, require_whole

__all__ = [
    "STEPS",
    "Checkpoint",
    "Recovery",
    "Repair",
    "checked_checkpoint",
    "checked_steps",
    "recalibrate",
    "recover",
    "require_whole",
]

"""Recovery: accuracy won back without training, from a few hundred inputs without labels."""

from prunus.recovery.checkpoint import Checkpoint
from prunus.recovery.outcome import STEPS, Recovery, Repair, checked_steps
from prunus.recovery.recalibrate import recalibrate
from prunus.recovery.recover import recover

__all__ = ["STEPS", "Checkpoint", "Recovery", "Repair", "checked_steps", "recalibrate", "recover"]

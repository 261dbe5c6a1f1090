"""Recovery: accuracy won back without training, from a few hundred inputs without labels."""

from prunus.recovery.recalibrate import recalibrate
from prunus.recovery.recover import STEPS, Recovery, Repair, checked_steps, recover

__all__ = ["STEPS", "Recovery", "Repair", "checked_steps", "recalibrate", "recover"]

"""Evidence: what calibration data says about channels, collected in one pass, as sums."""

from prunus.evidence.collect import Progress, collect, wanted
from prunus.evidence.forms import as_data
from prunus.evidence.needs import Need
from prunus.evidence.store import Evidence

__all__ = ["Evidence", "Need", "Progress", "as_data", "collect", "wanted"]

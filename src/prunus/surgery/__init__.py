"""Surgery: cut the network as a plan says, and prove that what is left computes what it should."""

from prunus.surgery.biases import with_zero_biases
from prunus.surgery.class_ties import groups_at, with_class_ties
from prunus.surgery.count import count_macs, count_params, count_size_bytes
from prunus.surgery.difference import relative_error
from prunus.surgery.fold import fold_constants
from prunus.surgery.lift import in_mode_of, lift
from prunus.surgery.numbers import axes_written_as_numbers
from prunus.surgery.other_sizes import shapes_that_hold
from prunus.surgery.put_back import put_back
from prunus.surgery.replay import cut, replay
from prunus.surgery.slice import slice_graph
from prunus.surgery.verify import Verification, compare
from prunus.surgery.write_back import Written, write_back

__all__ = [
    "Verification",
    "Written",
    "axes_written_as_numbers",
    "compare",
    "count_macs",
    "count_params",
    "count_size_bytes",
    "cut",
    "fold_constants",
    "groups_at",
    "in_mode_of",
    "lift",
    "put_back",
    "relative_error",
    "replay",
    "shapes_that_hold",
    "slice_graph",
    "with_class_ties",
    "with_zero_biases",
    "write_back",
]

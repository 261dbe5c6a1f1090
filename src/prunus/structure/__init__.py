"""Structure: run the graph on labels, and find which channels live and die together."""

from prunus.structure.composite import with_parts
from prunus.structure.groups import Group, Member
from prunus.structure.layers import LayerRow, LayerTable
from prunus.structure.structure import Structure, find_structure
from prunus.structure.value import Value

__all__ = ["Group", "LayerRow", "LayerTable", "Member", "Structure", "Value", "find_structure", "with_parts"]

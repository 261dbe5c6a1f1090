"""Artefacts: results as files that need no code to load, written whole or not at all, read without trust."""

from prunus.artefact.load import load, open_artefact
from prunus.artefact.save import require_savable, save
from prunus.artefact.weights import load_weights

__all__ = ["load", "load_weights", "open_artefact", "require_savable", "save"]

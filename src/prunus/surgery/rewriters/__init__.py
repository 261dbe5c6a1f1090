"""One rewriter per operator family; importing this package registers all of them."""

from prunus.surgery.rewriters import layers, selection, sizes

__all__ = ["layers", "selection", "sizes"]

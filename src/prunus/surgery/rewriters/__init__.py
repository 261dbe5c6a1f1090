"""One rewriter per operator family; importing this package registers all of them."""

from prunus.surgery.rewriters import layers, recurrent, selection, sizes

__all__ = ["layers", "recurrent", "selection", "sizes"]

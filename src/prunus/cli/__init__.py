"""The command line: ``prunus inspect | compress | plan | apply | demo``."""

from prunus.cli.main import main

__all__ = ["main"]

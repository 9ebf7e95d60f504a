"""The command line: verbs only, each one call of a public function."""

from lambdanets.cli.app import main

__all__ = ["main"]

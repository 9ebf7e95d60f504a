"""The command `lambdanets`.

To add a verb, write a module with its name in this folder, whose function `run` defines the options by its
signature and docstring, and add its line of help to `verbs.VERBS`.
"""

from lambdanets.cli.app import main

__all__ = ["main"]

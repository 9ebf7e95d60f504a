"""The command `lambdanets`.

To add a verb, write a module with its name in this folder, whose function `run` defines the options by its
signature and docstring, and add its line of help to `verbs.VERBS`. If it has a function `help_more`,
that gets the words after the verb, and prints more below the help of the options.
"""

from lambdanets.cli.app import main

__all__ = ["main"]

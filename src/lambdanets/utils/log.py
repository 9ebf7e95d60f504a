"""The logger of the package: messages of runs, printed unless the program handles them itself.

Each message is a record of the logger `lambdanets`, INFO for progress and WARNING for what needs attention. A
handler prints them without a prefix. A program that wants them elsewhere replaces the handler:

    logging.getLogger("lambdanets").handlers = [logging.FileHandler("run.log")]
"""

import logging
import os
import sys
from contextlib import suppress

from lambdanets.utils.text import printable_lines

logger = logging.getLogger("lambdanets")


class PrintHandler(logging.Handler):
    """Prints messages on standard output, warnings on standard error; a closed output is ignored."""

    def emit(self, record: logging.LogRecord) -> None:
        # Looked up for each message: a progress bar replaces the streams while it is shown.
        stream = sys.stderr if record.levelno >= logging.WARNING else sys.stdout
        try:
            print(printable_lines(self.format(record)), file=stream, flush=True)
        except OSError:
            # The pipe or terminal is closed, as after `| head`: what is still in the buffer, and later
            # output, must not fail either.
            with suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


if not logger.handlers:
    logger.addHandler(PrintHandler())
    logger.propagate = False
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.INFO)

"""`python -m lambdanets`, the form that torchrun needs."""

import sys

from lambdanets.cli import main

if __name__ == "__main__":
    sys.exit(main())

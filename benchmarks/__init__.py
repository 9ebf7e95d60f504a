"""The laboratory: rows and figures of the measurements, and the programs that made them.

`python -m benchmarks.paper` measures the paper's tables and its race, `python -m benchmarks.study` the
accuracy of operators on one trunk; both run at the root of the repository. The other folders hold scripts.
None of this is part of the installed package.
"""

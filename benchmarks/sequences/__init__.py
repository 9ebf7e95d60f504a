"""Experiments on sequences: speed against the length, associative recall, spoken digits, language."""

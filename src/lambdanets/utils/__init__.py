"""Helpers of all rooms. Importing one needs the standard library alone."""

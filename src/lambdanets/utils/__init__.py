"""Helpers for all other packages. Importing them needs the standard library alone; calls may need more."""

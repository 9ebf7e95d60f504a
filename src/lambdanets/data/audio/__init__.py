"""Labelled recordings: reading, features, augmentation and batches of different lengths."""

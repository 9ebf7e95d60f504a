"""Annotated images in COCO's format, for detectors."""

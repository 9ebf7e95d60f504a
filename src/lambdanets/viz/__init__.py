"""Drawings: training curves and confusion matrices (`figures`), and contact sheets of images (`pages`).

Nothing here imports training code: functions take plain values and tensors and write PNG files.
"""

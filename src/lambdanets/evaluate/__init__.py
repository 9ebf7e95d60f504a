"""Evaluation of trained networks.

An `EvalTarget` (`target`) is a network with the images it is measured on, made from a run folder or from a
published model. `measurement` runs a target over a data set, or over one of ImageNet's `test_sets`, and gives
an `Evaluation`, which `results` writes as tables and JSON. `prediction` classifies single images, and
`pseudo_labels` labels whole folders for the training of another network.

Names are imported from these modules: listing the test sets, for example, does not import Lightning.
"""

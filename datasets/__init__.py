"""Data sets of the project: images to train networks on."""

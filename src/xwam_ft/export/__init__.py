"""A run -> a bundle that has proved itself.

export.py   load, check, merge, prove, write
proof.py    what merging and rounding change, against what the adapter changes
"""

"""A policy and shards -> numbers in physical units, pictures, point clouds, reports.

open_loop.py   predicted against recorded commands, by slot and horizon, beside two baselines
baselines.py   those two: the training split's mean action, and holding still
errors.py      millimetres, degrees and native units from two commands
imagine.py     the future a policy imagines beside the one that was recorded
pictures.py    labelled rows of video, contact sheets
pointcloud.py  depth pictures -> coloured points in the base frame -> .ply
report.py      one HTML page that plays from disk
"""

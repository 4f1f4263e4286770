"""A policy and shards, or an environment -> numbers in physical units, pictures, point clouds, reports.

evaluate.py    `xwam-ft evaluate` on recordings
open_loop.py   predicted against recorded commands, by slot and horizon, beside two baselines
baselines.py   those two: the training split's mean action, and holding still
errors.py      millimetres, degrees and native units from two commands
train_split.py  the same errors on clips it was trained on
blackout.py    the same errors with each camera's pictures black
seams.py       how hard commands jerk where one chunk follows another
latency.py     error and time of a request for 1 to 10 action steps
familiar.py    how unlike the training pictures those of the clips are
report.py      the open-loop result as a table, a plot and one HTML page
imagine.py     the future a policy imagines beside the one that was recorded
fidelity.py    PSNR, SSIM and depth errors of imagined pictures; lpips.py where its weights are given
pictures.py    labelled rows of video, contact sheets
scene.py       all views of a frame -> one cloud in the base frame; a preview
pointcloud.py  depth pictures -> coloured points in the base frame -> .ply; Chamfer distance

world.py          `--world`: the imagined future by horizon, and what follows
actions_check.py  does it follow the actions it is imagined under
geometry.py       is its depth the recorded scene, and do cameras agree about it
calibration.py    does the spread of samples tell their error
world_report.py   those as tables, sentences and a sheet of pictures
compare.py        `--compare A B`: two evaluations beside each other
intervals.py      bootstrap intervals over episodes

closed_loop.py         episodes in an environment -> a success rate with its interval
environment.py         what a policy can act in; an adapter for Gymnasium; environments.py what `--env` names
late.py                answers that take time, and what the robot does meanwhile
perturb.py             what may be made harder there
metaworld.py           Meta-World's tasks with our cameras, for the recorder and as an environment
closed_loop_report.py  `evaluate --env`: figures, films, one HTML page
"""

from xwam_ft.verb import callable_room

callable_room(__name__)

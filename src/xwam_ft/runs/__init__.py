"""A run's folder: what lies in it, what is read back from it, what it may still become.

folder.py      the run folder, and whether a checkpoint still belongs to its surroundings
checkpoint.py  what trained, and all that a bit-exact continuation needs, as safetensors
best.py        which checkpoint was best by a held-out number
history.py     the numbers and looks of a run; report.py the page that shows them
longer.py      a run of another length than it began with; schedule.py how its rates go
moved.py       a run whose shards were moved
origin.py      what another run may start from: a checkpoint, or a bundle
runs.py        `xwam-ft runs`: the runs of a folder, and by what two of them differ
"""

from xwam_ft.verb import callable_room

callable_room(__name__)

"""What a run will hold, fill and take, before any weight is loaded. Training prints it before it begins.

plan.py         shapes, parts of memory and disk, warnings; plan_report.py `xwam-ft plan`, and the tables for people
memory.py       activations, counted; what to say when memory runs out
alike.py        blocks that are alike keep alike
host_memory.py  a machine's own memory, counted
probe.py        how long a step takes, measured
acting.py       what an action call takes without the future
enough.py       how many clips a task needs
"""

from xwam_ft.verb import callable_room

callable_room(__name__)

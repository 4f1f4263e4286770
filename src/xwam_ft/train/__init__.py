"""Shards and a recipe -> a run folder. Validation is `evaluate` on a `Policy` around the live network.

train.py       `xwam-ft train`, on one page: module, data module, callbacks and loggers, given to Lightning's Trainer
warm_start.py  a run that starts from another: origin.py what from, carry.py its weights
plan.py        what a run will hold, fill and take; plan_report.py for people; acting.py what an action call takes
memory.py      activations, counted; what to say when memory runs out
probe.py       how long a step takes, measured
smoke.py       does a recipe train at all?
data.py        the Lightning data module
draws.py       a sample's noise, text dropout, prefix, hidden future: functions of (seed, position)
counts.py      what the masked losses divide by: valid numbers of a whole optimizer step
module.py      the Lightning module: one training step, one validation step; held_out.py sums up the latter
folder.py      the run folder, and whether a checkpoint still belongs to its surroundings
sharding.py    FSDP2: a network cut over processes, and whole again for checkpoints and validation
longer.py      a run of another length than it began with; moved.py one whose shards were moved
optimizer.py   AdamW's groups, the averaged weights; schedule.py how the rates go
best.py        which checkpoint was best by a held-out number; runs.py the runs of a folder
checkpoint.py  what trained, and all that a bit-exact continuation needs, as safetensors
exact.py       the callback that writes it and goes on from it
callbacks.py   averaged weights, guards, signals, the clock, the bar; own_code.py the user's own, by import path
loggers.py     Lightning's loggers, and metrics.jsonl
look.py        the callback that looks at a run: validation.py what by; history.py where it lies; report.py the page
"""

from xwam_ft.verb import callable_room

callable_room(__name__)

"""Shards and a recipe -> a run folder. Validation is `evaluate` on a `Policy` around the live network.

train.py          `xwam-ft train`, on one page: module, data module, callbacks and loggers, given to Lightning's Trainer
smoke.py          does a recipe train at all?
together.py       a run's processes end together
exact.py          the callback that writes checkpoints and goes on from them
callbacks.py      averaged weights, signals, the clock, the bar; own_code.py the user's own, by import path
look.py           the callback that looks at a run: validation.py what by; budget.py how often
loggers.py        Lightning's loggers, and metrics.jsonl
shared_memory.py  whether batches fit in what workers hand them over through
"""

from xwam_ft.verb import callable_room

callable_room(__name__)

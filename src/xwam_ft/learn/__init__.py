"""Clips and a recipe -> a network that learns, a step at a time: two Lightning modules, for any Trainer.

module.py      the Lightning module: one training step, one validation step; held_out.py sums up the latter
data.py        the Lightning data module
start.py       the network that a run begins with
warm_start.py  one that starts from another run: carry.py its weights
apart.py       what is wrong between sets, and with what they hold out
draws.py       a sample's noise, text dropout, prefix, hidden future: functions of (seed, position)
counts.py      what the masked losses divide by: valid numbers of a whole optimizer step
optimizer.py   AdamW's groups, the averaged weights
guards.py      what stops a run that has gone wrong; first_loss.py, at its first step
"""

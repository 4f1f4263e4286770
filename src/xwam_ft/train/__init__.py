"""Shards and a recipe -> a run folder. Validation is `evaluate` on a `Policy` around the live network.

run.py         `train`, `resume` and `encode_shards`: what the command line calls
plan.py        what a run will hold, fill and take; plan_report.py for people, with `--probe` and `--fit`
memory.py      activations, counted; what to say when memory runs out
probe.py       how long a step takes, measured
encode.py      shards -> the latent cache
clips.py       which clip comes when, and which random numbers belong to it
data_sets.py   the shard sets of a run: held against each other, seen as one, weighted
augment.py     random crops and colour of training clips: functions of (clip, copy)
clip_tensors.py  a clip as numbers: pictures as the VAE sees them, motion, masks
cache.py       the latent cache: its place, its index, reading one clip
pixels.py      training without one
clip_source.py what training asks of either; several as one
data.py        clips -> batches, in the order of clips.py
draws.py       a sample's noise level, noise and text dropout: functions of (seed, position)
counts.py      what the masked losses divide by: valid numbers of a whole optimizer step
module.py      one training step
folder.py      the run folder, and whether a checkpoint still belongs to its surroundings
session.py     network, optimizer, checkpoint and callbacks put together and run to the last step
sharding.py    FSDP2: a network cut over processes, and whole again for checkpoints and validation
optimizer.py   AdamW's groups, the learning-rate curve, the averaged weights
checkpoint.py  what trained, and all that a bit-exact continuation needs, as safetensors
callbacks.py   metrics, checkpoints, validation, signals: hung on the training loop
validation.py  held-out losses, errors and imagined video, by a policy around the live network
observer.py    when these are made; history.py where they lie; report.py the page; sinks.py TensorBoard, CSV, W&B
"""

"""Shards and a recipe -> clips that a network can eat.

inherit.py       the quantiles of a run that starts from another
inputs.py        what a recipe reads, opened and checked: the one preflight
data_sets.py     the shard sets of a run: compared, seen as one, weighted
clips.py         which clip comes when, and which random numbers belong to it
augment.py       random crops and colour of training clips: functions of (clip, copy)
clip_tensors.py  a clip as numbers: pictures as the VAE sees them, motion, masks
encode.py        `xwam-ft encode`: shards -> the latent cache
segments.py      its files, one a segment; in worker processes
ray_segments.py  the same on a Ray cluster
cache.py         the latent cache: its place, its index, reading one clip
pixels.py        training without one
still.py         clips in which nothing moves
clip_source.py   what training asks of either; several as one
batch.py         clips in batches; dataset.py clips at some positions -> a batch
"""

from xwam_ft.verb import callable_room

callable_room(__name__)

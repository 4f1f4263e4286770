"""A run -> a bundle that has proved itself.

checkpoint.py      a checkpoint as it would be exported, and the policy that would be; needs.py what that takes
export.py          check, write, read back, prove
weights.py         the network's tensors one by one: base, adapters merged or beside it, what else trained
proof.py           what merging and rounding change, against what the adapter changes
served.py          the server's answers against those in process
card.py            README.md and picture of a bundle: data, recipe, held-out errors
formats.py         the adapter alone, for peft and for diffusers
reference_file.py  the network under the reference implementation's names; torch_file.py its form
"""

from xwam_ft.verb import callable_room

callable_room(__name__)

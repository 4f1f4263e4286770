"""Instructions -> text embeddings on the CPU, each proved to be finite and unlike the others.

Legend: N instructions, S text positions, Dt width of the text encoder.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from xwam_ft.errors import UserError
from xwam_ft.prompts import clean_prompt

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from xwam_ft.model.backbone import Backbone
    from xwam_ft.progress import Advance


def embed_prompts(
    backbone: Backbone,
    prompts: Sequence[str],
    dtype: torch.dtype,
    advance: Advance = lambda done: None,
) -> Float[Tensor, "n s dt"]:
    """What `each_embedded` makes, in one tensor."""
    return torch.stack(list(each_embedded(backbone, prompts, dtype, advance)))


def each_embedded(
    backbone: Backbone,
    prompts: Sequence[str],
    dtype: torch.dtype,
    advance: Advance = lambda done: None,
) -> Iterator[Float[Tensor, "s dt"]]:
    """Embeddings of instructions, made one at a time, so that none depends on its company and nothing holds two.

    Args:
        prompts: as they were written; cleaned here.
        dtype: to keep them in.
        advance: told of each that is done.

    Raises:
        UserError: one that is not finite; two different instructions with the same embedding: nothing could tell their
            tasks apart.
    """
    assert prompts, "no instruction, not even the empty one"
    seen: dict[bytes, str] = {}
    for prompt in prompts:
        embedding = backbone.encode_prompts([prompt])[0].to("cpu", dtype)
        _require_finite(embedding, prompt, backbone)
        digest = hashlib.sha256(embedding.contiguous().view(torch.uint8).numpy().tobytes()).digest()
        other = seen.setdefault(digest, prompt)
        if clean_prompt(other) != clean_prompt(prompt):
            raise _alike(other, prompt, backbone)
        yield embedding
        advance(1)


def _require_finite(embedding: Tensor, prompt: str, backbone: Backbone) -> None:
    if not bool(torch.isfinite(embedding).all()):
        raise UserError(
            f"the text encoder's output for {prompt!r} is not finite",
            f"backbone {backbone.name}",
            "restore its folder text_encoder, and install the versions that were tried (pip install -U xwam-ft)",
        )


def _alike(one: str, other: str, backbone: Backbone) -> UserError:
    first, second = (backbone.token_ids([text]).input_ids for text in (one, other))
    if torch.equal(first, second):
        what = f"its tokenizer makes the same {backbone.text_len} tokens of {one!r} and {other!r}"
        fix = "word them apart in their first words, and in characters that the tokenizer knows"
    else:
        what = f"its text encoder makes the same of {one!r} and {other!r}"
        fix = "restore its folder text_encoder, and install the versions that were tried (pip install -U xwam-ft)"
    return UserError(f"{what}: nothing could tell those tasks apart", f"backbone {backbone.name}", fix)

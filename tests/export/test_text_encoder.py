"""A bundle with its own text encoder takes any text; one without names the nearest prompts. And its size is said."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn

from xwam_ft.errors import UserError
from xwam_ft.export.export import export_run
from xwam_ft.export.proof import require_text
from xwam_ft.model.backbone import load_backbone
from xwam_ft.policy import text_encoder
from xwam_ft.policy.bundle import load_policy, verify_bundle
from xwam_ft.policy.policy import clip_observation
from xwam_ft.shards import ShardSet

QUIET = Console(quiet=True)


@pytest.mark.parametrize("kind", text_encoder.KINDS)
def test_it_reads_back_as_the_backbone_s(tmp_path: Path, kind: text_encoder.Kind) -> None:
    text_encoder.write(tmp_path, "tiny", None, kind, lambda size: None)
    whole = load_backbone("tiny", dtype="float32", parts=("text",))
    texts = ["pick up the cube", "wave", ""]
    known = dict(zip(texts, whole.encode_prompts(texts), strict=True))
    encoder = text_encoder.load(tmp_path, whole.text_len, "cpu")
    assert encoder("wave").shape == known["wave"].shape
    assert 0 < text_encoder.difference(encoder, known) < (0.02 if kind == "bfloat16" else 0.1)
    sizes = [(tmp_path / "text_encoder" / "model.safetensors").stat().st_size]
    assert sizes[0] >= sum(piece.bytes for piece in text_encoder.pieces("tiny", None, kind))


def test_a_linear_in_eight_bits_is_off_by_half_a_level_at_most() -> None:
    weight = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    stored = text_encoder.Stored((5, 7), torch.float32, weight.clone)
    packed = text_encoder.Int8Linear(5, 7)
    packed.weight, packed.weight_scale = (text_encoder._packed(stored, part)() for part in (0, 1))
    exact = nn.functional.linear(torch.eye(7), weight).T
    level = weight.abs().amax(dim=1, keepdim=True) / 127
    assert bool(((packed(torch.eye(7)).T - exact).abs() <= level / 2 + 1e-6).all())


def test_an_encoder_that_says_something_else_is_refused() -> None:
    require_text(0.14, "int8", Path("out"))
    with pytest.raises(UserError, match=r"changes an embedding by 20% \(15% is the limit\).*encoder bfloat16"):
        require_text(0.2, "int8", Path("out"))
    with pytest.raises(UserError, match="changes an embedding by nan"):
        require_text(float("nan"), "bfloat16", Path("out"))


@pytest.mark.slow
def test_a_bundle_with_it_takes_any_text(trained_run: Path, bundle: Path, shard_set: ShardSet, tmp_path: Path) -> None:
    said = io.StringIO()
    out = tmp_path / "with"
    export_run(trained_run, out, with_text_encoder="int8", console=Console(file=said, width=200))
    first = said.getvalue().splitlines()[1]
    assert "MB; memory, one after the other: " in first
    assert "GB are free" in first
    assert "text encoder: its licence is that of tiny" in said.getvalue()
    policy, without = load_policy(out, "cpu"), load_policy(bundle, "cpu")
    clip = shard_set.read_clip(shard_set.clips("held_out", 1)[0])
    inputs = clip_observation(policy.contract, clip)
    np.testing.assert_array_equal(policy.infer_batch([inputs], [0]), without.infer_batch([inputs], [0]))
    wave, again, other = (
        policy.infer_batch([_told(inputs, text)], [0]) for text in ("Wave at me.", " wave AT me", "push it away")
    )
    np.testing.assert_array_equal(wave, again)
    assert np.abs(wave - other).max() > 1e-5
    assert set(policy.further) == {"wave at me", "push it away"}
    with pytest.raises(UserError, match="--with-text-encoder for any text"):
        without.infer_batch([_told(inputs, "wave at me")], [0])
    # Every file of it is held against the manifest, and nothing may be added.
    (out / "tokenizer" / "extra.json").write_text("{}")
    with pytest.raises(UserError, match=r"holds files that were not exported: tokenizer/extra.json"):
        verify_bundle(out)
    (out / "tokenizer" / "extra.json").unlink()
    place = out / "text_encoder" / "config.json"
    place.write_text(place.read_text() + " ")
    with pytest.raises(UserError, match="is not the file that was exported"):
        verify_bundle(out)


def test_it_belongs_to_a_bundle(trained_run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="changes nothing with --format peft"):
        export_run(trained_run, tmp_path / "o", format="peft", with_text_encoder="int8", console=QUIET)
    with pytest.raises(UserError, match=r"--with-text-encoder: is 'int4'. Fix: use one of: bfloat16, int8"):
        export_run(trained_run, tmp_path / "o", with_text_encoder="int4", console=QUIET)


def _told(inputs: object, prompt: str) -> object:
    from dataclasses import replace

    return replace(inputs, prompt=prompt)  # pyright: ignore[reportArgumentType, reportCallIssue]

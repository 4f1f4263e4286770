"""What tests of several rooms say alike: a console nobody reads, what a folder or its tars hold, a tiny depth model."""

from __future__ import annotations

import tarfile
from pathlib import Path

from rich.console import Console

QUIET = Console(quiet=True)


def files_in(folder: Path) -> dict[str, bytes]:
    """Every file under a folder: two that hold the same compare equal."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def members_in(folder: Path) -> dict[str, bytes]:
    """Every file in the tars of a shard set, by its name in them."""
    found: dict[str, bytes] = {}
    for shard in sorted(folder.glob("*.tar")):
        with tarfile.open(shard) as tar:
            for member in tar.getmembers():
                stream = tar.extractfile(member)
                assert stream is not None
                found[member.name] = stream.read()
    return found


def save_tiny_dpt(folder: Path) -> Path:
    """A DPT of a few thousand weights with its image processor, saved as any other model's folder.

    What it estimates means nothing; that it is the same does.
    """
    import torch
    from transformers import DPTConfig, DPTForDepthEstimation, DPTImageProcessor

    torch.manual_seed(0)
    config = DPTConfig(
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=32,
        patch_size=16,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=8,
        reassemble_factors=[4, 2, 1, 0.5],
        is_hybrid=False,
        use_auxiliary_head=False,
    )
    DPTForDepthEstimation(config).save_pretrained(folder)
    DPTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder

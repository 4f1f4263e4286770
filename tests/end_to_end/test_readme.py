"""The README as a newcomer types it: its `sh` blocks run as they stand, its Python parses, its options exist.

`recordings` is a set as an SO-101 lab has it: LeRobot v3.0, two cameras, joints in degrees, no depth. What would take
hours or a GPU's weights is cut short by options that are appended, never by changing what stands there.
"""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from xwam_ft.cli import app

sys.path.insert(0, str(Path(__file__).parents[1]))
from so101 import write_so101

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SHORT = {
    "trainer.max_steps": 2, "trainer.batch_size": 2, "optim.warmup_steps": 0, "optim.lr_lora": 0.01,
    "validation.every_steps": 0, "validation.clips": 2, "validation.imagine_clips": 0, "validation.action_steps": 2,
    "validation.video_steps": 2, "data.clip_stride": 40,
}  # fmt: skip
APPENDED = {
    "plan": "--set backbone.path=configs --set trainer.accelerator=cpu",  # configs alone: plan loads no weights
    "train": " ".join(f"--set {key}={value}" for key, value in SHORT.items()),
    "evaluate": "--clips 2 --no-latency",
}


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def lines(page: Path) -> list[list[str]]:
    """Words of every `xwam-ft` line in a page's blocks, of whatever kind."""
    text = "\n".join(re.findall(r"^```[a-z]*\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL))
    text = re.sub(r"\n {2,}(?=\[)", " ", text)  # a synopsis goes on on the next line
    return [line.split("#")[0].split() for line in text.splitlines() if line.startswith("xwam-ft ")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_verb_and_option_that_a_block_shows_exists(page: Path) -> None:
    verbs = get_command(app).commands  # pyright: ignore[reportAttributeAccessIssue]
    for _, verb, *words in lines(page):
        if verb.startswith("--"):
            continue
        command = verbs[verb]
        if hasattr(command, "commands") and words:  # `xwam-ft shards merge`; a table may list several: `merge|split`
            verb, *words = words
            parts = [command.commands[name] for name in verb.replace("\\|", "|").split("|")]
            command = parts[0]
            assert len(parts) == 1 or not any(word.startswith("--") for word in words)
        options = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
        for option in re.findall(r"--[a-z][a-z-]+", " ".join(words)):
            assert option in {*options, "--help"}, f"{page.name}: xwam-ft {verb} has no {option}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_parse(page: Path) -> None:
    for block in blocks(page, "python"):
        ast.parse(block)


def configs(folder: Path) -> None:
    """A folder of Wan2.2-TI2V-5B's own configs, and no weights."""
    import json

    parts = {
        "transformer/config.json": {
            "_class_name": "WanTransformer3DModel", "num_attention_heads": 24, "attention_head_dim": 128,
            "num_layers": 30, "ffn_dim": 14336, "in_channels": 48, "out_channels": 48, "patch_size": [1, 2, 2],
            "text_dim": 4096, "freq_dim": 256, "cross_attn_norm": True, "qk_norm": "rms_norm_across_heads",
        },
        "vae/config.json": {
            "_class_name": "AutoencoderKLWan", "base_dim": 160, "decoder_base_dim": 256, "z_dim": 48,
            "dim_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_scales": [], "is_residual": True, "in_channels": 12,
            "temperal_downsample": [False, True, True], "out_channels": 12, "patch_size": 2,
            "scale_factor_temporal": 4, "scale_factor_spatial": 16, "latents_mean": [0.0] * 48,
            "latents_std": [1.0] * 48,
        },
        "text_encoder/config.json": {
            "model_type": "umt5", "vocab_size": 256384, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24,
            "num_heads": 64, "feed_forward_proj": "gated-gelu",
        },
        "tokenizer/tokenizer_config.json": {"model_max_length": 512},
    }  # fmt: skip
    for name, tree in parts.items():
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text(json.dumps(tree))


@pytest.mark.slow
def test_the_blocks_of_the_readme_run_as_they_stand(tmp_path: Path) -> None:
    write_so101(tmp_path / "recordings", frames=100, size=(64, 96))
    configs(tmp_path / "configs")
    ran: list[str] = []
    for line in "".join(blocks(ROOT / "README.md", "sh")).splitlines():
        words = shlex.split(line, comments=True)
        assert words[0] == "xwam-ft", "sh blocks of the README are for our own verbs"
        words += APPENDED.get(words[1], "").split()
        done = subprocess.run(
            [sys.executable, "-m", "xwam_ft.cli", *words[1:]], cwd=tmp_path, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, f"{line}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        assert "Traceback" not in done.stderr
        ran.append(words[1])
    assert ran == ["inspect", "prepare", "plan", "prepare", "train", "export", "evaluate", "imagine"]
    made = ("my_robot.yaml", "shards/report.html", "runs/first/report.html", "bundle/manifest.json")
    for name in (*made, "evaluation/report.html", "imagined/contact_sheet.png"):
        assert (tmp_path / name).is_file(), name

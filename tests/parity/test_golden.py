"""The network and sampler agree with golden tensors of the reference implementation, and the check can fail."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from diffusers import WanTransformer3DModel
from safetensors import safe_open
from safetensors.torch import save_file
from typer.testing import CliRunner

from xwam_ft.errors import UserError
from xwam_ft.model.network import JointNetwork, NetworkConfig
from xwam_ft.model.parity import FORWARD_BOUND, SAMPLE_BOUND, check_parity
from xwam_ft.model.reference import to_reference
from xwam_ft.model.sampler import Conditions, sample
from xwam_ft.model.streams import Streams

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "xwam_tiny.safetensors"


def run_script(*arguments: str) -> tuple[int, str]:
    """data_tools/check_parity.py as the command line runs it, without a new process."""
    import typer

    spec = importlib.util.spec_from_file_location("check_parity", ROOT / "data_tools" / "check_parity.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    app = typer.Typer()
    app.command()(script.main)
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, result.output


def read(path: Path) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    with safe_open(path, framework="pt") as stored:
        return stored.metadata(), {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118


def test_forward_guided_and_sampled_outputs_agree_with_the_reference() -> None:
    report = check_parity(GOLDEN)
    assert len(report.rows) == 20
    assert report.absent == []
    for row in report.rows:
        assert row.bound == (SAMPLE_BOUND if "sample" in row.name else FORWARD_BOUND)
        assert row.error <= row.bound, row
        if "timesteps" in row.name:
            assert row.error == 0.0, row


@pytest.mark.parametrize(
    "name", ["weight.blocks.2.ffn.0.weight", "weight.view_embedding.weight", "weight.extra_heads.0.modulation"]
)
def test_a_perturbed_weight_is_caught_with_exit_code_1(tmp_path: Path, name: str) -> None:
    metadata, tensors = read(GOLDEN)
    tensors = {key: value for key, value in tensors.items() if "sample" not in key}
    tensors[name] = tensors[name].clone()
    tensors[name].view(-1)[0] += 0.05
    save_file(tensors, tmp_path / "mutated.safetensors", metadata)
    code, output = run_script(str(tmp_path / "mutated.safetensors"))
    assert code == 1
    assert "FAILED" in output
    assert "output.sample{Nv}_{Na}.*" in output  # what the file lacks is said


def synthesise(path: Path, *, depth_blocks: int) -> None:
    """A golden file of other sizes, made by our own network: two views, other patch, dims and steps."""
    torch.manual_seed(3)
    config = {
        "model_type": "ti2v", "num_modalities": 2 if depth_blocks else 1, "num_views": 2, "patch_size": [1, 1, 2],
        "text_len": 5, "in_dim": 6, "dim": 32, "ffn_dim": 40, "freq_dim": 16, "text_dim": 12, "action_dim": 7,
        "action_num": 2, "proprio_dim": 9, "out_dim": 6, "num_heads": 2, "num_layers": 3,
        "num_extra_layers": depth_blocks,
    }  # fmt: skip
    transformer = WanTransformer3DModel(
        patch_size=(1, 1, 2), num_attention_heads=2, attention_head_dim=16, in_channels=6, out_channels=6,
        text_dim=12, freq_dim=16, ffn_dim=40, num_layers=3,
    )  # fmt: skip
    network = JointNetwork(transformer, NetworkConfig(2, 7, 9, 2, depth_blocks)).eval()
    latents, actions, proprios = torch.randn(1, 6, 2, 2, 3, 4), torch.randn(1, 8, 7), torch.randn(1, 5, 9)
    text, times = torch.randn(1, 5, 12), (torch.tensor([0.7]), torch.tensor([0.3]))
    noise = Streams.normal((latents.shape, actions.shape, proprios.shape), torch.Generator().manual_seed(0))
    with torch.no_grad():
        out = network(latents, actions, proprios, text, 1000 * times[0], 1000 * times[1])
    run = sample(
        network, Conditions(latents[:, :, 0], proprios[:, 0]), text, noise=noise, video_steps=4, action_steps=3
    )
    tensors = {f"weight.{name}": value.clone() for name, value in to_reference(network.state_dict()).items()}
    tensors |= {"input.latents": latents, "input.actions": actions, "input.proprios": proprios, "input.text": text}
    tensors |= {"input.t_video": times[0], "input.t_action": times[1]}
    tensors |= {"output.forward.video_velocity": out.video, "output.forward.action_velocity": out.action}
    tensors |= {f"output.sample.noise_{name}": getattr(noise, name) for name in Streams.__annotations__}
    tensors |= {"output.sample4_3.action": run.action, "output.sample4_3.video": run.video}
    if run.depth is not None:
        tensors["output.sample4_3.depth_latents"] = run.depth
    save_file({name: value.contiguous() for name, value in tensors.items()}, path, {"config": json.dumps(config)})


@pytest.mark.parametrize("depth_blocks", [1, 0])
def test_files_of_other_sizes_and_without_a_branch_are_read(tmp_path: Path, depth_blocks: int) -> None:
    path = tmp_path / "other.safetensors"
    synthesise(path, depth_blocks=depth_blocks)
    code, output = run_script(str(path))
    assert code == 0, output
    assert output.count(" ok\n") == (5 if depth_blocks else 4)
    assert "output.guided.*" in output
    assert ("output.forward.depth_latents" in output) == bool(depth_blocks)


def without_config(metadata: dict[str, str], tensors: dict[str, torch.Tensor]) -> None:
    metadata.pop("config")


def without_outputs(metadata: dict[str, str], tensors: dict[str, torch.Tensor]) -> None:
    for name in [name for name in tensors if name.startswith("output")]:
        tensors.pop(name)


def without_a_weight(metadata: dict[str, str], tensors: dict[str, torch.Tensor]) -> None:
    tensors.pop("weight.head.modulation")


def without_an_input(metadata: dict[str, str], tensors: dict[str, torch.Tensor]) -> None:
    tensors.pop("input.text")


def with_other_dims(metadata: dict[str, str], tensors: dict[str, torch.Tensor]) -> None:
    tensors["input.proprios"] = tensors["input.proprios"][..., :5].contiguous()


def with_an_unknown_output(metadata: dict[str, str], tensors: dict[str, torch.Tensor]) -> None:
    tensors["output.sampled.video"] = torch.zeros(1)


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (without_config, "no metadata `config` in JSON"),
        (without_outputs, "it holds no outputs"),
        (without_a_weight, "1 tensors missing: head.modulation"),
        (without_an_input, "no tensor input.text"),
        (with_other_dims, "its inputs do not fit its network"),
        (with_an_unknown_output, "unknown outputs output.sampled"),
    ],
)
def test_a_bad_file_is_one_sentence_and_exit_code_2(tmp_path: Path, spoil, sentence: str) -> None:
    metadata, tensors = read(GOLDEN)
    spoil(metadata, tensors)
    save_file(tensors, tmp_path / "bad.safetensors", metadata or None)
    code, output = run_script(str(tmp_path / "bad.safetensors"))
    assert code == 2
    assert sentence in output.replace("\n", " ")
    assert "Traceback" not in output


def test_a_missing_and_a_broken_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        check_parity(tmp_path / "none.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"not safetensors at all")
    with pytest.raises(UserError, match="not a readable safetensors file"):
        check_parity(tmp_path / "broken.safetensors")

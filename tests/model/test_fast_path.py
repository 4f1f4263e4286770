"""Every acceleration against the slow way it replaces (benchmarks/slow_ways.py): the same to 1e-5 in float32."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from toy import make_batch, make_network, outputs, relative

from xwam_ft.errors import UserError
from xwam_ft.model.attention import SDPA_BACKENDS, choose_attention
from xwam_ft.model.network import TextContext
from xwam_ft.model.sampler import Conditions, Sample, sample
from xwam_ft.model.solver import Solver, flow_grid
from xwam_ft.model.streams import Streams

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import slow_ways

STREAMS = ("video", "action", "proprio", "depth")


def rollout(network, batch, **options) -> Sample:
    shapes = batch.latents.shape, batch.action.shape, batch.proprio.shape
    defaults = {"video_steps": 6, "action_steps": 4, "noise": Streams.normal(shapes, torch.Generator().manual_seed(0))}
    return sample(network, Conditions(batch.latents[:, :, 0], batch.proprio[:, 0]), batch.text, **(defaults | options))


def assert_equal(ours: Sample, wanted: Sample, bound: float = 1e-5) -> None:
    for name in STREAMS:
        assert relative(getattr(ours, name), getattr(wanted, name)) < bound, name


@pytest.mark.parametrize("slow", [slow_ways.per_token_modulation, slow_ways.complex_rotary])
def test_a_forward_is_that_of_the_slow_way(network, batch, slow) -> None:
    """Modulation of three timesteps over token ranges; rotation in real arithmetic."""
    way: AbstractContextManager[None] = slow()
    with torch.no_grad():
        ours = outputs(batch.run(network))
        with way:
            wanted = outputs(batch.run(network))
    for name in STREAMS:
        assert relative(ours[name], wanted[name]) < 1e-5
    assert any(not torch.equal(ours[name], wanted[name]) for name in STREAMS), "the slow way was not taken"


def test_a_rollout_projects_its_text_once(network, batch, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    project = network._project_text
    monkeypatch.setattr(network, "_project_text", lambda text: calls.append(1) or project(text))
    ours = rollout(network, batch)
    assert len(calls) == 1
    wanted = rollout(network, batch, forward=slow_ways.text_every_step(network, batch.text))
    assert len(calls) == 2 + 6
    assert_equal(ours, wanted)


def test_depth_of_the_last_step_is_that_of_a_branch_run_at_every_step(network, batch) -> None:
    wanted = rollout(network, batch, forward=slow_ways.depth_every_step(network))
    assert_equal(rollout(network, batch), wanted, 1e-6)


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 10, 50])
def test_the_solver_s_weights_are_those_of_diffusers_scheduler(steps: int) -> None:
    """On a curved flow, with a condition written back after every step as the sampler does."""
    ours, library = Solver(steps), slow_ways.LibrarySolver(steps)
    assert ours.timesteps.tolist() == library.timesteps.tolist() == [int(1000 * s) for s in flow_grid(steps)]
    torch.testing.assert_close(ours.sigmas.float(), library.sigmas.float(), rtol=1e-6, atol=0)
    x = y = torch.randn(4, 64, generator=torch.Generator().manual_seed(steps))

    def velocity(z: torch.Tensor, k: int) -> torch.Tensor:
        return 1.7 * torch.tanh(1.3 * z + k) - 0.2 * z

    for k in range(steps):
        x, y = ours.step(velocity(x, k), k, x), library.step(velocity(y, k), k, y)
        x[0] = y[0] = 1.0
        assert relative(x, y) < 1e-6


def test_a_rollout_is_that_of_diffusers_scheduler(network, batch) -> None:
    ours = rollout(network, batch)
    with slow_ways.library_solver():
        assert_equal(ours, rollout(network, batch))


class HostTraffic(TorchDispatchMode):
    """Counts copies between devices, and values read on the host: what makes a GPU wait, or be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = str(func)
        if "copy" in name and isinstance(out, torch.Tensor):
            tensors = [arg for arg in args if isinstance(arg, torch.Tensor)]
            if len({tensor.device.type for tensor in (*tensors, out)}) > 1:
                self.seen.append(name)
        elif "_local_scalar_dense" in name:
            self.seen.append(name)
        return out


@pytest.mark.slow
def test_no_step_of_a_rollout_talks_to_the_host(batch) -> None:
    """On the meta device, which tells device tensors from host tensors: from the first step on there is no copy."""
    network = make_network().to("meta")
    for tensor in ("latents", "action", "proprio", "text"):
        setattr(batch, tensor, getattr(batch, tensor).to("meta"))
    noise = Streams(*(torch.empty_like(t) for t in (batch.latents, batch.action, batch.proprio)))

    def copies_after_each_step() -> list[int]:
        counts: list[int] = []
        with HostTraffic() as traffic:
            options = {"noise": noise, "guidance": 2.0, "null_text": batch.text, "video_steps": 3, "action_steps": 2}
            rollout(network, batch, **options, progress=lambda k, n: counts.append(len(traffic.seen)))
        return counts

    ours = copies_after_each_step()
    assert len(ours) == 3
    assert ours[-1] == ours[0]
    with slow_ways.library_solver():
        library = copies_after_each_step()
    assert library[-1] > library[0], "the check notices no copy"


@pytest.mark.parametrize("attention", ["auto", "flash", "math"])
def test_attention_kernels_agree(batch, attention) -> None:
    """Those that torch has for a CPU."""
    network = make_network()
    with torch.no_grad():
        wanted = outputs(batch.run(network))
        ours = outputs(batch.run(choose_attention(network, attention)))
    for name in STREAMS:
        assert relative(ours[name], wanted[name]) < 1e-5
    chosen = {module.sdpa_backend for module in network.modules() if hasattr(module, "sdpa_backend")}
    assert chosen == {SDPA_BACKENDS[attention]}


def test_an_attention_kernel_that_does_not_run_or_exist_is_one_sentence(network) -> None:
    for kernel in ("cudnn", "efficient"):
        with pytest.raises(UserError, match=f"'{kernel}' does not run on cpu with float32 heads of 12 numbers"):
            choose_attention(network, kernel)
    with pytest.raises(UserError, match=r"'fast' is no attention kernel.*auto, flash, cudnn, efficient, math"):
        choose_attention(network, "fast")
    assert not any(hasattr(module, "sdpa_backend") for module in network.modules())


def test_contexts_of_samples_make_that_of_their_batch(network, batch) -> None:
    with torch.no_grad():
        wanted = network.encode_text(batch.text)
        ours = TextContext.batch([network.encode_text(text[None]) for text in batch.text])
    torch.testing.assert_close(ours.projected, wanted.projected, rtol=0, atol=1e-6)
    for mine, theirs in ((ours.blocks, wanted.blocks), (ours.depth_blocks, wanted.depth_blocks)):
        for one, other in zip(mine, theirs, strict=True):
            torch.testing.assert_close(one.keys, other.keys, rtol=0, atol=1e-6)
            torch.testing.assert_close(one.values, other.values, rtol=0, atol=1e-6)


def compiled_elsewhere(*arguments: str, **environment: str) -> dict[str, Any]:
    """What tests/model/compile_checks.py found, in a process of its own: here every call is checked for shapes by
    wrappers that dynamo cannot trace."""
    script = Path(__file__).with_name("compile_checks.py")
    done = subprocess.run(
        [sys.executable, str(script), *arguments], capture_output=True, text=True, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_one_step_compiles_as_one_graph() -> None:
    found = compiled_elsewhere("eager")
    assert found["graph_breaks"] == 0
    assert found["graphs"] == 1
    assert max(found["step"].values()) < 1e-5
    assert "'tensorflow' is no backend of torch.compile" in found["unknown"]


@pytest.mark.slow
def test_blocks_compile_for_training_without_a_break() -> None:
    """LoRA on both streams, the depth branch on shared blocks; with gradient checkpointing, and a future hidden in one
    of two samples."""
    every = compiled_elsewhere("aot_eager", "blocks")
    assert every.keys() == {"plain", "checkpointed", "hidden"}
    for found in every.values():
        assert found["breaks"] == {}
        assert found["graphs"] <= 4, "one graph serves all blocks of a kind"
        assert found["same_names"]
        assert found["gradients"] < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_a_compiled_rollout_is_the_plain_one(backend: str) -> None:
    """Through the kernels that a compiler writes; with weights moved in between, guided, and at two batch sizes."""
    if backend == "inductor" and shutil.which("c++") is None:
        pytest.skip("no C++ compiler here")
    found = compiled_elsewhere(backend, "rollouts")
    assert {"plain", "guided", "moved"} <= set(found["rollouts"])
    assert max(found["rollouts"].values()) < 1e-5


@pytest.mark.slow
def test_a_step_that_does_not_compile_is_one_sentence(tmp_path: Path) -> None:
    found = compiled_elsewhere(
        "inductor", "fails", CXX=str(tmp_path / "none"), TORCHINDUCTOR_CACHE_DIR=str(tmp_path / "cache")
    )
    for sentence in found.values():
        assert "the network's step cannot be compiled here" in sentence
        assert "install a C++ compiler" in sentence
    assert found["compiler"] != found["break"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu_no_step_waits_and_a_replayed_graph_gives_the_same() -> None:
    """torch's own sync check over all steps but the first, which makes tables; then CUDA graphs, in a process."""
    network, batch = make_network().to("cuda"), make_batch()
    for tensor in ("latents", "action", "proprio", "text"):
        setattr(batch, tensor, getattr(batch, tensor).to("cuda"))
    shapes = batch.latents.shape, batch.action.shape, batch.proprio.shape
    noise = Streams.normal(shapes, torch.Generator("cuda").manual_seed(0))
    try:
        rollout(network, batch, noise=noise, progress=lambda *_: torch.cuda.set_sync_debug_mode("error"))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    found = compiled_elsewhere("inductor", "rollouts", "cuda")
    assert max(found["rollouts"].values()) < 1e-3  # float32 products may be TF32 in one and not in the other

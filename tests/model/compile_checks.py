"""What `torch.compile` makes of a network's step, as JSON; test_fast_path.py runs it in a process of its own.

python compile_checks.py BACKEND [rollouts | blocks | fails]
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from typing import Any

import torch
from toy import CONFIG, Batch, make_batch, make_transformer, outputs, relative

from xwam_ft.errors import UserError
from xwam_ft.model.compiled import CompiledForward
from xwam_ft.model.network import JointNetwork
from xwam_ft.model.sampler import Conditions, sample
from xwam_ft.model.streams import Streams

DEVICE = sys.argv[3] if len(sys.argv) > 3 else "cpu"


def small_network() -> JointNetwork:
    """One block and its twin: compiles in seconds."""
    network = JointNetwork(make_transformer(num_layers=1), dataclasses.replace(CONFIG, depth_blocks=1)).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    return network.to(DEVICE)


def small_batch(size: int = 1, seed: int = 0) -> Batch:
    batch = make_batch(size=size, seed=seed)
    return Batch(**{name: tensor.to(DEVICE) for name, tensor in vars(batch).items()})


def refusal(call: Any) -> str:
    try:
        call()
    except UserError as error:
        return str(error)
    return ""


@torch.no_grad()
def step(backend: str) -> dict[str, Any]:
    network, batch = small_network(), small_batch()
    context = network.encode_text(batch.text)
    inputs = batch.latents, batch.action, batch.proprio, context, batch.t_video, batch.t_action
    wanted, ours = outputs(network(*inputs)), outputs(CompiledForward(network, backend)(*inputs))
    assert ours.keys() == wanted.keys()
    counters = torch._dynamo.utils.counters
    return {
        "step": {name: relative(ours[name], tensor) for name, tensor in wanted.items()},
        "graph_breaks": sum(counters["graph_break"].values()),
        "graphs": counters["stats"]["unique_graphs"],
        "unknown": refusal(lambda: CompiledForward(network, "tensorflow")),
    }


def blocks(backend: str) -> dict[str, Any]:
    """A training step with every block compiled against the plain one: gradients, graphs and breaks."""
    from xwam_ft.model.adapters import prepare_for_training
    from xwam_ft.model.compiled import compile_blocks
    from xwam_ft.recipe_model import DepthSpec, LoraSpec

    def gradients(network: JointNetwork, hidden: torch.Tensor | None) -> dict[str, torch.Tensor]:
        network.zero_grad()
        sum(value.square().mean() for value in outputs(network(*inputs, future_hidden=hidden)).values()).backward()
        return {n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None}

    config = dataclasses.replace(CONFIG, depth_blocks=2, depth_shared=True)
    network = JointNetwork(make_transformer(num_layers=4), config).train()
    prepare_for_training(network, LoraSpec(rank=2), DepthSpec(blocks=2))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    batch = small_batch(2)
    inputs = batch.latents, batch.action, batch.proprio, batch.text, batch.t_video, batch.t_action
    found: dict[str, Any] = {}
    ways = {"plain": (False, None), "checkpointed": (True, None), "hidden": (True, torch.tensor([True, False]))}
    for name, (network.gradient_checkpointing, hidden) in ways.items():
        wanted = gradients(network, hidden)
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        plain, compiled = network.run_block, compile_blocks(network, backend)
        ours = gradients(compiled, hidden)
        network.run_block = plain
        counters = torch._dynamo.utils.counters
        found[name] = {
            "gradients": max(relative(ours[key], value) for key, value in wanted.items()),
            "same_names": ours.keys() == wanted.keys(),
            "graphs": counters["stats"]["unique_graphs"],
            "breaks": dict(counters["graph_break"]),
        }
    return found


def rollouts(backend: str) -> dict[str, Any]:
    network = small_network()
    forward = CompiledForward(network, backend)

    def error(size: int, guidance: float = 0.0) -> float:
        batch, null = small_batch(size), small_batch(size, seed=1).text
        shapes = batch.latents.shape, batch.action.shape, batch.proprio.shape
        noise = Streams.normal(shapes, torch.Generator(DEVICE).manual_seed(0))
        conditions = Conditions(batch.latents[:, :, 0], batch.proprio[:, 0]), batch.text
        options: Any = {"noise": noise, "video_steps": 4, "action_steps": 3, "guidance": guidance, "null_text": null}
        options["with_depth"] = backend != "inductor"  # whose C++ takes a compiler most of a minute a graph
        wanted = outputs(sample(network, *conditions, **options))
        ours = outputs(sample(network, *conditions, **options, forward=forward))
        return max(relative(ours[name], tensor) for name, tensor in wanted.items())

    errors = {"plain": error(1), "guided": error(1, 2.0)}
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1.1)
    errors["moved"] = error(1)
    return {"rollouts": errors if backend == "inductor" else errors | {"batch": error(2)}}


@torch.no_grad()
def fails(backend: str) -> dict[str, Any]:
    """A machine without a compiler, then a layer that dynamo cannot trace."""
    network, batch = small_network(), small_batch()
    compiler = refusal(lambda: batch.run(CompiledForward(network, backend)))
    network.action_encoder[1].register_forward_hook(lambda *_: time.sleep(0))
    return {"compiler": compiler, "break": refusal(lambda: batch.run(CompiledForward(network, "eager")))}


if __name__ == "__main__":
    todo = {"rollouts": rollouts, "fails": fails, "blocks": blocks}.get(sys.argv[2] if len(sys.argv) > 2 else "", step)
    print(json.dumps(todo(sys.argv[1])))

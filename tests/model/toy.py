"""A small joint network and a batch for it, from a fixed seed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers import WanTransformer3DModel

from xwam_ft.model.network import JointNetwork, NetworkConfig, Prediction

CONFIG = NetworkConfig(num_views=2, action_dim=5, proprio_dim=6, actions_per_frame=2, depth_blocks=2)


def make_transformer(seed: int = 0, **changes: object) -> WanTransformer3DModel:
    sizes: dict[str, object] = {
        "patch_size": (1, 2, 2), "num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4,
        "out_channels": 4, "text_dim": 10, "freq_dim": 16, "ffn_dim": 32, "num_layers": 3,
    }  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return WanTransformer3DModel(**(sizes | changes)).eval().requires_grad_(False)


def make_network(config: NetworkConfig = CONFIG, seed: int = 0) -> JointNetwork:
    network = JointNetwork(make_transformer(seed), config, torch.Generator().manual_seed(seed)).eval()
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(seed + 1)
        for name, parameter in network.named_parameters():
            if not name.startswith("transformer"):  # published init is tiny: make every new part matter
                parameter.add_(0.2 * torch.randn_like(parameter))
    return network


@dataclass
class Batch:
    latents: torch.Tensor
    action: torch.Tensor
    proprio: torch.Tensor
    text: torch.Tensor
    t_video: torch.Tensor
    t_action: torch.Tensor

    def run(self, network: JointNetwork, **options: bool) -> Prediction:
        streams = (self.latents, self.action, self.proprio)
        return network(*streams, self.text, self.t_video, self.t_action, **options)


def make_batch(config: NetworkConfig = CONFIG, *, size: int = 2, seed: int = 0) -> Batch:
    g = torch.Generator().manual_seed(seed)
    shapes = ((4, 2, config.num_views, 4, 6), (8, config.action_dim), (5, config.proprio_dim), (7, 10))
    streams = [torch.randn(size, *shape, generator=g) for shape in shapes]
    return Batch(*streams, *(1000 * torch.rand(size, generator=g) for _ in range(2)))


def outputs(prediction: Prediction) -> dict[str, torch.Tensor]:
    named = {name: getattr(prediction, name) for name in ("video", "action", "proprio", "depth")}
    return {name: tensor for name, tensor in named.items() if tensor is not None}


def relative(ours: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((ours - wanted).abs().max() / wanted.abs().max())

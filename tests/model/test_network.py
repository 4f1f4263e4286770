"""The joint network against diffusers' own forward, and what its streams may and may not influence."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from toy import CONFIG, make_batch, make_network, make_transformer, outputs, relative

from xwam_ft.model import blocks
from xwam_ft.model.network import INIT_STD, JointNetwork, NetworkConfig


def test_one_view_without_robot_tokens_is_diffusers_own_forward_with_a_timestep_per_token() -> None:
    transformer = make_transformer()
    network = JointNetwork(transformer, NetworkConfig(1, 5, 6, 2, 0)).eval()
    torch.nn.init.zeros_(network.view_embedding.weight)
    g = torch.Generator().manual_seed(0)
    latents, text = torch.randn(2, 4, 3, 4, 6, generator=g), torch.randn(2, 7, 10, generator=g)
    t_video = torch.tensor([731.0, 40.0])
    per_token = t_video[:, None].repeat(1, 3 * 2 * 3)
    per_token[:, : 2 * 3] = 0
    with torch.no_grad():
        wanted = transformer(latents, per_token, text, return_dict=False)[0]
        none = torch.zeros(2, 0, 5), torch.zeros(2, 0, 6)
        ours = network(latents.unsqueeze(3), *none, text, t_video, t_video).video.squeeze(3)
    assert relative(ours, wanted) < 1e-5


def test_plain_and_fused_attention_agree_in_outputs_and_gradients(
    network, batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(short: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        monkeypatch.setattr(blocks, "SHORT", short)
        batch.latents = batch.latents.detach().requires_grad_()
        found = outputs(batch.run(network))
        (gradient,) = torch.autograd.grad(sum(t.square().mean() for t in found.values()), batch.latents)
        return found, gradient

    (plain, by_plain), (fused, by_fused) = run(10**6), run(0)
    for name, tensor in plain.items():
        assert relative(fused[name], tensor) < 1e-5
    assert relative(by_fused, by_plain) < 1e-5


def test_reusing_an_encoded_instruction_changes_nothing(network, batch) -> None:
    with torch.no_grad():
        wanted = outputs(batch.run(network))
        batch.text = network.encode_text(batch.text)
        ours = outputs(batch.run(network))
    for name, tensor in wanted.items():
        torch.testing.assert_close(ours[name], tensor, rtol=0, atol=1e-6)


def test_the_depth_branch_never_influences_the_main_stream(network, batch) -> None:
    with torch.no_grad():
        wanted = batch.run(network)
        without = batch.run(network, with_depth=False)
        for parameter in network.depth_branch.parameters():
            parameter.normal_()
        other = batch.run(network)
    assert without.depth is None
    assert relative(other.depth, wanted.depth) > 0.1
    for name in ("video", "action", "proprio"):
        torch.testing.assert_close(getattr(without, name), getattr(wanted, name), rtol=0, atol=0)
        torch.testing.assert_close(getattr(other, name), getattr(wanted, name), rtol=0, atol=0)


def test_the_depth_branch_reads_the_whole_main_sequence_of_its_blocks(network, batch) -> None:
    """Actions reach the branch only through the main blocks' keys and values, from the first copied block on."""
    changed = dataclasses.replace(batch, action=batch.action + 1)
    with torch.no_grad():
        assert relative(changed.run(network).depth, batch.run(network).depth) > 1e-4


def test_at_initialisation_the_branch_is_a_copy_of_the_last_blocks(batch) -> None:
    network = make_network()
    fresh = JointNetwork(make_transformer(), CONFIG)
    assert len(fresh.depth_branch.blocks) == CONFIG.depth_blocks
    for ours, block in zip(fresh.depth_branch.blocks, list(fresh.transformer.blocks)[-2:], strict=True):
        for name, tensor in block.state_dict().items():
            assert torch.equal(ours.state_dict()[name], tensor)
            assert ours.state_dict()[name].data_ptr() != tensor.data_ptr()
    assert network.depth_branch.blocks[0] is not network.transformer.blocks[1]


def test_new_parts_start_as_published_and_from_the_generator_alone() -> None:
    wide = make_transformer(num_attention_heads=8, attention_head_dim=24)
    first, second, third = (
        JointNetwork(wide, CONFIG, torch.Generator().manual_seed(seed)).state_dict() for seed in (4, 4, 5)
    )
    new = [name for name in first if not name.startswith("transformer.") and ".blocks." not in name]
    for name in new:
        assert torch.equal(first[name], second[name])
        if name.endswith("bias"):
            assert not first[name].any()
            continue
        assert not torch.equal(first[name], third[name])
        std = 192**-0.5 if "scale_shift_table" in name else INIT_STD
        assert float(first[name].std()) == pytest.approx(std, rel=0.15), name
    assert len(new) == 1 + 4 * 4 + 3


def test_every_output_depends_on_both_timesteps(network, batch) -> None:
    with torch.no_grad():
        later = dataclasses.replace(batch, t_video=batch.t_video + 100)
        acting = dataclasses.replace(batch, t_action=batch.t_action + 100)
        wanted, by_video, by_action = (outputs(b.run(network)) for b in (batch, later, acting))
    for name in wanted:
        assert relative(by_video[name], wanted[name]) > 1e-4
        assert relative(by_action[name], wanted[name]) > 1e-5


def test_views_are_told_apart_by_their_embedding_alone(network, batch) -> None:
    swapped = dataclasses.replace(batch, latents=batch.latents.flip(3))
    with torch.no_grad():
        wanted = batch.run(network)
        assert relative(swapped.run(network).action, wanted.action) > 1e-4
        network.view_embedding.weight.copy_(network.view_embedding.weight.flip(0))
        ours = swapped.run(network)
    torch.testing.assert_close(ours.video.flip(3), wanted.video, rtol=0, atol=1e-5)
    torch.testing.assert_close(ours.action, wanted.action, rtol=0, atol=1e-5)


def test_modulation_is_never_held_per_token(network, batch, monkeypatch) -> None:
    """Peak structure: no tensor of [.., L, 6, D] or larger is made anywhere in a forward."""
    from torch.utils._python_dispatch import TorchDispatchMode

    length = 2 * 2 * 6 + 8 + 5
    largest = 0

    class Largest(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                largest = max(largest, out.numel())
            return out

    with torch.no_grad(), Largest():
        batch.run(network)
    assert largest < 2 * length * 6 * 24


@pytest.mark.parametrize("with_depth", [True, False])
def test_gradient_checkpointing_gives_the_same_gradients(batch, with_depth: bool) -> None:
    gradients = []
    for checkpointing in (False, True):
        network = make_network().requires_grad_(True)
        network.gradient_checkpointing = checkpointing
        prediction = outputs(batch.run(network, with_depth=with_depth))
        sum(tensor.square().sum() for tensor in prediction.values()).backward()
        gradients.append({name: p.grad for name, p in network.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert any(name.startswith("depth_branch") for name in gradients[0]) == with_depth
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-5, atol=1e-6)


def test_training_works_after_a_first_forward_in_inference_mode(network, batch) -> None:
    with torch.inference_mode():
        wanted = batch.run(network).action.clone()
    network.requires_grad_(True)
    ours = batch.run(network).action
    ours.sum().backward()
    assert torch.equal(ours.detach(), wanted)


def test_bfloat16_weights_stay_close_to_float32_and_answer_in_float32(batch) -> None:
    network, low = make_network(), make_network()
    low.transformer.to(torch.bfloat16)
    low.depth_branch.to(torch.bfloat16)
    with torch.no_grad():
        wanted, ours = outputs(batch.run(network)), outputs(batch.run(low))
    for name, tensor in wanted.items():
        assert ours[name].dtype == torch.float32
        assert relative(ours[name], tensor) < 0.05


def test_the_network_takes_other_clip_lengths_and_a_head_without_blocks() -> None:
    config = dataclasses.replace(CONFIG, depth_blocks=0, depth_head=True)
    network = make_network(config)
    batch = make_batch(config, size=1)
    batch.latents = batch.latents[:, :, :1]
    with torch.no_grad():
        prediction = batch.run(network)
    assert prediction.video.shape == prediction.depth.shape == (1, 4, 1, 2, 4, 6)
    assert not network.depth_branch.blocks


def test_more_depth_blocks_than_blocks_are_refused() -> None:
    with pytest.raises(ValueError, match="depth_blocks=4, but the transformer has 3 blocks"):
        JointNetwork(make_transformer(), dataclasses.replace(CONFIG, depth_blocks=4))


def test_a_configuration_survives_plain_values() -> None:
    assert NetworkConfig.from_dict(CONFIG.to_dict()) == CONFIG


def test_held_actions_are_at_timestep_zero(network, batch) -> None:
    """Without states after the first, all actions held is nothing but t_action = 0."""
    batch.proprio = batch.proprio[:, :1]
    every = torch.ones(batch.action.shape[:2], dtype=torch.bool)
    held = outputs(batch.run(network, action_held=every))
    batch.t_action = torch.zeros_like(batch.t_action)
    for name, wanted in outputs(batch.run(network)).items():
        assert relative(held[name], wanted) < 1e-6, name


def test_each_sample_of_a_batch_holds_its_own_actions(network, batch) -> None:
    held = torch.arange(8) < torch.tensor([[0], [3]])
    together = batch.run(network, action_held=held)
    free = batch.run(network)
    alone = batch.run(network, action_held=held[1:].expand(2, -1))
    for name, ours in outputs(together).items():
        assert relative(ours[:1], outputs(free)[name][:1]) < 1e-6
        assert relative(ours[1:], outputs(alone)[name][1:]) < 1e-6
    assert relative(together.action[1:], free.action[1:]) > 1e-3

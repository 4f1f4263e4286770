"""Policy: what it answers, what it refuses, and that its answer depends on the request alone."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from xwam_ft import conventions
from xwam_ft.errors import UserError
from xwam_ft.policy.policy import Policy, Settings, clip_observation
from xwam_ft.policy.text import TextCache
from xwam_ft.shards import Clip, ShardSet


@pytest.fixture(scope="module")
def policy(bundle: Path) -> Policy:
    return Policy.load(bundle, "cpu")


@pytest.fixture(scope="module")
def clip(shard_set: ShardSet) -> Clip:
    return shard_set.read_clip(shard_set.clips("held_out", 1)[0])


@pytest.fixture
def request_(shard_set: ShardSet, clip: Clip) -> dict[str, Any]:
    contract = shard_set.contract
    places = conventions.state_slices(contract)
    return {
        "images": {name: clip.rgb[view, 0] for view, name in enumerate(contract.camera_names)},
        "state": {slot.name: clip.proprio[0, places[slot.name]] for slot in contract.slots},
        "prompt": clip.instruction,
    }


def test_an_answer_is_a_function_of_request_and_seed(policy: Policy, request_: dict[str, Any]) -> None:
    first, again = policy.infer(request_, seed=3), policy.infer(request_, seed=3)
    np.testing.assert_array_equal(first.action, again.action)
    assert np.abs(policy.infer(request_, seed=4).action - first.action).max() > 1e-3
    timing = policy.contract.timing
    assert first.commands.table.shape == (timing.action_steps, policy.contract.command_dim)
    assert first.commands.slots["tool"].shape == (timing.action_steps, 7)


def test_requests_without_a_seed_count_up_from_the_settings(policy: Policy, request_: dict[str, Any]) -> None:
    settings = replace(policy.settings, seed=3)
    fresh = Policy(policy.network, policy.codec, policy.prompts, policy.contract, settings)
    for seed in (3, 4, 5):
        np.testing.assert_array_equal(fresh.infer(request_).action, policy.infer(request_, seed=seed).action)


def test_the_sampler_is_given_the_settings(policy: Policy, clip: Clip, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}

    def sample(*streams: Any, **options: Any) -> Any:
        given.update(options)
        return SimpleNamespace(action=torch.zeros(1, 8, 7))

    monkeypatch.setattr("xwam_ft.policy.policy.sample", sample)
    settings = Settings(seed=0, action_steps=3, video_steps=7, guidance=1.5, shift=2.5)
    policy.infer_batch([clip_observation(policy.contract, clip)], [0], settings)
    names = ("action_steps", "video_steps", "guidance", "shift", "actions_only")
    assert [given[name] for name in names] == [3, 7, 1.5, 2.5, True]
    assert given["null_text"] is not None


def test_commands_are_the_action_decoded_by_the_contract(policy: Policy, request_: dict[str, Any]) -> None:
    out = policy.infer(request_, seed=0)
    tool, table = request_["state"]["tool"], out.commands.table
    # -1 to 1 are 0.2 m and 0.5 rad either way from the observed pose, and openings of 0 to 0.08 m.
    np.testing.assert_allclose(table[:, :3], tool[:3] + 0.2 * out.action[:, :3], atol=1e-12)
    turned = Rotation.from_rotvec(0.5 * out.action[:, 3:6]) * Rotation.from_quat(tool[3:], scalar_first=True)
    np.testing.assert_allclose(
        Rotation.from_quat(table[:, 3:7], scalar_first=True).as_matrix(), turned.as_matrix(), atol=1e-9
    )
    np.testing.assert_allclose(table[:, 7], 0.04 * (out.action[:, 6] + 1), atol=1e-12)


def test_a_batch_gives_what_each_request_gives_alone(policy: Policy, shard_set: ShardSet) -> None:
    clips = [shard_set.read_clip(ref) for ref in shard_set.clips(None, 11)[:3]]
    inputs = [clip_observation(shard_set.contract, clip) for clip in clips]
    together = policy.infer_batch(inputs, [5, 6, 7])
    for index, (item, seed) in enumerate(zip(inputs, [5, 6, 7], strict=True)):
        np.testing.assert_allclose(together[index], policy.infer_batch([item], [seed])[0], atol=2e-4)


def test_one_frame_is_encoded_as_the_clip_s_first_latent_frame(policy: Policy, clip: Clip) -> None:
    from xwam_ft.pictures import centre_crop

    crop = policy.contract.image.crop
    cropped = np.stack([centre_crop(view, crop) for view in clip.rgb])
    whole = policy.codec.encode_video(torch.from_numpy(cropped)[None])
    alone = policy.condition(clip.rgb[None, :, 0])
    torch.testing.assert_close(alone, whole[:, :, 0], rtol=1e-5, atol=1e-5)


def test_futures_in_a_batch_are_those_alone_and_given_actions_are_kept(policy: Policy, clip: Clip) -> None:
    inputs = clip_observation(policy.contract, clip)
    alone = policy.imagine(inputs, 1)
    own, again, other = policy.imagine_batch([inputs] * 3, [1, 1, 1], [None, alone.action, alone.action + 1], depths=1)
    np.testing.assert_allclose(own.action, alone.action, atol=1e-5)
    assert own.latents is not None
    assert alone.latents is not None
    torch.testing.assert_close(own.latents, alone.latents, rtol=1e-4, atol=1e-4)
    assert (own.depth is None, again.depth is None, other.depth is None) == (False, True, True)
    np.testing.assert_allclose(again.action, alone.action, atol=1e-6)
    np.testing.assert_allclose(other.action, alone.action + 1, atol=1e-6)
    assert np.abs(other.states[1:] - again.states[1:]).max() > 1e-6


def test_what_is_imagined_starts_where_the_observation_is(policy: Policy, clip: Clip) -> None:
    inputs = clip_observation(policy.contract, clip)
    imagined = policy.imagine(inputs, seed=1)
    views, frames = len(policy.contract.cameras), policy.contract.timing.clip_frames
    image = policy.contract.image
    assert imagined.rgb.shape == (views, frames, image.height, image.width, 3)
    assert imagined.depth is not None
    assert imagined.depth.shape == (views, frames, image.height, image.width)
    assert imagined.depth.min() >= 1, "a prediction has no invalid pixels"
    np.testing.assert_allclose(imagined.states[0], inputs.state, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(imagined.states[:, 3:7], axis=1), 1.0, atol=1e-9)


def test_actions_of_a_policy_call_are_those_of_the_whole_clip(policy: Policy, clip: Clip) -> None:
    """A policy call stops when the actions are clean; going on with the video does not touch them."""
    inputs = clip_observation(policy.contract, clip)
    np.testing.assert_allclose(policy.infer_batch([inputs], [2])[0], policy.imagine(inputs, 2).action, atol=1e-5)


def test_guidance_of_an_instruction_against_none(policy: Policy, clip: Clip) -> None:
    inputs = clip_observation(policy.contract, clip)
    plain = policy.infer_batch([inputs], [2])[0]
    guided = Policy(
        policy.network, policy.codec, policy.prompts, policy.contract, replace(policy.settings, guidance=3.0)
    ).infer_batch([inputs], [2])[0]
    assert np.abs(guided - plain).max() > 1e-4
    empty = replace(inputs, prompt="")
    same = Policy(
        policy.network, policy.codec, policy.prompts, policy.contract, replace(policy.settings, guidance=3.0)
    ).infer_batch([empty], [2])[0]
    np.testing.assert_allclose(same, policy.infer_batch([empty], [2])[0], atol=1e-4)


def test_spaces_in_a_prompt_do_not_matter(policy: Policy, clip: Clip) -> None:
    inputs = clip_observation(policy.contract, clip)
    spaced = replace(inputs, prompt=f" {inputs.prompt.replace(' ', '  ')}\n")
    np.testing.assert_array_equal(policy.infer_batch([spaced], [0]), policy.infer_batch([inputs], [0]))


def test_an_unknown_prompt_lists_the_known_ones(policy: Policy, request_: dict[str, Any]) -> None:
    with pytest.raises(UserError) as error:
        policy.infer(request_ | {"prompt": "pick up the cubes"})
    message = str(error.value)
    assert "'pick up the cubes' is not embedded" in message
    assert "did you mean 'pick up the cube'" in message
    assert "'put the cube in the bowl'" in message


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda r: r["images"].pop("wrist"), "camera 'wrist' is missing"),
        (lambda r: r["images"].update(wrist=r["images"]["wrist"].astype(np.float32)), "observation.images.wrist"),
        (lambda r: r["images"].update(front=r["images"]["front"][..., :2]), "has shape [32, 64, 2]"),
        (lambda r: r["state"].update(tool=np.zeros(6)), "observation.state.tool"),
    ],
)
def test_an_observation_that_does_not_fit_is_one_sentence(
    policy: Policy, request_: dict[str, Any], change: Any, part: str
) -> None:
    request_["images"], request_["state"] = dict(request_["images"]), dict(request_["state"])
    change(request_)
    with pytest.raises(UserError) as error:
        policy.infer(request_)
    assert part in str(error.value)


def test_changes_of_the_measured_state_are_not_decoded_as_a_chunk(
    policy: Policy, request_: dict[str, Any], contract_with: Any
) -> None:
    other = Policy(policy.network, policy.codec, policy.prompts, contract_with("delta_to_state"), policy.settings)
    with pytest.raises(UserError, match="no chunk follows from one"):
        other.infer(request_)


def test_an_instruction_is_encoded_once_until_weights_move(bundle: Path, clip: Clip) -> None:
    policy = Policy.load(bundle, "cpu", selfcheck=False)
    inputs = clip_observation(policy.contract, clip)
    encoded: list[int] = []
    encode = policy.network.encode_text
    policy.network.encode_text = lambda text: encoded.append(1) or encode(text)  # pyright: ignore

    def answer() -> np.ndarray:
        return policy.infer_batch([inputs], [0])[0]

    first = answer()
    np.testing.assert_array_equal(answer(), first)
    assert len(encoded) == 1
    fresh = Policy(policy.network, policy.codec, policy.prompts, policy.contract, policy.settings)
    np.testing.assert_array_equal(fresh.infer_batch([inputs], [0])[0], first)
    assert len(encoded) == 2
    with torch.no_grad():
        policy.network.transformer.blocks[0].attn2.to_v.weight.mul_(2.0)
    moved = answer()
    assert len(encoded) == 3
    assert np.abs(moved - first).max() > 1e-6
    policy.prompts[inputs.prompt] = policy.prompts[""]
    assert np.abs(answer() - moved).max() > 1e-6
    assert len(encoded) == 4
    policy.texts.clear()
    answer()
    assert len(encoded) == 5


def test_only_the_instructions_last_used_are_kept(policy: Policy) -> None:
    texts = TextCache(policy.network, kept=2)
    embeddings = {name: policy.prompts[""].clone() for name in "abc"}
    first = texts.context("a", embeddings["a"])
    texts.context("b", embeddings["b"])
    assert texts.context("a", embeddings["a"]) is first
    texts.context("c", embeddings["c"])  # b goes, not a
    assert len(texts) == 2
    assert texts.context("a", embeddings["a"]) is first


def test_a_policy_call_is_that_of_a_vae_that_encodes_the_whole_clip(policy: Policy, clip: Clip) -> None:
    sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
    import slow_ways

    inputs = clip_observation(policy.contract, clip)
    wanted = policy.infer_batch([inputs], [1])[0]
    with slow_ways.all_frames_encoded(policy.codec, policy.contract.timing.clip_frames):
        np.testing.assert_allclose(policy.infer_batch([inputs], [1])[0], wanted, atol=1e-5)


def test_a_policy_can_choose_its_attention_kernel(policy: Policy, clip: Clip, bundle: Path) -> None:
    inputs = clip_observation(policy.contract, clip)
    other = Policy.load(bundle, "cpu", attention="flash")  # its self-check passes
    np.testing.assert_allclose(other.infer_batch([inputs], [1]), policy.infer_batch([inputs], [1]), atol=1e-4)
    with pytest.raises(UserError, match="'cudnn' does not run on cpu"):
        Policy.load(bundle, "cpu", attention="cudnn")
    with pytest.raises(UserError, match="'none' is no backend"):
        Policy.load(bundle, "cpu", compile="none")


@pytest.mark.slow
def test_a_compiled_policy_gives_the_same_answer(bundle: Path) -> None:
    """In a process of its own: the tests' checks of shapes cannot be traced."""
    code = """
import sys
from pathlib import Path
from xwam_ft.policy import selfcheck
from xwam_ft.policy.policy import Policy
bundle = Path(sys.argv[1])
policy = Policy.load(bundle, "cpu", compile="aot_eager")
print(selfcheck.load(bundle / "selfcheck.safetensors", policy).difference(policy))
"""
    done = subprocess.run([sys.executable, "-c", code, str(bundle)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[-1]) < 1e-5

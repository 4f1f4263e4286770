"""Recorded pictures for measurements: clips of the bundled demonstrations at any size, and a shard set of them.

Pictures are real, since a VAE is judged by them; motion and depth are made up.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from xwam_ft.bundled import bundled
from xwam_ft.contract import Contract
from xwam_ft.depth_code import metres_to_code
from xwam_ft.media import read_rgb
from xwam_ft.pictures import resize_pictures
from xwam_ft.shard_index import Split
from xwam_ft.shard_writer import ShardSetWriter, encode_segment, episode_entry, segment_key
from xwam_ft.shards import Segment, ShardSet

VIDEOS = "recordings/metaworld_demo/videos"
EPISODES = 3
"""The last one is held out."""


def recorded(contract: Contract, frames: int, first: int = 0) -> np.ndarray:
    """Pictures [V, frames, H, W, 3] of the bundled cameras at the contract's size, `frames` one after another."""
    cameras = sorted(place for place in bundled(VIDEOS).iterdir() if not place.name.endswith("_depth"))
    films = [sorted(camera.glob("*/*.mp4"))[0] for camera in cameras]
    rows = list(range(first, first + frames))
    image, views = contract.image, len(contract.cameras)
    seen = [
        resize_pictures(read_rgb(films[view % len(films)], rows), image.height, image.width) for view in range(views)
    ]
    return np.stack(seen)


def write_shards(folder: Path, contract: Contract, episodes: int = EPISODES) -> ShardSet:
    """A shard set of `episodes` short episodes, each two clips long; whatever unfinished lies there goes."""
    shutil.rmtree(folder, ignore_errors=True)
    frames = 2 * contract.timing.span
    entries = []
    with ShardSetWriter(folder) as writer:
        for number in range(episodes):
            segment = _segment(contract, number, frames, "held_out" if number == episodes - 1 else "train")
            writer.add(encode_segment(segment, contract.camera_names, contract.timing.fps))
            entries.append(
                episode_entry(
                    number, [segment.key], frames=frames, split=segment.split, instructions=[segment.instruction],
                    source=f"made-{number}", success=True,
                )
            )  # fmt: skip
        return writer.finish(contract, entries)


def _segment(contract: Contract, number: int, frames: int, split: Split) -> Segment:
    near, far = contract.depth.near, contract.depth.far
    assert near is not None
    assert far is not None
    rgb = recorded(contract, frames, number * frames)
    height, width = rgb.shape[2:4]
    ramp = 1.0 + 0.5 * np.linspace(0, 1, height)[:, None] + np.zeros(width)
    metres = np.broadcast_to(ramp, rgb.shape[:-1])
    low, high = (np.array(of) for of in (contract.quantiles.proprio_low, contract.quantiles.proprio_high))
    waves = 0.5 + 0.3 * np.sin(0.1 * np.arange(frames + 2)[:, None] + np.arange(len(low)) + number)
    states = low + waves * (high - low)
    for start in range(0, len(low), 8):  # a unit quaternion with w above 0 in each arm
        turn = np.stack([np.ones(len(states)), *(0.2 * waves.T[start : start + 3] - 0.1)], axis=1)
        states[:, start + 3 : start + 7] = turn / np.linalg.norm(turn, axis=1, keepdims=True)
    return Segment(
        key=segment_key(number, 0), episode=number, split=split, first_frame=0, first_start=0, num_starts=frames,
        instruction=contract.prompts[0], rgb=rgb,
        depth=metres_to_code(metres, near, far),
        proprio=states[:frames], proprio_mask=np.ones_like(states[:frames]),
        action=states[2:], action_mask=np.ones_like(states[2:]),
    )  # fmt: skip

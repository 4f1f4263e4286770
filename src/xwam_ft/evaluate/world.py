"""`xwam-ft evaluate --world`: the imagined future judged as a world model's, on held-out clips.

    by horizon    fidelity.py's scores of every imagined frame, whole pictures and moving regions, beside repeating the
                  first picture, which is the last one that was seen
    actions       does the future follow the actions it is imagined under (actions_check.py)
    follows       do imagined states go where the policy's own commands send them
    calibration   does the spread of samples tell their error (calibration.py)
    geometry      is its depth the recorded scene, and do cameras agree about it (geometry.py)
    flicker       do pixels that stand still in the recording go to and fro
All futures of a clip are denoised in one batch; those that are compared with each other have the same noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from xwam_ft import conventions
from xwam_ft.errors import UserError
from xwam_ft.evaluate.actions_check import CANDIDATES, GIVEN, RIVALS, consistency
from xwam_ft.evaluate.calibration import calibration, error_and_spread
from xwam_ft.evaluate.errors import ErrorTable, mean_errors, state_errors
from xwam_ft.evaluate.fidelity import Fidelity, flicker, mean_of, moving_region, to_psnr
from xwam_ft.evaluate.geometry import Geometry
from xwam_ft.evaluate.imagine import UNTRAINED, make_pair, score
from xwam_ft.evaluate.intervals import chosen, drawn, mean_interval
from xwam_ft.evaluate.open_loop import spread
from xwam_ft.evaluate.pictures import PictureRow
from xwam_ft.policy.policy import clip_observation

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from numpy import ndarray

    from xwam_ft.contract import Contract
    from xwam_ft.evaluate.imagine import Pair
    from xwam_ft.evaluate.lpips import Lpips
    from xwam_ft.policy.policy import Imagined, Policy
    from xwam_ft.progress import Advance
    from xwam_ft.shard_index import Split
    from xwam_ft.shards import Clip, ClipRef, ShardSet

MOST_CLIPS = 16
SAMPLES = 4  # the policy's own futures of a clip
ROWS = {
    "recorded": "recorded actions",
    "reversed": "reversed",
    "other_clip": "another clip's",
    "own": "its own actions",
}


@dataclass(frozen=True)
class World:
    """`metrics` is the JSON form; `rows`, one clip's futures under all actions, of V views and T frames."""

    metrics: dict[str, Any]
    rows: list[PictureRow]
    notes: list[str]


def whole_clips(shards: ShardSet, split: Split) -> list[ClipRef]:
    """The clips whose actions and pictures were all recorded.

    Raises:
        UserError: there are fewer than two.
    """
    span = shards.contract.timing.span
    refs = shards.clips(split, 1)
    found = [ref for ref in refs if ref.start + span <= ref.entry.first_frame + ref.entry.num_frames]
    if len(found) < 2:
        raise UserError(
            f"has {len(found)} {split.replace('_', '-')} clips of full length, and --world compares one with another",
            shards.folder,
            "leave --world out, or prepare with more or longer episodes in that split",
        )
    return found


def world(
    policy: Policy,
    shards: ShardSet,
    *,
    split: Split = "held_out",
    clips: int,
    lpips: Lpips | None = None,
    advance: Advance | None = None,
) -> World:
    """Imagine clips spread evenly over a split, at most `MOST_CLIPS`; see the module's head.

    Args:
        lpips: measures that as well.
        advance: is told how many clips were done.

    Raises:
        UserError: the split has fewer than two clips of full length.
    """
    contract = shards.contract
    refs = whole_clips(shards, split)
    places = spread(range(len(refs)), min(clips, MOST_CLIPS))
    collected = _Collected(contract, lpips)
    shown: tuple[Pair, dict[str, Imagined]] | None = None
    for number, place in enumerate(places):
        clip, other = (
            shards.read_clip(refs[place]),
            shards.read_clip(refs[(place + len(refs) // 2) % len(refs)], "none"),
        )
        raw = _encoded(contract, clip)
        chunks = {"recorded": raw, "reversed": raw[::-1], "other_clip": _encoded(contract, other)}
        given = [conventions.normalise_action(contract, chunks[name]) for name in GIVEN]
        own = [policy.settings.seed + number + sample * len(places) for sample in range(SAMPLES)]
        seeds = own + own[:1] * len(GIVEN)
        observed = [clip_observation(contract, clip)] * len(seeds)
        futures = policy.imagine_batch(observed, seeds, [*[None] * SAMPLES, *given], 1)
        under = {"own": futures[0], **dict(zip(GIVEN, futures[SAMPLES:], strict=True))}
        pair = make_pair(contract, clip, futures[0])
        collected.add(clip, pair, futures[:SAMPLES], under)
        if number == len(places) // 2:
            shown = pair, under
        if advance is not None:
            advance(1)
    assert shown is not None
    episodes = [refs[place].entry.episode for place in places]
    timing = contract.timing
    seconds = [step * timing.frame_skip / timing.fps for step in range(timing.clip_frames)]
    pair, under = shown
    caption = None if policy.trained else UNTRAINED
    rows = [PictureRow("recorded", pair.rgb)]
    rows += [PictureRow(ROWS[name], under[name].rgb[:, : pair.rgb.shape[1]], caption) for name in ROWS]
    metrics = {
        "clips": len(places),
        "samples": SAMPLES,
        "keys": [refs[place].key for place in places],
        "episodes": episodes,
        "drawn": drawn(episodes),
        "horizon_seconds": seconds[1:],
        **collected.metrics(episodes),
        **({} if lpips is None else {"lpips": {"weights": str(lpips.path), "sha256": lpips.sha256}}),
    }
    return World(metrics, rows, [f"+{second:.2f} s" for second in seconds])


class _Collected:
    """What clips say, as they come."""

    def __init__(self, contract: Contract, lpips: Lpips | None) -> None:
        self.contract = contract
        self.fidelity = Fidelity(contract.camera_names, detailed=True, lpips=lpips)
        self.moving: dict[str, list[float]] = {name: [] for name in CANDIDATES}  # mean squared errors
        self.distance: dict[str, list[float]] = {name: [] for name in CANDIDATES}
        self.states: dict[str, list[ErrorTable]] = {name: [] for name in CANDIDATES}
        self.follows: dict[str, list[ErrorTable]] = {"imagined": [], "recorded": []}
        self.geometry = Geometry(contract)
        self.flickers: dict[str, list[float]] = {"imagined": [], "recorded": []}
        self.spreads: dict[str, list[tuple[float, float]]] = {"pictures": [], "states": [], "actions": []}

    def add(self, clip: Clip, pair: Pair, samples: list[Imagined], under: dict[str, Imagined]) -> None:
        contract = self.contract
        score(contract, pair, self.fidelity)
        self.geometry.add(pair)
        regions = np.stack([moving_region(view) for view in pair.rgb])
        for name, pictures in (("imagined", pair.imagined_rgb), ("recorded", pair.rgb)):
            views = [flicker(view[1:], ~region) for view, region in zip(pictures, regions, strict=True)]
            mean = mean_of(np.array(views))
            self.flickers[name].append(np.nan if mean is None else mean)
        mask = clip.proprio_mask * conventions.state_mask(contract)
        truth = np.where(mask > 0, conventions.normalise_proprio(contract, clip.proprio), np.nan)[1:]
        for name, future in under.items():
            self.moving[name].append(_moving_error(future.rgb, pair.rgb, regions))
            off = conventions.normalise_proprio(contract, future.states)[1:] - truth
            self.distance[name].append(float(np.sqrt(np.nanmean(off**2))) if np.isfinite(off).any() else np.nan)
            self.states[name].append(state_errors(contract, future.states[1:], clip.proprio[1:], mask[1:]))
        self._add_follows(clip, mask, samples[0])
        recorded_actions = conventions.normalise_action(contract, _encoded(contract, clip))
        counted = conventions.command_to_action_mask(contract, clip.action_mask)
        compared: dict[str, tuple[list[ndarray], ndarray]] = {
            "pictures": ([s.rgb[:, 1:] / 255.0 for s in samples], pair.rgb[:, 1:] / 255.0),
            "states": ([conventions.normalise_proprio(contract, s.states)[1:] for s in samples], truth),
            "actions": ([s.action for s in samples], np.where(counted > 0, recorded_actions, np.nan)),
        }
        for name, (sampled, recorded) in compared.items():
            self.spreads[name].append(error_and_spread(sampled, recorded))

    def _add_follows(self, clip: Clip, mask: Float[ndarray, "t p"], own: Imagined) -> None:
        """Each state after the first beside the command before it, as imagined and as recorded."""
        contract = self.contract
        raw = conventions.denormalise_action(contract, own.action)
        imagined = conventions.decode_actions(contract, raw, clip.proprio[0], clip.action_states)
        for name, states, commands in (
            ("imagined", own.states, imagined),
            ("recorded", clip.proprio, clip.action),
        ):
            wanted, counted = commanded_states(contract, commands)
            self.follows[name].append(state_errors(contract, states[1:], wanted, counted * mask[1:]))

    def metrics(self, episodes: list[int]) -> dict[str, Any]:
        """`episodes`: that of each clip, for intervals."""
        moving, distance = ({k: np.array(v) for k, v in t.items()} for t in (self.moving, self.distance))
        decibels = {name: to_psnr(values) for name, values in moving.items()}
        pictures, states = consistency(moving, episodes), consistency(distance, episodes)
        pictures["psnr_moving"] = {name: mean_of(values) for name, values in decibels.items()}
        pictures["closer_db"] = {}
        for name in RIVALS:
            values = decibels["recorded"] - decibels[name]
            known = np.isfinite(values)
            interval = mean_interval(values[known], chosen(episodes, known))
            pictures["closer_db"][name] = {"mean": mean_of(values), "interval_95": interval}
        found = {name: np.array(rows).T for name, rows in self.spreads.items()}
        return {
            "scores": self.fidelity.metrics(),
            "by_horizon": self.fidelity.by_horizon(),
            "actions": {"pictures": pictures, "states": states, "state_errors": mean_errors(self.states)},
            "follows": mean_errors(self.follows),
            "calibration": {name: calibration(rows[0], rows[1], episodes) for name, rows in found.items()},
            "geometry": self.geometry.metrics(),
            "flicker": self._flicker(),
            "per_clip": self.fidelity.per_clip(),
        }

    def _flicker(self) -> dict[str, Any]:
        """{"imagined", "recorded": grey levels, "per_clip": of what was imagined}."""
        means = {name: mean_of(np.array(values)) for name, values in self.flickers.items()}
        return {**means, "per_clip": [float(v) if np.isfinite(v) else None for v in self.flickers["imagined"]]}


def commanded_states(
    contract: Contract, commands: Float[ndarray, "ta q"]
) -> tuple[Float[ndarray, "t p"], Float[ndarray, "t p"]]:
    """The states that commands ask for at the times of the pictures after the first: the command just before each.

    The second is 1 where a state's number is commanded as such: not in another unit, and not as a change of states
    that are still to be measured.
    """
    rows = np.arange(1, contract.timing.clip_frames) * contract.timing.actions_per_frame - 1
    wanted = np.zeros((len(rows), contract.state_dim))
    counted = np.zeros_like(wanted)
    places = conventions.command_slices(contract)
    for name, place in conventions.state_slices(contract).items():
        slot = contract.slot(name)
        if slot.present and slot.commanded and slot.command_units is None and slot.convention != "delta_to_state":
            wanted[:, place] = commands[rows, places[name]]
            counted[:, place] = 1.0
    return wanted, counted


def _encoded(contract: Contract, clip: Clip) -> Float[ndarray, "ta da"]:
    return conventions.encode_actions(contract, clip.action, clip.proprio[0], clip.action_states)


def _moving_error(imagined: ndarray, recorded: ndarray, regions: Bool[ndarray, "v h w"]) -> float:
    """Mean squared error, of pictures in 0..1, over the moving pixels of all views after the first frame."""
    off = np.moveaxis(imagined[:, 1:] / 255.0 - recorded[:, 1:] / 255.0, 1, 3)[regions]
    return float(np.mean(off**2)) if off.size else np.nan

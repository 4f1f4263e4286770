"""A clip of a shard set imagined when the page asks for it, one at a time, in a thread of its own."""

from __future__ import annotations

import io
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from xwam_ft.conventions import state_mask
from xwam_ft.errors import UserError
from xwam_ft.shards import CONTRACT_FILE

if TYPE_CHECKING:
    from xwam_ft.evaluate.imagine import Pair
    from xwam_ft.policy.policy import Policy
    from xwam_ft.policy.source import PolicySource
    from xwam_ft.shards import ShardSet
    from xwam_ft.view.episodes import WatchedSet

KEPT = 8  # imagined clips that can still be looked at


class Busy(Exception):
    """A clip is being imagined."""


@dataclass
class Dream:
    """One clip that is imagined, or was."""

    number: int
    shards: ShardSet
    episode: int
    start: int
    phase: str = "waiting"  # then: loading the policy, imagining, done or failed
    done: int = 0  # denoising steps
    total: int = 0
    error: str | None = None
    began: float = 0.0
    took: float | None = None
    pair: Pair | None = None
    scores: dict[str, Any] | None = None
    trained: bool = True

    def told(self) -> dict[str, Any]:
        """How far it is, and what the page needs to show it."""
        timing = self.shards.contract.timing
        found: dict[str, Any] = {
            "number": self.number,
            "episode": self.episode,
            "start": self.start,
            "phase": self.phase,
            "done": self.done,
            "total": self.total,
            "seconds": time.monotonic() - self.began if self.took is None else self.took,
            "error": self.error,
        }
        if self.pair is None:
            return found
        frames = len(self.pair.states)
        mask = state_mask(self.shards.contract) > 0
        return {
            **found,
            "frames": [self.start + i * timing.frame_skip for i in range(frames)],
            "depth": self.pair.depth is not None,
            "scores": self.scores,
            "trained": self.trained,
            "states": _columns(self.pair.states, mask),
            "imagined_states": _columns(self.pair.imagined_states, mask),
        }


class Imagining:
    """Loads a policy at the first clip that is asked for, and keeps it.

    Raises:
        UserError: a set does not belong to the policy.
    """

    def __init__(self, source: PolicySource, sets: dict[str, WatchedSet]) -> None:
        from xwam_ft.contract import load_contract

        self.source = source
        contract, at = load_contract(source.folder / CONTRACT_FILE), source.folder / CONTRACT_FILE
        self.sets = {token: watched.shards.under(contract, at) for token, watched in sets.items()}
        self._policy: Policy | None = None
        self._dreams: OrderedDict[int, Dream] = OrderedDict()
        self._lock = threading.Lock()
        self._working = False
        self._count = 0

    @property
    def working(self) -> bool:
        return self._working

    def start(self, token: str, episode: int, start: int) -> Dream:
        """Begin with the clip that starts at episode frame `start`.

        Raises:
            Busy: another one is being imagined.
            UserError: there is no such clip.
        """
        shards = self.sets.get(token)
        if shards is None:
            raise UserError("is no shard set of this page", token, "reload the page")
        refs = [ref for ref in shards.clips(None, 1) if ref.entry.episode == episode and ref.start == start]
        if not refs:
            shards.episode(episode)
            raise UserError(f"no clip of episode {episode} starts at frame {start}", shards.folder, "choose an earlier")
        with self._lock:
            if self._working:
                raise Busy
            self._working = True
            self._count += 1
            dream = Dream(self._count, shards, episode, start, began=time.monotonic())
            self._dreams[dream.number] = dream
            while len(self._dreams) > KEPT:
                self._dreams.popitem(last=False)
        threading.Thread(target=self._work, args=(dream, refs[0]), daemon=True, name="imagining").start()
        return dream

    def get(self, number: int) -> Dream | None:
        with self._lock:
            return self._dreams.get(number)

    def _work(self, dream: Dream, ref: Any) -> None:
        from xwam_ft.evaluate.fidelity import Fidelity
        from xwam_ft.evaluate.imagine import make_pair, score
        from xwam_ft.policy.policy import clip_observation

        try:
            if self._policy is None:
                dream.phase = "loading the policy"
                self._policy = self.source.load()
            policy, contract = self._policy, dream.shards.contract
            dream.phase, dream.trained = "imagining", policy.trained
            clip = dream.shards.read_clip(ref)

            def step(done: int, total: int) -> None:
                dream.done, dream.total = done, total

            imagined = policy.imagine(clip_observation(contract, clip), policy.settings.seed, step)
            pair = make_pair(contract, clip, imagined)
            fidelity = Fidelity(contract.camera_names)
            score(contract, pair, fidelity)
            dream.took = time.monotonic() - dream.began
            dream.pair, dream.scores, dream.phase = pair, fidelity.metrics()["all"], "done"
        except Exception as error:
            dream.error, dream.took, dream.phase = str(error), time.monotonic() - dream.began, "failed"
            if not isinstance(error, UserError):
                raise  # a bug of ours: its traceback is shown where the command runs
        finally:
            self._working = False


def dream_picture(dream: Dream, which: str, camera: str, index: int) -> bytes | None:
    """A recorded or imagined picture as PNG; None where there is none."""
    from PIL import Image

    views = _views(dream, camera)
    if dream.pair is None or views is None or not 0 <= index < len(dream.pair.states):
        return None
    pictures = {"recorded": dream.pair.rgb, "imagined": dream.pair.imagined_rgb}.get(which)
    if pictures is None:
        return None
    buffer = io.BytesIO()
    Image.fromarray(pictures[views, index]).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def dream_codes(dream: Dream, which: str, camera: str, index: int) -> bytes | None:
    """Recorded or imagined depth as 16-bit codes; None where there is none."""
    views = _views(dream, camera)
    if dream.pair is None or views is None or not 0 <= index < len(dream.pair.states):
        return None
    codes = {"recorded": dream.pair.depth, "imagined": dream.pair.imagined_depth}.get(which)
    return None if codes is None else np.ascontiguousarray(codes[views, index], dtype="<u2").tobytes()


def _views(dream: Dream, camera: str) -> int | None:
    names = dream.shards.contract.camera_names
    return names.index(camera) if camera in names else None


def _columns(table: np.ndarray, mask: np.ndarray) -> list[list[float | None]]:
    return [column.tolist() if there else [None] * len(column) for column, there in zip(table.T, mask, strict=True)]

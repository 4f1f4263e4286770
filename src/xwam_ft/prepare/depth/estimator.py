"""What a source of depth is to `prepare`, and an estimator to a source: protocols, and what they say of themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from xwam_ft import depth_code

if TYPE_CHECKING:
    from jaxtyping import Float, UInt8, UInt16
    from numpy import ndarray

    from xwam_ft.prepare.embodiment.cameras import CameraPlan
    from xwam_ft.prepare.episode import Episode


class DepthStage(Protocol):
    """Opened once a process; never looks at two episodes at a time."""

    def read(
        self, episode: Episode, camera: CameraPlan, rows: Sequence[int], pictures: UInt8[ndarray, "n h w 3"]
    ) -> Float[ndarray, "n h2 w2"] | None:
        """Depth of `rows`, whose pictures at source resolution are given; None: this camera has none.

        Raises:
            EpisodeError: what should be there is not, or does not fit.
        """
        ...

    def coded(self, part: DepthPart, span: tuple[float, float]) -> tuple[UInt16[ndarray, "n h w"], ndarray] | None:
        """Metric depth as stored: codes between near and far (`span`), and the metres of every fourth row and column.

        None and errors as of `read`.
        """
        metres = self.fitted(part)
        return None if metres is None else (depth_code.metres_to_code(metres, *span), metres[:, ::4, ::4])

    def fitted(self, part: DepthPart) -> Float[ndarray, "n h w"] | None:
        """What `read` gives, made as large and turned as the stored pictures are."""
        depth = self.read(part.episode, part.camera, part.rows, part.pictures)
        return None if depth is None else part.fit(depth)


@dataclass(frozen=True)
class DepthPart:
    """Rows of one camera of one episode: arguments of `read`, and what its pixels go through to be stored."""

    episode: Episode
    camera: CameraPlan
    rows: Sequence[int]
    pictures: UInt8[ndarray, "m h2 w2 3"]
    fit: Callable[[ndarray], ndarray]  # single pixels of it, of any type


@dataclass(frozen=True)
class Description:
    """What an estimator gives, known before its weights are loaded.

    `fingerprint` covers all that its numbers depend on besides the pictures (weights, settings, libraries): a cached
    estimate is taken only under the same one. `prompted`: it completes recorded depth, and needs some.
    """

    metric: bool
    note: str  # how that is known, for the report
    fingerprint: str
    prompted: bool = False


class Estimator(Protocol):
    """Depth of single pictures."""

    def estimate(
        self,
        pictures: UInt8[ndarray, "n h w 3"],
        focal: float | None,
        prompt: Float[ndarray, "n h3 w3"] | None,
    ) -> Float[ndarray, "n h2 w2"]:
        """Metres, or inverse depth without a unit (larger = nearer), as its description says; NaN for none.

        Args:
            focal: fx of the camera in pixels of `pictures`, where it is known.
            prompt: recorded depth in metres, 0 = none; for prompted estimators alone.
        """
        ...


class EstimatorKind(Protocol):
    """What a module under the entry point group `xwam_ft.depth` offers; `argument` is what follows NAME: in --depth."""

    def describe(self, argument: str) -> Description: ...

    def open_estimator(self, argument: str) -> Estimator: ...

"""Recorded views that stand beside a camera's own: its depth, or the other picture of a stereo pair."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xwam_ft import media
from xwam_ft.prepare.episode import EpisodeError, VideoView

if TYPE_CHECKING:
    from xwam_ft.prepare.episode import Episode, View


def require_length(episode: Episode, source: str) -> View:
    """The view of that name, as long as the episode.

    Raises:
        EpisodeError: it was not recorded, or its video holds another number of frames.
    """
    view = episode.views.get(source)
    if view is None:
        raise EpisodeError(f"camera {source!r} was not recorded")
    if isinstance(view, VideoView) and not view.shared and (counted := media.count_frames(view.path)) != view.frames:
        raise EpisodeError(f"{view.path} holds {counted} frames, the table of the episode has {view.frames}")
    return view

"""LeRobot v2.0, v2.1 and v3.0: which of them lies here. What they share is lerobot_set.py.

Paths come from the templates in meta/info.json. Missing things have these fallbacks, all stated in the report:
    chunks_size              1000
    meta/episodes.jsonl      the parquet files that are there, numbered by their name
    meta/tasks.jsonl         the instructions in meta/episodes.jsonl
    column frame_index       rows in file order
    column episode_index     the whole file is the episode (v2), rows located by earlier lengths (v3)
    column timestamp         frame number / fps
    the mp4 (v2)             the pictures an interrupted recording left in images/KEY/episode_N/, where all are there
What meta does not list (a parquet, pictures of an unsaved episode) is given as an episode with a problem, so that it
stands among the rejected ones.
"""

from __future__ import annotations

from pathlib import Path

from xwam_ft.errors import UserError
from xwam_ft.prepare.sources import Source
from xwam_ft.prepare.sources.lerobot_meta import read_info, version_of
from xwam_ft.prepare.sources.lerobot_v2 import LeRobotV2
from xwam_ft.prepare.sources.lerobot_v3 import LeRobotV3

reads = "a LeRobot v2.0, v2.1 or v3.0 dataset (a folder with meta/info.json)"


def detect(path: Path) -> bool:
    return (path / "meta" / "info.json").is_file()


def read(path: Path) -> Source:
    """Open a LeRobot dataset; its version is its `codebase_version`, else its layout.

    Raises:
        UserError: meta/info.json is not one, lacks what locates the data, or has a version that is not supported.
    """
    meta = read_info(path)
    version = version_of(meta)
    third, second = ((path / "meta" / name).exists() for name in ("episodes", "episodes.jsonl"))
    if third != second and version[:1] in ("2", "3"):  # half-converted sets say a version that their files have not
        layout = "3.0" if third else "2.1"
        if layout[0] != version[0]:
            meta = {**meta, "said_version": version, "codebase_version": layout, "data_path": None, "video_path": None}
            version = layout
    if version.startswith("3") or (not version and third):
        return LeRobotV3(path, meta)
    if version.startswith("2") or not version:
        return LeRobotV2(path, meta)
    raise UserError(
        f"codebase_version is {version!r}; v2.0, v2.1 and v3.0 are read",
        path / "meta" / "info.json",
        "convert it with LeRobot's own scripts",
    )

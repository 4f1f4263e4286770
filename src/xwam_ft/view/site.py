"""What the page may ask for: an address -> an answer. Nothing else of the disk can be named.

/                                                        the page; page/NAME its parts
/api/view                                                what is shown
/api/episode/SET/EPISODE                                 its numbers
/film/SET/SEGMENT/CAMERA.mp4                             a segment's video, the very bytes of the shard
/picture/SET/EPISODE/FRAME/CAMERA.png                    a single picture
/depth/SET/EPISODE/FRAME/CAMERA.bin                      its depth as 16-bit codes
/points/SET/EPISODE/FRAME.bin                            what calibrated cameras see, as points
/files/set/SET/report.html, /files/run/..., /files/bundle/..., /files/results/N/...
/api/imagine (POST), /api/imagine/N                      begin to imagine; how far it is
/imagined/N/recorded|imagined/CAMERA/I.png, .bin         what came of it
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xwam_ft import depth_code
from xwam_ft.errors import UserError
from xwam_ft.view.imagining import Busy, Imagining, dream_codes, dream_picture
from xwam_ft.view.runs import result_files, result_summary, run_files, run_summary
from xwam_ft.view.server import Answer

if TYPE_CHECKING:
    from xwam_ft.view.episodes import WatchedSet

PAGE = Path(__file__).with_name("page")
KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".mp4": "video/mp4",
}
BINARY = "application/octet-stream"
COLOURS = 256
BUNDLE_PICTURE = "imagined.png"


class Site:
    """What is shown, by address.

    Args:
        target: as the person named it, and its kind: "shards", "run", "bundle" or "results".
        run, bundle: its folder, where it is one.
        notes: sentences on what is not shown and why.
    """

    def __init__(
        self,
        target: tuple[str, str],
        sets: Sequence[WatchedSet],
        *,
        run: Path | None = None,
        bundle: Path | None = None,
        results: Sequence[Path] = (),
        imagining: Imagining | None = None,
        why_no_imagining: str = "",
        notes: Sequence[str] = (),
    ) -> None:
        self.target, self.sets = target, {watched.token: watched for watched in sets}
        self.run, self.bundle, self.results = run, bundle, list(results)
        self.imagining, self.why_no_imagining, self.notes = imagining, why_no_imagining, list(notes)

    @cached_property
    def _routes(self) -> dict[str, Callable[[tuple[str, ...]], Answer | None]]:
        return {
            "page": self._page,
            "api": self._api,
            "film": self._film,
            "picture": self._picture,
            "depth": self._depth,
            "points": self._points,
            "files": self._file,
            "imagined": self._imagined,
        }

    def ask(self, path: tuple[str, ...]) -> Answer | None:
        """The answer to a GET; None: there is nothing at this address."""
        if path == ("",):
            return self._page(("index.html",))
        route = self._routes.get(path[0])
        return None if route is None else route(path[1:])

    def tell(self, path: tuple[str, ...], question: Any) -> Answer | None:
        """The answer to a POST: imagine {"set", "episode", "start"}."""
        if path != ("api", "imagine") or self.imagining is None:
            return None
        if not isinstance(question, dict) or not all(type(question.get(k)) is int for k in ("episode", "start")):
            return Answer.of({"error": "give set, episode and start"}, 400)
        try:
            dream = self.imagining.start(str(question.get("set")), question["episode"], question["start"])
        except Busy:
            return Answer.of({"error": "a clip is being imagined: wait until it is there"}, 409)
        return Answer.of(dream.told(), 202)

    def place_of_episode(self, number: int) -> str:
        """What to add to the page's address so that it begins with an episode.

        Raises:
            UserError: no shown set has it.
        """
        if not self.sets:
            raise UserError("no shard set is shown", "--episode", "leave it out, or give --shards SHARDS")
        token, watched = next(iter(self.sets.items()))
        watched.shards.episode(number)
        return f"#tab={token}&episode={number}"

    def view(self) -> dict[str, Any]:
        """All that the page shows at first."""
        name, kind = self.target
        codes = np.linspace(depth_code.FARTHEST, depth_code.NEAREST, COLOURS).round().astype(np.uint16)
        return {
            "target": name,
            "kind": kind,
            "notes": self.notes,
            "sets": [
                {**watched.summary(), "report": self._report(token, watched)} for token, watched in self.sets.items()
            ],
            "run": None if self.run is None else run_summary(self.run),
            "bundle": None if self.bundle is None else self._bundle(self.bundle),
            "results": [result_summary(f, f"files/results/{index}") for index, f in enumerate(self.results)],
            "imagines": self.imagining is not None,
            "policy": None if self.imagining is None else self.imagining.source.name,
            "why_no_imagining": self.why_no_imagining,
            "colours": depth_code.colour(codes).tolist(),
        }

    def _report(self, token: str, watched: WatchedSet) -> str | None:
        return f"files/set/{token}/report.html" if (watched.shards.folder / "report.html").is_file() else None

    def _bundle(self, folder: Path) -> dict[str, Any]:
        picture = f"files/bundle/{BUNDLE_PICTURE}" if (folder / BUNDLE_PICTURE).is_file() else None
        card = folder / "README.md"
        text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
        return {"folder": str(folder), "name": folder.absolute().name, "picture": picture, "card": text}

    def _page(self, path: tuple[str, ...]) -> Answer | None:
        known = {file.name: file for file in PAGE.iterdir() if file.suffix in KINDS}
        file = known.get(path[0]) if len(path) == 1 else None
        return None if file is None else Answer(KINDS[file.suffix], file.read_bytes())

    def _api(self, path: tuple[str, ...]) -> Answer | None:
        match path:
            case ("view",):
                return Answer.of(self.view())
            case ("episode", token, number) if (watched := self.sets.get(token)) and (
                at := _number(number)
            ) is not None:
                return Answer.of(watched.episode(at))
            case ("imagine", number) if self.imagining and (at := _number(number)) is not None:
                dream = self.imagining.get(at)
                return None if dream is None else Answer.of(dream.told())
            case _:
                return None

    def _film(self, path: tuple[str, ...]) -> Answer | None:
        if len(path) != 3 or path[0] not in self.sets or not path[2].endswith(".mp4"):
            return None
        place = self.sets[path[0]].film(path[1], path[2].removesuffix(".mp4"))
        return None if place is None else Answer(KINDS[".mp4"], place, lasting=True)

    def _moment(self, path: tuple[str, ...], ending: str) -> tuple[WatchedSet, int, int, str] | None:
        """SET/EPISODE/FRAME/CAMERA.ending, where it is one that exists."""
        if len(path) != 4 or path[0] not in self.sets or not path[3].endswith(ending):
            return None
        number, frame, camera = _number(path[1]), _number(path[2]), path[3].removesuffix(ending)
        if number is None or frame is None or camera not in self.sets[path[0]].contract.camera_names:
            return None
        return self.sets[path[0]], number, frame, camera

    def _picture(self, path: tuple[str, ...]) -> Answer | None:
        if (found := self._moment(path, ".png")) is None:
            return None
        watched, number, frame, camera = found
        return Answer(KINDS[".png"], watched.picture(number, frame, camera), lasting=True)

    def _depth(self, path: tuple[str, ...]) -> Answer | None:
        if (found := self._moment(path, ".bin")) is None:
            return None
        watched, number, frame, camera = found
        codes = np.ascontiguousarray(watched.codes(number, frame, camera), dtype="<u2")
        return Answer(BINARY, codes.tobytes(), lasting=True)

    def _points(self, path: tuple[str, ...]) -> Answer | None:
        if len(path) != 3 or path[0] not in self.sets or not path[2].endswith(".bin"):
            return None
        number, frame = _number(path[1]), _number(path[2].removesuffix(".bin"))
        if number is None or frame is None:
            return None
        return Answer(BINARY, self.sets[path[0]].points(number, frame), lasting=True)

    def _file(self, path: tuple[str, ...]) -> Answer | None:
        """A file that is listed, by its name in the list: no part of an address is ever made a path."""
        name = "/".join(path)
        for known, file in self._files():
            if known == name and file.is_file():
                return Answer(KINDS[file.suffix], (file, 0, file.stat().st_size))
        return None

    def _files(self) -> Iterator[tuple[str, Path]]:
        for token, watched in self.sets.items():
            yield f"set/{token}/report.html", watched.shards.folder / "report.html"
        if self.run is not None:
            yield from ((f"run/{name}", file) for name, file in run_files(self.run))
        if self.bundle is not None:
            yield f"bundle/{BUNDLE_PICTURE}", self.bundle / BUNDLE_PICTURE
        for index, folder in enumerate(self.results):
            yield from ((f"results/{index}/{name}", file) for name, file in result_files(folder))

    def _imagined(self, path: tuple[str, ...]) -> Answer | None:
        if len(path) != 4 or self.imagining is None or (number := _number(path[0])) is None:
            return None
        dream, (index, _, ending) = self.imagining.get(number), path[3].partition(".")
        at = _number(index)
        if dream is None or at is None or ending not in ("png", "bin"):
            return None
        made = dream_picture if ending == "png" else dream_codes
        data = made(dream, path[1], path[2], at)
        return None if data is None else Answer(KINDS[".png"] if ending == "png" else BINARY, data)


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else None

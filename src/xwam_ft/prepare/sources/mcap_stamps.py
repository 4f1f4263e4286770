"""When a message was made, by its header, against when it was logged.

A camera's picture is logged when it has been exposed, read out, compressed and sent: by its log time it lies behind the
joints. So messages are placed by their stamp where it can be believed: every one has it, it goes forward, it covers the
time the log covers, and lies up to `LATEST` before the log. Where none fits the log and all fit each other (a file that
was converted, a recorder with a clock of its own), they are believed too. Otherwise log time holds.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from xwam_ft.prepare.episode import EpisodeError
from xwam_ft.prepare.sources import mcap_messages as messages
from xwam_ft.prepare.sources.mcap_index import Topic, read_messages

if TYPE_CHECKING:
    from pathlib import Path

    from jaxtyping import Float, Int
    from numpy import ndarray

LATEST = 1.0  # s from the stamp to the log, in the median; more is another clock
EARLY = 0.05  # s by which a stamp may lie behind its log: clocks of two machines that are kept together
FORWARD = 0.98  # share of steps from one stamp to the next that go forward
SPAN = 0.05  # of the logged time, by which the stamps' may differ
FIRST_FIELD = re.compile(r"(?:std_msgs/(?:msg/)?Header\s+\w+|builtin_interfaces/(?:msg/)?Time\s+(?:time)?stamp)\b")
ENCAPSULATION, STAMP = 4, struct.Struct("<iI")


def by_stamp(paths: tuple[Path, ...], topics: Mapping[str, Topic]) -> tuple[dict[str, Topic], list[str]]:
    """The topics with the times they are to be aligned by, and what is to be said about them."""
    stamps = _stamps(paths, topics)
    behind = {name: (topics[name].times - made) * 1e-9 for name, made in stamps.items()}  # s
    forward = {name: made for name, made in stamps.items() if _goes_forward(made)}
    good = {name for name, made in forward.items() if _fits(made, topics[name].times)}
    apart = [float(np.median(behind[name])) for name in forward]
    alone = not good and len(topics) == len(forward) > 0
    shared = alone and max(apart) - min(apart) <= LATEST and _overlap(list(forward.values()))
    used = set(forward) if shared else good
    found = dict(topics)
    for name in used:
        order = np.argsort(stamps[name], kind="stable")
        found[name] = replace(topics[name], times=stamps[name][order], places=topics[name].places[order])
    notes: list[str] = []
    if used:
        late = ", ".join(f"{name} {_lateness(behind[name])}" for name in sorted(used))
        notes.append(f"aligned by the stamps in the messages' headers, which come before the log: {late}")
    for name in sorted(set(stamps) - used):
        what = f"{np.median(behind[name]):.3g} s before the log" if name in forward else "not steadily forward"
        notes.append(f"the stamps of {name} go {what}, so its log times are used")
    return found, notes


def _lateness(behind: Float[ndarray, " n"]) -> str:
    return f"{np.median(behind) * 1e3:.0f} ms (up to {behind.max() * 1e3:.0f} ms)"


def _goes_forward(made: Int[ndarray, " n"]) -> bool:
    return bool((made > 0).all()) and (len(made) < 2 or float(np.mean(np.diff(made) > 0)) >= FORWARD)


def _fits(made: Int[ndarray, " n"], logged: Int[ndarray, " n"]) -> bool:
    behind = float(np.median(logged - made)) * 1e-9
    lasted, said = ((times[-1] - times[0]) * 1e-9 for times in (logged, made))
    return -EARLY <= behind <= LATEST and abs(said - lasted) <= max(SPAN * lasted, LATEST)


def _overlap(parts: list[Int[ndarray, " n"]]) -> bool:
    """Whether topics of more than one message have a time in common."""
    lasting = [made for made in parts if len(made) > 1]
    return bool(lasting) and max(made.min() for made in lasting) < min(made.max() for made in lasting)


def _stamps(paths: tuple[Path, ...], topics: Mapping[str, Topic]) -> dict[str, Int[ndarray, " n"]]:
    """The stamps of every topic that has any, ns; one pass over the file, each chunk opened once."""
    readers = {name: _stamp_reader(topic) for name, topic in topics.items()}
    names = [name for name, read in readers.items() if read is not None and len(topics[name].times)]
    try:  # what has no stamp in a few messages has none
        names = [n for n in names if any(readers[n](m) for m in read_messages(paths, topics[n].places[:3]))]  # pyright: ignore[reportOptionalCall]
        if not names:
            return {}
        owner = np.concatenate([np.full(len(topics[name].times), i) for i, name in enumerate(names)])
        row = np.concatenate([np.arange(len(topics[name].times)) for name in names])
        places = np.concatenate([topics[name].places for name in names])
        order = np.lexsort((places[:, 2], places[:, 1], places[:, 0]))
        found = {name: np.zeros(len(topics[name].times), dtype=np.int64) for name in names}
        for at, message in zip(order.tolist(), read_messages(paths, places[order]), strict=True):
            name = names[int(owner[at])]
            read = readers[name]
            found[name][row[at]] = 0 if read is None else read(message)
    except EpisodeError:
        return {}  # reading the messages themselves says what is wrong
    return found


def _stamp_reader(topic: Topic) -> Any:
    """Bytes of a message -> its stamp in ns, 0 where there is none; None where its kind has none."""
    if topic.encoding == "json":
        decode = messages.decoder_of(topic)
        return lambda message: _stamp_of(decode(message))
    fields = (line.split("#", 1)[0].strip() for line in topic.schema_data.decode("utf-8", "replace").splitlines())
    first = next((line for line in fields if line), "")
    return _first_stamp if topic.encoding == "cdr" and FIRST_FIELD.match(first) else None


def _first_stamp(message: bytes) -> int:
    if len(message) < ENCAPSULATION + STAMP.size:
        return 0
    form = STAMP if message[1] & 1 else struct.Struct(">iI")
    seconds, nanoseconds = form.unpack_from(message, ENCAPSULATION)
    return seconds * 10**9 + nanoseconds


def _stamp_of(message: messages.Message) -> int:
    header = message.get("header")
    stamp = header.get("stamp") if isinstance(header, dict) else message.get("timestamp")
    if not isinstance(stamp, dict):
        return 0
    seconds = stamp.get("sec", stamp.get("secs", 0))
    nanoseconds = stamp.get("nanosec", stamp.get("nsec", stamp.get("nsecs", 0)))
    return int(seconds) * 10**9 + int(nanoseconds) if all(isinstance(n, int) for n in (seconds, nanoseconds)) else 0

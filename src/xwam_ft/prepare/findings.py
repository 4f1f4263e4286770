"""Findings: what the linter has to say about a recording, each with the name of its check, a severity and a sentence.

error     the episode cannot be used, or is certainly wrong: it is rejected into rejected.jsonl
warning   it is probably wrong, or will teach something that is not meant; it goes on
note      worth knowing
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from xwam_ft.prepare.episode import EpisodeError

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")

# Every check by name, and what to do about what it finds.
CHECKS = {
    "unreadable-recording": "copy the file again from where it was recorded; where it is lost, leave the episode out",
    "missing-camera": "record it, or leave the camera out of the embodiment file",
    "length-mismatch": "video and table must hold as many frames; cut or record the episode again",
    "too-short": "record longer episodes, or choose a smaller frame_skip",
    "mostly-padded": "choose a smaller clip_frames or frame_skip, or record longer episodes",
    "missing-column": "record it, or leave it out of the slot",
    "not-a-number": "mend the numbers, or leave the episode out; a learner cannot skip single numbers",
    "wrong-unit": "mend `units` of the slot, or convert the episodes that were recorded in another unit",
    "other-range": "look at these episodes: another unit, calibration or gripper; convert them, or leave them out",
    "exchanged-columns": "look which of the two has its columns in another order than their names say; give them their "
    "right names (of LeRobot: `names` in meta/info.json), and prepare it again",
    "not-read": "nothing where it is no recording; else put it where the dataset's list has it, or add it to the list",
    "reader-note": "nothing needs to be done where this is what you expect",
    "time-missing": "nothing needs to be done where the rate was steady",
    "time-backwards": "sort the frames by time, or record the episode again",
    "dropped-frames": "the motion jumps there; record without drops, or cut the episode",
    "jittered-time": "resample pictures and numbers to a steady rate",
    "wrong-rate": "write the true frames per second into the recording's metadata",
    "failed-reads": "remove the episode, or fill the failed reads before recording is finished",
    "outside-limits": "look at `signs`, `zeros`, `units`, the columns' order and the URDF's version: the poses that "
    "are computed from such joints are another place's",
    "jump": "look at the frame: a slipped encoder, a failed read or a re-homed arm teaches a motion that never was",
    "angle-wrap": "unwrap the angle, so that it does not turn back by a full turn within one frame",
    "still": "leave the slot out where it is not part of the task",
    "idle-start": "cut the starts; or leave clips in which nothing moves out of training, "
    "`--set data.still_weight=0`, or show them less, `=0.1`",
    "still-gripper": "leave the gripper out where the task needs none; else look at its column",
    "gripper-range": "give `gripper_open` and `gripper_closed` in the state's numbers; where commands are another "
    'quantity (an effort, say), state it with `command_units: "1"`, else bring both into one unit',
    "gripper-sense": "swap `gripper_open` and `gripper_closed`, or turn the commands round in the recordings; where "
    'commands are another quantity (an effort, say), state it with `command_units: "1"`',
    "missing-instruction": "add `instruction:` to the embodiment file",
    "placeholder-instruction": "write what the robot does into the recordings' tasks, or, where all do the same, add "
    "`instruction:` to the embodiment file",
    "other-instruction": "look which of the two the pictures show, and write it into both (of LeRobot: `task_index` of "
    "the rows, and `tasks` in meta/episodes)",
    "several-instructions": "cut the episode where the task changes",
    "many-wordings": "nothing needs to be done: each one kept costs memory and disk for its embedding",
    "black-camera": "look at the camera's cable and exposure; leave the camera out where it stays black",
    "blank-camera": "look at the camera's exposure and cable, and whether the video plays: a white, green or grey "
    "picture shows nothing; leave the camera out where it stays so",
    "frozen-camera": "the driver repeated pictures while the robot moved; record again, or cut the episode",
    "swapped-camera": "the cameras' files or plugs were exchanged; rename them",
    "other-pictures": "turn or mirror the videos of one as those of the other are (ffmpeg -vf hflip,vflip, -vf "
    "hflip or -vf vflip), and prepare it again",
    "same-pictures": "two cameras of the embodiment file show the same pictures; mend `source`",
    "other-size": "record every episode at one size; what differs is stretched to the same size",
    "quaternion-sign": "nothing needs to be done for new weights; X-WAM's weights know w >= 0 alone: keep it with "
    "`quaternion: w_positive` in the slot, and mind the jumps, or choose a tool frame that is turned half around",
    "aspect-changed": "nothing needs to be done: the policy does the same to live pictures; choose `image` of the "
    "camera's aspect where shapes matter",
    "depth-holes": "look at the depth sensor's range, or estimate depth instead",
    "depth-range": "mend `unit` of the recorded depth, or `depth_range` of the camera: what is outside is a wall there",
    "depth-drift": "the unit or calibration of depth changed between episodes; record or convert them alike",
    "camera-calibration": "measure intrinsics and camera pose again; OpenCV axes, camera in the base frame",
    "delta-commands": "the recorded actions are changes, not targets; say so, or write `command: next_state`",
    "next-state-commands": "nothing needs to be done; the force with which the robot pushes is not in such commands",
    "copied-commands": "commands that repeat the present state say nothing about what comes; use `command: next_state`",
    "unfollowed-command": "look for a column that was not recorded, is exchanged with another or inverted; mend it, or "
    "leave these episodes out",
    "wrong-changes": "mend `command_units`, `command_scale`, `delta` or the order of `command_columns`; or write "
    "`command: next_state`, which does without recorded changes",
    "late-commands": "move the actions up by so many rows, so that each stands with the picture it was given at; or "
    "write `command: next_state`, which does without them",
    "offset-commands": "commands and states must have one zero and be of one point (leader and follower, flange and "
    "tool, the order of a quaternion): convert one of them, or write `command: next_state`, which does without "
    "recorded commands",
    "unrelated-commands": "look at the order and units of `command_columns`",
    "near-constant": "leave the slot out where it is not part of the task, so that its noise is not learned",
    "heavy-tails": "look for outliers; where they are real, more training episodes should hold them",
    "duplicate-episode": "remove one of them: held-out numbers mean nothing where training saw the same episode",
    "duplicate-pictures": "one of them has another's video; restore the file",
}

OF_DATASET = ("not-read",)  # about the dataset as a whole
OF_TRAINING = ("near-constant", "heavy-tails")  # about all training episodes together


@dataclass(frozen=True)
class Finding:
    """One thing one check found in one episode.

    `subject` is the camera, slot or column it is about: findings of one check and subject are shown together.
    `camera` and `frame` say which picture shows it; `fix` what to do, where `CHECKS` does not say it for this one.
    """

    check: str
    severity: Severity
    text: str
    subject: str = ""
    camera: str | None = None
    frame: int | None = None
    fix: str = ""

    def __post_init__(self) -> None:
        assert self.check in CHECKS, self.check

    @property
    def remedy(self) -> str:
        return self.fix or CHECKS[self.check]

    @property
    def sentence(self) -> str:
        """What was found and what to do about it."""
        return f"{self.text}{' ' if self.text.endswith('?') else '; '}{self.remedy}"


class Rejected(EpisodeError):
    """Errors among the findings of an episode."""

    def __init__(self, findings: list[Finding]) -> None:
        self.findings = findings
        super().__init__("; ".join(dict.fromkeys(f.text for f in findings if f.severity == "error")))


@dataclass(frozen=True)
class FindingGroup:
    """The findings of one check about one subject and with one remedy, over episodes in order."""

    check: str
    severity: Severity
    subject: str
    found: tuple[tuple[int, Finding], ...]  # episode number, finding

    @property
    def fix(self) -> str:
        return self.found[0][1].remedy

    @property
    def episodes(self) -> list[int]:
        return list(dict.fromkeys(number for number, _ in self.found))

    @property
    def of_dataset(self) -> bool:
        """Whether it is about the dataset as a whole, and stands with its first episode for want of another place."""
        return self.check in OF_DATASET

    @property
    def texts(self) -> dict[str, list[int]]:
        """Each different sentence with the episodes it was said of."""
        said: dict[str, list[int]] = {}
        for number, finding in self.found:
            said.setdefault(finding.text, []).append(number)
        return said

    @property
    def summary(self) -> str:
        """The first sentence; of how many others like it."""
        texts = list(self.texts)
        others = f" (and {len(texts) - 1} like it)" if len(texts) > 1 else ""
        return texts[0] + others


def reject_errors(findings: list[Finding]) -> list[Finding]:
    """The findings, where none is an error.

    Raises:
        Rejected: with all of them.
    """
    if any(finding.severity == "error" for finding in findings):
        raise Rejected(findings)
    return findings


def grouped(findings: Iterable[tuple[int, Finding]]) -> list[FindingGroup]:
    """Findings with their episode's number -> groups, errors first, then by the order of `CHECKS`."""
    groups: dict[tuple[Severity, str, str, str], list[tuple[int, Finding]]] = {}
    for number, finding in sorted(findings, key=lambda pair: pair[0]):
        groups.setdefault((finding.severity, finding.check, finding.subject, finding.fix), []).append((number, finding))
    order = list(CHECKS)
    ranked = sorted(groups, key=lambda key: (SEVERITIES.index(key[0]), order.index(key[1]), *key[2:]))
    return [FindingGroup(key[1], key[0], key[2], tuple(groups[key])) for key in ranked]


def can_be_dropped(group: FindingGroup, groups: Iterable[FindingGroup], kept: set[int]) -> bool:
    """Whether `xwam-ft shards drop --finding` of it would take some of the kept episodes, and leave some."""
    marked = {number for other in groups if other.check == group.check for number in other.episodes} & kept
    of_some = group.severity == "warning" and group.check not in (*OF_DATASET, *OF_TRAINING)
    return of_some and bool(marked) and marked < kept


def problem_findings(problems: Iterable[str]) -> list[Finding]:
    """What was found while an episode's files were located, each an error."""
    return [
        Finding("unreadable-recording", "error", str(text), getattr(text, "camera", ""), fix=getattr(text, "fix", ""))
        for text in problems
    ]


def shape_of(reason: str) -> str:
    """A reason without its numbers: of many episodes with one fault, one is told in full."""
    return re.sub(r"\d+", "#", reason)


Names = Mapping[int, tuple[str, int]]
"""Number in the shard set -> the dataset's name, and the episode's own number in it: what is told to people."""


class Numbered(Protocol):
    """What an episode came to, with both of its numbers."""

    number: int
    index: int
    dataset: str


def names_of(results: Iterable[Numbered]) -> Names:
    """By number in the shard set, how people know an episode."""
    return {result.number: (result.dataset, result.index) for result in results}


def episodes_text(numbers: Iterable[int], names: Names) -> str:
    """ "episodes 0-2, 65", by their datasets where the set is made of several: "a: episode 0; b: episodes 0-2"."""
    of: dict[str, list[int]] = {}
    for number in numbers:
        dataset, own = names[number]
        of.setdefault(dataset, []).append(own)
    several = len({dataset for dataset, _ in names.values()}) > 1
    return "; ".join(
        (f"{dataset}: " if several else "") + f"episode{'s' if len(own) > 1 else ''} {numbers_text(own)}"
        for dataset, own in of.items()
    )


def numbers_text(numbers: list[int], limit: int = 12) -> str:
    """[0, 1, 2, 5] -> "0-2, 5"; cut after `limit` runs."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    texts = [str(first) if first == last else f"{first}-{last}" for first, last in runs]
    return ", ".join(texts[:limit]) + (f" and {len(texts) - limit} more runs" if len(texts) > limit else "")

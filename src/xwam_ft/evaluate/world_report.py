"""What `--world` measured, for people: tables with a sentence each, plots by horizon, a clip under other actions."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from xwam_ft.evaluate.actions_check import CANDIDATES, RIVALS, sentence
from xwam_ft.evaluate.fidelity import PREDICTORS
from xwam_ft.evaluate.open_loop import figure
from xwam_ft.evaluate.pictures import contact_sheet

if TYPE_CHECKING:
    from xwam_ft.evaluate.world import World

SCORES = {
    "psnr": ("PSNR", "dB"),
    "psnr_moving": ("PSNR, what moves", "dB"),
    "ssim": ("SSIM", ""),
    "ssim_moving": ("SSIM, what moves", ""),
    "lpips": ("LPIPS", ""),
    "abs_rel": ("depth AbsRel", ""),
    "delta1": ("depth delta1", ""),
    "rmse": ("depth RMSE", "m"),
}
"""Score -> its name and unit, as people read it."""
HIGHER_IS_BETTER = ("psnr", "psnr_moving", "ssim", "ssim_moving", "delta1")
ACTIONS = {"recorded": "recorded", "own": "its own", "reversed": "reversed", "other_clip": "another clip's"}
FAR = 1.5  # times what was recorded: an imagined state that lies farther from its command is named
COLUMNS = 5


@dataclass(frozen=True)
class Judgement:
    """A table with a header row; `words` of its columns are words; `says` is what it means and when to worry."""

    title: str
    rows: list[list[str]]
    words: int
    says: list[str]


def sections(metrics: Mapping[str, Any]) -> list[Judgement]:
    """Of metrics.json; none where the world model was not judged."""
    found = metrics.get("world")
    if found is None:
        return []
    judged = [_horizon(found), _actions(found), _follows(found), _calibration(found)]
    return judged + [made for made in (_geometry(found), _flicker(found)) if made is not None]


def _horizon(found: Mapping[str, Any]) -> Judgement:
    rows = [["score", "of", *(f"+{second:.2f} s" for second in found["horizon_seconds"]), "all"]]
    names = {"imagined": "imagined", "repeat_first_frame": "last picture repeated"}
    for score, curves in found["by_horizon"].items():
        for predictor in PREDICTORS:
            name, unit = SCORES[score]
            values = [*curves[predictor], found["scores"]["all"][score][predictor]]
            rows.append([f"{name} [{unit}]" if unit else name, names[predictor], *map(figure, values)])
    return Judgement(
        f"imagined future by horizon, over {found['clips']} clips",
        rows,
        2,
        [
            _horizon_sentence(found["scores"]["all"]),
            *([] if "lpips" in found["by_horizon"] else ["LPIPS was not measured: --lpips FILE names its weights."]),
        ],
    )


def _horizon_sentence(scores: Mapping[str, Any]) -> str:
    beaten = [
        (ours > still) == (name in HIGHER_IS_BETTER)
        for name, row in scores.items()
        if (ours := row["imagined"]) is not None and (still := row["repeat_first_frame"]) is not None and ours != still
    ]
    head = f"Better than repeating the last picture in {sum(beaten)} of {len(beaten)} scores."
    return (
        f"{head} Repeating is good in whole pictures, most of which stand still, and bad by choice in what moves: "
        "worry where what moves is no better than repeated, or falls to it within the first frames."
    )


def _actions(found: Mapping[str, Any]) -> Judgement:
    actions = found["actions"]
    rows = [["imagined under actions that are", "unit", *ACTIONS.values()]]
    picture = actions["pictures"]["psnr_moving"]
    rows.append([SCORES["psnr_moving"][0], "dB", *(figure(picture[name]) for name in CANDIDATES)])
    closer = actions["pictures"]["closer_db"]
    rows.append(["recorded ones are nearer by", "dB", "", *(_spanned(closer[name]) for name in RIVALS)])
    for slot, quantities in actions["state_errors"].items():
        for name, row in quantities.items():
            unit = "" if row["unit"] == "1" else row["unit"]
            rows.append([f"{slot} {name}, error", unit, *(figure(row[name]) for name in CANDIDATES)])
    for what, entry in (("pictures", actions["pictures"]), ("states", actions["states"])):
        beats = [_percent(entry["beats"].get(name)) if name != "recorded" else "" for name in CANDIDATES]
        rows.append([f"{what}: recorded ones are nearer than", "% of clips", *beats])
    says = [sentence(actions["pictures"], "video") + ".", sentence(actions["states"], "states") + "."]
    for name in ("pictures", "states"):
        if (rank := actions[name]["mean_rank"]) is not None:
            says.append(
                f"Mean rank of the recorded actions among the three given, {name}: {rank:.2f}"
                f"{_interval(actions[name])}; 1 is always nearest, {actions[name]['chance_rank']:.0f} is chance."
            )
    return Judgement("does the future follow the actions?", rows, 2, says)


def _follows(found: Mapping[str, Any]) -> Judgement:
    rows = [["state beside the command before it", "unit", "imagined", "recorded"]]
    far: list[str] = []
    for slot, quantities in found["follows"].items():
        for name, row in quantities.items():
            if row["imagined"] is None:
                continue
            unit = "" if row["unit"] == "1" else row["unit"]
            rows.append([f"{slot} {name}", unit, figure(row["imagined"]), figure(row["recorded"])])
            if row["recorded"] is not None and row["imagined"] > FAR * row["recorded"]:
                far.append(f"{slot} {name}")
    says = (
        "How far imagined states lie from the policy's own commands, beside how far the robot's were from the "
        "operator's (a robot lags behind, so that is not 0). Worry where the first is much larger: what the policy "
        f"imagines is then not what it commands. {'Larger here: ' + ', '.join(far) if far else 'Not so here'}."
    )
    return Judgement("do imagined states go where its commands send them?", rows, 2, [says])


def _calibration(found: Mapping[str, Any]) -> Judgement:
    rows = [["spread of samples against error", "rank correlation", "95 % interval", "error / spread"]]
    sure: list[str] = []
    for name, row in found["calibration"].items():
        low, high = row["interval_95"] or (None, None)
        interval = "–" if low is None or high is None else f"{low:.2f} to {high:.2f}"
        rank = "–" if row["spearman"] is None else f"{row['spearman']:.2f}"
        rows.append([name, rank, interval, figure(row["ratio"])])
        if low is not None and low > 0:
            sure.append(name)
    told = f"It does of {' and '.join(sure)}" if sure else "No proof of it here"
    says = (
        f"Of {found['samples']} samples a clip: where they differ more, is the policy more wrong? {told} (an interval "
        "above 0); where it is not so, their spread is no warning. Error / spread is 1 where the recorded future is "
        "like one more sample; far above 1 the policy is too sure of itself."
    )
    return Judgement("does it know when it does not know?", rows, 1, [says])


GEOMETRY = {
    "chamfer": "distance of fused clouds [mm]",
    "f_score": "F-score of fused clouds",
    "agree": "points that another camera sees where they are [%]",
    "in_front": "points that another camera looks through [%]",
}
SCALES = {"chamfer": 1000, "agree": 100, "in_front": 100}
BESIDE = {
    "imagined": "imagined",
    "repeat_first_frame": "last picture repeated",
    "recorded": "recorded depth",
}


def _geometry(found: Mapping[str, Any]) -> Judgement | None:
    table = found.get("geometry", {"made": False})
    if not table["made"]:
        return None
    rows = [["geometry", "of", *(f"+{second:.2f} s" for second in found["horizon_seconds"]), "all"]]
    for score, curves in table["by_horizon"].items():
        scale = SCALES.get(score, 1)
        for predictor, curve in curves.items():
            values = [*curve, table["scores"][score][predictor]]
            shown = [figure(None if value is None else scale * value) for value in values]
            rows.append([GEOMETRY[score], BESIDE[predictor], *shown])
    says = [
        "Depth of all calibrated cameras as one cloud in the robot's frame; the F-score counts points within "
        f"{1000 * table['within']:.0f} mm. Worry where repeating the last picture is nearer: how the scene changes is "
        "then not imagined."
    ]
    if "agree" in table["scores"]:
        says.append(
            f"Points of one camera, seen by another (within {100 * table['tolerance']:.0f} % of depth): recorded depth "
            "says how far cameras can agree. Worry where the imagined one falls far below: the cameras then imagine "
            "different scenes, or one knows nothing of where it stands."
        )
    return Judgement("is what it imagines one scene?", rows, 2, says)


def _flicker(found: Mapping[str, Any]) -> Judgement | None:
    table = found.get("flicker", {"imagined": None})
    if table["imagined"] is None:
        return None
    rows = [["", "imagined", "recorded"]]
    rows.append(["grey levels to and fro, where nothing moves", figure(table["imagined"]), figure(table["recorded"])])
    says = (
        "How much still pixels alternate from frame to frame; noise of the camera and the codec do as well. Worry "
        "where the imagined is several times the recorded: frames then do not hang together, and what moves is not "
        "to be trusted."
    )
    return Judgement("does it flicker?", rows, 1, [says])


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.0f}"


def _spanned(entry: Mapping[str, Any]) -> str:
    mean, found = entry["mean"], entry["interval_95"]
    return "–" if mean is None else f"{mean:.2f}" + ("" if found is None else f" ({found[0]:.2f} to {found[1]:.2f})")


def _interval(entry: Mapping[str, Any]) -> str:
    found = entry["mean_rank_interval_95"]
    return "" if found is None else f" (95 % interval {found[0]:.2f} to {found[1]:.2f})"


def world_curves(metrics: Mapping[str, Any]) -> list[tuple[str, dict[str, Sequence[float | None]]]]:
    """A panel a score: its title and a line a predictor."""
    return [
        (f"{SCORES[score][0]}{f' [{SCORES[score][1]}]' if SCORES[score][1] else ''}", dict(curves))
        for score, curves in metrics["world"]["by_horizon"].items()
    ]


def sheet(found: World, cameras: Sequence[str]) -> bytes:
    """PNG: one clip, recorded and imagined under each of the actions."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(contact_sheet(found.rows, cameras, found.notes, COLUMNS)).save(buffer, format="PNG")
    return buffer.getvalue()

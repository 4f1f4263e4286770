"""The report of a GPU day: one page that needs no network, and the same as JSON."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from jinja2 import Environment

from xwam_ft.files import read_json, write_json_atomic, write_text_atomic

SCHEMA_VERSION = 1
TEMPLATE = Path(__file__).with_name("gpu_report.html.jinja")
TITLES = {
    "machine": "Machine and libraries",
    "text": "Text encoder",
    "vae": "VAE",
    "memory": "Memory: counted against measured",
    "precision": "Precision",
    "steps": "Training steps",
    "compile": "Compilation",
    "attention": "Attention kernels",
    "policy": "Policy latency",
    "quantised": "Quantised bases",
    "export": "Export",
    "devices": "Self-check across devices",
    "ranks": "Two processes",
    "job": "The whole job",
}
NOT_RUN = {"status": "not run yet", "reason": "run the same command again", "seconds": 0.0, "tables": [], "says": []}


def write_report(out: Path, names: list[str]) -> dict[str, Any]:
    """Write report.json and report.html of what is measured so far; returns what the former holds."""
    parts = {
        name: read_json(place) if (place := out / "parts" / f"{name}.json").is_file() else NOT_RUN for name in names
    }
    day = read_json(out / "day.json")
    day = scrubbed(day, out, day["weights"])  # a path says more of a person than of a machine
    report = {
        "schema_version": SCHEMA_VERSION,
        "made": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "day": day,
        "parts": parts,
    }
    write_json_atomic(out / "report.json", report)
    write_text_atomic(out / "report.html", page(report))
    return report


def page(report: dict[str, Any]) -> str:
    """report.html as text."""
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["figure"] = shown
    parts = report["parts"]
    said = [(name, line) for name, part in parts.items() for line in part["says"]]
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        report=report,
        day=report["day"],
        titles=TITLES,
        parts=parts,
        said=said,
        missing=[(name, part) for name, part in parts.items() if part["status"] != "measured"],
        count={status: sum(p["status"] == status for p in parts.values()) for status in ("measured", "failed")},
        minutes=sum(part["seconds"] for part in parts.values()) / 60,
    )


def shown(cell: Any) -> str:
    """A cell as it is read: three digits that count, yes and no, sentences as they are."""
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, int):
        return f"{cell:,}"
    if not isinstance(cell, float):
        return str(cell)
    return f"{cell:,.0f}" if abs(cell) >= 1000 else f"{cell:.3g}"


def scrubbed(value: Any, out: Path, weights: str | None) -> Any:
    """What a part has found without the paths of a person's machine, in any of its sentences."""
    if isinstance(value, dict):
        return {key: scrubbed(inner, out, weights) for key, inner in value.items()}
    if isinstance(value, list):
        return [scrubbed(inner, out, weights) for inner in value]
    if not isinstance(value, str):
        return value
    if weights and Path(weights).is_dir():
        for path in (str(Path(weights).absolute()), *([weights] if "/" in weights else [])):
            value = value.replace(path, Path(weights).absolute().name)
    return value.replace(str(out), "OUT").replace(str(Path.home()), "~")

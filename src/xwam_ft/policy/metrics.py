"""What a server counts, as Prometheus reads it (text format 0.0.4)."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field

import numpy as np

QUANTILES = (0.5, 0.9, 0.99)
KEPT = 2048
"""Latencies quantiles are taken of: the last ones."""
RESULTS = ("answered", "refused", "failed")


@dataclass
class Latency:
    """Seconds of the last requests, and of all together."""

    last: deque[float] = field(default_factory=lambda: deque[float](maxlen=KEPT))
    total: float = 0.0
    count: int = 0

    def add(self, seconds: float) -> None:
        self.last.append(seconds)
        self.total += seconds
        self.count += 1


@dataclass
class Metrics:
    """Counts of one server; changed on its event loop alone."""

    requests: Counter[str] = field(default_factory=lambda: Counter[str]())
    connections: int = 0
    waiting: int = 0
    infer: Latency = field(default_factory=Latency)
    whole: Latency = field(default_factory=Latency)

    def text(self) -> str:
        lines = [
            "# HELP xwam_ft_requests_total Requests by how they ended; refused is the client's fault, failed ours.",
            "# TYPE xwam_ft_requests_total counter",
            *(f'xwam_ft_requests_total{{result="{name}"}} {self.requests[name]}' for name in RESULTS),
            "# HELP xwam_ft_connections Clients connected.",
            "# TYPE xwam_ft_connections gauge",
            f"xwam_ft_connections {self.connections}",
            "# HELP xwam_ft_waiting Requests not yet answered, the one at work included.",
            "# TYPE xwam_ft_waiting gauge",
            f"xwam_ft_waiting {self.waiting}",
            *_summary("xwam_ft_infer_seconds", "Seconds the policy took.", self.infer),
            *_summary("xwam_ft_request_seconds", "Seconds from a request read to its answer sent.", self.whole),
        ]
        return "\n".join(lines) + "\n"


def _summary(name: str, said: str, latency: Latency) -> list[str]:
    values = np.quantile(latency.last, QUANTILES) if latency.last else [float("nan")] * len(QUANTILES)
    return [
        f"# HELP {name} {said}",
        f"# TYPE {name} summary",
        *(
            f'{name}{{quantile="{q}"}} {"NaN" if np.isnan(v) else f"{v:.6g}"}'
            for q, v in zip(QUANTILES, values, strict=True)
        ),
        f"{name}_sum {latency.total:.6g}",
        f"{name}_count {latency.count}",
    ]

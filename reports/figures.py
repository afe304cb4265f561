"""The plots of the HTML page, as plain plotly figures (dicts of ``data`` and ``layout``).

Colours are names of the style sheet's variables (``--memory``): ``page.js`` puts in the values of
the light or the dark theme. plotly reads a little HTML in its texts, so all of them are escaped.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from textwrap import wrap
from typing import Any

from ..cache.rows import STATUSES
from . import text as write
from .model import DriverReport, KernelReport

Figure = dict[str, Any]

#: Curves that are drawn at first; the others wait in the legend. Also the number of their colours.
_SHOWN_CURVES = 8
#: Ticks of the logarithmic axis of the search's progress: time relative to the default's.
_TICKS = (2.0, 1.0, 0.7, 0.5, 0.3, 0.2, 0.1, 0.05, 0.03, 0.02, 0.01, 0.001)


def figures(driver: DriverReport) -> dict[str, Figure]:
    """The plots of one driver, by name; a plot without data is left out."""
    kernels = [kernel for kernel in driver.kernels if not kernel.outdated]
    drawn = {
        "roof": roof([kernel for kernel in kernels if kernel.roof and kernel.roof.share]),
        "progress": progress([kernel for kernel in kernels if kernel.trials and kernel.progress]),
        "outcomes": outcomes([kernel for kernel in driver.kernels if kernel.trials]),
    }
    return {name: figure for name, figure in drawn.items() if figure["data"]}


def roof(kernels: Sequence[KernelReport]) -> Figure:
    """Each kernel's share of its roof: a wide bar tuned, a narrow one by default."""
    data = []
    for bound, color in (("memory", "--memory"), ("arithmetic", "--arithmetic")):
        shares = [_share(kernel, bound) for kernel in kernels]
        if any(shares):
            data.append(_bars(kernels, f"tuned, bound by {bound}", color, shares) | {"width": 0.74})
    defaults = [kernel.roof.default_share if kernel.roof else None for kernel in kernels]
    if any(defaults):
        data.append(_bars(kernels, "safe default", "--default", defaults) | {"width": 0.26})
    most = max((k.roof.share or 0 for k in kernels if k.roof), default=0)
    layout = _row_layout(kernels) | {
        "barmode": "overlay",
        "xaxis": {
            "title": {"text": "share of the roof"},
            "tickformat": ".0%",
            "range": [0, max(1.02, most * 1.05)],
        },
        "shapes": [_line(x0=1, x1=1, y0=0, y1=1, yref="paper")],
    }
    return {"data": data, "layout": layout}


def outcomes(kernels: Sequence[KernelReport]) -> Figure:
    """How the trials of each kernel ended, stacked."""
    found = dict.fromkeys((*STATUSES, *(status for k in kernels for status in k.outcomes)))
    data = []
    for status in found:
        color = f"--{status.replace(' ', '-')}" if status in STATUSES else "--default"
        numbers = [kernel.outcomes.get(status, 0) for kernel in kernels]
        if any(numbers):
            hovers = [
                f"{_hover_name(kernel)}<br>{escape(status)}: {number} of {kernel.trials}"
                for kernel, number in zip(kernels, numbers, strict=True)
            ]
            data.append(_bars(kernels, status, color, numbers) | {"hovertext": hovers})
    layout = _row_layout(kernels) | {"barmode": "stack", "xaxis": {"title": {"text": "trials"}}}
    return {"data": data, "layout": layout}


def progress(kernels: Sequence[KernelReport]) -> Figure:
    """The best time so far relative to the default's, over trials; ``meta`` has it over seconds."""
    data = [_curve(kernel, number) for number, kernel in enumerate(kernels)]
    layout = {
        "xaxis": {"title": {"text": "trials"}, "rangemode": "tozero"},
        "yaxis": {
            "title": {"text": "best time so far, of the default's"},
            "type": "log",
            "tickvals": list(_TICKS),
            "ticktext": [f"{tick * 100:g}%" for tick in _TICKS],
        },
        "shapes": [_line(x0=0, x1=1, y0=1, y1=1, xref="paper")],
        "height": 460,
        "hovermode": "closest",
    }
    return {"data": data, "layout": layout}


def _curve(kernel: KernelReport, number: int) -> Figure:
    unit = kernel.default_time or kernel.progress[0].time
    steps = kernel.progress
    return {
        "type": "scatter",
        "mode": "lines",
        "name": escape(kernel.label),
        "line": {"shape": "hv", "width": 2, "color": f"--curve-{number % _SHOWN_CURVES}"},
        "visible": True if number < _SHOWN_CURVES else "legendonly",
        "x": [step.trial for step in steps],
        "y": [step.time / unit for step in steps],
        "meta": {"seconds": [step.spent for step in steps]},
        "hoverinfo": "text",
        "hovertext": [
            f"{_hover_name(kernel)}<br>{write.duration(step.time, 'µs')} "
            f"after {step.trial} trials, {write.duration(step.spent, 'µs')}"
            for step in steps
        ],
    }


def _bars(
    kernels: Sequence[KernelReport], name: str, color: str, values: Sequence[float | None]
) -> Figure:
    return {
        "type": "bar",
        "orientation": "h",
        "name": escape(name),
        "marker": {"color": color},
        "x": list(values),
        "y": list(range(len(kernels))),
        "hoverinfo": "text",
        "hovertext": [_hover(kernel) for kernel in kernels],
    }


def _share(kernel: KernelReport, bound: str) -> float | None:
    return kernel.roof.share if kernel.roof and kernel.roof.bound == bound else None


def _row_layout(kernels: Sequence[KernelReport]) -> Figure:
    """A row for each kernel, the first on top; rows have numbers, because labels may repeat."""
    return {
        "yaxis": {
            "tickvals": list(range(len(kernels))),
            "ticktext": [escape(kernel.label) for kernel in kernels],
            "range": [len(kernels) - 0.5, -0.5],
            "automargin": True,
            "showgrid": False,
            "zeroline": False,
        },
        "height": 150 + 28 * len(kernels),
        "hovermode": "closest",
    }


def _line(**ends: Any) -> Figure:
    line = {"color": "--text", "width": 1.5, "dash": "dot"}
    return {"type": "line", "layer": "above", "line": line, **ends}


def _hover(kernel: KernelReport) -> str:
    """All that matters of a kernel in a few lines: workload, configuration, times, rates."""
    lines = [_hover_name(kernel), *_folded(write.parameters(kernel.config))]
    time = f"{write.duration(kernel.time, 'µs')} tuned"
    if kernel.default_time:
        time += f", {write.duration(kernel.default_time, 'µs')} by default"
    if kernel.speedup:
        time += f" ({write.factor(kernel.speedup)})"
    lines.append(time)
    rates = (write.rate(kernel.bytes_per_s, "B/s"), write.rate(kernel.flops_per_s, "FLOP/s"))
    lines.append(", ".join(rates))
    if kernel.roof:
        share = write.percent(kernel.roof.share)
        least = write.duration(kernel.roof.seconds, "µs")
        lines.append(f"{share} of the {kernel.roof.bound} roof, which allows {least}")
    return "<br>".join(lines)


def _hover_name(kernel: KernelReport) -> str:
    return f"<b>{'<br>'.join(_folded(kernel.workload))}</b>"


def _folded(text: str, width: int = 60) -> Iterable[str]:
    """``text``, escaped, in lines that fit into a hover box."""
    return [escape(line) for line in wrap(text, width)] or [""]

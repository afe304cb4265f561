"""A report as tables in the terminal, made for 80 columns and for pipes.

All that the cache file says goes through :func:`_safe`: a name in a file from elsewhere may hold
control sequences or rich's own markup.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from . import text as write
from .model import CheckReport, DriverReport, KernelReport, Report, RuleReport, RunReport

#: Colours of the outcomes of trials; rich drops them where nobody sees them.
_OUTCOME_STYLES = {"ok": "green", "wrong result": "red", "crash": "red", "timeout": "yellow"}


def render(report: Report, console: Console) -> None:
    """Print ``report``. Without a kernel filter the winners' parameters are left to the page."""
    console.print(_safe(report.device, "bold"))
    console.print(_file(report))
    for warning in report.warnings:
        console.print(_safe(f"Warning: {warning}", "yellow"))
    for driver in report.drivers:
        _render_driver(driver, console, detailed=report.kernel is not None)
    if report.hint:
        console.print()
        console.print(_safe(report.hint, "yellow"))


def _render_driver(driver: DriverReport, console: Console, *, detailed: bool) -> None:
    console.print()
    console.rule(_safe(_driver_title(driver)), align="left", characters="-", style="dim")
    _print_facts(_driver_facts(driver), console)
    if driver.kernels:
        _print_table(_kernel_table(driver.kernels), console)
        if detailed:
            _print_table(_winner_table(driver.kernels), console)
        _print_table(_outcome_table(driver), console)
    if driver.runs:
        _print_table(_run_table(driver.runs), console)
    if driver.speeds:
        _print_table(_speed_table(driver), console)
    for check in driver.checks:
        _print_table(_check_table(check), console)
        console.print(_safe(f"{write.check_scope(check)}: {write.verdict(check)}"))
    if driver.rules:
        _print_table(_rule_table(driver.rules), console)
    for note in driver.notes:
        console.print(_safe(f"Note: {note}", "dim"))


def _file(report: Report) -> Text:
    parts = [
        write.size(report.size),
        write.plural(report.binaries, "binary", "binaries")
        + f" ({write.size(report.binary_bytes)})",
        write.plural(len(report.drivers), "driver"),
        f"schema {report.schema}",
    ]
    return Text.assemble(_safe(report.path), "\n", ", ".join(parts), overflow="fold")


def _driver_title(driver: DriverReport) -> str:
    name = " ".join(part for part in (driver.platform, driver.driver_version) if part)
    name = name or f"driver {driver.driver}"
    name += f", limits {driver.limits}" if driver.limits else ""
    return name if driver.current else f"{name} (an earlier driver: only starting points)"


def _driver_facts(driver: DriverReport) -> list[tuple[str, str]]:
    """Names and values of the lines above a driver's tables."""
    totals, roof = driver.totals, driver.roof
    facts = []
    if roof.bytes_per_s or roof.flops_per_s:
        rates = (write.rate(roof.bytes_per_s, "B/s"), write.rate(roof.flops_per_s, "FLOP/s"))
        facts.append(("Measured roof", f"memory {rates[0]}, arithmetic {rates[1]}"))
    if totals.speedup:
        facts.append(("Speed-up", f"{write.factor(totals.speedup)}, geometric mean of the kernels"))
    if totals.roof_share:
        share = write.percent(totals.roof_share)
        facts.append(("Share of the roof", f"{share}, over one launch of each kernel"))
    if totals.kinds:
        won = ", ".join(f"{kind} {count}" for kind, count in totals.kinds.items())
        facts.append(("Winning variants", won))
    if totals.trials or totals.tune_time:
        facts.append(("Time spent", _time_spent(driver)))
    if driver.binaries:
        binaries = write.plural(driver.binaries, "binary", "binaries")
        facts.append(("Compiled", f"{binaries}, {write.size(driver.binary_bytes)}"))
    return facts


def _time_spent(driver: DriverReport) -> str:
    totals = driver.totals
    parts = [
        f"compiling {write.duration(totals.compile_time)}",
        f"measuring {write.duration(totals.measure_time)}",
    ]
    if totals.tune_time:
        parts.append(f"{write.duration(totals.tune_time)} of tuning in all")
    return ", ".join(parts)


def _kernel_table(kernels: Sequence[KernelReport]) -> Table:
    headers = ("Kernel", "Best>", "Default>", "Gain>", "Roof>", "Variant", "Trials>", "Spent>")
    table = _table(*headers)
    for kernel in kernels:
        table.add_row(
            _safe(kernel.label + _state(kernel), "dim" if kernel.outdated else ""),
            write.duration(kernel.time),
            write.duration(kernel.default_time),
            write.factor(kernel.speedup),
            _roof(kernel),
            _safe(kernel.kind or kernel.variant or write.MISSING),
            str(kernel.trials),
            write.duration(kernel.compile_time + kernel.measure_time),
        )
    return table


def _roof(kernel: KernelReport) -> str:
    """``61% mem``: the share, and which of the two ceilings binds."""
    if kernel.roof is None or kernel.roof.share is None:
        return write.MISSING
    bound = {"memory": "mem", "arithmetic": "arith"}[kernel.roof.bound]
    return f"{write.percent(kernel.roof.share)} {bound}"


def _state(kernel: KernelReport) -> str:
    if kernel.outdated:
        return " (older kernel)"
    if kernel.config is None:
        return " (nothing worked)"
    return "" if kernel.complete else " (not finished)"


def _winner_table(kernels: Iterable[KernelReport]) -> Table:
    table = _table("Kernel", "Winning parameters", "Rate>")
    for kernel in kernels:
        by_arithmetic = kernel.roof is not None and kernel.roof.bound == "arithmetic"
        per_s = kernel.flops_per_s if by_arithmetic else kernel.bytes_per_s
        table.add_row(
            _safe(kernel.label),
            _safe(write.parameters(kernel.config)),
            write.rate(per_s, "FLOP/s" if by_arithmetic else "B/s"),
        )
    return table


def _outcome_table(driver: DriverReport) -> Table:
    table = _table("Trials", "Number>", "Share>")
    total = driver.totals.trials
    for status, number in driver.totals.outcomes.items():
        style = _OUTCOME_STYLES.get(status, "")
        table.add_row(_safe(status, style), str(number), write.percent(number / total))
    table.add_row("all", str(total), "")
    return table


def _run_table(runs: Iterable[RunReport]) -> Table:
    table = _table("Tuning run", "Model", "Level", "Took>", "Decode tok/s>", "Prefill tok/s>")
    for run in runs:
        table.add_row(
            _safe(write.day(run.started)),
            _safe(run.model),
            _safe(run.level),
            "not ended" if run.seconds is None else write.duration(run.seconds),
            _change(run.decode_before, run.decode_after),
            _change(run.prefill_before, run.prefill_after),
        )
    return table


def _speed_table(driver: DriverReport) -> Table:
    table = _table("Engine speed", "Decode tok/s>", "Prefill tok/s>", "Tuned", "Measured")
    for speed in driver.speeds:
        tuned = write.MISSING if speed.tuned is None else ("yes" if speed.tuned else "no")
        table.add_row(
            _safe(speed.model),
            write.tokens(speed.decode_tok_s),
            write.tokens(speed.prefill_tok_s),
            tuned,
            _safe(write.day(speed.measured)),
        )
    return table


def _check_table(check: CheckReport) -> Table:
    first = f"Check of {check.model}, {write.day(check.checked)}"
    table = _table(first, "Variant", "Launches>", "Compared>", "Worst error>", "Allowed>")
    for each in check.operations:
        table.add_row(
            _safe(each.op),
            _safe(each.variant),
            write.MISSING if each.launches is None else str(each.launches),
            write.MISSING if each.compared is None else str(each.compared),
            write.error(each.worst),
            write.error(each.allowed),
        )
    return table


def _rule_table(rules: Iterable[RuleReport]) -> Table:
    table = _table("Banned or pinned", "Why", "By", "Since")
    for rule in rules:
        style = "red" if rule.kind == "banned" else ""
        by = "check" if rule.by == "check" else "by hand"
        table.add_row(
            _safe(f"{rule.kind} {rule.what}", style),
            _safe(rule.reason or write.MISSING),
            by,
            _safe(write.day(rule.since)),
        )
    return table


def _change(before: float | None, after: float | None) -> str:
    if before is None and after is None:
        return write.MISSING
    return f"{write.tokens(before)} -> {write.tokens(after)}"


def _table(*headers: str) -> Table:
    """A table with these columns; a header that ends in ``>`` is of a column of numbers."""
    # With the box's own divider the columns stand two apart.
    table = Table(
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        show_edge=False,
        pad_edge=False,
        header_style="bold",
    )
    for index, header in enumerate(headers):
        number = header.endswith(">")
        table.add_column(
            header.rstrip(">"),
            justify="right" if number else "left",
            no_wrap=number,
            overflow="fold",
            ratio=1 if index == 0 else None,
        )
    return table


def _print_table(table: Table, console: Console) -> None:
    console.print(Padding(table, (1, 0, 0, 0)))


def _print_facts(facts: Iterable[tuple[str, str]], console: Console) -> None:
    grid = Table.grid(padding=(0, 2, 0, 0))
    for name, value in facts:
        grid.add_row(Text(name, "bold"), _safe(value))
    console.print(grid)


def _safe(text: str, style: str = "") -> Text:
    """Text that cannot steer the terminal: no markup, no control characters."""
    return Text("".join(char if char.isprintable() else "?" for char in text), style)

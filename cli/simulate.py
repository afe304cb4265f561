"""``clkiln tune --simulate`` and ``--export``: searches over recorded spaces; recording ours."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ClkilnError, UsageError
from .common import echo, existing_cache, print_json, warn

if TYPE_CHECKING:
    from ..tuner.levels import Level
    from ..tuner.simulate import Replay


def simulate(file: Path, level: str, budget: str | None, cache: Path | None, as_json: bool) -> None:
    """Search the spaces recorded in ``file`` and print what was found.

    The time of ``level`` or ``budget`` is recorded time, shared evenly between the spaces. With
    ``cache`` every trial is kept there as it is made.
    """
    from ..cache.store import Store
    from ..tuner.levels import LEVELS, parse_budget
    from ..tuner.recorded import read_spaces
    from ..tuner.simulate import Keeper, replay

    chosen = LEVELS[level]
    seconds = chosen.seconds if budget is None else parse_budget(budget)
    spaces = read_spaces(file)
    share = None if seconds is None else seconds / len(spaces)
    done: list[Replay] = []
    with ExitStack() as stack:
        store = None if cache is None else stack.enter_context(Store.open(cache, warn=warn))
        for space in spaces:
            keep = None if store is None else Keeper(store, space)
            done.append(replay(space, seconds=share, trials=chosen.trials, keep=keep))
            if not as_json:
                echo(_line(done[-1]))
    if as_json:
        print_json(_document(file, chosen, seconds, done))


def export(
    file: Path, cache: Path | None, device: str | None, kernels: tuple[str, ...], as_json: bool
) -> None:
    """Write the trials of a device's cache file to ``file``, as T4 results."""
    from ..cache.store import Store
    from ..tuner.recorded import t4_document, t4_of

    where = existing_cache(device, cache)
    with Store.open(where, write=False, warn=warn) as store:
        rows = store.trials()
    if kernels:
        rows = [row for row in rows if row.workload.split(" ")[0] in kernels]
    results = t4_of(rows)
    if not results:
        what = f" of {', '.join(kernels)}" if kernels else ""
        raise UsageError(f"{where} holds no trials{what}: clkiln tune makes some")
    _write(file, t4_document(results))
    workloads = len({row.workload for row in rows})
    if as_json:
        print_json(
            {
                "file": str(file),
                "cache_file": str(where),
                "configurations": len(results),
                "workloads": workloads,
            }
        )
        return
    echo(f"wrote {len(results)} configurations of {workloads} workloads to {file}")


def _line(done: Replay) -> str:
    tried = f"{done.space.name}: {len(done.asked)} of {len(done.space.trials)} configurations"
    spent = f"{tried} in {done.seconds:.0f} s of recorded time"
    if done.best is None or done.best.time is None:
        return f"{spent}: none of them worked"
    return (
        f"{spent}: best {1e3 * done.best.time:.4g} ms, {done.share:.1%} of the optimum "
        f"({1e3 * (done.space.optimum or 0.0):.4g} ms; as many at random: "
        f"{1e3 * (done.random or 0.0):.4g} ms): "
        + " ".join(f"{name}={value}" for name, value in done.best.config.items())
    )


def _document(
    file: Path, level: Level, seconds: float | None, every: list[Replay]
) -> dict[str, Any]:
    return {
        "file": str(file),
        "level": level.name,
        "budget_s": seconds,
        "spaces": [
            {
                "name": done.space.name,
                "configurations": len(done.space.trials),
                "trials": len(done.asked),
                "seconds": done.seconds,
                "best": None if done.best is None else done.best.config,
                "best_s": None if done.best is None else done.best.time,
                "optimum_s": done.space.optimum,
                "share_of_optimum": done.share,
                "random_s": done.random,
            }
            for done in every
        ],
    }


def _write(path: Path, text: str) -> None:
    """All of it or nothing: what was there stays until the new file is whole."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        draft.write_text(text, encoding="utf-8", newline="\n")
        os.replace(draft, path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise ClkilnError(f"cannot write {path}: {error.strerror or error}") from error

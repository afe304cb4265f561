"""The small parts of the tuner: budgets, messages, groups of workloads, roofs."""

from __future__ import annotations

import io
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clk_cache import memory_store, some_best
from clk_tuning import INFO, USES, chance
from clkiln.errors import UsageError
from clkiln.kernels import SPECS
from clkiln.kernels.types import Workload
from clkiln.kernels.uses import Use, layout_groups
from clkiln.tuner.levels import LEVELS, parse_budget
from clkiln.tuner.roofs import FLOPS_FACT, READ_FACT, read_roof
from clkiln.tuner.search import Search
from clkiln.tuner.tasks import Group, Roof, Task, groups_of, transplant
from clkiln.tuner.wire import receive, send

quick = settings(max_examples=100, deadline=None, derandomize=True)


# --- budgets --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90s", 90), ("5m", 300), ("1.5h", 5400), (" 2M ", 120), ("0.5", 0.5)],
)
def test_budgets(text: str, seconds: float) -> None:
    assert parse_budget(text) == seconds


@pytest.mark.parametrize("text", ["", "m", "0", "0s", "-5", "5d", "1e3", "5m30s", "nan", "inf"])
def test_what_is_no_budget(text: str) -> None:
    with pytest.raises(UsageError, match="budget"):
        parse_budget(text)


def test_levels_grow() -> None:
    levels = sorted(LEVELS.values(), key=lambda level: level.rank)
    assert [level.name for level in levels] == ["fast", "normal", "wide", "exhaustive"]
    seconds = [level.seconds or float("inf") for level in levels]
    assert seconds == sorted(set(seconds))


# --- messages -------------------------------------------------------------------------------------

headers = st.dictionaries(
    st.text(), st.none() | st.integers() | st.floats(allow_nan=False) | st.text()
)


@quick
@given(st.lists(st.tuples(headers, st.binary(max_size=99)), max_size=5), st.integers(0, 99))
def test_messages_come_back(messages: list[tuple[dict[str, object], bytes]], cut: int) -> None:
    """All of them; and of a stream that ends early those before its end."""
    stream = io.BytesIO()
    ends = [0]
    for header, payload in messages:
        send(stream, header, payload)
        ends.append(stream.tell())
    stream.seek(0)
    assert [receive(stream) for _ in messages] == messages
    assert receive(stream) is None
    length = ends[-1] * cut // 100
    short = io.BytesIO(stream.getvalue()[:length])
    got = []
    while (message := receive(short)) is not None:
        got.append(message)
    assert got == messages[: sum(end <= length for end in ends[1:])]


# --- groups ---------------------------------------------------------------------------------------


def task_of(use: Use, seed: int, count: int) -> Task:
    """A task with ``count`` results."""
    spec = SPECS[use.workload.op]
    search = Search(spec, use.workload, INFO)
    task = Task(use, search, spec.safe(use.workload, INFO))
    feasible = spec.feasible(use.workload, INFO)
    for config in random.Random(seed).sample(feasible, count):
        time = None if chance("fails", seed, config) < 0.2 else chance(seed, config)
        search.tell(config, time)
        task.note(config, time)
    return task


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("count", [0, 2, 30])
def test_a_group_fills_its_gaps(seed: int, count: int) -> None:
    """Every proposed trial is new, in a layout that somebody has, and there is an end to them."""
    group = Group([task_of(use, seed, count) for use in USES if use.group == "tied"])
    for _ in range(40):
        known = {layout for task in group.tasks for layout in task.layouts}
        gap = group.gap()
        if gap is None:
            break
        task, config = gap
        assert task.search.is_new(config) and task.layout(config) in known
        assert task.layout(config) not in task.layouts
        assert task.spec.check(task.workload, config, INFO) is None
        time = chance(seed, config)
        task.search.tell(config, time)
        task.note(config, time)
    else:
        pytest.fail("a group without end")
    layouts = {task.layout(config) for task, (config, _) in group.choices()}
    if all(task.layouts for task in group.tasks):
        assert len(layouts) == 1
    assert set(group.chosen()) == {task.workload for task in group.tasks if task.layouts}
    for task, (config, time) in group.choices():
        assert task.ranking(task.layout(config))[0] == (config, time)


def test_a_transplant_changes_the_layout_and_little_else() -> None:
    task = task_of(USES[1], 0, 30)
    best = task.search.best
    assert best is not None
    layouts = {task.layout(config) for config in task.search.feasible or ()}
    for layout in layouts:
        config = transplant(task, layout)
        assert config is not None and task.layout(config) == layout and task.search.is_new(config)
        same = [c for c in task.search.feasible or () if task.layout(c) == layout]
        for other in filter(task.search.is_new, same):
            wanted = dict(best[0].params)
            kept = sum(wanted.get(n) == v for n, v in config.params)
            assert kept >= sum(wanted.get(n) == v for n, v in other.params)
    assert transplant(task, "q4_1 buffer r1024 s16") is None


def test_tasks_of_one_weight_are_one_group() -> None:
    tasks = [task_of(use, 0, 0) for use in USES]
    groups = groups_of(tasks)
    assert sorted(len(group.tasks) for group in groups) == [1, 1, 1, 2, 3]
    assert {id(task) for group in groups for task in group.tasks} == set(map(id, tasks))


@quick
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=20))
def test_connected_readers_share_a_group(pairs: list[tuple[int, int]]) -> None:
    """Against reachability in the graph of workloads and weights, worked out by flooding."""
    readers = [(Workload.of("gemv", n=n), f"weight {w}") for n, w in pairs]
    groups = layout_groups(readers)
    assert set(groups) == {workload for workload, _ in readers}

    def reached(start: Workload) -> set[Workload]:
        seen = {start}
        while True:
            weights = {w for workload, w in readers if workload in seen}
            more = {workload for workload, w in readers if w in weights}
            if more <= seen:
                return seen
            seen |= more

    for workload in groups:
        assert {other for other in groups if groups[other] == groups[workload]} == reached(workload)


# --- roofs ----------------------------------------------------------------------------------------


def test_the_roof_is_the_slower_of_memory_and_arithmetic() -> None:
    workload = USES[2].workload
    spec = SPECS["gemm"]
    memory, arithmetic = spec.bytes(workload) / 1e9, spec.flops(workload) / 1e10
    assert Roof().seconds(spec, workload) == 0
    assert Roof(bytes_per_s=1e9).seconds(spec, workload) == memory
    assert Roof(flops_per_s=1e10).seconds(spec, workload) == arithmetic
    assert Roof(1e9, 1e10).seconds(spec, workload) == max(memory, arithmetic)


@pytest.mark.parametrize("value", [None, 0, -1.0, "fast", [1], {"a": 1}])
def test_a_roof_that_is_no_number_is_unknown(value: object) -> None:
    with memory_store() as store:
        store.set_fact(READ_FACT, value, driver="d")
        store.set_fact(FLOPS_FACT, 2e9, driver="d")
        store.set_best(some_best())
        assert read_roof(store, "d") == Roof(None, 2e9)
        assert read_roof(store, "another") == Roof()

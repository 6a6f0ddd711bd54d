"""The scheduler: what waits for what, how many run at once, failures, and interrupts."""

import subprocess
import sys
import time
from collections.abc import Collection, Mapping
from types import SimpleNamespace

import pytest

from step.ablation import schedule
from step.ablation.schedule import End, Job, run_jobs


class Fake:
    """A child that ends with `status` when it was looked at `looks` times."""

    def __init__(self, world: "World", name: str, looks: int, status: int) -> None:
        self.world, self.name, self.looks, self.status = world, name, looks, status

    def poll(self) -> int | None:
        self.looks -= 1
        if self.looks > 0:
            return None
        self.world.running.discard(self.name)
        self.world.finished.add(self.name)
        return self.status

    def terminate(self) -> None:
        self.world.said.append(f"terminate {self.name}")

    def wait(self, timeout: float | None = None) -> int:
        if timeout is not None and self.name in self.world.stubborn:
            raise subprocess.TimeoutExpired(self.name, timeout)
        return 1

    def kill(self) -> None:
        self.world.said.append(f"kill {self.name}")


class World:
    """Jobs of fakes, and what became of them."""

    def __init__(
        self,
        needs: Mapping[str, Collection[str]],
        looks: Mapping[str, int] | None = None,
        failing: Collection[str] = (),
        done: Collection[str] = (),
        stubborn: Collection[str] = (),
    ) -> None:
        self.looks, self.failing, self.done, self.stubborn = looks or {}, failing, done, stubborn
        self.started: list[str] = []
        self.said: list[str] = []
        self.running: set[str] = set()
        self.finished: set[str] = set()
        self.most = 0
        self.jobs = [self._job(name, frozenset(names)) for name, names in needs.items()]

    def _job(self, name: str, needs: frozenset[str]) -> Job:
        def start() -> Fake:
            assert needs <= self.finished | set(self.done)
            self.started.append(name)
            self.running.add(name)
            self.most = max(self.most, len(self.running))
            return Fake(self, name, self.looks.get(name, 1), int(name in self.failing) * 3)

        return Job(name, needs, lambda: name in self.done, start)

    def run(self, at_once: int) -> dict[str, tuple[str, int | None]]:
        ends = list(run_jobs(self.jobs, at_once, pause=0))
        assert len(ends) == len({end.name for end in ends}) == len(self.jobs)
        return {end.name: (end.outcome, end.status) for end in ends}


NEEDS = {"a": (), "b": ("a",), "c": (), "d": (), "e": ("b",)}


@pytest.mark.parametrize("at_once", [1, 2, 5])
def test_every_job_runs_once_after_what_it_needs(at_once: int) -> None:
    world = World(NEEDS, looks={"a": 4, "c": 2})
    assert world.run(at_once) == dict.fromkeys(NEEDS, ("made", 0))
    assert sorted(world.started) == list(NEEDS)
    assert world.most == min(at_once, 3)  # a, c and d; then b or e alone


def test_a_free_place_is_taken_while_something_waits() -> None:
    world = World(NEEDS, looks={"a": 5})
    world.run(2)
    assert world.started == ["a", "c", "d", "b", "e"]


def test_what_needs_a_failed_job_is_left_out_and_others_go_on() -> None:
    world = World(NEEDS, failing=["a"])
    expected = {"a": ("failed", 3), "c": ("made", 0), "d": ("made", 0)}
    assert world.run(1) == {**expected, "b": ("left out", None), "e": ("left out", None)}
    assert world.started == ["a", "c", "d"]


def test_what_is_done_is_kept_and_counts_as_done() -> None:
    world = World(NEEDS, done=["a", "c"])
    made = dict.fromkeys("bde", ("made", 0))
    assert world.run(1) == {**made, "a": ("kept", None), "c": ("kept", None)}
    assert world.started == ["b", "d", "e"]


def test_leaving_early_ends_what_runs() -> None:
    world = World({"a": (), "b": (), "c": ()}, looks={"b": 99, "c": 99}, stubborn=["c"])
    ends = run_jobs(world.jobs, 3, pause=0)
    assert next(ends).name == "a"
    ends.close()
    assert world.said == ["terminate b", "terminate c", "kill c"]


def test_an_interrupt_ends_real_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    children = []

    def start() -> subprocess.Popen:
        children.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]))
        return children[-1]

    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    clock = SimpleNamespace(sleep=interrupt, perf_counter=time.perf_counter)
    monkeypatch.setattr(schedule, "time", clock)
    jobs = [Job(name, frozenset(), lambda: False, start) for name in "ab"]
    with pytest.raises(KeyboardInterrupt):
        list(run_jobs(jobs, 2))
    assert [child.returncode for child in children] == [-15, -15]


def test_real_exit_statuses_are_told() -> None:
    def job(status: int) -> Job:
        command = [sys.executable, "-c", f"raise SystemExit({status})"]
        return Job(str(status), frozenset(), lambda: False, lambda: subprocess.Popen(command))

    ends: list[End] = list(run_jobs([job(0), job(2)], 2, pause=0.01))
    assert {(end.name, end.outcome, end.status) for end in ends} == {
        ("0", "made", 0),
        ("2", "failed", 2),
    }
    assert all(0 < end.seconds < 60 for end in ends)


def test_what_is_needed_must_stand_before() -> None:
    with pytest.raises(ValueError, match="b needs \\['a'\\]"):
        World({"b": ("a",), "a": ()}).run(1)

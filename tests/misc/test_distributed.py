"""Device choice, sharding, sums over processes; networks over processes: see test_training."""

import errno
import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import run_processes
from torch import nn

from misc import distributed
from misc.distributed import (
    all_reduce_mean,
    all_reduce_sum,
    barrier,
    data_parallel,
    gather_shards,
    is_main_process,
    join_processes,
    leave_processes,
    on_main,
    rank,
    require_shared,
    select_device,
    shard,
    together,
    world_size,
)
from misc.errors import UserError
from misc.metrics import ConfusionMatrix, InstanceAveragePrecision
from misc.progress import progress


def test_plain_run_is_one_process() -> None:
    assert (rank(), world_size(), is_main_process()) == (0, 1, True)
    assert shard("abc") == ["a", "b", "c"]
    barrier()
    join_processes(torch.device("cpu"))
    assert all_reduce_sum(torch.tensor([2])).tolist() == [2]
    assert all_reduce_mean(torch.tensor([2.5])).tolist() == [2.5]
    model = nn.Linear(1, 1)
    assert data_parallel(model, torch.device("cpu")) is model
    leave_processes()


def test_shards_partition_the_items(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    parts = []
    for index in range(3):
        monkeypatch.setenv("RANK", str(index))
        parts.append(shard(range(8)))
    assert parts == [[0, 3, 6], [1, 4, 7], [2, 5]]


def test_unjoined_processes_cannot_pass_a_part_for_the_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RuntimeError, match="join_processes"):
        all_reduce_sum(torch.tensor([1]))
    with pytest.raises(RuntimeError, match="join_processes"):
        data_parallel(nn.Linear(1, 1), torch.device("cpu"))


def test_cpu_and_auto_are_devices() -> None:
    assert select_device("cpu") == torch.device("cpu")
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert select_device("auto").type == expected


def test_unknown_device_is_explained() -> None:
    for name in ("gpu0", "xpu", "meta", "xpu:1"):
        with pytest.raises(UserError, match=f"--device {name} is not a device to run on; use auto"):
            select_device(name)
    with pytest.raises(UserError, match="--device cpu:1: there is one such device; use cpu"):
        select_device("cpu:1")
    assert select_device("cpu:0") == torch.device("cpu")


def test_absent_gpu_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert select_device("auto") == torch.device("cpu")
    with pytest.raises(UserError, match=r"sees no CUDA GPU.*--device cpu"):
        select_device("cuda")


def test_gpu_index(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert select_device("cuda") == torch.device("cuda", 0)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert select_device("auto") == torch.device("cuda", 1)
    assert select_device("cuda:0") == torch.device("cuda", 0)
    with pytest.raises(UserError, match=r"cuda:2.*2 CUDA"):
        select_device("cuda:2")


PICTURES = [(np.array([[i % 3, 1]]), np.array([[1, i % 2]]), i / 10) for i in range(5)]


def _score(pictures: list) -> tuple[ConfusionMatrix, InstanceAveragePrecision]:
    confusion, instances = ConfusionMatrix(3), InstanceAveragePrecision(1)
    for prediction, truth, score in pictures:
        confusion.update(prediction, truth)
        masks, zero = prediction[None] == 1, np.zeros(1, int)
        instances.update(masks, zero, np.array([score]), truth[None] == 1, zero)
    return confusion, instances


def _worker(folder: Path) -> None:
    confusion, instances = _score(shard(PICTURES))
    confusion.reduce()
    instances.reduce()
    np.save(folder / f"counts{rank()}.npy", confusion.counts)
    np.save(folder / f"ap{rank()}.npy", instances.compute())
    assert all_reduce_mean(torch.tensor([float(rank()), 3.0])).tolist() == [0.5, 3.0]


def test_two_processes_sum_to_the_single_process(tmp_path: Path) -> None:
    run_processes(_worker, tmp_path)
    confusion, instances = _score(PICTURES)
    for index in range(2):
        assert np.array_equal(np.load(tmp_path / f"counts{index}.npy"), confusion.counts)
        assert np.array_equal(np.load(tmp_path / f"ap{index}.npy"), instances.compute())
    assert 0 < instances.compute()[0] < 1


# Equal scores: which of them come first decides about the average precision.
TIES = [
    (np.array([[int(i % 3 == 0), int(i % 3 > 0)]]), np.array([[0, 1]]), i // 2) for i in range(7)
]


def _score_ties(folder: Path) -> None:
    _, instances = _score(shard(TIES))
    instances.reduce()
    np.save(folder / f"{rank()}.npy", instances.compute())


def test_equal_scores_rank_as_in_one_process(tmp_path: Path) -> None:
    run_processes(_score_ties, tmp_path, count=3)
    expected = _score(TIES)[1].compute()
    assert expected != _score(TIES[::-1])[1].compute()
    for index in range(3):
        assert np.load(tmp_path / f"{index}.npy") == expected


# --------------------------------------------------------------- deciding, gathering and failing


def test_plain_run_gathers_and_fails_alone() -> None:
    assert on_main(lambda: 3) == 3
    assert gather_shards([1, 2]) == [1, 2]
    error = ValueError("mine")
    with pytest.raises(ValueError, match="mine") as caught, together():
        raise error
    assert caught.value is error


def _said_of(error: Exception) -> str:
    """What a process stops with when the last of three has an error in a block."""
    try:
        with together():
            if rank() == 2:
                raise error
    except (UserError, OSError, ZeroDivisionError) as stopped:
        return f"{type(stopped).__name__} {stopped}"
    return "nothing"


def _deal_and_fail(folder: Path) -> None:
    deals = [gather_shards(shard(range(count))) for count in (0, 1, 2, 3, 7)]
    said = [
        _said_of(UserError("a.png is broken; mend it.")),
        _said_of(OSError(errno.ENOSPC, "No space left on device", "b.png")),
        _said_of(ZeroDivisionError("by 0")),
    ]
    (folder / f"{rank()}.json").write_text(json.dumps([deals, said]))


def test_processes_gather_in_order_and_fail_together(tmp_path: Path) -> None:
    run_processes(_deal_and_fail, tmp_path, count=3)
    for index in range(3):
        deals, said = json.loads((tmp_path / f"{index}.json").read_text())
        assert deals == [list(range(count)) for count in (0, 1, 2, 3, 7)]
        broken, full, bug = said
        assert broken == "UserError a.png is broken; mend it."
        assert "b.png" in full and "No space left on device" in full
        if index == 2:
            assert full.startswith("OSError") and bug == "ZeroDivisionError by 0"
        else:
            assert full.startswith("UserError b.png: ") and "free some space" in full
            assert bug == "UserError process 2 failed: ZeroDivisionError: by 0"


def _work_beside_a_failure(folder: Path) -> None:
    done = 0
    with pytest.raises(UserError, match=r"a\.png is broken"), together():
        if rank() == 1:
            raise UserError("a.png is broken; mend it.")
        for _ in progress(range(200), "slow work"):
            done += 1
            time.sleep(0.05)
    (folder / f"{rank()}.txt").write_text(str(done))


def test_processes_stop_before_their_next_item_when_one_fails(tmp_path: Path) -> None:
    run_processes(_work_beside_a_failure, tmp_path, count=2)
    assert int((tmp_path / "0.txt").read_text()) < 200


def _decide_together(folder: Path) -> None:
    calls = folder / f"calls_of_{rank()}"
    assert on_main(lambda: calls.write_text("once") and [rank(), "decided"]) == [0, "decided"]
    with pytest.raises(UserError, match="no such list"):
        on_main(_refuse)
    if is_main_process():
        with pytest.raises(ZeroDivisionError):
            on_main(lambda: 1 / 0)
    else:
        with pytest.raises(UserError, match="process 0 failed: ZeroDivisionError"):
            on_main(lambda: 1 / 0)
    require_shared(folder / "work", "--work_dir")
    assert list((folder / "work").iterdir()) == []
    distributed._SECONDS_TO_APPEAR = 0.2  # this process ends with the test
    with pytest.raises(UserError, match=r"--work_dir .* is not the folder that the main process"):
        require_shared(folder / f"own_of_{rank()}", "--work_dir")


def _refuse() -> None:
    raise UserError("no such list")


def test_the_main_process_decides_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_processes(_decide_together, tmp_path)
    assert [path.name for path in tmp_path.glob("calls_of_*")] == ["calls_of_0"]

"""Device choice, sharding, sums over processes; networks over processes: see test_training."""

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
    is_main_process,
    join_processes,
    leave_processes,
    on_main,
    rank,
    require_shared,
    select_device,
    shard,
    share_of_batch,
    unwrap,
    world_size,
)
from misc.errors import UserError
from misc.metrics import ConfusionMatrix, InstanceAveragePrecision


def test_plain_run_is_one_process() -> None:
    assert (rank(), world_size(), is_main_process()) == (0, 1, True)
    assert shard("abc") == ["a", "b", "c"]
    barrier()
    join_processes(torch.device("cpu"))
    assert all_reduce_sum(torch.tensor([2])).tolist() == [2]
    assert all_reduce_mean(torch.tensor([2.5])).tolist() == [2.5]
    model = nn.Linear(1, 1)
    assert unwrap(data_parallel(model, torch.device("cpu"))) is model
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


def test_batches_are_dealt_out_evenly_or_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    assert share_of_batch(5, "BATCH") == 5
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert share_of_batch(6, "BATCH") == 3
    with pytest.raises(UserError, match="BATCH 5 cannot be dealt out evenly to 2 processes"):
        share_of_batch(5, "BATCH")


def test_uneven_shares_are_had_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    shares = []
    for index in range(4):
        monkeypatch.setenv("RANK", str(index))
        shares.append(share_of_batch(5, "BATCH", even=False))
    assert shares == [2, 1, 1, 1]
    with pytest.raises(UserError, match=r"BATCH 3 is too small for 4 .*at most 3"):
        share_of_batch(3, "BATCH", even=False)


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


def _decide_together(folder: Path) -> None:
    calls = folder / f"calls_of_{rank()}"
    assert on_main(lambda: calls.write_text("once") and [rank(), "decided"]) == [0, "decided"]
    with pytest.raises(UserError, match="no such list"):
        on_main(_refuse)
    if is_main_process():
        with pytest.raises(ZeroDivisionError):
            on_main(lambda: 1 / 0)
    else:
        with pytest.raises(UserError, match="main process stopped: ZeroDivisionError"):
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

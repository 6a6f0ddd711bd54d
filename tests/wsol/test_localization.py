"""Boxes and scores of localisation: the published evaluation, and values computed by hand."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from wsol import localization
from wsol.localization import (
    KINDS,
    NO_BOX,
    LocalisationResult,
    LocalisationScores,
    boxes_at,
    cam_to_heat,
    heat_to_box,
    iob,
    iog,
    iou,
    judge,
)

Golden = Callable[[str], dict[str, np.ndarray]]

SIZE = 224
EXACT = np.array([10, 10, 29, 29])  # 20 x 20 pixels, both ends counted
LOGITS = np.array([0.0, 3.0, 1.0, 2.0, -1.0, -2.0, -3.0])


def kind_of(box: list[int], truth: np.ndarray = EXACT, label: int = 1) -> str:
    verdict = judge(LOGITS, label, np.array([box]), truth)
    assert verdict.kind is not None
    return KINDS[verdict.kind[0]]


def published_scores(golden: Golden, chosen: slice = slice(None)) -> LocalisationScores:
    values = golden("wsol_eval")
    scores = LocalisationScores([0.1])
    keys = ("logits", "labels", "cams", "gt_boxes")
    for logits, label, cams, truth in zip(*(values[key][chosen] for key in keys), strict=True):
        scores.update(logits, int(label), boxes_at(cams[label], [0.1], SIZE), truth)
    return scores


# ---------------------------------------------------------------- the published evaluation


def test_boxes_of_maps_as_published(golden: Golden) -> None:
    values = golden("wsol_boxes")
    for cam, boxes in zip(values["cams"], values["boxes"], strict=True):
        found = boxes_at(cam, values["thresholds"], SIZE)
        assert found.dtype == np.int64
        np.testing.assert_array_equal(found, boxes)


def test_overlaps_as_published(golden: Golden) -> None:
    values = golden("wsol_boxes")
    for name, overlap in (("iou", iou), ("iog", iog), ("iob", iob)):
        found = overlap(values["box_a"], values["box_b"])
        np.testing.assert_allclose(found, values[name], rtol=1e-6)


def test_verdicts_as_published(golden: Golden) -> None:
    values = golden("wsol_eval")
    kinds = {
        "right": "right",
        "wrong_class": "wrong_cls",
        "multi_instance": "multi_instance",
        "part": "region_part",
        "more": "region_more",
        "wrong": "region_wrong",
    }
    for index, label in enumerate(values["labels"]):
        boxes = boxes_at(values["cams"][index, label], [0.1], SIZE)
        verdict = judge(values["logits"][index], label, boxes, values["gt_boxes"][index])
        for name in ("cls_top1", "cls_top5", "loc_top1", "loc_top5", "gt_known"):
            assert np.all(getattr(verdict, name) == bool(values[name][index])), (index, name)
        for number, kind in enumerate(KINDS):
            assert (verdict.kind[0] == number) == bool(values[kinds[kind]][index]), (index, kind)


def test_scores_as_published(golden: Golden) -> None:
    values, result = golden("wsol_eval"), published_scores(golden).compute()
    assert (result.pictures, result.boxed) == (6, 6)
    for name in ("cls_top1", "cls_top5", "loc_top1", "loc_top5", "gt_known"):
        found = result.numbers()[name]
        assert found == pytest.approx(100 * values[name].mean()), name
    assert result.breakdown["wrong_class"][0] == pytest.approx(100 * values["wrong_cls"].mean())


def test_other_classes_maps_change_nothing(golden: Golden) -> None:
    """The reason why the map of the true class is all that is asked for."""
    values = golden("wsol_eval")
    label = int(values["labels"][0])
    noise = np.array(values["cams"][0], np.float32)
    noise[np.arange(len(noise)) != label] = 0
    before, after = (
        judge(values["logits"][0], label, boxes_at(cams[label], [0.1], SIZE), values["gt_boxes"][0])
        for cams in (values["cams"][0], noise)
    )
    np.testing.assert_equal(before._asdict(), after._asdict())


# ---------------------------------------------------------------- boxes


@pytest.mark.parametrize("value", [0.0, 0.7, -3.0])
@pytest.mark.filterwarnings("error")
def test_a_constant_map_has_no_box(value: float) -> None:
    cam = np.full((14, 14), value, np.float32)
    assert not cam_to_heat(cam, SIZE).any()
    assert boxes_at(cam, [0.0, 0.1, 0.9], SIZE).tolist() == [list(NO_BOX)] * 3


@pytest.mark.filterwarnings("error")
def test_a_map_that_is_not_finite_has_no_box() -> None:
    cam = np.zeros((14, 14), np.float32)
    cam[3, 3] = np.nan
    assert not cam_to_heat(cam, SIZE).any()


def test_heat_spans_all_values_of_a_byte() -> None:
    heat = cam_to_heat(np.arange(-8, 8, dtype=np.float64).reshape(4, 4), 32)
    assert (heat.shape, heat.dtype, heat.min(), heat.max()) == ((32, 32), np.uint8, 0, 255)


def test_the_box_ends_behind_the_last_pixel_of_the_larger_region() -> None:
    heat = np.zeros((40, 60), np.uint8)
    heat[4:9, 2:7] = 255
    heat[20:32, 30:50] = 200
    assert heat_to_box(heat, 0.1).tolist() == [30, 20, 50, 32]


def test_the_threshold_is_a_share_of_the_maximum_that_must_be_exceeded() -> None:
    heat = np.zeros((40, 60), np.uint8)
    heat[5:35, 5:55] = 20
    heat[10:20, 10:20] = 200
    assert heat_to_box(heat, 0.09).tolist() == [5, 5, 55, 35]
    assert heat_to_box(heat, 0.1).tolist() == [10, 10, 20, 20]
    assert heat_to_box(heat, 1.0).tolist() == list(NO_BOX)


# ---------------------------------------------------------------- overlaps


def test_overlaps_by_hand() -> None:
    box, truth = np.array([0, 0, 9, 9]), np.array([5, 0, 14, 9])  # both 10 x 10, 5 x 10 shared
    assert iou(box, truth) == pytest.approx(50 / 150)
    half = np.array([0, 0, 4, 9])  # 5 x 10, inside of box
    assert (iog(half, box), iob(half, box)) == (pytest.approx(0.5), pytest.approx(1.0))
    assert (iog(box, half), iob(box, half)) == (pytest.approx(1.0), pytest.approx(0.5))


@pytest.mark.parametrize("other", [[40, 0, 49, 9], [0, 40, 9, 49], [40, 40, 49, 49]])
def test_boxes_apart_do_not_overlap(other: list[int]) -> None:
    """Two negative extents must not multiply to an area."""
    assert iou(np.array([0, 0, 9, 9]), np.array(other)) == 0


# ---------------------------------------------------------------- verdicts


def test_half_overlap_is_known_but_not_located() -> None:
    """GT-known asks for IoU >= 0.5, localisation for more than 0.5."""
    half = np.array([[10, 10, 29, 19]])
    assert iou(half, EXACT) == 0.5
    verdict = judge(LOGITS, 1, half, EXACT)
    assert verdict.gt_known.tolist() == [True]
    assert verdict.loc_top1.tolist() == verdict.loc_top5.tolist() == [False]
    assert KINDS[verdict.kind[0]] == "part"


def test_kinds_by_hand() -> None:
    assert kind_of([10, 10, 29, 29]) == "right"
    assert kind_of([10, 10, 29, 29], label=3) == "wrong_class"
    assert kind_of([100, 100, 120, 120], label=3) == "wrong_class"
    assert kind_of([12, 12, 20, 20]) == "part"
    assert kind_of([0, 0, 60, 60]) == "more"
    assert kind_of([25, 25, 60, 60]) == "wrong"


def test_more_takes_seven_tenths_of_the_object_itself() -> None:
    at, below = (
        [16, 10, 43, 29],
        [17, 10, 43, 29],
    )  # 14 and 13 of 20 columns
    assert iog(np.array(at), EXACT) == 0.7
    assert kind_of(at) == "more"
    assert kind_of(below) == "wrong"


def test_kinds_are_judged_by_the_object_of_the_largest_overlap() -> None:
    box = [0, 0, 19, 19]
    nearest, band = np.array([10, 10, 39, 29]), np.array([0, 0, 199, 11])
    assert iou(np.array(box), nearest) > iou(np.array(box), band)
    assert iob(np.array(box), band) == 0.6  # which would be `part`
    assert kind_of(box, np.array([band, nearest])) == "wrong"


def test_a_box_over_two_objects_is_of_its_own_kind() -> None:
    truths = np.array([[10, 10, 29, 29], [60, 10, 79, 29]])
    assert kind_of([10, 10, 79, 29], truths) == "multi_instance"
    assert kind_of([60, 10, 79, 29], truths) == "right"


def test_top_five_of_more_and_of_fewer_classes() -> None:
    boxes = EXACT[None]
    for label, top1, top5 in ((1, True, True), (4, False, True), (5, False, False)):
        verdict = judge(LOGITS, label, boxes, EXACT)
        assert (verdict.cls_top1, verdict.cls_top5) == (top1, top5)
        assert (verdict.loc_top1[0], verdict.loc_top5[0]) == (top1, top5)
        assert verdict.gt_known[0]
    few = judge(LOGITS[:2], 0, boxes, EXACT)
    assert (few.cls_top1, few.cls_top5, bool(few.loc_top5[0])) == (False, True, True)


# ---------------------------------------------------------------- scores


def mixed_result() -> LocalisationResult:
    """Two thresholds; of three pictures the last has no box."""
    scores = LocalisationScores([0.1, 0.5])
    scores.update(LOGITS, 1, np.array([[10, 10, 29, 29], [12, 12, 20, 20]]), EXACT)
    scores.update(LOGITS, 5, np.array([[10, 10, 29, 29], [10, 10, 29, 29]]), EXACT)
    scores.update(LOGITS, 1, None, None)
    return scores.compute()


def test_several_thresholds_in_one_pass() -> None:
    result = mixed_result()
    np.testing.assert_allclose(result.gt_known, [100, 50])
    np.testing.assert_allclose(result.loc_top1, [50, 0])
    np.testing.assert_allclose(result.breakdown["part"], [0, 50])
    np.testing.assert_allclose(sum(result.breakdown.values()), 100)
    assert result.best_threshold() == 0
    assert result.numbers(1)["gt_known"] == 50


def test_pictures_without_box_count_for_classification_only() -> None:
    result = mixed_result()
    assert (result.pictures, result.boxed) == (3, 2)
    assert result.cls_top1 == pytest.approx(200 / 3)


@pytest.mark.filterwarnings("error")
def test_without_any_box_only_the_classification_is_reported() -> None:
    scores = LocalisationScores([0.1])
    scores.update(LOGITS, 1, None, None)
    result = scores.compute()
    assert result.numbers() == {"cls_top1": 100, "cls_top5": 100}
    assert np.isnan(result.gt_known).all() and result.best_threshold() == 0
    assert np.isnan(LocalisationScores([0.1]).compute().cls_top1)


def test_one_box_per_threshold_is_required() -> None:
    with pytest.raises(ValueError, match=r"\(2, 4\)"):
        LocalisationScores([0.1, 0.5]).update(LOGITS, 1, EXACT[None], EXACT)


def test_parts_of_several_processes_add_up(golden: Golden, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [published_scores(golden, slice(i, None, 2)) for i in range(2)]
    counts = (parts[1]._pictures, parts[1]._hits, parts[1]._kinds)
    others = iter([torch.from_numpy(array) for array in counts])
    monkeypatch.setattr(localization, "all_reduce_sum", lambda tensor: tensor + next(others))
    parts[0].reduce()
    np.testing.assert_equal(vars(parts[0].compute()), vars(published_scores(golden).compute()))

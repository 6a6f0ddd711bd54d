"""Scores against values computed by hand."""

import warnings
from collections.abc import Callable

import numpy as np
import pytest

from misc.metrics import (
    ConfusionMatrix,
    InstanceAveragePrecision,
    ThresholdConfusion,
    instances_of,
    mask_iou,
    nan_mean,
)

# 8 pixels. gt 0: 4 pixels, gt 1: 3 pixels, one ignored; class 2 never occurs.
TRUTH = np.array([[0, 0, 0, 0], [1, 1, 1, 255]], np.uint8)
PREDICTION = np.array([[0, 0, 1, 255], [1, 0, 1, 1]], np.uint8)


def _confusion() -> ConfusionMatrix:
    confusion = ConfusionMatrix(3)
    confusion.update(PREDICTION, TRUTH)
    return confusion


def test_counts_by_hand() -> None:
    # Of gt 0 two are right, one is taken for 1, and the 255 counts as background: right, too.
    assert _confusion().counts.tolist() == [[3, 1, 0], [1, 2, 0], [0, 0, 0]]


def test_scores_by_hand() -> None:
    scores = _confusion().compute()
    np.testing.assert_allclose(scores.iou, [3 / 5, 2 / 4, np.nan])
    assert scores.miou_of_occurring == pytest.approx((3 / 5 + 2 / 4) / 2)
    np.testing.assert_allclose(scores.false_positive[:2], [1 - 4 / 5, 1 - 3 / 4])
    np.testing.assert_allclose(scores.false_negative[:2], [1 - 4 / 5, 1 - 3 / 4])
    assert np.isnan(scores.false_positive[2])


def test_shares_of_right_pixels_by_hand() -> None:
    scores = _confusion().compute()
    assert scores.pixel_accuracy == pytest.approx(5 / 7)
    assert scores.mean_accuracy == pytest.approx((3 / 4 + 2 / 3) / 2)
    assert scores.frequency_weighted_iou == pytest.approx(4 / 7 * 3 / 5 + 3 / 7 * 2 / 4)
    assert scores.miou_of_true == pytest.approx((3 / 5 + 2 / 4) / 2)


def test_precision_and_recall_by_hand() -> None:
    scores = _confusion().compute()
    np.testing.assert_allclose(scores.precision, [3 / 4, 2 / 3, np.nan])
    np.testing.assert_allclose(scores.recall, [3 / 4, 2 / 3, np.nan])
    more = ConfusionMatrix(3)
    more.update(np.array([[1, 1, 1, 2]]), np.array([[0, 0, 1, 1]]))
    np.testing.assert_allclose(more.compute().precision, [np.nan, 1 / 3, 0])
    np.testing.assert_allclose(more.compute().recall, [0, 1 / 2, np.nan])


def test_background_scores_are_counted_at_once_by_hand() -> None:
    strongest = np.array([[1, 1, 2, 2, 1, 0]])
    score = np.array([[0.9, 0.25, 0.5, 0.1, 0.7, 0.0]], np.float32)
    truth = np.array([[1, 0, 2, 2, 255, 0]])
    confusion = ThresholdConfusion(3, [0.0, 0.25, 0.5])
    confusion.update(strongest, score, truth)
    # 0.25 and 0.5 do not exceed themselves; the last background pixel never has a class
    at = [matrix.counts.tolist() for matrix in confusion.matrices()]
    assert at == [
        [[1, 1, 0], [0, 1, 0], [0, 0, 2]],
        [[2, 0, 0], [0, 1, 0], [1, 0, 1]],
        [[2, 0, 0], [0, 1, 0], [2, 0, 0]],
    ]


def test_background_scores_at_once_equal_one_by_one() -> None:
    rng = np.random.default_rng(0)
    strongest, truth = rng.integers(0, 4, (2, 30, 40))
    truth[:3] = 255
    score = (rng.integers(0, 21, (30, 40)) / 20).astype(np.float32)  # many are equal to thresholds
    thresholds = [0.05, 0.25, 0.6, 1.0]
    together = ThresholdConfusion(4, thresholds)
    part = ThresholdConfusion(4, thresholds)
    together.update(strongest[:20], score[:20], truth[:20])
    part.update(strongest[20:], score[20:], truth[20:])
    together.merge(part)
    for threshold, matrix in zip(thresholds, together.matrices(), strict=True):
        alone = ConfusionMatrix(4)
        alone.update(np.where(score > np.float32(threshold), strongest, 0), truth)
        assert matrix.counts.tolist() == alone.counts.tolist()


def test_background_scores_name_what_does_not_fit() -> None:
    confusion, score = ThresholdConfusion(2, [0.5]), np.zeros((1, 2), np.float32)
    with pytest.raises(ValueError, match=r"shape \(1, 2\), the mask \(2, 1\)"):
        confusion.update(np.zeros((1, 2), int), score, np.zeros((2, 1), int))
    with pytest.raises(ValueError, match=r"label 2, outside 0\.\.1"):
        confusion.update(np.full((1, 2), 2), score, np.zeros((1, 2), int))


def test_class_that_is_predicted_only_counts_for_miou_alone() -> None:
    confusion = ConfusionMatrix(3)
    confusion.update(np.array([[0, 2]]), np.array([[0, 0]]))
    scores = confusion.compute()
    assert scores.miou_of_occurring == pytest.approx((1 / 2 + 0) / 2)
    assert scores.miou_of_true == pytest.approx(1 / 2)
    assert scores.mean_accuracy == pytest.approx(1 / 2)


def test_deeplab_golden(golden: Callable[[str], dict[str, np.ndarray]]) -> None:
    expected = golden("deeplab_scores")
    confusion = ConfusionMatrix(21)
    for prediction, truth in zip(expected["pred"], expected["gt"], strict=True):
        confusion.update(prediction, truth)
    scores = confusion.compute()
    assert scores.pixel_accuracy == pytest.approx(expected["pixel_accuracy"], rel=1e-12)
    assert scores.mean_accuracy == pytest.approx(expected["mean_accuracy"], rel=1e-12)
    assert scores.frequency_weighted_iou == pytest.approx(expected["fw_iou"], rel=1e-12)
    assert scores.miou_of_true == pytest.approx(expected["mean_iou"], rel=1e-12)
    np.testing.assert_allclose(scores.iou, expected["class_iou"], rtol=1e-6)


def test_false_positive_and_negative_are_not_swapped() -> None:
    confusion = ConfusionMatrix(2)
    confusion.update(np.array([[1, 1, 1, 1]]), np.array([[1, 0, 0, 0]]))
    scores = confusion.compute()
    assert scores.false_positive[1] == pytest.approx(3 / 4)
    assert scores.false_negative[1] == pytest.approx(0)
    assert scores.false_negative[0] == pytest.approx(1)


def test_wrong_class_counts_for_both_classes() -> None:
    confusion = ConfusionMatrix(3)
    confusion.update(np.array([[2, 2]]), np.array([[1, 2]]))
    np.testing.assert_allclose(confusion.compute().iou, [np.nan, 0, 1 / 2])


def test_nothing_counted_is_nan_without_warning() -> None:
    confusion = ConfusionMatrix(2)
    confusion.update(np.zeros((2, 2), np.uint8), np.full((2, 2), 255, np.uint8))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = confusion.compute()
        assert np.isnan(
            [scores.miou_of_occurring, scores.miou_of_true, scores.pixel_accuracy]
        ).all()
        assert np.isnan([scores.mean_accuracy, scores.frequency_weighted_iou]).all()
        assert np.isnan(nan_mean(np.array([])))


def test_unusable_maps_are_refused() -> None:
    confusion, fine = ConfusionMatrix(3), np.zeros((1, 2), np.uint8)
    with pytest.raises(ValueError, match=r"mask has label 3, outside 0\.\.2"):
        confusion.update(fine, np.array([[0, 3]]))
    with pytest.raises(ValueError, match="prediction has label 7"):
        confusion.update(np.array([[0, 7]]), fine)
    with pytest.raises(ValueError, match=r"\(1, 2\).*\(2, 1\)"):
        confusion.update(fine, fine.T)
    assert confusion.counts.sum() == 0


# ---------------------------------------------------------------------------------- instances


def _strip(start: int, stop: int, length: int = 8) -> np.ndarray:
    """(1, length) mask of the columns start..stop-1."""
    mask = np.zeros((1, length), bool)
    mask[0, start:stop] = True
    return mask


def _average_precision(pictures: list[tuple], num_classes: int = 1) -> np.ndarray:
    """Pictures as ([(mask, class, score), ...], [(mask, class), ...])."""
    metric = InstanceAveragePrecision(num_classes)
    for found, truth in pictures:
        metric.update(
            np.array([mask for mask, *_ in found], bool).reshape(-1, 1, 8),
            np.array([index for _, index, _ in found], int),
            np.array([score for *_, score in found], float),
            np.array([mask for mask, _ in truth], bool).reshape(-1, 1, 8),
            np.array([index for _, index in truth], int),
        )
    return metric.compute()


def test_mask_iou_by_hand() -> None:
    masks = np.stack([_strip(0, 4), _strip(4, 8), _strip(0, 0)])
    others = np.stack([_strip(2, 6), _strip(0, 4)])
    np.testing.assert_allclose(mask_iou(masks, others), [[2 / 6, 1], [2 / 6, 0], [0, 0]])


def test_average_precision_by_hand() -> None:
    truth = [(_strip(0, 2), 0), (_strip(4, 8), 0)]
    found = [
        (_strip(4, 6), 0, 0.7),  # IoU exactly 0.5: right
        (_strip(0, 2), 0, 0.9),  # right
        (_strip(0, 2), 0, 0.8),  # found before: wrong
    ]
    # precision 1, 1/2, 2/3 at recall 1/2, 1/2, 1
    assert _average_precision([(found, truth)])[0] == pytest.approx(1 / 2 * 1 + 1 / 2 * 2 / 3)


def test_precision_is_made_falling() -> None:
    truth = [(_strip(0, 2), 0), (_strip(4, 6), 0)]
    found = [(_strip(6, 8), 0, 0.9), (_strip(0, 2), 0, 0.8), (_strip(4, 6), 0, 0.7)]
    # precision 0, 1/2, 2/3 becomes 2/3 throughout
    assert _average_precision([(found, truth)])[0] == pytest.approx(2 / 3)


def test_scores_are_ranked_over_all_pictures() -> None:
    right = ([(_strip(0, 4), 0, 0.6)], [(_strip(0, 4), 0)])
    wrong = ([(_strip(0, 2), 0, 0.9)], [(_strip(4, 8), 0)])
    # ranks: wrong, right; one of two objects found: precision 1/2 up to recall 1/2
    assert _average_precision([right, wrong])[0] == pytest.approx(1 / 4)


def test_missed_objects_lower_the_recall() -> None:
    truth = [(_strip(0, 2), 0), (_strip(2, 4), 0), (_strip(4, 6), 0), (_strip(6, 8), 0)]
    assert _average_precision([([(_strip(2, 4), 0, 0.1)], truth)])[0] == pytest.approx(1 / 4)


def test_classes_are_scored_apart() -> None:
    truth = [(_strip(0, 4), 0), (_strip(4, 8), 1)]
    found = [(_strip(0, 4), 1, 0.9), (_strip(4, 8), 1, 0.8), (_strip(0, 4), 2, 0.5)]
    # class 0 never found, class 1 second of two, class 2 has no object
    np.testing.assert_allclose(_average_precision([(found, truth)], 3), [0, 1 / 2, np.nan])


def test_pictures_without_predictions_or_objects() -> None:
    assert _average_precision([([], [(_strip(0, 4), 0)])])[0] == 0
    assert np.isnan(_average_precision([([], [])])[0])


def test_of_equal_scores_the_later_picture_ranks_first() -> None:
    # chainercv sorts by rising score and reverses
    wrong = ([(_strip(4, 8), 0, 0.5)], [])
    right = ([(_strip(0, 4), 0, 0.5)], [(_strip(0, 4), 0)])
    assert _average_precision([wrong, right])[0] == 1
    assert _average_precision([right, wrong])[0] == 1 / 2


def test_instances_of_voc_masks() -> None:
    objects = np.array([[0, 1, 1, 255, 2, 2, 3]], np.uint8)
    label = np.array([[0, 5, 5, 255, 8, 255, 255]], np.uint8)
    masks, classes = instances_of(objects, label)
    assert classes.tolist() == [4, 7]
    assert masks[:, 0].astype(int).tolist() == [[0, 1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 1, 1, 0]]


def test_instances_of_an_empty_picture() -> None:
    masks, classes = instances_of(np.zeros((3, 4), np.uint8), np.zeros((3, 4), np.uint8))
    assert masks.shape == (0, 3, 4)
    assert classes.shape == (0,)
    with pytest.raises(ValueError, match="object mask has size"):
        instances_of(np.zeros((3, 4), np.uint8), np.zeros((4, 3), np.uint8))


def test_sizes_must_agree() -> None:
    metric, none = InstanceAveragePrecision(1), np.zeros(0, int)
    with pytest.raises(ValueError, match="instances have size"):
        metric.update(np.zeros((0, 2, 2), bool), none, none, np.zeros((0, 3, 3), bool), none)

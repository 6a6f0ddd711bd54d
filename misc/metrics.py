"""Scores of label maps (confusion matrix, mIoU) and of instances (average precision)."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from misc.distributed import all_gather, all_reduce_sum
from misc.errors import UserError
from misc.maps_io import BACKGROUND_LABEL, IGNORE_LABEL


@dataclass(frozen=True)
class SegmentationScores:
    """Scores per class, background first; fractions, NaN for a class that never occurs.

    Attributes:
        iou: (C,) intersection over union.
        miou_of_occurring: mean of `iou` over the classes that occur in ground truth or prediction.
        false_positive: (C,) share of the union that is prediction only, 1 - gt / union.
        false_negative: (C,) share of the union that is ground truth only, 1 - prediction / union.
        precision: (C,) share of the pixels predicted as a class that are right; NaN without any.
        recall: (C,) share of a class's pixels in the ground truth that is right; NaN without any.
        foreground_precision: share of all pixels predicted as any foreground class that have the
            right one; NaN without any. Large objects count more than in the mean of `precision`.
        foreground_recall: share of all foreground pixels of the ground truth that are predicted as
            the right class; NaN without any.
        pixel_accuracy: share of the pixels that are right.
        mean_accuracy: mean of `recall` over the classes in the ground truth.
        frequency_weighted_iou: mean of `iou` weighted by the pixels of a class in the ground truth.
        miou_of_true: mean of `iou` over the classes that occur in the ground truth, the score of
            the published DeepLab; a class that is only predicted does not lower it.
    """

    iou: np.ndarray
    miou_of_occurring: float
    false_positive: np.ndarray
    false_negative: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    foreground_precision: float
    foreground_recall: float
    pixel_accuracy: float
    mean_accuracy: float
    frequency_weighted_iou: float
    miou_of_true: float


class ConfusionMatrix:
    """Pixel counts by ground truth (row) and prediction (column).

    Ground truth 255 is ignored; prediction 255 counts as background, as in the published scores.
    """

    def __init__(self, num_classes: int) -> None:
        """Start with zeros; `num_classes` includes the background."""
        self.num_classes = num_classes
        self.counts = np.zeros((num_classes, num_classes), np.int64)

    def update(self, prediction: np.ndarray, ground_truth: np.ndarray) -> None:
        """Add one picture.

        Args:
            prediction: (h, w) integers, 0..C-1 or 255.
            ground_truth: (h, w) integers, 0..C-1 or 255.

        Raises:
            ValueError: the sizes differ, or a label is outside the classes and not 255.
        """
        cells = _cells(prediction, ground_truth, self.num_classes)[0]
        counts = np.bincount(cells, minlength=self.num_classes**2)
        self.counts += counts.reshape(self.num_classes, self.num_classes)

    def reduce(self) -> None:
        """Add up the counts of all processes; every process then holds the total."""
        self.counts = all_reduce_sum(torch.from_numpy(self.counts)).numpy()

    def compute(self) -> SegmentationScores:
        """Scores of everything counted so far."""
        hits = np.diag(self.counts).astype(np.float64)
        ground_truth, prediction = self.counts.sum(axis=1), self.counts.sum(axis=0)
        union = ground_truth + prediction - hits
        with np.errstate(invalid="ignore", divide="ignore"):
            iou = hits / union
            false_positive = 1 - ground_truth / union
            false_negative = 1 - prediction / union
            precision = hits / prediction
            recall = hits / ground_truth
            frequency = ground_truth / ground_truth.sum()
            pixel_accuracy = hits.sum() / ground_truth.sum()
        found, present = hits[1:].sum(), ground_truth > 0
        return SegmentationScores(
            iou=iou,
            miou_of_occurring=nan_mean(iou),
            false_positive=false_positive,
            false_negative=false_negative,
            precision=precision,
            recall=recall,
            foreground_precision=_share(found, prediction[1:].sum()),
            foreground_recall=_share(found, ground_truth[1:].sum()),
            pixel_accuracy=float(pixel_accuracy),
            mean_accuracy=nan_mean(recall),
            frequency_weighted_iou=_sum_or_nan((frequency * iou)[present]),
            miou_of_true=nan_mean(iou[present]),
        )


class ThresholdConfusion:
    """Confusion matrices of one set of maps at several background scores, counted in one pass.

    The strongest class of a pixel stands where its score exceeds the background score. So its cell
    and the number of background scores below its score decide about all of them at once.
    """

    def __init__(self, num_classes: int, thresholds: Sequence[float]) -> None:
        """Start with zeros.

        Args:
            num_classes: including the background.
            thresholds: T background scores in rising order.
        """
        self.num_classes = num_classes
        self.thresholds = np.array(thresholds, np.float32)  # as the scores that they compete with
        self.counts = np.zeros((num_classes, num_classes, len(thresholds) + 1), np.int64)

    def update(self, strongest: np.ndarray, score: np.ndarray, ground_truth: np.ndarray) -> None:
        """Add one picture.

        Args:
            strongest: (h, w) integers, the strongest class of every pixel, 0..C-1.
            score: (h, w) float32, the score of that class.
            ground_truth: (h, w) integers, 0..C-1 or 255.

        Raises:
            ValueError: see `ConfusionMatrix.update`.
        """
        cells, valid = _cells(strongest, ground_truth, self.num_classes)
        exceeded = np.searchsorted(self.thresholds, score[valid])  # thresholds below the score
        cells = cells * self.counts.shape[-1] + exceeded
        self.counts += np.bincount(cells, minlength=self.counts.size).reshape(self.counts.shape)

    def merge(self, other: "ThresholdConfusion") -> None:
        """Add the counts of another part of the pictures."""
        self.counts += other.counts

    def matrices(self) -> list[ConfusionMatrix]:
        """The confusion matrix at every threshold."""
        return [self._matrix(index) for index in range(len(self.thresholds))]

    def _matrix(self, index: int) -> ConfusionMatrix:
        matrix = ConfusionMatrix(self.num_classes)
        matrix.counts += self.counts[..., index + 1 :].sum(axis=-1)
        matrix.counts[:, BACKGROUND_LABEL] += self.counts[..., : index + 1].sum(axis=(1, 2))
        return matrix


def _cells(
    prediction: np.ndarray, ground_truth: np.ndarray, num_classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """The cell of the confusion matrix of every pixel that is not ignored, and which these are."""
    if prediction.shape != ground_truth.shape:
        raise ValueError(
            f"the prediction has shape {prediction.shape}, the mask {ground_truth.shape}"
        )
    valid = ground_truth != IGNORE_LABEL
    rows = _checked(ground_truth[valid].astype(np.int64), "mask", num_classes)
    columns = prediction[valid].astype(np.int64)
    columns[columns == IGNORE_LABEL] = BACKGROUND_LABEL
    return rows * num_classes + _checked(columns, "prediction", num_classes), valid


def _checked(labels: np.ndarray, what: str, num_classes: int) -> np.ndarray:
    outside = labels[(labels < 0) | (labels >= num_classes)]
    if outside.size:
        raise ValueError(
            f"the {what} has label {outside[0]}, outside 0..{num_classes - 1} and {IGNORE_LABEL}"
        )
    return labels


def _share(part: float, whole: float) -> float:
    return float(part / whole) if whole else float("nan")


def _sum_or_nan(values: np.ndarray) -> float:
    return float(values.sum()) if values.size else float("nan")


def nan_mean(values: np.ndarray) -> float:
    """Mean of the values that are not NaN; NaN, without a warning, when there is none."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")


class InstanceAveragePrecision:
    """Average precision of instance masks by the PASCAL VOC definition.

    The same numbers as `eval_instance_segmentation_voc` of chainercv with `use_07_metric=False`: a
    prediction, in order of falling score, is right when the ground truth instance of its class that
    it overlaps most reaches the IoU threshold and was not found before.
    """

    def __init__(self, num_classes: int, iou_threshold: float = 0.5) -> None:
        """Start empty; `num_classes` counts foreground classes."""
        self.num_classes = num_classes
        self.iou_threshold = iou_threshold
        self._positives = np.zeros(num_classes, np.int64)
        self._pictures = 0
        self._found: dict[int, list[tuple[int, float, bool]]] = defaultdict(list)

    def update(
        self,
        masks: np.ndarray,
        classes: np.ndarray,
        scores: np.ndarray,
        true_masks: np.ndarray,
        true_classes: np.ndarray,
    ) -> None:
        """Add one picture.

        Args:
            masks: (n, h, w) bool, predicted instances.
            classes: (n,) integer class index, from 0.
            scores: (n,) confidence.
            true_masks: (m, h, w) bool.
            true_classes: (m,) integer class index, from 0.

        Raises:
            ValueError: predictions and ground truth have different picture sizes.
        """
        if masks.shape[1:] != true_masks.shape[1:]:
            raise ValueError(
                f"the instances have size {masks.shape[1:]}, the mask {true_masks.shape[1:]}"
            )
        for index in np.union1d(classes, true_classes).astype(int):
            chosen = classes == index
            order = np.argsort(scores[chosen], kind="stable")[::-1]
            truth = true_masks[true_classes == index]
            self._positives[index] += len(truth)
            matches = self._match(masks[chosen][order], truth)
            for score, match in zip(scores[chosen][order].tolist(), matches, strict=True):
                self._found[index].append((self._pictures, score, match))
        self._pictures += 1

    def _match(self, masks: np.ndarray, truth: np.ndarray) -> list[bool]:
        """Decide for each of (n, h, w) masks, best score first, whether it finds a new instance."""
        if len(masks) == 0 or len(truth) == 0:
            return [False] * len(masks)
        iou = mask_iou(masks, truth)
        found = np.zeros(len(truth), bool)
        matches = []
        for best, value in zip(iou.argmax(axis=1), iou.max(axis=1), strict=True):
            hit = bool(value >= self.iou_threshold)
            matches.append(hit and not found[best])
            found[best] |= hit
        return [bool(match) for match in matches]

    def reduce(self) -> None:
        """Collect the instances of all processes; every process then holds the total.

        Equal scores rank by their pictures, so these are put in the order that `shard` dealt out.
        """
        parts = all_gather((self._positives, self._pictures, dict(self._found)))
        self._positives = np.sum([positives for positives, _, _ in parts], axis=0)
        self._pictures = max(pictures for _, pictures, _ in parts)
        found = [(index, one) for _, _, part in parts for index in part for one in part[index]]
        self._found = defaultdict(list)
        for index, one in sorted(found, key=lambda pair: pair[1][0]):  # stable: by process then
            self._found[index].append(one)

    def compute(self) -> np.ndarray:
        """(C,) average precision per class; NaN for a class without ground truth instance."""
        return np.array([self._average_precision(index) for index in range(self.num_classes)])

    def _average_precision(self, index: int) -> float:
        """Area under the precision-recall curve with precision made falling."""
        if self._positives[index] == 0:
            return float("nan")
        scores = np.array([score for _, score, _ in self._found[index]])
        hits = np.array([match for _, _, match in self._found[index]], bool)
        hits = hits[np.argsort(scores, kind="stable")[::-1]]
        true_positives = np.cumsum(hits)
        recall = np.concatenate(([0], true_positives / self._positives[index], [1]))
        ranks = np.arange(1, len(hits) + 1)
        precision = np.concatenate(([0], true_positives / ranks, [0]))
        precision = np.maximum.accumulate(precision[::-1])[::-1]
        return float(np.sum(np.diff(recall) * precision[1:]))


def mask_iou(masks: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(n, m) intersection over union of (n, h, w) and (m, h, w) boolean masks."""
    a = masks.reshape(len(masks), -1).astype(np.float64)
    b = others.reshape(len(others), -1).astype(np.float64)
    intersection = a @ b.T
    union = a.sum(axis=1)[:, None] + b.sum(axis=1)[None] - intersection
    return np.divide(intersection, union, out=np.zeros_like(union), where=union > 0)


def instances_of(object_ids: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Split VOC's SegmentationObject map into instances and find their classes.

    Args:
        object_ids: (h, w) uint8, 0 background, 255 ignored, other values one per instance.
        label: (h, w) uint8 SegmentationClass map: class index + 1, 0 background, 255 ignored.

    Returns:
        Masks (m, h, w) bool, and (m,) int64 class indices from 0: the commonest class among the
        pixels of the instance. An instance without a pixel of any class is left out.

    Raises:
        ValueError: the two maps differ in size.
    """
    if object_ids.shape != label.shape:
        raise ValueError(f"the object mask has size {object_ids.shape}, the mask {label.shape}")
    masks, classes = [], []
    for index in np.unique(object_ids):
        if index in (BACKGROUND_LABEL, IGNORE_LABEL):
            continue
        mask = object_ids == index
        counts = np.bincount(label[mask], minlength=IGNORE_LABEL + 1)[1:IGNORE_LABEL]
        if counts.any():
            masks.append(mask)
            classes.append(int(counts.argmax()))
    shape = (len(masks), *label.shape)
    return np.array(masks, bool).reshape(shape), np.array(classes, np.int64)


def add_picture(
    confusion: ConfusionMatrix, prediction: np.ndarray, ground_truth: np.ndarray, source: Path
) -> None:
    """Count one picture; an unusable label map becomes an error that names its file.

    Raises:
        UserError: sizes differ or a label is outside the class list.
    """
    with fitting(source):
        confusion.update(prediction, ground_truth)


@contextmanager
def fitting(source: Path) -> Iterator[None]:
    """Say of which file label maps are that do not fit to each other.

    Raises:
        UserError: instead of the ValueError of a confusion matrix.
    """
    try:
        yield
    except ValueError as error:
        raise UserError(
            f"{source}: {error}; check that predictions and masks belong to the same pictures and "
            "the same class list."
        ) from None

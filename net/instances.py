"""From a displacement field to instances (IRNet, Ahn et al. 2019, section 4.2).

Every pixel follows the field to the centre of its instance; centres that lie close together are
one cluster. The class maps, cut up by cluster, then walk apart to become instances.
"""

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from misc.maps_io import Instances
from net.affinity import random_walk, strongest_map

CENTROID_ITERATIONS = 300
WEAK_DISPLACEMENT = 2.5  # pixels of the map; shorter displacements are near a centre
SMALLEST_FRAGMENT = 0.01  # of the picture; smaller fragments score 0


def find_centroids(displacement: np.ndarray, iterations: int = CENTROID_ITERATIONS) -> np.ndarray:
    """Where every pixel ends up when it follows the displacement field.

    The field is read bilinearly and positions are clipped to the map after each step.

    Args:
        displacement: (2, h, w) float32, (dy, dx) towards the centre.
        iterations: number of steps.

    Returns:
        (2, h, w) int32 row and column, rounded half to even.
    """
    _, height, width = displacement.shape
    limit = np.array([[height - 1], [width - 1]], np.float32)
    field = displacement.reshape(2, -1)
    position = np.indices((height, width), np.float32).reshape(2, -1)
    for _ in range(iterations):
        low, high = np.floor(position).astype(np.int64), np.ceil(position).astype(np.int64)
        # float64 weights, float32 positions: as published, so that centres round alike.
        y, x = position - low
        move = (
            field[:, high[0] * width + high[1]] * y * x
            + field[:, high[0] * width + low[1]] * y * (1 - x)
            + field[:, low[0] * width + high[1]] * (1 - y) * x
            + field[:, low[0] * width + low[1]] * (1 - y) * (1 - x)
        )
        moved = np.clip((position + move).astype(np.float32), 0, limit)
        if np.array_equal(moved, position):
            break
        position = moved
    return np.round(position).astype(np.int32).reshape(displacement.shape)


def cluster_centroids(
    centroids: np.ndarray, displacement: np.ndarray, threshold: float = WEAK_DISPLACEMENT
) -> np.ndarray:
    """Group the pixels by the region of weak displacement in which their centroid lies.

    Pixels whose centroid lies in no such region form one group of their own, the first.

    Args:
        centroids: (2, h, w) int row and column per pixel.
        displacement: (2, h, w) float32.
        threshold: displacements shorter than this are weak; regions are 4-connected.

    Returns:
        (n, h, w) bool masks that cover every pixel once; n >= 1.
    """
    weak = np.sqrt(displacement[1] ** 2 + displacement[0] ** 2) < threshold
    regions, _ = ndimage.label(weak)
    of_pixel = regions[centroids[0], centroids[1]]
    return of_pixel == np.unique(of_pixel)[:, None, None]


def detect_instances(
    winner: np.ndarray, score: np.ndarray, class_id: np.ndarray, smallest: float
) -> Instances:
    """Split what every map has won into 4-connected fragments, each an instance.

    Args:
        winner: (h, w) int, 0 = background, r + 1 = map r.
        score: (h, w) float32 value of the winning map.
        class_id: (R,) class index of every map.
        smallest: fragments of fewer pixels than this score 0, others their largest score.

    Returns:
        The instances, by map, then in reading order; empty arrays when all is background.
    """
    scores, classes, masks = [], [], []
    for row in np.unique(winner[winner > 0]) - 1:
        fragments, count = ndimage.label(winner == row + 1)
        for fragment in range(1, count + 1):
            mask = fragments == fragment
            scores.append(score[mask].max() if np.count_nonzero(mask) >= smallest else 0)
            classes.append(class_id[row])
            masks.append(mask)
    return Instances(
        score=np.array(scores, np.float32),
        class_id=np.array(classes, np.int64),
        mask=np.array(masks, bool).reshape(-1, *winner.shape),
    )


def instances_from_maps(
    cam: Tensor,
    edge: Tensor,
    displacement: np.ndarray | Tensor,
    keys: np.ndarray,
    size: tuple[int, int],
    bg_thres: float,
    beta: float = 10,
    exp_times: int = 8,
    radius: int = 5,
) -> Instances:
    """Instances of a picture from its class maps and the outputs of IRNet.

    Args:
        cam: (K, h4, w4) float class maps on any device, h4 = ceil(h / 4), w4 = ceil(w / 4).
        edge: (1, h4, w4) float edge probabilities.
        displacement: (2, h4, w4) float, (dy, dx) towards the centre of the instance.
        keys: (K,) class indices.
        size: (h, w) of the picture.
        bg_thres: score of the background relative to the largest of all maps, e.g. 0.25.
        beta: exponent of the affinities.
        exp_times: binary logarithm of the number of steps.
        radius: reach of one step.

    Returns:
        The instances; none when there is no class or all class maps are zero.

    Raises:
        UserError: the sizes of `cam`, `edge` and `size` do not match.
    """
    field = torch.as_tensor(displacement).float().cpu().numpy()
    clusters = cluster_centroids(find_centroids(field), field)
    masks = torch.from_numpy(clusters).to(cam.device)
    pieces = (cam[:, None] * masks).flatten(0, 1)  # classes outer, clusters inner
    walked = random_walk(pieces, edge, radius, beta, exp_times)
    winner, score = strongest_map(walked, size, bg_thres)
    class_id = np.repeat(np.asarray(keys, np.int64), len(clusters))
    return detect_instances(winner, score, class_id, SMALLEST_FRAGMENT * size[0] * size[1])

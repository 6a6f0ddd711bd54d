"""Dense CRF (Kraehenbuehl and Koltun 2011) that snaps label maps to the edges of a picture.

Needs pydensecrf, imported on first use so that everything else runs without it. Nothing here
imports torch: worker processes start in a moment.
"""

from dataclasses import dataclass
from types import ModuleType

import numpy as np

from misc.errors import UserError


@dataclass(frozen=True)
class CrfParameters:
    """Settings of the dense CRF; the defaults are those of the CAM -> IR label step.

    Attributes:
        gt_prob: probability of the given label, in (0, 1); the other labels share the rest.
        gaussian_sxy: standard deviation in pixels of the smoothness kernel.
        gaussian_compat: its weight.
        bilateral_sxy: standard deviation in pixels of the appearance kernel.
        bilateral_srgb: its standard deviation in grey levels.
        bilateral_compat: its weight.
        iterations: mean field steps.
    """

    gt_prob: float = 0.7
    gaussian_sxy: float = 3
    gaussian_compat: float = 3
    bilateral_sxy: float = 50
    bilateral_srgb: float = 5
    bilateral_compat: float = 10
    iterations: int = 10


class DenseCrf:
    """The CRF of one picture; its lattices are built once and serve any number of label maps."""

    def __init__(
        self, image: np.ndarray, num_labels: int, parameters: CrfParameters | None = None
    ) -> None:
        """Build the lattices.

        Args:
            image: (h, w, 3) uint8 RGB picture.
            num_labels: number of labels, at least 2.
            parameters: settings; None for the defaults.

        Raises:
            UserError: pydensecrf is missing, or the picture or the number of labels is unusable.
        """
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise UserError(
                f"The CRF needs an (h, w, 3) uint8 picture, got {image.shape} {image.dtype}."
            )
        if num_labels < 2:
            raise UserError(f"The CRF needs at least 2 labels, got {num_labels}.")
        self.parameters = settings = parameters or CrfParameters()
        self.shape = (num_labels, *image.shape[:2])
        height, width = image.shape[:2]
        self._crf = require_densecrf().DenseCRF2D(width, height, num_labels)
        self._crf.addPairwiseGaussian(sxy=settings.gaussian_sxy, compat=settings.gaussian_compat)
        self._crf.addPairwiseBilateral(
            sxy=settings.bilateral_sxy,
            srgb=settings.bilateral_srgb,
            rgbim=np.ascontiguousarray(image),
            compat=settings.bilateral_compat,
        )

    def refine_labels(self, labels: np.ndarray) -> np.ndarray:
        """Refine an (h, w) map of integer labels in 0..num_labels - 1; (h, w) uint8 comes back.

        Raises:
            UserError: the map has another size than the picture, or a label is out of range.
        """
        num_labels = self.shape[0]
        if labels.shape != self.shape[1:]:
            raise UserError(f"The picture is {self.shape[1:]}, its label map {labels.shape}.")
        if labels.min() < 0 or labels.max() >= num_labels:
            raise UserError(
                f"The CRF was set up for labels 0..{num_labels - 1}, the map has "
                f"{labels.min()}..{labels.max()}."
            )
        given = self.parameters.gt_prob
        energy = np.full((num_labels, labels.size), -np.log((1 - given) / (num_labels - 1)), "f4")
        energy[labels.ravel(), np.arange(labels.size)] = -np.log(given)
        return self._infer(energy).argmax(0).astype(np.uint8)

    def refine_probabilities(self, probabilities: np.ndarray, floor: float = 1e-5) -> np.ndarray:
        """Refine class probabilities.

        Args:
            probabilities: (num_labels, h, w) float, in [0, 1].
            floor: smaller probabilities count as this one, as their logarithm is needed.

        Returns:
            (num_labels, h, w) float32 probabilities after the CRF.

        Raises:
            UserError: the shape does not match the picture and the number of labels.
        """
        if probabilities.shape != self.shape:
            raise UserError(
                f"The CRF was set up for probabilities {self.shape}, got {probabilities.shape}."
            )
        energy = -np.log(np.clip(probabilities, floor, 1))
        return self._infer(energy.reshape(self.shape[0], -1).astype(np.float32))

    def _infer(self, energy: np.ndarray) -> np.ndarray:
        """(num_labels, h * w) float32 unary energies -> (num_labels, h, w) probabilities."""
        self._crf.setUnaryEnergy(np.ascontiguousarray(energy))
        return np.array(self._crf.inference(self.parameters.iterations)).reshape(self.shape)


def require_densecrf() -> ModuleType:
    """The module pydensecrf.densecrf.

    Raises:
        UserError: it is not installed.
    """
    try:
        import pydensecrf.densecrf as densecrf
    except ImportError as error:
        raise UserError(
            f"The dense CRF needs the package pydensecrf ({error}): pip install pydensecrf2 "
            "(the older pydensecrf on PyPI does not build on current Python)."
        ) from None
    return densecrf

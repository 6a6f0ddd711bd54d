"""Dense CRF (Kraehenbuehl and Koltun 2011) that snaps label maps to the edges of a picture.

Two backends give the same labels: PyTorch, and the C++ of pydensecrf where that is installed. Each
is imported when it is first asked for: importing this module is a matter of milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Literal

import numpy as np

from misc.errors import UserError

Backend = Literal["torch", "pydensecrf"]

Inference = Callable[[np.ndarray], np.ndarray]
"""(sets, num_labels, h * w) float32 unary energies -> probabilities of that shape and type."""


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
        self,
        image: np.ndarray,
        num_labels: int,
        parameters: CrfParameters | None = None,
        backend: Backend = "torch",
        device: str = "cpu",
    ) -> None:
        """Build the lattices.

        Args:
            image: (h, w, 3) uint8 RGB picture.
            num_labels: number of labels, at least 2.
            parameters: settings; None for the defaults.
            backend: who computes.
            device: where `torch` computes.

        Raises:
            UserError: the backend is unknown or not installed, or the picture or the number of
                labels is unusable.
        """
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise UserError(
                f"The CRF needs an (h, w, 3) uint8 picture, got {image.shape} {image.dtype}."
            )
        if num_labels < 2:
            raise UserError(f"The CRF needs at least 2 labels, got {num_labels}.")
        self.parameters = parameters or CrfParameters()
        self.shape = (num_labels, *image.shape[:2])
        image = np.ascontiguousarray(image)
        if backend == "torch":
            self._infer = _torch_inference(image, self.parameters, device)
        elif backend == "pydensecrf":
            self._infer = _pydensecrf_inference(image, num_labels, self.parameters)
        else:
            raise UserError(f"The CRF backend is {backend!r}; use torch or pydensecrf.")

    def refine_labels(self, labels: np.ndarray) -> np.ndarray:
        """Refine maps of labels.

        Args:
            labels: (h, w) or (maps, h, w) integers in 0..num_labels - 1. Several maps together
                take less time than one by one.

        Returns:
            uint8 of the same shape.

        Raises:
            UserError: the maps have another size than the picture, or a label is out of range.
        """
        num_labels = self.shape[0]
        if labels.ndim not in (2, 3) or labels.shape[-2:] != self.shape[1:]:
            raise UserError(f"The picture is {self.shape[1:]}, its label map {labels.shape}.")
        if labels.min() < 0 or labels.max() >= num_labels:
            raise UserError(
                f"The CRF was set up for labels 0..{num_labels - 1}, the map has "
                f"{labels.min()}..{labels.max()}."
            )
        given = self.parameters.gt_prob
        flat = labels.reshape(-1, 1, self.shape[1] * self.shape[2]).astype(np.int64)
        energy = np.full(
            (len(flat), num_labels, flat.shape[2]), -np.log((1 - given) / (num_labels - 1)), "f4"
        )
        np.put_along_axis(energy, flat, np.float32(-np.log(given)), axis=1)
        return self._infer(energy).argmax(1).astype(np.uint8).reshape(labels.shape)

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
        energy = energy.reshape(1, self.shape[0], -1).astype(np.float32)
        return self._infer(energy).reshape(self.shape)


def _torch_inference(image: np.ndarray, settings: CrfParameters, device: str) -> Inference:
    """Inference in PyTorch on (h, w, 3) uint8."""
    import torch

    from net.dense_crf import appearance_kernel, mean_field, smoothness_kernel

    where = torch.device(device)
    images = torch.from_numpy(image)[None].to(where)
    kernels = (
        smoothness_kernel(
            (1, *image.shape[:2]), settings.gaussian_sxy, settings.gaussian_compat, where
        ),
        appearance_kernel(
            images, settings.bilateral_sxy, settings.bilateral_srgb, settings.bilateral_compat
        ),
    )

    def infer(energies: np.ndarray) -> np.ndarray:
        unary = torch.from_numpy(energies).to(where)
        return mean_field(unary, kernels, settings.iterations).cpu().numpy()

    return infer


def _pydensecrf_inference(image: np.ndarray, num_labels: int, settings: CrfParameters) -> Inference:
    """Inference in pydensecrf on (h, w, 3) uint8.

    Raises:
        UserError: it is not installed.
    """
    height, width = image.shape[:2]
    crf = require_densecrf().DenseCRF2D(width, height, num_labels)
    crf.addPairwiseGaussian(sxy=settings.gaussian_sxy, compat=settings.gaussian_compat)
    crf.addPairwiseBilateral(
        sxy=settings.bilateral_sxy,
        srgb=settings.bilateral_srgb,
        rgbim=image,
        compat=settings.bilateral_compat,
    )

    def infer(energies: np.ndarray) -> np.ndarray:
        probabilities = np.empty_like(energies)
        for energy, result in zip(energies, probabilities, strict=True):
            crf.setUnaryEnergy(np.ascontiguousarray(energy))
            result[:] = crf.inference(settings.iterations)
        return probabilities

    return infer


def require_backend(backend: Backend) -> None:
    """Make sure that a backend is installed; torch always is.

    Raises:
        UserError: it is not.
    """
    if backend == "pydensecrf":
        require_densecrf()


def require_densecrf() -> ModuleType:
    """The module pydensecrf.densecrf.

    Raises:
        UserError: it is not installed.
    """
    try:
        import pydensecrf.densecrf as densecrf
    except ImportError as error:
        raise UserError(
            f"The CRF backend pydensecrf needs a package ({error}): pip install pydensecrf2 "
            "(the older pydensecrf on PyPI does not build on current Python), or use torch."
        ) from None
    return densecrf

"""Augmentation: images changed at random while a network is trained, and never when it is looked at."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from prunekit.errors import InputError, shown
from prunekit.parts.base import Part

__all__ = ["Augment", "Flip", "Shift"]


class Augment(Part):
    """A random change of the inputs of every batch of a training.

    It draws from torch's generator of the inputs' device, which a training seeds: the same seed gives the
    same changes. Statistics, repairs, stops and measurements see the inputs as they are.
    """

    @abstractmethod
    def __call__(self, inputs: Any) -> Any:
        """The inputs of a batch, changed; those that are given stay as they are.

        Raises:
            InputError: for inputs that it does not work on.
        """


class _OfImages(Augment):
    """One that works on batches of images (examples, channels, height, width)."""

    def __call__(self, inputs: Any) -> Tensor:
        """Each image by itself."""
        if not isinstance(inputs, Tensor) or inputs.dim() != 4 or not inputs.is_floating_point():
            given = (
                f"the shape {tuple(inputs.shape)} and type {inputs.dtype}"
                if isinstance(inputs, Tensor)
                else f"the type {type(inputs).__name__}"
            )
            raise InputError(
                f"augment {self.name}: works on images, real values of the shape (examples, channels, "
                f"height, width), but the inputs are of {given}"
            )
        return self.images(inputs)

    @abstractmethod
    def images(self, images: Tensor) -> Tensor:
        """The images, changed."""


class Shift(_OfImages):
    """Each image moved by a number of pixels of its own, up or down and left or right.

    Both numbers are drawn uniformly from -pixels to pixels. An image that is moved by 1 to the left shows in
    its last column what is beyond its right border.

    Attributes:
        pixels: the most that an image is moved by.
        beyond: what is beyond the border: the border's own values (`edge`), or `zero`, which in standardised
            images is the mean.
    """

    name = "shift"
    pixels: int = Field(default=1, ge=1, le=1000)
    beyond: Literal["edge", "zero"] = "edge"

    def images(self, images: Tensor) -> Tensor:
        """A window of each padded image, taken at a place of its own."""
        count, _, height, width = images.shape
        if self.pixels >= min(height, width):
            raise InputError(
                f"augment shift: pixels = {self.pixels}, but the images are of {height} x {width}: give less"
            )
        mode = "replicate" if self.beyond == "edge" else "constant"
        padded = F.pad(images, (self.pixels,) * 4, mode=mode)
        windows = padded.unfold(2, height, 1).unfold(3, width, 1)
        down, right = torch.randint(2 * self.pixels + 1, (2, count), device=images.device)
        return windows[torch.arange(count, device=images.device), :, down, right]


class Flip(_OfImages):
    """Each image mirrored, left for right, with probability 1/2."""

    name = "flip"

    def images(self, images: Tensor) -> Tensor:
        """Images and their mirror images, by a draw for each."""
        mirrored = torch.rand(len(images), 1, 1, 1, device=images.device) < 0.5
        return torch.where(mirrored, images.flip(3), images)


def augmented(value: Any) -> Augment:
    """The augmentation that a name, a mapping or a ready part describes.

    Raises:
        InputError: for other things; a function of the user's goes into `prunekit.Loop(augment=...)`.
    """
    if callable(value) and not isinstance(value, Augment):
        raise InputError(
            f"augment: {shown(value)} is a function, which no file can say: give it to "
            "prunekit.Loop(augment=...)"
        )
    return Augment.build(value)

"""What messages about a network call the settings it was built with, without torch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class OptionNames:
    """By default the arguments of the builders; whoever has options or keys tells theirs."""

    network: str = ""
    """In front of the name of a network, as `--vit`."""
    weights: str = "weights=FILE"
    """Names a local weight file, as `--vit_weights`."""
    random: str = "init=random"
    """Starts without any, as `--init random`."""
    arguments: str = "model_args"
    """In front of further arguments of a network, as `--vit_args`."""
    size: str = "tile_size"
    """In front of the side of the input, as `--tile_size`."""
    stride: str = "tile_stride"
    """In front of the pixels from tile to tile, as `--tile_stride`."""
    crop: str = "crop_size"
    """In front of the side of training crops, as `--cam_crop_size`."""

    def asked(self, name: str) -> str:
        """A network as it was asked for, as `--vit deit_small_patch16_224`."""
        return f"{self.network} {name}".lstrip()


ARGUMENTS = OptionNames()

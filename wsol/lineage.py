"""What the files of a WSOL training are made from, and whether those that are there are its own."""

from pathlib import Path

from misc.config import identifying
from misc.errors import UserError
from misc.files import file_hash, remove_leftovers
from misc.outputs import remove_file, require_own
from misc.provenance import Record, read_record, write_record
from net.normalisation import input_statistics
from wsol.config import TRAINING, Config, Paths
from wsol.model import CNN, TRANSFORMER
from wsol.pictures import ImageSet
from wsol.source import fingerprint


def training(config: Config, learning_rate: float, image_set: ImageSet) -> Record:
    """What the weights and scores of every epoch follow from."""
    inputs = {"pictures": fingerprint([*image_set.train, *image_set.test])}
    inputs |= {f"weights of the {name}": text for name, text in initialisation(config).items()}
    return Record(TRAINING, {"--lr": learning_rate, **identifying(config, TRAINING)}, inputs)


def initialisation(config: Config) -> dict[str, str]:
    """Where the weights of each network start, in words."""
    model = config.MODEL
    names = {TRANSFORMER: (model.vit, model.VIT_WEIGHTS), CNN: (model.CNN, model.CNN_WEIGHTS)}
    pretrained = model.INIT == "pretrained"
    return {
        network: _start(name, weights, pretrained) for network, (name, weights) in names.items()
    }


def _start(name: str, weights: Path | None, pretrained: bool) -> str:
    statistics = input_statistics(name)
    named = name if statistics is None else f"{name} (input: {statistics})"
    if weights is not None:
        return f"{named}, file {weights.name} with SHA-256 {file_hash(weights)}"
    if not pretrained:
        return f"{named}, random weights"
    # a tag says in its own words what its weights were learnt from, such as `dino` or `fb_in22k`
    return f"{named}, {'published weights' if '.' in name else 'ImageNet weights (image labels)'}"


def require_own_weights(paths: Paths) -> None:
    """Weights that no training of ours left there are never replaced.

    Raises:
        UserError: names a file without record.
    """
    remedy = "move it away or name another BASIC.SAVE_DIR"
    require_own(paths.weights, "a training that made it", remedy)


def require_same_run(paths: Paths, record: Record, resume: bool) -> None:
    """Make sure that what BASIC.SAVE_DIR holds, if anything, can be gone on with.

    Raises:
        UserError: it is of other settings, or there is nothing to go on with.
    """
    for path in (paths.state, *paths.weights):
        differences = record.differences(read_record(path)) if path.exists() else []
        if differences:
            raise UserError(
                f"{paths.folder} holds a training run with other settings: "
                f"{'; '.join(differences)}. Repeat its settings to go on with it, name another "
                "BASIC.SAVE_DIR, or start afresh with --overwrite."
            )
    if paths.state.is_file():
        return
    if resume:
        raise UserError(
            f"--resume: {paths.state} does not exist, so there is no training to go on with; "
            "leave --resume out to start one."
        )
    for path in paths.weights:
        if path.exists():
            raise UserError(
                f"{path} is there, but not {paths.state}, from which its training would go on; "
                "name another BASIC.SAVE_DIR, or start afresh with --overwrite."
            )


def claim(paths: Paths, record: Record, overwrite: bool) -> None:
    """Delete an earlier run if that is asked for, and say whose the files will be."""
    for path in (paths.state, *paths.weights, paths.results, paths.epoch_log):
        (remove_file if overwrite else remove_leftovers)(path)
    write_record(paths.state, record)

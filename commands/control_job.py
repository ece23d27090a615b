"""The inputs of the tasks of `--mode control`: pictures, labels, a measurement and a model."""

import dataclasses
import os
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from ml_collections import ConfigDict

import checkpoints
import datasets
from checkpoints.trained import load_classifier
from commands import drawing
from control import Measurement
from data.folders import read_pictures
from data.levels import to_8_bits
from runtime.errors import UserError
from score_model import ScoreModel


class Request(NamedTuple):
    """The flags of `--mode control`, except the config, the work directory and the task.

    Attributes:
        input: a picture, or a folder or zip file of pictures; '': `control.images` test images of
            the data set, chosen by the seed.
        mask: a name of `control.named_mask`, or a picture that is white where pixels are known.
        labels: class numbers, such as '3,5,8'.
        classifier: a checkpoint of `--mode classifier` or its work directory, for networks that are
            not class-conditional.
        checkpoint: a checkpoint file; '': the latest checkpoint of the work directory.
        output: the folder of the results; '': `workdir/control_{task}`.
        measured: whether the input has already been measured.
    """

    input: str = ''
    mask: str = ''
    labels: str = ''
    classifier: str = ''
    checkpoint: str = ''
    output: str = ''
    measured: bool = False


class Result(NamedTuple):
    """The result of a task.

    Attributes:
        titles: titles of the columns of the gallery.
        rows: the gallery, 8-bit images (rows, columns, H, W, C).
        arrays: the content of results.npz.
    """

    titles: tuple[str, ...]
    rows: np.ndarray
    arrays: dict


class Task(NamedTuple):
    """A task of `--mode control`.

    Attributes:
        run: function `run(job) -> Result`.
        pictures: the number of input pictures for each row of the gallery; 0 for tasks that need
            only labels.
        masked: whether the task uses `--mask`.
        labelled: whether the task uses `--labels` and `--classifier`.
        measurable: whether the task accepts `--measured` pictures.
        reduced: the factor by which measured pictures are smaller than the images of the network.
        make_measurement: function `make_measurement(config, request) -> Measurement`, called before
            the checkpoint is loaded; None for tasks without a measurement.
    """

    run: Callable
    pictures: int = 1
    masked: bool = False
    labelled: bool = False
    measurable: bool = False
    reduced: int = 1
    make_measurement: Callable | None = None


@dataclasses.dataclass(frozen=True)
class Job:
    """The model and the data of one task.

    Attributes:
        config: the completed config.
        model: the trained model.
        measurement: the result of `Task.make_measurement`, or None.
        measured: whether the images have already been measured.
        images: the input (n, H, W, C), integers from 0 to `levels` - 1; None for tasks without
            pictures.
        levels: the number of grey levels of the images.
        labels: the class of each row (rows,), or None.
        classifier: the network that guides to the labels; None for class-conditional networks.
    """

    config: ConfigDict
    model: ScoreModel
    measurement: Measurement | None
    measured: bool
    images: np.ndarray | None
    levels: int
    labels: torch.Tensor | None
    classifier: torch.nn.Module | None

    @property
    def pictures(self) -> np.ndarray:
        """The images as 8-bit values (n, H, W, C)."""
        return to_8_bits(self.images, self.levels)

    def inputs(self) -> torch.Tensor:
        """Return the images as the network sees them (n, C, H, W), on its device.

        If the network was trained on dequantized images, the images are dequantized with new random
        numbers in each call.
        """
        x = torch.from_numpy(self.images).permute(0, 3, 1, 2).float()
        if self.config.data.uniform_dequantization:
            x = (x + torch.rand_like(x)) / self.levels
        else:
            x = x / (self.levels - 1)
        return datasets.get_data_scaler(self.config)(x).contiguous().to(self.config.device)

    def batches(self, rows: int) -> tuple[torch.Tensor, ...]:
        """Return the row index of each result, in batches of at most `eval.batch_size`.

        Every row has `control.results` results.
        """
        each = torch.arange(rows).repeat_interleave(self.config.control.results)
        return each.split(self.config.eval.batch_size)

    def guided(self, rows: torch.Tensor) -> ScoreModel:
        """Return the model for a batch of rows, guided to their labels if there are labels."""
        if self.labels is None:
            return self.model
        return self.model.guided(self.labels[rows], classifier=self.classifier)

    def to_8_bits(self, x: torch.Tensor) -> np.ndarray:
        """Convert images (n, C, H, W) as the network sees them to 8-bit images (n, H, W, C)."""
        return drawing.to_images(self.model.unscale(x), self.config)


def prepare(
    config: ConfigDict, workdir: str | os.PathLike, kind: Task, request: Request, task: str
) -> Job:
    """Read the pictures and labels of a request, then load the model, which takes longest."""
    measurement = kind.make_measurement(config, request) if kind.make_measurement else None
    labels = _read_labels(config, request)
    if not kind.pictures and labels is None:
        raise UserError(f'--task={task} needs --labels, such as 3,5,8')
    images, levels = None, 256
    if kind.pictures:
        images, levels = _read_images(config, kind, request, task)
        labels = None if labels is None else _one_for_each(labels, len(images))
    model = ScoreModel.load(request.checkpoint or checkpoints.latest(workdir), config)
    return Job(
        config=config,
        model=model,
        measurement=measurement,
        measured=request.measured,
        images=images,
        levels=levels,
        labels=labels,
        classifier=_read_classifier(config, request, labels),
    )


def _read_images(config, kind: Task, request: Request, task) -> tuple[np.ndarray, int]:
    """Return the input pictures (n, H, W, C), and the number of their grey levels."""
    data = ConfigDict(config.data.to_dict())
    if request.measured:
        data.image_size //= kind.reduced
    if request.input:
        images, levels = read_pictures(request.input, data)[1], 256
    elif request.measured:
        raise UserError('--measured needs --input: the images of the data set are not measured')
    else:
        found = datasets.get_split(config, 'test')
        order = np.random.default_rng(config.seed).permutation(len(found))
        images, levels = found.read(order[: config.control.images])[0], found.levels
    number = len(images) // kind.pictures * kind.pictures
    if not number:
        raise UserError(f'--task={task} needs at least {kind.pictures} pictures, got {len(images)}')
    return images[:number], levels


def _read_labels(config, request: Request) -> torch.Tensor | None:
    """Return the classes in `--labels`, or None.

    Their range is checked here for a class-conditional network, and in `_read_classifier` for a
    classifier, whose number of classes is known when it is loaded.
    """
    if not request.labels:
        if request.classifier:
            raise UserError('--classifier needs --labels: the classes to guide to')
        return None
    try:
        labels = torch.tensor([int(part) for part in request.labels.split(',')])
    except (ValueError, RuntimeError, OverflowError) as error:  # the last two: over 64 bits
        raise UserError(
            f'--labels={request.labels}: expected class numbers separated by commas, such as 3,5,8'
        ) from error
    if request.classifier:
        return labels
    if not config.model.num_classes:
        raise UserError(
            '--labels needs a class-conditional network (config.model.num_classes) or a '
            '--classifier'
        )
    _check_range(labels, config.model.num_classes, 'network')
    return labels


def _read_classifier(config, request: Request, labels) -> torch.nn.Module | None:
    if not request.classifier:
        return None
    network = load_classifier(request.classifier, config)
    _check_range(labels, network.module.num_classes, 'classifier')
    return network


def _check_range(labels: torch.Tensor, classes: int, what: str):
    if not 0 <= labels.min() <= labels.max() < classes:
        raise UserError(f'--labels must be in 0 .. {classes - 1}, the classes of the {what}')


def _one_for_each(labels: torch.Tensor, number: int) -> torch.Tensor:
    """Return one label for each of `number` pictures."""
    if len(labels) not in (1, number):
        text = ','.join(map(str, labels.tolist()))
        raise UserError(
            f'--labels={text} has {len(labels)} labels: expected 1, or one for each of the '
            f'{number} pictures'
        )
    return labels.expand(number)

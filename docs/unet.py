"""Draw the U-Net of a config; the network is built without weights to read its structure."""

import importlib

import torch

from docs.drawing import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PURPLE,
    SKY,
    WHITE,
    arrow,
    canvas,
    figure,
    label,
)
from models.layerspp import ResnetBlockBigGANpp
from models.utils import create_model

SIDE, FOOT, HEAD = 1.95, 0.95, 0.6  # margins: left and right, below for the legend, above
GAP = 0.04  # between two blocks
THIN = 0.09  # the width of an attention block
BORDER = 0.6  # from the edge of the figure to the middle of the pyramid
DASHED = (0, (4, 3))


def built(name: str):
    """Return the config `configs.{name}` and its U-Net, without weights."""
    config = importlib.import_module(f'configs.{name}').get_config()
    config.device = 'meta'
    with torch.device('meta'):
        return config, create_model(config).module


class Picture:
    """A U-Net with its down path on the left, its up path on the right and the bottom in between.

    The resolution is halved from row to row. Blocks with larger feature maps are drawn higher, and
    blocks with more channels wider, but not to scale.

    Args:
        config: the config of the network.
        model: the network.
        row: height of a row, in inches.
        shift: horizontal offset of each row to the row above, in inches.
        span: smallest distance between both paths, in inches.
    """

    def __init__(self, config, model, row: float, shift: float, span: float):
        self.axes = None
        self.model = model
        self.row = row
        self.depth = len(model.down_levels)
        self.deep = self.depth - 1
        self.sizes = [config.data.image_size // 2**i for i in range(self.depth)]
        self.channels = [config.model.nf * mult for mult in config.model.ch_mult]
        self.levels = [*zip(model.down_levels, reversed(model.up_levels))]
        self._place(shift, span)

    def _place(self, shift, span):
        """Compute the size of the figure and the edges of all rows."""
        lengths = [[self.length(i, level) for level in pair] for i, pair in enumerate(self.levels)]
        down, up = (
            max(shift * i + pair[side] for i, pair in enumerate(lengths)) for side in (0, 1)
        )
        self.total = SIDE + down + span + up + SIDE, (self.depth + 0.95) * self.row + FOOT + HEAD
        width, height = self.total
        self.down = [(SIDE + shift * i, SIDE + shift * i + n) for i, (n, _) in enumerate(lengths)]
        self.up = [
            (width - SIDE - shift * i - n, width - SIDE - shift * i)
            for i, (_, n) in enumerate(lengths)
        ]
        self.middle = [height - HEAD - self.row * (i + 0.5) for i in range(self.depth)]
        self.middle.append(FOOT + 0.45 * self.row)  # of the bottom
        halves = [self.height(min(i, self.deep)) / 2 for i in range(self.depth + 1)]
        self.above = [y + half for y, half in zip(self.middle, halves)]
        self.below = [y - half for y, half in zip(self.middle, halves)]

    # Sizes

    def height(self, i: int) -> float:
        return self.row * (0.86 - 0.58 * i / max(1, self.deep))

    def width(self, i: int) -> float:
        return 0.14 + 0.2 * self.channels[i] / max(self.channels)

    def length(self, i: int, level) -> float:
        """Return the total width of the blocks of a resolution."""
        attentions = sum(attention is not None for _, attention in level.blocks)
        blocks = len(level.blocks) + (level.resample is not None)
        length = blocks * (self.width(i) + GAP) + (THIN + GAP) * attentions
        return length - GAP if level.resample is None else length

    # Parts

    def block(self, x, y, i, colour, width=None, hatch=None, height=None) -> float:
        """Draw a block of resolution i with its left edge at x and its middle at y.

        Returns:
            Its right edge.
        """
        from matplotlib.patches import Rectangle

        width, height = width or self.width(i), height or self.height(i)
        place = (x, y - height / 2), width, height
        if hatch:  # the edge would get the white of the hatches, so it is drawn separately below
            hatched = dict(facecolor=colour, edgecolor='white', hatch=hatch, linewidth=0)
            self.axes.add_patch(Rectangle(*place, **hatched))
        face = 'none' if hatch else colour
        self.axes.add_patch(Rectangle(*place, facecolor=face, edgecolor=INK, linewidth=0.7))
        return x + width

    def resamples_inside(self, position: int) -> bool:
        """Whether the resampling at a position of `all_modules` is part of a residual block."""
        return isinstance(self.model.all_modules[position], ResnetBlockBigGANpp)

    def level(self, x, i, level):
        """Draw the blocks of a resolution, each with its attention, then its resampling."""
        y = self.middle[i]
        for _, attention in level.blocks:
            x = self.block(x, y, i, SKY) + GAP
            if attention is not None:
                x = self.block(x, y, i, ORANGE, width=THIN) + GAP
        if level.resample is not None:
            colour = BLUE if self.resamples_inside(level.resample) else GREY
            self.block(x + GAP, y, i, colour, hatch='////')

    def paths(self):
        """Draw all resolutions, and the convolutions before the first and after the last block."""
        for i, (down, up) in enumerate(self.levels):
            self.level(self.down[i][0], i, down)
            self.level(self.up[i][0], i, up)
        self.block(self.down[0][0] - 0.17, self.middle[0], 0, GREEN, width=0.1)
        if self.model.progressive != 'output_skip':
            self.block(self.up[0][1] + 0.07, self.middle[0], 0, GREEN, width=0.1)

    def bottom(self):
        axes, deep, y = self.axes, self.deep, self.middle[-1]
        left, right, foot = self.down[deep][1], self.up[deep][0], self.below[deep]
        centre, half = (left + right) / 2, self.width(deep) / 2
        x = begin = centre - self.width(deep) - 0.085
        for colour, wide in ((SKY, None), (ORANGE, THIN), (SKY, None)):
            x = self.block(x, y, deep, colour, width=wide) + GAP
        arrow(axes, (left - half, foot), (left - half, y), (begin, y))
        arrow(axes, (x - GAP, y), (right + half, y), (right + half, foot))
        label(axes, centre, self.below[-1] - 0.13, 'bottom', size=8.5)

    def kept(self):
        """Draw the connections from the down path to the up path, with the sizes of their maps."""
        line = dict(arrowstyle='-|>', color=GREY, linewidth=1.1, linestyle=DASHED)
        for i, (_, up) in enumerate(self.levels):
            y, left, right = self.middle[i], self.down[i][1], self.up[i][0]
            ends = (right - 0.08, y), (left + 0.08, y)
            self.axes.annotate('', *ends, arrowprops=line | dict(shrinkA=0, shrinkB=0))
            size = f'{self.sizes[i]} × {self.sizes[i]},  {self.channels[i]} channels'
            text = f'{size}\n{len(up.blocks)} maps kept'
            behind = dict(facecolor='white', edgecolor='none', pad=2)
            label(self.axes, (left + right) / 2, y, text, size=8.5, linespacing=1.35, bbox=behind)

    def steps(self):
        """Draw the arrows from each row to the next, between the rows."""
        for i in range(self.deep):
            foot = self.below[i]
            head = self.above[i + 1]
            gap = (self.below[i] + self.above[i + 1]) / 2
            begin = self.down[i][1] - self.width(i) / 2
            end = self.down[i + 1][0] + self.width(i) / 2
            arrow(self.axes, (begin, foot), (begin, gap), (end, gap), (end, head))
            begin = self.up[i + 1][1] - self.width(i + 1) / 2
            end = self.up[i][0] + self.width(i) / 2
            arrow(self.axes, (begin, head), (begin, gap), (end, gap), (end, foot))

    # Pyramids

    def input_pyramid(self):
        """Draw the input, and its smaller versions that the down path receives."""
        kind, x = self.model.progressive_input, BORDER
        label(self.axes, x, self.above[0] + 0.1, 'input $x$', size=9, va='bottom')
        for i in range(1 if kind == 'none' else self.depth):
            y, half = self.middle[i], self.image(x, i)
            target = self.down[i][0] - (0.03 if i else 0.2)
            style = dict(colour=PURPLE if i else INK, head=head(kind, i))
            arrow(self.axes, (x + half, y), (target, y), **style)
            if i:
                arrow(self.axes, (x, self.foot(i - 1)), (x, y + half), colour=PURPLE)

    def output_pyramid(self):
        """Draw the output, and its smaller versions that the up path produces."""
        kind, x = self.model.progressive, self.total[0] - BORDER
        label(self.axes, x, self.above[0] + 0.1, 'output', size=9, va='bottom')
        for i in range(1 if kind == 'none' else self.depth):
            y, half = self.middle[i], self.image(x, i)
            source = self.up[i][1] + (0.03 if i or kind == 'output_skip' else 0.2)
            style = dict(colour=INK if kind == 'none' else PURPLE, head=head(kind, i))
            arrow(self.axes, (source, y), (x - half, y), **style)
            if i:
                arrow(self.axes, (x, y + half), (x, self.foot(i - 1)), colour=PURPLE)

    def image(self, x, i) -> float:
        """Draw a square for an image of resolution i, centred at x; return half its side."""
        side = self.height(i) * 0.8
        self.block(x - side / 2, self.middle[i], i, PURPLE if i else WHITE, side, height=side)
        return side / 2

    def foot(self, i) -> float:
        """Return the lower edge of the square of `image`."""
        return self.middle[i] - self.height(i) * 0.4

    # Legend

    def legend(self, centre, y):
        """Draw the legend of the colours in one line, centred at `centre`."""
        x = centre - sum(width for *_, width in self.marks()) / 2
        for colour, hatch, text, width in self.marks():
            indent = 0.5 if colour is None else 0.3
            if colour is None:
                self.axes.plot([x, x + 0.4], [y, y], color=GREY, linewidth=1.1, linestyle=DASHED)
            else:
                self.block(x, y, 0, colour, width=0.2, hatch=hatch, height=0.22)
            self.axes.text(x + indent, y, text, size=9, va='center')
            x += width

    def marks(self):
        """Yield colour (None for a line), hatch, text and width of each entry of the legend."""
        inside = self.resamples_inside(self.model.down_levels[0].resample)
        resampling = (BLUE, 'residual block that resamples') if inside else (GREY, 'resampling')
        entries = [
            (GREEN, None, 'convolution'),
            (SKY, None, 'residual block'),
            (ORANGE, None, 'attention'),
            (resampling[0], '////', resampling[1]),
        ]
        if self.model.progressive_input != 'none' or self.model.progressive != 'none':
            entries.append((PURPLE, None, 'pyramid'))
        for colour, hatch, text in [*entries, (None, None, 'kept, to be concatenated')]:
            yield colour, hatch, text, (0.5 if colour is None else 0.3) + 0.068 * len(text) + 0.25


def head(kind: str, i: int) -> str:
    """Return the style of an arrow between pyramid and network; 'residual' has two heads."""
    return '<|-|>' if kind == 'residual' and i else '-|>'


def unet(name: str, config_name: str, row: float, shift: float, span: float):
    """Draw the U-Net of a config to docs/figures/{name}.png; lengths as for `Picture`."""
    picture = Picture(*built(config_name), row, shift, span)
    width, height = picture.total
    with figure(name, width, height, layout=None) as drawn:
        picture.axes = canvas(drawn, width, height)
        picture.paths()
        picture.bottom()
        picture.kept()
        picture.steps()
        picture.input_pyramid()
        picture.output_pyramid()
        title = dict(size=9.5, va='bottom', family='DejaVu Sans Mono')
        file = f'configs/{config_name.replace(".", "/")}.py'
        label(picture.axes, width / 2, picture.above[0] + 0.1, file, **title)
        picture.legend(width / 2, 0.42)

"""A classifier of noisy images: a wide residual network conditioned on the noise level.

Its gradient guides samplers towards a class (Zagoruyko & Komodakis 2016; Song et al. 2021,
Appendix I.1).

    x -> stem
      -> for each width: residual blocks; the first one halves the size, except at the first width
      -> norm, act, mean -> logits

Its blocks are those of NCSN++. Group normalization replaces the batch normalization of the
original, whose averages would mix all noise levels.
"""

import torch
from ml_collections import ConfigDict
from torch import Tensor, nn

from runtime.errors import UserError

from .layers import conv3x3, dense, get_act, get_timestep_embedding, group_norm
from .layerspp import GaussianFourierProjection, ResnetBlockBigGANpp
from .utils import accept, completed, register_model


@register_model(name='wideresnet')
class WideResNet(nn.Module):
    """Map (x (B, C, H, W), labels (B,)) to logits (B, `model.num_classes`).

    Labels are sigma if `model.embedding_type` is 'fourier', else times. The levels have
    nf * widen * ch_mult[i] channels; num_res_blocks=4 and widen=10 give the WRN-28-10 of the paper.
    The attribute `shape` is the shape of an image.
    """

    is_classifier = True

    def __init__(self, config: ConfigDict):
        super().__init__()
        config = completed(config)
        accept(config, 'model.normalization', 'GroupNorm')
        accept(config, 'model.embedding_type', 'fourier', 'positional')
        accept(config, 'training.continuous', True, why='it is trained at continuous times')
        model, data, act = config.model, config.data, get_act(config)
        if model.num_classes < 2:
            raise UserError(
                'config.model.num_classes must be >= 2 for a classifier, got '
                f'{model.num_classes}: '
                'set it to the number of classes of the data set'
            )
        self.num_classes = model.num_classes
        self.shape, self.nf, self.act, self.centered = (
            (data.num_channels, data.image_size, data.image_size),
            model.nf,
            act,
            data.centered,
        )
        fourier = model.embedding_type.lower() == 'fourier'
        self.fourier = GaussianFourierProjection(model.nf, model.fourier_scale) if fourier else None
        self.embedding = nn.Sequential(
            dense((1 + fourier) * model.nf, 4 * model.nf),
            nn.SiLU(),
            dense(4 * model.nf, 4 * model.nf),
        )
        self.stem, self.blocks, width = (
            conv3x3(data.num_channels, model.nf),
            nn.ModuleList(),
            model.nf,
        )
        for i, mult in enumerate(model.ch_mult):
            for j in range(model.num_res_blocks):
                out, down = model.nf * model.widen * mult, i > 0 and j == 0
                self.blocks.append(
                    ResnetBlockBigGANpp(
                        act, width, out, temb_dim=4 * model.nf, down=down, dropout=model.dropout
                    )
                )
                width = out
        self.norm, self.head = group_norm(width), dense(width, model.num_classes)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        labels = labels.to(torch.promote_types(x.dtype, torch.float32))
        features = (
            self.fourier(labels.log()) if self.fourier else get_timestep_embedding(labels, self.nf)
        )
        h, temb = self.stem(x if self.centered else 2 * x - 1), self.embedding(features.to(x.dtype))
        for block in self.blocks:
            h = block(h, temb)
        return self.head(self.act(self.norm(h)).mean((2, 3)))

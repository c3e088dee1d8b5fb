"""A segmentation network small enough that two CPU cores can train hundreds of them."""

import torch
import torch.nn.functional as F
from timm.models.resnet import BasicBlock, ResNet
from torch import Tensor, nn

CHANNELS = (8, 16, 32, 64)
DECODER_CHANNELS = 16
# Defects are rare, so a network that starts at one half spends its first steps on the background.
START_LOGIT = -2.0


class DefectNetwork(nn.Module):
    """timm's ResNet with one basic block a stage and a top-down decoder; 17 batch normalizations.

    Every normalization follows a convolution of its own, so all of them convert to every kind.

    Args:
        in_channels: Channels of the input.
        patches: Leave out the stem's pooling: stages at strides 2 to 16 instead of 4 to 32, because
            a patch of 64 px would shrink to 2.
    """

    def __init__(self, in_channels: int, *, patches: bool) -> None:
        super().__init__()
        self.encoder = ResNet(
            BasicBlock,
            (1, 1, 1, 1),
            num_classes=0,
            in_chans=in_channels,
            stem_type="deep",
            stem_width=CHANNELS[0] // 2,
            channels=CHANNELS,
        )
        if patches:
            self.encoder.maxpool = nn.Identity()
        self.laterals = nn.ModuleList(
            nn.Conv2d(channels, DECODER_CHANNELS, 1) for channels in CHANNELS
        )
        self.merges = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(DECODER_CHANNELS, DECODER_CHANNELS, 3, padding=1, bias=False),
                nn.BatchNorm2d(DECODER_CHANNELS),
                nn.ReLU(),
            )
            for _ in CHANNELS[1:]
        )
        self.head = nn.Conv2d(DECODER_CHANNELS, 1, 1)
        nn.init.constant_(self.head.bias, START_LOGIT)  # type: ignore[arg-type]  # It has a bias.

    def forward(self, x: Tensor) -> Tensor:
        """Return logits at the input's size.

        Args:
            x: Images, (N, C, H, W), sides multiples of 32.

        Returns:
            Logits, (N, H, W).
        """
        encoder = self.encoder
        y = encoder.maxpool(encoder.act1(encoder.bn1(encoder.conv1(x))))
        features = []
        for stage in (encoder.layer1, encoder.layer2, encoder.layer3, encoder.layer4):
            y = stage(y)
            features.append(y)
        y = self.laterals[-1](features[-1])
        for level in range(len(features) - 2, -1, -1):
            lateral = self.laterals[level](features[level])
            y = self.merges[level](lateral + F.interpolate(y, size=lateral.shape[-2:]))
        logits = F.interpolate(self.head(y), size=x.shape[-2:], mode="bilinear")
        return logits[:, 0]


def build_network(in_channels: int, *, patches: bool, seed: int) -> DefectNetwork:
    """Return the network with the weights of a seed; the global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return DefectNetwork(in_channels, patches=patches)

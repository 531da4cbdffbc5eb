"""One U-Net for all presets: valid or same padding, transposed or nearest up-sampling; and several of one kind.

Source: Ronneberger, Fischer, Brox, "U-Net: Convolutional Networks for Biomedical Image
Segmentation", MICCAI 2015; initialisation: He et al., ICCV 2015; several: Lakshminarayanan, Pritzel, Blundell,
"Simple and Scalable Predictive Uncertainty Estimation using Deep Ensembles", NeurIPS 2017.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from unet_ray.config.network import NetworkConfig, layers
from unet_ray.geometry.descriptor_grid import DESCRIPTORS
from unet_ray.geometry.receptive_field import cuts_px
from unet_ray.network.batch_norm import BatchNorm
from unet_ray.network.dropout import Dropout


class DoubleConvolution(nn.Sequential):
    """Two 3x3 convolutions, each with (batch normalisation and) ReLU."""

    def __init__(self, in_channels: int, out_channels: int, config: NetworkConfig) -> None:
        """Make both convolutions for the padding and normalisation of ``config``."""
        stages: list[nn.Module] = []
        for channels in (in_channels, out_channels):
            side = 1 if config.padding == "same" else 0
            # Batch normalisation subtracts the mean, so a bias before it would do nothing.
            stages.append(nn.Conv2d(channels, out_channels, 3, padding=side, bias=not config.batch_norm))
            if config.batch_norm:
                stages.append(BatchNorm(out_channels))
            stages.append(nn.ReLU(inplace=True))
        super().__init__(*stages)


class NearestUp(nn.Module):
    """Nearest up-sampling by 2, a 2x2 convolution padded by 0 before and 1 after (as Keras), ReLU."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        """Make the 2x2 convolution."""
        super().__init__()
        self.convolution = nn.Conv2d(in_channels, out_channels, 2)

    def forward(self, features: Tensor) -> Tensor:
        """Return (n, out_channels, 2h, 2w) for (n, in_channels, h, w)."""
        large = functional.interpolate(features, scale_factor=2, mode="nearest")
        convolved: Tensor = self.convolution(functional.pad(large, (0, 1, 0, 1)))
        return functional.relu(convolved)


class UNet(nn.Module):
    """The network of a `NetworkConfig`: (n, in_channels, h, w) to logits (n, classes, h', w').

    h' and w' are `unet_ray.geometry.receptive_field.output_side` of h and w. Make it with
    `new_network` or `network_from_state`; the bare constructor leaves PyTorch's own initial weights.
    """

    def __init__(self, config: NetworkConfig, member: int = 0) -> None:
        """Make the layers of ``config``; the members of an ensemble drop different values."""
        super().__init__()
        assert config.members == 1, "several are an Ensemble"
        self.config = config
        width = [config.channels(level) for level in range(config.depth)]
        inputs = [config.in_channels, *width[:-1]]
        self.down = nn.ModuleList(DoubleConvolution(*pair, config) for pair in zip(inputs, width, strict=True))
        first_dropped = config.depth - config.dropout_levels
        self.dropout = nn.ModuleList(
            Dropout(config.dropout, level + member * config.depth) if level >= first_dropped else nn.Identity()
            for level in range(config.depth)
        )
        self.pool: nn.Module = nn.MaxPool2d(2)
        rising = range(config.depth - 2, -1, -1)
        self.up = nn.ModuleList(
            NearestUp(width[level + 1], width[level])
            if config.up == "nearest"
            else nn.ConvTranspose2d(width[level + 1], width[level], 2, stride=2)
            for level in rising
        )
        self.merge = nn.ModuleList(DoubleConvolution(2 * width[level], width[level], config) for level in rising)
        last = width[0]
        self.head: nn.Module = nn.Identity()
        if config.head_channels:
            side = 1 if config.padding == "same" else 0
            convolution = nn.Conv2d(last, config.head_channels, 3, padding=side)
            self.head = nn.Sequential(convolution, nn.ReLU(inplace=True))
            last = config.head_channels
        self.out = nn.Conv2d(last, config.classes, 1)

    def forward(self, images: Tensor, crop: int = 0) -> Tensor:
        """Return logits (n, classes, h', w') of images (n, in_channels, h, w).

        Args:
            images: of the dtype of the weights.
            crop: pixels that each side of the logits lacks; they are spared where they would be computed.
        """
        features = images
        skips: list[Tensor] = []
        for level, (convolve, dropout) in enumerate(zip(self.down, self.dropout, strict=True)):
            if level:
                if features.shape[-1] % 2 or features.shape[-2] % 2:
                    raise ValueError(f"pooling {level} meets an odd side: {tuple(features.shape[-2:])}")
                features = self.pool(features)
            features = dropout(convolve(features))
            skips.append(features)
        skips.pop()
        *cuts, last = cuts_px(tuple(layers(self.config)), crop) if crop else (0,) * self.config.depth
        for up, merge, cut in zip(self.up, self.merge, cuts, strict=True):
            features = up(_cropped(features, cut))
            skip = _centre(skips.pop(), features.shape[-2], features.shape[-1])
            features = merge(torch.cat((skip, features), dim=1))  # the notebook's order: skip first
        return _cropped(self.out(self.head(features)), last)


class Ensemble(nn.Module):
    """U-Nets of the same settings that are trained on the same patches from different first weights.

    What one alone gets wrong by chance, the mean of several gets wrong less often.
    """

    def __init__(self, config: NetworkConfig) -> None:
        """Make ``config.members`` networks."""
        super().__init__()
        self.config = config
        of_one = config.model_copy(update={"members": 1})
        self.members = nn.ModuleList(UNet(of_one, member) for member in range(config.members))

    def forward(self, images: Tensor, crop: int = 0) -> Tensor:
        """Return logits of images (n, in_channels, h, w), cropped as those of a `UNet`.

        In training each member's, (members, n, classes, h', w'), for each has a loss of its own; else their mean,
        (n, classes, h', w'), at least float32.
        """
        if self.training:
            return torch.stack([member(images, crop) for member in self.members])
        first, *others = self.members
        total = _exact(first(images, crop))
        for member in others:
            total = total + _exact(member(images, crop))
        return total / len(self.members)


Network = UNet | Ensemble


def by_member(logits: Tensor) -> Tensor:
    """Logits of a `Network` in either mode as (members, n, classes, h', w'), members 1 where there is one answer."""
    return logits if logits.ndim == 5 else logits[None]


def _cropped(features: Tensor, pixels: int) -> Tensor:
    height, width = features.shape[-2:]
    return features[..., pixels : height - pixels, pixels : width - pixels] if pixels else features


def _centre(features: Tensor, height: int, width: int) -> Tensor:
    top, left = (features.shape[-2] - height) // 2, (features.shape[-1] - width) // 2
    return features[..., top : top + height, left : left + width]


def new_network(config: NetworkConfig, seed: int) -> Network:
    """A network with initial weights that are a function of (config, seed) alone; the first member's of the same seed.

    Weights are normal with sd sqrt(2 / N), N the number of inputs that one output value sums
    (kernel area x input channels; input channels for a 2x2 transposed convolution of stride 2,
    whose windows do not overlap); biases are 0. The global random state is neither read nor changed.

    Returns:
        float32 on the CPU, in training mode.

    Source: He et al. 2015; Ronneberger et al. 2015, section 3.

    >>> from unet_ray.config.network import network_config
    >>> sum(p.numel() for p in new_network(network_config("default", base_channels=2), seed=1).parameters())
    30715
    """
    model = _empty_network(config).to_empty(device="cpu")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, BatchNorm):
                module.reset_parameters()
            elif isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                area = math.prod(module.kernel_size) if isinstance(module, nn.Conv2d) else 1
                module.weight.normal_(0.0, math.sqrt(2 / (module.in_channels * area)), generator=generator)
                if module.bias is not None:
                    module.bias.zero_()
    return model


def add_descriptors(model: Network, seed: int) -> None:
    """Let each network of ``model`` tell shape descriptors, too: `DESCRIPTORS` more channels behind the logits.

    Their first weights are drawn as those of `new_network`, a function of (config, seed); what is there stays.
    """
    generator = torch.Generator().manual_seed(seed)
    for network in _networks(model):
        plain = network.out
        wider = nn.Conv2d(plain.in_channels, plain.out_channels + DESCRIPTORS, 1)
        with torch.no_grad():
            wider.weight.normal_(0.0, math.sqrt(2 / plain.in_channels), generator=generator)
            nn.init.zeros_(_bias(wider))
            wider.weight[: plain.out_channels] = plain.weight
            _bias(wider)[: plain.out_channels] = _bias(plain)
        network.out = wider


def without_descriptors(model: Network) -> Network:
    """The network of ``model`` as it predicts, on the same weights; ``model`` itself where nothing was added."""
    classes = model.config.classes
    if all(network.out.out_channels == classes for network in _networks(model)):
        return model
    state = {
        name: tensor[:classes] if name.split(".")[-2] == "out" else tensor
        for name, tensor in model.state_dict().items()
    }
    return network_from_state(model.config, state)


def _networks(model: Network) -> list[UNet]:
    return [model] if isinstance(model, UNet) else [m for m in model.members if isinstance(m, UNet)]


def _bias(convolution: nn.Conv2d) -> Tensor:
    assert convolution.bias is not None
    return convolution.bias


def network_from_state(config: NetworkConfig, state: Mapping[str, Tensor]) -> Network:
    """A network with the weights of ``state``, in evaluation mode (as decoded from a model file)."""
    model = _empty_network(config)
    model.load_state_dict(dict(state), assign=True)
    return model.eval()


def fold_batch_norm(model: Network) -> Network:
    """The same function in evaluation mode, with each batch normalisation folded into its convolution.

    In bfloat16 it is faster and more exact: nothing is rounded between convolution and normalisation.

    Returns:
        A new network without batch normalisation, in evaluation mode; ``model`` itself where it has none.
    """
    if not model.config.batch_norm:
        return model
    folded = model.config.model_copy(update={"batch_norm": False})
    if isinstance(model, UNet):
        return network_from_state(folded, _folded_state(model))
    of_members = {
        f"members.{number}.{name}": tensor
        for number, member in enumerate(model.members)
        for name, tensor in _folded_state(member).items()
    }
    return network_from_state(folded, of_members)


def _folded_state(model: nn.Module) -> dict[str, Tensor]:
    """State of a U-Net without the batch normalisation that its convolutions have taken in."""
    kept = ("up.", "head.", "out.")
    state = {name: tensor for name, tensor in model.state_dict().items() if name.startswith(kept)}
    for prefix in ("down", "merge"):
        for level, stages in enumerate(getattr(model, prefix)):
            for old, new in ((0, 0), (3, 2)):  # convolution, norm, ReLU, ... becomes convolution, ReLU, ...
                convolution, norm = stages[old], stages[old + 1]
                scale = norm.weight.double() * torch.rsqrt(norm.running_var.double() + norm.eps)
                shift = norm.bias.double() - norm.running_mean.double() * scale
                weight = convolution.weight.double() * scale.reshape(-1, 1, 1, 1)
                state[f"{prefix}.{level}.{new}.weight"] = weight.detach().to(convolution.weight.dtype)
                state[f"{prefix}.{level}.{new}.bias"] = shift.detach().to(convolution.weight.dtype)
    return state


def expected_shapes(config: NetworkConfig) -> dict[str, tuple[int, ...]]:
    """Shape of each tensor in the state of a network of ``config``; nothing is allocated."""
    return {name: tuple(tensor.shape) for name, tensor in _empty_network(config).state_dict().items()}


def network_of(config: NetworkConfig) -> Network:
    """The layers of ``config``, with PyTorch's own initial weights."""
    return UNet(config) if config.members == 1 else Ensemble(config)


def _empty_network(config: NetworkConfig) -> Network:
    with torch.device("meta"):
        return network_of(config)


def network_input(images: Tensor) -> Tensor:
    """Grey values 0..255 (uint8, any shape) as the network takes them: float32, 0..1.

    >>> network_input(torch.tensor([0, 255], dtype=torch.uint8))
    tensor([0., 1.])
    """
    return images.to(torch.float32) / 255.0


def membrane_probability(logits: Tensor) -> Tensor:
    """Probability of membrane, 0..1.

    Args:
        logits: (n, 1, h, w) or (n, 2, h, w); of two, the second is the membrane.

    Returns:
        (n, h, w), at least float32 (float64 stays).
    """
    if logits.shape[1] == 1:
        return torch.sigmoid(_exact(logits[:, 0]))
    if logits.shape[1] != 2:
        raise ValueError(f"{logits.shape[1]} classes have no one membrane; use class_probability")
    return torch.softmax(_exact(logits), dim=1)[:, 1]


def class_probability(logits: Tensor) -> Tensor:
    """Probability of each class: softmax over (n, k, h, w), k >= 2, at least float32."""
    return torch.softmax(_exact(logits), dim=1)


def _exact(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()

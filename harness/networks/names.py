"""Finds networks by name and checks their settings, without importing torch or timm (which takes seconds)."""

from __future__ import annotations

import hashlib
import importlib.util
import re
import sys
from difflib import get_close_matches
from functools import cache
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

from harness import registry
from harness.data.dataset import MAPS, DatasetInfo
from harness.errors import UserError, did_you_mean, expanded, no_pipe
from harness.networks.architecture import Architecture
from harness.networks.timm_model import TimmModel
from harness.settings import PluginSpec

PRETRAINED = "pretrained"
"""The word that stands for the pretrained weights of a network, instead of a file's path."""


@cache
def timm_names() -> frozenset[str]:
    """Return the names of timm's models, read from its source files (0.1 s; importing timm takes seconds)."""
    spec = importlib.util.find_spec("timm")
    assert spec is not None and spec.origin is not None
    files = (Path(spec.origin).parent / "models").glob("*.py")
    return frozenset(
        name for file in files for name in re.findall(r"@register_model\s*\ndef (\w+)\(", file.read_text())
    )


def sha256(path: str) -> str:
    """Return a file's SHA-256. Raises OSError."""
    with no_pipe(expanded(path)).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def architecture(name: str) -> type[Architecture]:
    """Return the class of a network: a plug-in's, or that of a model of timm. Raises UserError if there is none.

    ``name`` is that of a plug-in with an Architecture, of a model of timm, or of a function that a plug-in registers
    with timm: the plug-in's own name, or MODULE.FUNCTION.
    """
    known = registry.names("networks")
    if name in known:
        return registry.find("networks", name, Architecture) or _registered(name, name)
    if name in timm_names():
        return _timm_model(name, TimmModel.__module__)
    module = name.rpartition(".")[0]
    if not module or module.split(".")[0] in timm_names():
        own = every()
        close = get_close_matches(name.split(".")[0], sorted({*own, *timm_names()}), n=1, cutoff=0.5)
        hint = f"; did you mean {close[0]!r}?" if close else ";"
        allowed = f"{', '.join(own)}, or any model of timm {version('timm')}, without a pretrained tag"
        raise UserError(f"unknown network {name!r}{hint} allowed: {allowed}{registry.yours()}")
    if module in known or not _is_module(name):
        return _registered(name, module)
    return registry.find("networks", name, Architecture) or _registered(name, name)


def _is_module(name: str) -> bool:
    """Return whether a dotted name is that of a module; its packages are imported."""
    try:
        return importlib.util.find_spec(name) is not None
    except Exception:  # whatever a package raises; ``load`` turns it into a sentence
        return False


def _timm_model(name: str, module: str, **attributes: Any) -> type[Architecture]:
    """Return TimmModel with a name and other attributes; ``module`` is where the model's function is defined."""
    return type(TimmModel.__name__, (TimmModel,), {"timm_name": name, "__module__": module, **attributes})


def _registered(name: str, module: str) -> type[Architecture]:
    """Return the class of a model that the plug-in ``module`` registers with timm, under the last part of ``name``."""
    function = name.rpartition(".")[2]
    plugin = registry.load("networks", module)
    import timm

    if not (hasattr(plugin, function) and timm.is_model(function)):
        lacking = f"{module} ({registry.place(plugin)}) defines no Architecture and registers no {function!r} with timm"
        others = [f"{module}.{other}" for other in _functions(plugin)]
        raise UserError(f"{name!r} is not a network: {lacking}{did_you_mean(name, others)}")
    written_as = staticmethod(timm.models.model_entrypoint(function))
    return _timm_model(function, plugin.__name__, written_as=written_as)


def _functions(plugin: ModuleType) -> list[str]:
    """Return the functions that a module registers with timm."""
    if "timm" not in sys.modules:  # which takes seconds to import, and which the module would have imported
        return []
    import timm

    entrypoint = timm.models.model_entrypoint
    return [name for name, value in vars(plugin).items() if timm.is_model(name) and entrypoint(name) is value]


def every() -> dict[str, type[Architecture]]:
    """Return all networks by name but timm's own: the plug-ins, and what the user's files register with timm."""
    found = registry.every("networks", Architecture)
    for name in registry.names("networks"):
        if name in found:
            continue
        try:
            functions = _functions(registry.load("networks", name))
        except UserError:  # another file of a folder must not stand in the way
            continue
        found |= {f"{name}.{function}": _registered(f"{name}.{function}", name) for function in functions}
    return found


def shipped(name: str) -> bool:
    """Return whether a network is the harness's or timm's own, and not a user's."""
    return architecture(name).__module__.startswith("harness.networks.")


def of(model: PluginSpec) -> Architecture:
    """Return the network of a config's ``model``, not built yet."""
    return architecture(model.name)(model.settings)


def spec(name: str, **settings: Any) -> PluginSpec:
    """Return a network's name and settings, with defaults filled in. Raises UserError if there is no such network."""
    return PluginSpec(name, architecture(name).Settings(**settings))


def resolved(model: PluginSpec, download: bool = False) -> PluginSpec:
    """Return a network whose weights are identified: their SHA-256, and how images are normalised for them.

    Raises UserError, which begins with the key, for settings of weights that can't hold, and for weights that are not
    on this machine; ``download``: those that timm names may be downloaded.
    """
    settings = model.settings
    if settings.weights is None:
        for key in ("weights_sha256", "weights_mean", "weights_std"):
            if getattr(settings, key) is not None:
                raise UserError(f"model.{key}: needs model.weights, which is not set")
        return model
    if settings.initialisation == "kaiming_zero_last":
        raise UserError(
            "model.initialisation: kaiming_zero_last would be overwritten by model.weights; allowed: kaiming, pytorch"
        )
    update: dict[str, Any] = {}
    path = settings.weights
    if path == PRETRAINED:
        found = architecture(model.name).pretrained(download)
        if found is None:
            raise no_pretrained(model.name)
        path = str(found.path)
        if settings.weights_mean is None and settings.weights_std is None:
            update = {"weights_mean": found.mean, "weights_std": found.std}
    try:
        digest = sha256(path)
    except OSError as error:
        raise UserError(f"model.weights: {path!r} can't be read: {error.strerror}") from None
    if settings.weights_sha256 not in (None, digest):
        raise UserError(
            f"model.weights_sha256: must be the SHA-256 of {path!r}, {digest}, got {settings.weights_sha256!r}"
        )
    mean, std = settings.weights_mean, settings.weights_std
    if (mean is None) != (std is None) or len(mean or ()) != len(std or ()):
        raise UserError("model.weights_std: needs as many values as model.weights_mean, one for each channel")
    return PluginSpec(model.name, settings.model_copy(update={"weights_sha256": digest, **update}))


def located(model: PluginSpec) -> PluginSpec:
    """Return a network whose file of weights has an absolute path, because workers may run in another folder."""
    path = model.settings.weights
    if path in (None, PRETRAINED):
        return model
    update = {"weights": str(expanded(path).absolute())}
    return PluginSpec(model.name, model.settings.model_copy(update=update))


def no_pretrained(name: str) -> UserError:
    """Return the error for the word ``pretrained`` where a network has no such weights."""
    return UserError(
        f"model.weights: there are no pretrained weights of {name!r}; name a local file. Models of timm have some, "
        "such as resnet18 or tf_efficientnet_lite0: timm.list_pretrained() lists them"
    )


def normalisation(model: PluginSpec, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Return (mean, std), one value per channel, by which the weights want pixels normalised; None: the dataset's.

    For grey images the values of a colour network are averaged. Raises UserError for any other number of values.
    """
    mean, std = model.settings.weights_mean, model.settings.weights_std
    if mean is None or len(mean) == channels:
        return None if mean is None else (mean, std)
    if channels == 1:
        return (sum(mean) / len(mean),), (sum(std) / len(std),)
    raise UserError(f"model.weights_mean: needs one value for each of the {channels} channels, got {len(mean)}")


def check_fits(model: PluginSpec, info: DatasetInfo, dataset: str = "the dataset") -> None:
    """Raise UserError, which begins with the key, if the network does not suit the dataset's labels or images."""
    labels, size = of(model).labels, model.settings.input_size
    if info.labels not in labels:
        allowed = [name for name, found in every().items() if info.labels in found.labels]
        if info.per_pixel:
            raise UserError(
                f"model.name: {dataset} labels pixels, but {model.name} has one output per image; allowed: "
                f"{', '.join(allowed)}, or a timm model with model.output_stride: 8"
            )
        problem = f"{dataset} labels images, but this network has one output per position"
        if (stride := getattr(model.settings, "output_stride", None)) is not None:
            raise UserError(f"model.output_stride: {problem}, got {stride}; remove it")
        raise UserError(f"model.name: {problem}, got {model.name}; allowed: {', '.join(allowed)}, or any timm model")
    if size is not None and info.labels == MAPS:
        raise UserError(f"model.input_size: is for datasets that label images, but {dataset} labels pixels; remove it")
    if size is not None and (size[0] < info.size[0] or size[1] < info.size[1]):
        raise UserError(
            f"model.input_size: must be at least the size of the images of {dataset}, {list(info.size)}, got "
            f"{list(size)}"
        )
    normalisation(model, info.channels)

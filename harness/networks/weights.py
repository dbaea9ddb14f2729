"""Loads pretrained weights from a local file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from timm.models import load_state_dict

from harness.errors import UserError, reason
from harness.networks import names as network_names
from harness.networks.network import Network, classifier_name
from harness.settings import PluginSpec

SHOWN = 3  # tensor names per problem in a message


def _tensors(path: str) -> Any:
    # stated, because older versions of timm read pickles by default, which can run any command
    return load_state_dict(str(Path(path).expanduser()), use_ema=False, weights_only=True)


def load_weights(network: Network, model: PluginSpec, channels: int) -> None:
    """Load pretrained weights into all layers except the classifier, which keeps its initial weights.

    Only tensors are read, and no code runs. Raises UserError, which names up to three tensors per problem, if tensors
    do not fit.
    """
    path, expected, found = model.settings.weights, model.settings.weights_sha256, None
    if path == network_names.PRETRAINED:
        found = network_names.architecture(model.name).pretrained(download=False)
        if found is None:
            raise network_names.no_pretrained(model.name)
        path = str(found.path)
    try:
        digest, read = network_names.sha256(path), _tensors(path)
    except (OSError, MemoryError) as error:
        raise UserError(f"model.weights: {path!r} can't be read: {reason(error)}") from None
    except Exception:  # readers raise many kinds of errors for an unknown file, and give advice that is unsafe
        raise UserError(
            f"model.weights: {path!r} can't be read as a file of tensors: it must be a state_dict, as torch.save or "
            "safetensors writes it; a file with other objects of Python is not read, because it could run commands"
        ) from None
    if expected not in (None, digest):
        raise UserError(f"model.weights: {path!r} has changed: its sha256 is {digest}, was {expected}")
    network.weights_source = found.source if found else path
    if found:
        read = found.adapted(read, channels)

    def tensors(state: dict[str, Any]) -> dict[str, torch.Tensor]:
        last = f"{classifier_name(network.body)}."
        return {k: v for k, v in state.items() if isinstance(v, torch.Tensor) and not k.startswith(last)}

    needed, given = tensors(network.body.state_dict()), tensors(read)
    # the oldest public files lack the counters of batch norm
    lacking = [k for k in needed if k not in given and not k.endswith("num_batches_tracked")]
    other = [k for k in needed if k in given and given[k].shape != needed[k].shape]
    problems = {
        "lacks": lacking,
        "also has": [k for k in given if k not in needed],
        "has the wrong shape for": [f"{k} {[*given[k].shape]}, not {[*needed[k].shape]}" for k in other],
    }
    sentences = [
        f"{verb} {', '.join(names[:SHOWN])}{f' and {len(names) - SHOWN} more' if len(names) > SHOWN else ''}"
        for verb, names in problems.items()
        if names
    ]
    if sentences:
        raise UserError(f"model.weights: {path!r} does not fit {model.name!r}: it {'; it '.join(sentences)}")
    network.body.load_state_dict(given, strict=False)

"""MODEL names of the command line: `family:rest?option=value&option=value` to a network."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from models.architecture import Spec, network_of, spec_from_json
from models.kinds import unknown_name
from models.network_def import parse_network_def
from models.resnas import STAGED_SPECS
from models.spec import BlockSpec, ViTSpec
from models.staged import StagedTransformer
from models.staged_spec import StagedSpec
from models.undrawn import Undrawn
from models.vit import VisionTransformer
from models.vitas import DEFINITIONS, UNPUBLISHED, parse_vitas

FAMILIES = ("mpcvit", "deit", "timm", "spec", "vitas", "resnas")


def _mpcvit(
    name: str,
    layers: int,
    heads: int,
    dim: int,
    mlp_width: int,
    image_px: int = 32,
    patch_px: int = 4,
    classes: int = 10,
) -> ViTSpec:
    block = BlockSpec(("softmax",) * heads, dim // heads, mlp_width)
    return ViTSpec(image_px, patch_px, dim, classes, (block,) * layers, name=name)


# MPCViT's released models; `_demo` is ours: small enough to be searched, retrained and run securely in minutes.
SPECS: dict[str, ViTSpec] = {
    spec.name: spec
    for spec in (
        _mpcvit("vit_2_4_32", layers=2, heads=2, dim=128, mlp_width=128),
        _mpcvit("vit_4_4_32", layers=4, heads=2, dim=128, mlp_width=128),
        _mpcvit("vit_4_4_32_demo", layers=4, heads=4, dim=128, mlp_width=128),
        _mpcvit("vit_6_4_32", layers=6, heads=4, dim=256, mlp_width=512),
        _mpcvit("vit_7_4_32", layers=7, heads=4, dim=256, mlp_width=512),
        _mpcvit("vit_7_4_32_wider", layers=7, heads=4, dim=384, mlp_width=768),
        _mpcvit("vit_9_12_64", layers=9, heads=12, dim=192, mlp_width=384, image_px=64, classes=200),
        _mpcvit("vit_12_12_224", layers=12, heads=12, dim=192, mlp_width=768, image_px=224, patch_px=16, classes=1000),
    )
}


def build(name: str, draws: bool = True) -> nn.Module:
    """The network called `name`, in evaluation mode, with fresh weights drawn from torch's global generator.

    It is the network that is deployed: a staged one has no batch norm, folded into the convolutions before it, and no
    head that only training needs. Unless it `draws`, weights hold anything: several times faster, for readings that
    look at shapes only. Raises ValueError that lists the known names and the nearest for one that is not known.
    """
    family, rest, options = _parse(name)
    with nullcontext() if draws else Undrawn():
        if family in ("timm", "deit"):
            return _build_timm(family, rest, options).eval()
        return network_of(architecture(name), batch_norm=False).eval()


def architecture(name: str) -> Spec:
    """The spec called `name`, for the families of our own networks, with its options applied.

    Options: `kind` (one attention kind for all heads), `classes`, `image_px`, `linformer_k` where there are no stages;
    of `resnas:` also `patch_px` and `class_tokens`. Raises ValueError as `build` does.
    """
    family, rest, options = _parse(name)
    if family == "mpcvit":
        if rest not in SPECS:
            raise unknown_name("MPCViT network", rest, SPECS)
        return _with_options(SPECS[rest], options)
    if family == "spec":
        return _with_options(_read_spec(Path(rest)), options)
    if family == "vitas":
        return _with_options(_vitas(rest), options)
    if family == "resnas":
        if rest in STAGED_SPECS:
            return _with_options(STAGED_SPECS[rest], options)
        if not rest.lstrip().startswith("("):
            raise unknown_name("ViT-ResNAS network", rest, STAGED_SPECS)
        shape = {key: options.pop(key) for key in ("image_px", "patch_px") if key in options}
        numbers: dict[str, Any] = {key: _whole(key, value) for key, value in shape.items()}
        return _with_options(parse_network_def(rest, **numbers), options)
    raise ValueError(f"{name!r} is timm's own network and has no spec; name one as mpcvit:NAME or spec:PATH")


def spec_named(name: str) -> ViTSpec:
    """The spec called `name`, of a network without stages, as `architecture`; ValueError for a staged one."""
    spec = architecture(name)
    if isinstance(spec, StagedSpec):
        raise ValueError(
            f"{name!r} has stages, which this does not take; name a mpcvit: or vitas: network or spec:PATH"
        )
    return spec


def _vitas(text: str) -> ViTSpec:
    if text in DEFINITIONS:
        return parse_vitas(DEFINITIONS[text], name=text)
    if text in UNPUBLISHED:
        raise ValueError(f"{text} is tabulated in ViTAS's paper without its definition; vitas_a and vitas_c have one")
    if "/" not in text:
        raise unknown_name("ViTAS network", text, DEFINITIONS)
    return parse_vitas(text)


def input_shape(network: nn.Module) -> tuple[int, int, int, int]:
    """(1, channels, height, width) of one image for a network of ours or of timm; ValueError for any other."""
    if isinstance(network, VisionTransformer | StagedTransformer):
        spec = network.spec
        return (1, spec.in_channels, spec.image_px, spec.image_px)
    config = getattr(network, "pretrained_cfg", None)
    if not config:
        raise ValueError(f"{type(network).__name__} does not say what images it takes; give the input shape")
    channels, height, width = config["input_size"]
    height, width = getattr(getattr(network, "patch_embed", None), "img_size", None) or (height, width)
    stem = next((module for module in network.modules() if isinstance(module, nn.Conv2d)), None)
    return (1, stem.in_channels if stem else channels, height, width)


def _parse(name: str) -> tuple[str, str, dict[str, str]]:
    family, colon, rest = name.partition(":")
    if not colon:
        raise ValueError(f"{name!r} names no network: write FAMILY:NAME, such as mpcvit:vit_7_4_32 or timm:resnet18")
    if family not in FAMILIES:
        raise unknown_name("network family", family, FAMILIES)
    rest, question, query = rest.partition("?")
    if not rest:
        raise ValueError(f"{name!r} stops after {family}:; write {family}:{'PATH' if family == 'spec' else 'NAME'}")
    options: dict[str, str] = {}
    for item in query.split("&") if question else ():
        key, equals, value = item.partition("=")
        if not (key and equals and value) or key in options:
            raise ValueError(f"cannot read {item!r} in {name!r}: options are written once each, ?name=value&name=value")
        options[key] = value
    return family, rest, options


def _with_options(spec: Spec, options: Mapping[str, str]) -> Spec:
    """The spec with options applied all at once: an image's side and a patch's may fit together only."""
    counts = (
        "classes",
        "image_px",
        *(("patch_px", "class_tokens") if isinstance(spec, StagedSpec) else ("linformer_k",)),
    )
    for key in options:
        if key not in ("kind", *counts):
            raise unknown_name("option", key, ("kind", *counts))
    changes: dict[str, Any] = {key: _whole(key, value) for key, value in options.items() if key in counts}
    spec = replace(spec, **changes)
    return spec.with_kinds(options["kind"]) if "kind" in options else spec


def _whole(option: str, value: str) -> int:
    if not value.isdecimal():
        raise ValueError(f"{option} must be a whole number, got {value!r}")
    return int(value)


def _read_spec(path: Path) -> Spec:
    if not path.is_file():
        raise ValueError(f"there is no spec file {path}")
    try:
        return spec_from_json(json.loads(path.read_text()))
    except ValueError as error:
        raise ValueError(f"{path} is not a spec: {error}") from error


def _build_timm(family: str, name: str, options: Mapping[str, str]) -> nn.Module:
    import timm

    architecture = name.partition(".")[0]
    if not timm.is_model(architecture) or (family == "deit" and not architecture.startswith("deit")):
        raise unknown_name(f"{family} network", name, timm.list_models("deit*" if family == "deit" else ""))
    if "pretrained" in options:
        raise ValueError("weights are not downloaded by name; load them into the network after building it")
    try:
        network: nn.Module = timm.create_model(name, pretrained=False, **{k: _literal(v) for k, v in options.items()})
    except TypeError as error:
        raise ValueError(f"timm does not build {name} with {dict(options)}: {error}") from error
    return network


def _literal(text: str) -> Any:
    """A number, tuple, True, False or None as Python writes it; any other text as itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text

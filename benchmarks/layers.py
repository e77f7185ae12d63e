"""Does `layer_groups` find the layers? On one model a module of timm, torchvision, and one of each of transformers' types, with and without an example.

    nice -n 10 python benchmarks/layers.py             # all, about half an hour; writes benchmarks/layers.md
    python benchmarks/layers.py --only timm --out FILE # one library; writes FILE.md

What is done is kept in a file beside the page and not done again, until --again. The models lie on the meta device: no weights, no values.
"""
from __future__ import annotations

import argparse
import inspect
import itertools
import json
import os
import random
import re
import signal
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import timm
import torch
import torchvision
import transformers
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from transformers.models.auto import configuration_auto, modeling_auto

from dals.layerwise import layer_groups

LIMIT = 60 # seconds for one model
LIGHT = 150e6 # parameters; so many can run with values, where a pass depends on them
TRIES = 6 # examples for a model
LAYERS = re.compile(r"^(num|n)_(hidden_)?(layers?|blocks)$|^(en|de)coder_layers$|^(en|de)coder_num_layers$|^depth$")
CASES = {"regnet": "regnety_002", "densenet": "densenet121", "nest": "nest_tiny", "edgenext": "edgenext_xx_small", "iformer": "iformer_s",
         "dla": "dla34", "coat": "coat_tiny", "crossvit": "crossvit_tiny_240", "fasternet": "fasternet_s", "twins": "twins_pcpvt_small",
         "vision_transformer": "vit_tiny_patch16_224", "resnet": "resnet50", "vgg": "vgg16_bn"} # the rest: the first by name
TASKS = ("SEQUENCE_CLASSIFICATION", "IMAGE_CLASSIFICATION", "CAUSAL_LM", "IMAGE_TEXT_TO_TEXT", "SEQ_TO_SEQ_CAUSAL_LM", "AUDIO_CLASSIFICATION",
         "CTC", "SPEECH_SEQ_2_SEQ", "VIDEO_CLASSIFICATION", "OBJECT_DETECTION", "SEMANTIC_SEGMENTATION", "DEPTH_ESTIMATION", "MASKED_LM")
Case = tuple[str, str, Callable[[], nn.Module], Callable[[nn.Module], Iterator[Any]]] # library, name, model, examples to try


def timm_cases() -> Iterator[Case]:
    for family in timm.list_modules():
        if names := timm.list_models(module=family):
            name = CASES.get(family, names[0])

            def examples(model):
                yield torch.zeros(2, *model.pretrained_cfg.get("input_size", (3, 224, 224)))
                yield torch.zeros(2, 3, 256, 256)
            yield "timm", name, lambda name=name: timm.create_model(name), examples


def torchvision_cases() -> Iterator[Case]:
    seen = set()
    for name in torchvision.models.list_models():
        module = torchvision.models.get_model_builder(name).__module__
        if module in seen:
            continue
        seen.add(module)

        def examples(model, module=module):
            if ".detection" in module:
                yield ([torch.rand(3, 320, 320)],)
            elif ".optical_flow" in module:
                yield torch.zeros(1, 3, 128, 128), torch.zeros(1, 3, 128, 128)
            elif ".video" in module:
                yield torch.zeros(1, 3, 16, 224, 224)
            else:
                yield torch.zeros(2, 3, 320 if "inception" in module else 224, 320 if "inception" in module else 224)
        options = {"weights_backbone": None} if ".detection" in module or ".segmentation" in module else {}
        yield "torchvision", name, lambda name=name, options=options: torchvision.models.get_model(name, weights=None, **options), examples


def setting(config: Any, *names: str, default: Any) -> Any:
    "The first of these settings that the configuration has, its parts included"
    parts = [config, *(part for part in vars(config).values() if isinstance(part, transformers.PretrainedConfig))]
    found = (getattr(part, name, None) for name in names for part in parts)
    return next((value for value in found if value is not None), default)


def transformers_examples(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    "Batches for the inputs that the model's forward names: all of them, then fewer"
    config, takes = model.config, inspect.signature(model.forward).parameters
    size = setting(config, "image_size", default=224)
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    channels = setting(config, "num_channels", default=3)
    mels = setting(config, "num_mel_bins", "feature_size", "num_mel_features", default=80)
    words = torch.arange(5, 13)[None]
    length = setting(config, "max_source_positions", default=1500) * 2
    series = setting(config, "context_length", "prediction_length", default=64)
    pieces = {
        "input_ids": [words], "decoder_input_ids": [words], "attention_mask": [torch.ones(1, 8, dtype=torch.long)],
        "pixel_values": [torch.zeros(1, channels, height, width), torch.zeros(1, channels, 224, 224), torch.zeros(1, channels, 512, 512),
                         torch.zeros(1, setting(config, "num_frames", default=8), channels, height, width)],
        "input_features": [torch.zeros(1, mels, length), torch.zeros(1, 200, mels), torch.zeros(1, mels, 3000)],
        "input_values": [torch.zeros(1, 16000), torch.zeros(1, 1, 16000), torch.zeros(1, 1024, 128)],
        "past_values": [torch.zeros(1, series, setting(config, "num_input_channels", "input_size", default=1))],
        "bbox": [torch.zeros(1, 8, 4, dtype=torch.long)],
    }
    main = [name for name in pieces if name in takes and name not in ("decoder_input_ids", "attention_mask", "bbox")]
    extra = {name: pieces[name][0] for name in ("bbox",) if name in takes}
    sequence = {"decoder_input_ids": words} if "decoder_input_ids" in takes else {}
    for more in (extra, {**extra, **sequence}):
        for alone in [main] * (len(main) > 1) + [[name] for name in main]:
            for i in range(max((len(pieces[name]) for name in alone), default=0)):
                yield {name: pieces[name][min(i, len(pieces[name]) - 1)] for name in alone} | more
    yield dict(model.dummy_inputs)


def short(kind: type) -> Any:
    "The usual configuration, but no stack of more than four layers"
    usual = kind()
    parts = {key: short(type(part)) for key, part in vars(usual).items() if isinstance(part, transformers.PretrainedConfig)}
    return kind(**parts, **{key: 4 for key, n in vars(usual).items() if isinstance(n, int) and LAYERS.search(key) and n > 4})


def transformers_cases() -> Iterator[Case]:
    tables = [getattr(modeling_auto, f"MODEL_FOR_{task}_MAPPING_NAMES", {}) for task in TASKS] + [modeling_auto.MODEL_MAPPING_NAMES]
    for kind in configuration_auto.CONFIG_MAPPING_NAMES:
        name = next((table[kind] for table in tables if kind in table), None)
        if name is None:
            continue
        name = name if isinstance(name, str) else name[0]

        def build(kind=kind, name=name):
            made, shape = getattr(transformers, name), configuration_auto.CONFIG_MAPPING[kind]
            try:
                return made(short(shape))
            except Exception: # which lengths must agree differs between models
                return made(shape())
        yield "transformers", name, build, transformers_examples


class Uses(TorchDispatchMode):
    "In which order a forward pass computes with the parameters, told at the level below the one that the library listens at"

    def __init__(self, params: list[nn.Parameter]):
        super().__init__()
        self.bit = {id(p): 1 << i for i, p in enumerate(params)}
        self.below: dict[int, int] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        below = 0
        for x in given:
            below |= getattr(x, "_below", 0)
        for x in given:
            if id(x) in self.bit:
                self.below.setdefault(id(x), below)
                below |= self.bit[id(x)]
        if func is torch.ops.aten._to_copy.default and not args[0].is_meta:
            kwargs = {key: value for key, value in kwargs.items() if key != "device"} # what has values keeps them
        if any(x.is_meta for x in given):
            args, kwargs = tree_map_only(Tensor, lambda x: x if x.is_meta else x.to("meta"), (args, kwargs))
        result = func(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            if isinstance(x, Tensor) and id(x) not in self.bit:
                x._below = below
        return result


def uses(model: nn.Module, example: Any) -> Uses:
    mode = Uses(list(model.parameters()))
    if next(model.parameters()).is_meta:
        example = tree_map_only(Tensor, lambda x: x.to("meta") if x.is_floating_point() else x, example)
    with torch.no_grad(), mode:
        if isinstance(example, dict):
            model(**example)
        else:
            model(*(example if isinstance(example, tuple) else [example]))
    return mode


def out_of_order(groups: list[dict[str, Any]], mode: Uses) -> tuple[float, float]:
    "Which share of all pairs, and of those pairs of which one reads what the other made, lies in groups out of forward order"
    depth = {id(p): group["depth"] for group in groups for p in group["params"]}
    used = [key for key in mode.below if key in depth]
    order = np.array([depth[key] for key in used])
    wrong = order[:, None] > order[None, :]
    bits = list(mode.bit)
    column = {key: i for i, key in enumerate(bits)}
    size = (len(bits) + 7) // 8
    table = np.stack([np.unpackbits(np.frombuffer(mode.below[key].to_bytes(size, "little"), np.uint8), bitorder="little") for key in used])
    reads = table[:, [column[key] for key in used]].T.astype(bool) # [i, j]: the use of j reads what i made
    before = np.triu(np.ones_like(wrong), 1)
    return tuple(100 * float((wrong & mask).sum() / max(1, mask.sum())) for mask in (before, reads & before))


def repeated(model: nn.Module) -> bool:
    "Do three or more modules side by side have one class and several matrices each?"
    several = {m for m in model.modules() if sum(p.ndim > 1 for p in m.parameters()) > 1}
    return any(n > 2 for m in model.modules() for n in Counter(type(child) for child in m.children() if child in several).values())


def described(groups: list[dict[str, Any]], total: int, tables: set[int], mode: Uses | None) -> dict[str, Any]:
    size = lambda group: sum(p.numel() for p in group["params"])
    rich = [g for g in groups if sum(p.ndim > 1 and id(p) not in tables for p in g["params"]) > 1] # one matrix cannot be divided
    largest = max(rich, key=size, default=None)
    raw, read = out_of_order(groups, mode) if mode else (None, None)
    return {"groups": len(groups), "share": size(largest) / total if largest else 0.0, "largest": largest and largest["name"], "raw": raw, "read": read}


def made(build: Callable[[], nn.Module]) -> nn.Module:
    "The model on the meta device, with zeros for its whole numbers; if it is light, with random weights on the CPU"
    with torch.device("meta"):
        model = build().eval()
    if sum(p.numel() for p in model.parameters()) < LIGHT:
        model.to_empty(device="cpu")
        with torch.no_grad():
            for p in model.parameters():
                p.normal_(0, 0.02) if p.is_floating_point() else p.zero_()
    for module in model.modules():
        for key, b in module._buffers.items():
            if b is not None and not (b.is_meta and b.is_floating_point()):
                module._buffers[key] = torch.zeros(b.shape, dtype=b.dtype)
    return model


def measured(library: str, name: str, build: Callable[[], nn.Module], examples: Callable[[nn.Module], Iterator[Any]]) -> dict[str, Any]:
    model = made(build)
    total = sum(p.numel() for p in model.parameters())
    row: dict[str, Any] = {"library": library, "model": name, "parameters": total, "repeated": repeated(model), "plain": {}, "example": {}, "errors": []}
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    mode = with_example = None
    for kind in (torch.float32, torch.bfloat16): # some kernels know only the second
        if mode or (kind is torch.bfloat16 and "BFloat16" not in "".join(row["errors"])):
            continue
        for example in itertools.islice(examples(model.to(kind)), TRIES):
            example = tree_map_only(Tensor, lambda x: x.to(kind) if x.is_floating_point() else x, example)
            try:
                with_example = layer_groups(model, example)
                mode = uses(model, example)
                break
            except (ValueError, RuntimeError, NotImplementedError, TypeError) as error:
                row["errors"].append(str(error).replace("\n", " ")[:300])
    try:
        row["plain"] = described(layer_groups(model), total, tables, mode)
    except ValueError as error:
        row["plain"] = {"refused": str(error).partition("'")[2].partition("'")[0]}
    if with_example:
        row["example"] = described(with_example, total, tables, mode)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("timm", "torchvision", "transformers"))
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    parser.add_argument("--again", action="store_true", help="forget what was done")
    parser.add_argument("--model", nargs="*", help="only these")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity(50)
    kept = args.out.with_suffix(".jsonl")
    if args.again:
        kept.unlink(missing_ok=True)
    rows = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    done = {(row["library"], row["model"]) for row in rows}
    cases = [*torchvision_cases(), *timm_cases(), *transformers_cases()]
    random.Random(0).shuffle(cases) # so that what is done says something about the rest
    for case in cases:
        for library, name in [case[:2]]:
            if (library, name) in done or (args.only and library != args.only) or (args.model and name not in args.model):
                continue
            signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(TimeoutError(f"longer than {LIMIT} s")))
            signal.alarm(LIMIT)
            try:
                row = measured(*case)
            except Exception as error:
                row = {"library": library, "model": name, "not built": f"{type(error).__name__}: {error}"[:300]}
            finally:
                signal.alarm(0)
            with kept.open("a") as file:
                file.write(json.dumps(row) + "\n")
            done.add((library, name))


if __name__ == "__main__":
    main()

"""Does `layer_groups` find the layers? On a model of each module of timm and torchvision and of each model type of transformers.

    nice -n 10 python benchmarks/layers.py              # all, about an hour of one core; writes benchmarks/layers.md and layers.jsonl
    nice -n 10 python benchmarks/layers.py --minutes 10 # what is missing, as far as that goes
    nice -n 10 python benchmarks/layers.py --retry      # and once more what did not run on any example
    python benchmarks/layers.py --only timm --model resnet18 --out FILE # writes FILE.md and FILE.jsonl

What stands in the .jsonl is not measured again, until --again. Models lie on the meta device; one that does not run there, and has
at most 300 million weights, lies on the CPU.
"""
from __future__ import annotations

import argparse
import inspect
import json
import os
import random
import re
import signal
import time
import warnings
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from typing import Any

if __name__ == "__main__": # before the imports that read them; who imports this file keeps an environment as it was
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np # noqa: E402
import timm # noqa: E402
import torch # noqa: E402
import torchvision # noqa: E402
import transformers # noqa: E402
from torch import Tensor, nn # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode # noqa: E402
from torch.utils._pytree import tree_leaves, tree_map_only # noqa: E402
from transformers.models.auto import configuration_auto, modeling_auto # noqa: E402

from dals.optim.layers import layer_groups # noqa: E402

LIMIT = 30 # seconds of computing for one model
LIGHT = 300e6 # parameters; so many can run with values, where a pass depends on them
TRIES = 10 # examples for a way to build a model
PATIENCE, WAYS = 2, 8 # seconds of computing, after which no other example is tried, and no other way
LAYERS = re.compile(r"^(num|n)_(hidden_)?(layers?|blocks)$|^(en|de)coder_layers$|^(en|de)coder_num_layers$|^depth$")
EXPERTS = re.compile(r"^(num|n)_(local_|routed_)?experts$")
WIDTHS = re.compile(r"^(d_model|d_ff|n_embd|dim)$|(hidden|intermediate|ffn|embedding|embed|projection)_(size|dim)$|(^|_)heads$|^n_head$")
TOKENS = re.compile(r"_token_(id|index)$")
VOCABULARY = 1000 # words of a narrow network
MISSING = {"num_experts_per_tok": 2, "top_k_experts": 2, "num_experts": 8, "n_routed_experts": 8, "moe_intermediate_size": 64,
           "head_dim": 64, "prediction_length": 24, "pad_token_id": 0, "vocab_size": VOCABULARY, "backbone": "resnet18",
           "vocabulary_map": {"<image>": 9, "IMGIMGAZ": 20, "IMGIMGBZ": 21}} # what a configuration leaves open and a model needs
CASES = {"regnet": "regnety_002", "densenet": "densenet121", "nest": "nest_tiny", "edgenext": "edgenext_xx_small", "iformer": "iformer_s",
         "dla": "dla34", "coat": "coat_tiny", "crossvit": "crossvit_tiny_240", "fasternet": "fasternet_s", "twins": "twins_pcpvt_small",
         "vision_transformer": "vit_tiny_patch16_224", "resnet": "resnet50", "vgg": "vgg16_bn"} # the rest: the first by name
TASKS = ("SEQUENCE_CLASSIFICATION", "IMAGE_CLASSIFICATION", "CAUSAL_LM", "IMAGE_TEXT_TO_TEXT", "SEQ_TO_SEQ_CAUSAL_LM",
         "AUDIO_CLASSIFICATION", "CTC", "SPEECH_SEQ_2_SEQ", "VIDEO_CLASSIFICATION", "OBJECT_DETECTION",
         "SEMANTIC_SEGMENTATION", "DEPTH_ESTIMATION", "MASKED_LM")
Case = tuple[str, str, list[Callable[[], nn.Module]], Callable[[nn.Module], Iterator[Any]]] # library, name, model, examples to try


def timm_cases() -> Iterator[Case]:
    for family in timm.list_modules():
        if names := timm.list_models(module=family):
            name = CASES.get(family, names[0])

            def examples(model):
                yield torch.zeros(2, *model.pretrained_cfg.get("input_size", (3, 224, 224)))
                yield torch.zeros(2, 3, 256, 256)
            yield "timm", name, [lambda name=name: timm.create_model(name)], examples


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

        def build(name=name, options=options):
            return torchvision.models.get_model(name, weights=None, **options)
        yield "torchvision", name, [build], examples


def setting(config: Any, *names: str, default: Any) -> Any:
    "The first of these settings that the configuration has, its parts included"
    parts = [config, *(part for part in vars(config).values() if isinstance(part, transformers.PretrainedConfig))]
    found = (getattr(part, name, None) for name in names for part in parts)
    return next((value for value in found if value is not None), default)


def transformers_examples(model: nn.Module) -> Generator[dict[str, Any], str | None, None]:
    "Batches for the inputs that the model's forward names: all of them, then fewer. What went wrong with one comes back."
    config, takes = model.config, inspect.signature(model.forward).parameters
    needs = {name for name, p in takes.items() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD}

    def whole(*shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.long)

    def number(*names: str, default: int) -> int:
        found = setting(config, *names, default=default)
        return found if isinstance(found, int) else found[-1] if isinstance(found, (list, tuple)) else default
    size = setting(config, "image_size", default=224)
    height, width = size if isinstance(size, (list, tuple)) else (size, size) if isinstance(size, int) else (224, 224)
    channels = number("num_channels", "in_channels", "in_chans", default=3)
    patch = number("patch_size", default=16)
    mels = number("num_mel_bins", "feature_size", "num_mel_features", "input_feat_size", "input_dim", default=80)
    length = number("max_source_positions", default=1500) * 2
    series = number("context_length", "prediction_length", default=64)
    flat = channels * number("temporal_patch_size", default=1) * patch**2
    frames = number("num_frames", "frames_per_clip", default=8)
    hidden = number("hidden_size", "d_model", "hidden_dim", default=64)
    past = series + max(setting(config, "lags_sequence", default=None) or [0])
    given, states = number("num_time_features", default=0), number("state_dim", default=17)
    words = torch.arange(5, 13)[None]
    if isinstance(end := setting(config, "eos_token_id", default=None), int) and end >= 0:
        words[0, -1] = end # some classifiers look for it
    pictures = [torch.zeros(1, channels, height, width), torch.zeros(1, channels, 224, 224), torch.zeros(1, channels, 512, 512),
                torch.zeros(1, 1, channels, height, width), torch.zeros(1, frames, channels, height, width)]
    patches = [torch.zeros(16, flat), torch.zeros(16, channels, patch, patch), torch.zeros(1, 16, flat)]
    grid = torch.tensor([[1, 4, 4]])
    pieces: dict[str, list[Any]] = {  # by what the forward calls them
        "input_ids": [words], "decoder_input_ids": [words], "inputs_embeds": [torch.zeros(1, 8, hidden)],
        "pixel_values": patches if {"image_grid_thw", "grid_thw", "spatial_shapes", "image_grid_hw", "pixel_position_ids"} & set(takes)
        else pictures,
        "pixel_values_videos": [torch.zeros(1, frames, channels, height, width)],
        "hidden_states": patches[:1] + [torch.zeros(1, hidden, 64), torch.zeros(1, 64, hidden), torch.zeros(1, 1, 3200)],
        "input_features": [torch.zeros(1, mels, length), torch.zeros(1, 200, mels), torch.zeros(1, mels, 3000),
                           torch.zeros(1, 200, 128), torch.zeros(1, 1, 1001, 64)],
        "input_values": [torch.zeros(1, 16000), torch.zeros(1, 1, 16000), torch.zeros(1, 1, 15360), torch.zeros(1, 1024, 128)],
        "past_values": [torch.zeros(1, series, number("num_input_channels", "input_size", default=1)), torch.zeros(1, past),
                        torch.zeros(1, 512)],
        "flattened_patches": [torch.zeros(1, 16, 770)], "audio_mel": [torch.zeros(1, 64, mels), torch.zeros(1, 64, 128)],
        "latents": [torch.zeros(1, hidden, 16), torch.zeros(1, 16, hidden)], "query_embeds": [torch.zeros(1, 8, hidden)],
        "noise_embeds": [torch.zeros(1, 8, hidden)], "states": [torch.zeros(1, 4, states)],
    }
    asides: dict[str, Any] = {  # go with the others, if the forward names or needs them
        "bbox": whole(1, 8, 4), "image_sizes": torch.tensor([[height, width]]), "image_grid_thw": grid, "grid_thw": grid,
        "spatial_shapes": torch.tensor([[4, 4]]), "image_grid_hw": torch.tensor([[4, 4]]), "merge_sizes": torch.tensor([1]),
        "actions": torch.zeros(1, number("chunk_size", default=4), number("max_action_dim", "act_dim", default=4)),
        "returns_to_go": torch.zeros(1, 4, 1), "timesteps": whole(1, 4),
        "rewards": torch.zeros(1, 4, 1), "qformer_input_ids": words,
    }
    needed: dict[str, Any] = {
        "input_features_mask": torch.ones(1, 200, dtype=torch.long), "audio_mel_mask": torch.zeros(1, 64, dtype=torch.bool),
        "past_time_features": torch.zeros(1, past, given), "past_observed_mask": torch.ones(1, past),
        "past_values_padding": whole(1, 512), "freq": whole(1, 1), "task_inputs": whole(1, 77), "state": torch.zeros(1, 32),
        "prompt_pixel_values": pictures[0], "prompt_masks": pictures[0], "pixel_attention_mask": torch.ones(1, 16, dtype=torch.long),
        "context_hidden_states": torch.zeros(1, 8, hidden), "pixel_position_ids": whole(1, 16, 2), "classes_input_ids": whole(2, 8),
        "classes_attention_mask": torch.ones(2, 8, dtype=torch.long), "tasks_input_ids": whole(1, 8),
        "tasks_attention_mask": torch.ones(1, 8, dtype=torch.long), "classes_structure": torch.tensor([2]),
    }
    main = [name for name in pieces if name in takes and name not in ("decoder_input_ids", "inputs_embeds", "hidden_states")]
    main += [name for name in ("hidden_states", "inputs_embeds") if name in needs]
    main = [name for name in main if name != "pixel_values_videos" or "pixel_values" not in takes]
    extra = {name: x for name, x in asides.items() if name in takes and (name in needs or "pixel" not in name)}
    extra |= {name: x for name, x in needed.items() if name in needs}
    sequence = {"decoder_input_ids": words} if "decoder_input_ids" in takes else {}
    beside = number("encoder_hidden_size", "cross_attention_hidden_size", "hidden_size", default=64)
    optional: dict[str, Any] = {"encoder_hidden_states": torch.zeros(1, 8, beside), "mm_token_type_ids": whole(1, 8),
                                "use_cache": False}
    optional = {name: x for name, x in optional.items() if name in takes and name not in extra}
    masks = [name for name in ("input_features_mask", "feature_attention_mask", "attention_mask", "padding_mask") if name in takes]
    medium = {"pixel_values": "image", "input_features": "audio", "input_values": "audio", "pixel_values_videos": "video"}
    asked = {name: setting(config, f"{kind}_token_id", f"{kind}_token_index", default=None) for name, kind in medium.items()}
    for more in (extra, {**extra, **sequence}, {**extra, **sequence, **optional})[:2 + bool(optional)]:
        for alone in [main] * (len(main) > 1) + [[name] for name in main if needs & set(pieces) <= {name}]:
            for i in range(max((len(pieces[name]) for name in alone), default=0)):
                batch = {name: pieces[name][min(i, len(pieces[name]) - 1)] for name in alone} | more
                token = next((asked[name] for name in alone if asked.get(name)), None) if "input_ids" in alone else None
                if token is not None:  # as many of the token that stands for a picture as the picture has features
                    batch["input_ids"] = torch.tensor([[5, token, 6]])
                wrong = yield batch
                if token is not None and (found := re.search(r"features\D{1,20}(\d+)", wrong or "")):
                    ids = torch.tensor([[5, *[token] * int(found[1]), 6]])
                    kinds = {"mm_token_type_ids": (ids == token).long()} if "mm_token_type_ids" in takes else {}
                    wrong = yield {**batch, "input_ids": ids, **kinds}
                if found := re.search(r"\(\d+x(\d+) and (\d+)x|\[\d+, (\d+)\] X \[(\d+),|normalized_shape=\[(\d+)\]"
                                      r"|tensor a \((\d+)\) must match the size of tensor b \((\d+)\)", wrong or ""):
                    has, wants = found[1] or found[3] or found[6], int(found[2] or found[4] or found[5] or found[7])
                    for name in [name for name, x in batch.items() if x is not None and x is not False and x.is_floating_point()
                                 and (has is None or x.shape[-1] == int(has)) and x.ndim < 4]: # a matrix that expects another width
                        wrong = yield {**batch, name: torch.zeros(*batch[name].shape[:-1], wants)}
                heard = batch.get("input_features", batch.get("input_values"))
                if wrong and masks and heard is not None and re.search("NoneType|mask|length", wrong):
                    frames = max(heard.shape[1:])
                    yield {**batch, masks[0]: torch.ones(1, frames, dtype=torch.long)}
    yield dict(model.dummy_inputs)


def smaller(settings: dict[str, Any], narrow: bool) -> dict[str, Any]:
    "The settings, but no stack of more than four layers and fewer experts; and, if narrow, a quarter of the width and few words"
    stacks = {n for key, n in settings.items() if LAYERS.search(key) and isinstance(n, int) and n > 4}
    found: dict[str, Any] = {}
    for i, (key, value) in enumerate(settings.items()):
        if stacks and key in ("stage_names", "out_features", "out_indices"): # follow from the number of layers
            continue
        if isinstance(value, dict) and "model_type" in value:
            value = smaller(value, narrow)
        elif isinstance(value, list) and len(value) in stacks: # a kind for each layer: the last may differ from the first
            value = [value[0], *value[-3:]]
        elif isinstance(value, int) and not isinstance(value, bool):
            value = min(value, 4 if LAYERS.search(key) else 1 if key == "first_k_dense_replace" else 0 if key == "num_kv_shared_layers" else
                        16 if EXPERTS.search(key) else value)
            if narrow and WIDTHS.search(key):
                value = max(1, value // 4)
            elif narrow and key == "vocab_size":
                value = min(value, VOCABULARY)
            elif narrow and TOKENS.search(key) and value >= VOCABULARY:
                value = 100 + i
        elif narrow and value is None and key in MISSING:
            value = MISSING[key]
        found[key] = value
    return found


def cut(kind: type) -> Any:
    "The usual configuration, less high"
    return kind.from_dict(smaller(kind().to_dict(), narrow=False))


def narrow(kind: type) -> Any:
    "The usual configuration, less high and narrower"
    return kind.from_dict(smaller(kind().to_dict(), narrow=True))


def short(kind: type) -> Any:
    "The same, put together of the usual configurations of its parts"
    usual = kind()
    parts = {key: short(type(part)) for key, part in vars(usual).items() if isinstance(part, transformers.PretrainedConfig)}
    most = {key: 4 if LAYERS.search(key) else 1 if key == "first_k_dense_replace" else 16 for key in vars(usual)
            if LAYERS.search(key) or key == "first_k_dense_replace" or EXPERTS.search(key)}
    return kind(**parts, **{key: n for key, n in most.items() if isinstance(getattr(usual, key), int) and getattr(usual, key) > n})


def transformers_cases() -> Iterator[Case]:
    tables = [getattr(modeling_auto, f"MODEL_FOR_{task}_MAPPING_NAMES", {}) for task in TASKS] + [modeling_auto.MODEL_MAPPING_NAMES]
    for kind in configuration_auto.CONFIG_MAPPING_NAMES:
        found = [table[kind] for table in tables if kind in table]
        names = list(dict.fromkeys(name if isinstance(name, str) else name[0] for name in found))
        if not names:
            continue

        def build(name, shape, kind=kind):
            return getattr(transformers, name)(shape(configuration_auto.CONFIG_MAPPING[kind]))
        first, *others = names
        ways = [(first, cut), (first, short), (first, narrow), *((name, cut) for name in others[-1:]), (first, lambda kind: kind()),
                *((name, way) for name in others[-1:] for way in (narrow, short))]
        yield "transformers", first, [lambda way=way, build=build: build(*way) for way in ways], transformers_examples


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
    def size(group: dict[str, Any]) -> int:
        return sum(p.numel() for p in group["params"] if id(p) not in tables)

    rich = [g for g in groups if sum(p.ndim > 1 and id(p) not in tables for p in g["params"]) > 1] # one matrix cannot be divided
    largest = max(rich, key=size, default=None)
    raw, read = out_of_order(groups, mode) if mode else (None, None)
    share = size(largest) / total if largest else 0.0
    return {"groups": len(groups), "share": share, "largest": largest and largest["name"], "raw": raw, "read": read}


def made(build: Callable[[], nn.Module], values: bool) -> nn.Module:
    "The model on the meta device, with zeros for its whole numbers; or with random weights on the CPU"
    if not values:
        try:
            with torch.device("meta"):
                model = build().eval()
            for module in model.modules():
                for key, b in module._buffers.items():
                    if b is not None and not (b.is_meta and b.is_floating_point()):
                        module._buffers[key] = torch.zeros(b.shape, dtype=b.dtype)
            return model
        except NotImplementedError:  # its shape is computed with tensors
            pass
    model = build().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(0, 0.02) if p.is_floating_point() else p.zero_()
    return model


def followed(
    model: nn.Module, examples: Callable[[nn.Module], Iterator[Any]],
) -> tuple[list[dict[str, Any]] | None, Uses | None, list[str]]:
    "The groups with the first example that the model runs on, the order of use, and what went wrong before"
    groups, errors = None, []
    start = time.process_time()
    for kind in (torch.float32, torch.bfloat16):  # some kernels know only the second
        if errors and not any("BFloat16" in error for error in errors):
            break
        tries = len(errors) + TRIES
        batches = examples(model.to(kind))
        example = next(batches, None)
        while example is not None and len(errors) < tries and time.process_time() - start < PATIENCE:
            example = tree_map_only(Tensor, lambda x, kind=kind: x.to(kind) if x.is_floating_point() else x, example)
            try:
                groups = layer_groups(model, example)
                return groups, uses(model, example), errors
            except Exception as error:
                errors.append(f"{type(error).__name__}: {error}".partition("The example is")[0].replace("\n", " ")[-200:])
            try:
                example = batches.send(errors[-1])
            except StopIteration:
                break
    return groups, None, errors


def measured(
    library: str, name: str, builds: list[Callable[[], nn.Module]], examples: Callable[[nn.Module], Iterator[Any]],
) -> dict[str, Any]:
    "One line of the file: of the first way to build the model in which it runs on an example, or else of the first in which it stands"
    row: dict[str, Any] = {}
    failures = []
    start = time.process_time()
    for build in builds:  # which lengths must agree differs between models
        try:
            model = made(build, values=False)
            groups, mode, errors = followed(model, examples)
            if not groups and sum(p.numel() for p in model.parameters()) < LIGHT: # its pass may depend on values
                model = made(build, values=True)
                groups, mode, _ = followed(model, examples)
        except Exception as error:
            failures.append(f"{type(error).__name__}: {error}"[:200])
            continue
        if row and not groups:
            if time.process_time() - start > WAYS:
                break
            continue
        total = sum(p.numel() for p in model.parameters())
        tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
        try:
            plain = described(layer_groups(model), total, tables, mode)
        except ValueError as error:
            plain = {"refused": str(error).partition("'")[2].partition("'")[0]}
        example = described(groups, total, tables, mode) if groups else {}
        if mode:
            example["used"] = sum(p.numel() for p in model.parameters() if id(p) in mode.below) / total
        row = {"library": library, "model": name, "class": type(model).__name__, "parameters": total, "repeated": repeated(model),
               "plain": plain, "example": example,
               "error": "" if groups else errors[0] if errors else "no example"}
        if groups or time.process_time() - start > WAYS:
            break
    return row or {"library": library, "model": name, "not built": failures[0]}


def page(rows: list[dict[str, Any]], cases: list[Case]) -> str:
    "The committed page"
    def percent(x: float | None) -> str:
        return "-" if x is None else f"{x:.0f} %" if x in (0, 100) else f"{max(x, 0.01):.2f} %"

    def plainly(said: str) -> str:
        return " ".join(said.removeprefix("ValueError: layer_groups cannot run the model on the example: ").replace("|", "/").split())[:110]

    def listed(found: Iterable[dict[str, Any]]) -> str:
        return ", ".join(sorted(row["model"] for row in found)) or "none"

    built = [row for row in rows if "not built" not in row]
    ran = [row for row in built if row["example"]]
    deep = [row for row in built if row["repeated"]]
    told = [row for row in ran if row["example"]["raw"] is not None]
    lines = ["# Does `layer_groups` find the layers?", "",
             f"Made by `python benchmarks/layers.py` with timm {timm.__version__}, torchvision {torchvision.__version__}, transformers "
             f"{transformers.__version__}, torch {torch.__version__}. One model a module of timm and torchvision, one a model type of "
             "transformers: with at most four blocks in a stack, where its configuration allows, and narrower, where a pass depends on "
             "values that would be too many. The model types come in an order that was shuffled once; where not all of them are measured, "
             "those that are were not chosen.", "",
             "*Out of order*: pairs of trainable parameters of which the forward pass uses one first, while its layer lies higher. Of all "
             "pairs, and of those of which the second computes with what the first made (in two towers side by side neither does). "
             "The order of use is heard by the script itself, below the level at which the library listens. *Largest*: the largest group "
             "of more than one matrix, tables of words aside, as a share of all weights; one matrix cannot be divided. *Used*: share of "
             "the weights that the example reaches: what it does not reach (a tower without input) is ordered by names. A dash there: "
             "measured by an earlier version of the script, which did not say.", "",
             "| library | measured | not built | refused by names | ran with an example | refused with one | "
             "out of order with one, all / dependent pairs |", "| --- | --- | --- | --- | --- | --- | --- |"]
    for library in ("torchvision", "timm", "transformers"):
        mine = [row for row in rows if row["library"] == library]
        good = [row for row in told if row["library"] == library]
        counts = [f"{len(mine)} of {sum(case[0] == library for case in cases)}", sum("not built" in row for row in mine),
                  sum("refused" in row.get("plain", {}) for row in mine), sum(bool(row.get("example")) for row in mine),
                  sum("cannot tell" in row.get("error", "") for row in mine),
                  f"{sum(row['example']['raw'] > 0 for row in good)} / {sum(row['example']['read'] > 0 for row in good)} models"]
        lines.append(f"| {library} | {' | '.join(map(str, counts))} |")
    lines += ["", "## Goals", "",
              "| goal | reached | not reached by |", "| --- | --- | --- |"]
    for goal, among, missed in (
        ("0 models refused with an example", [row for row in built if row["example"] or "cannot tell" in row["error"]],
         lambda row: not row["example"]),
        ("0 groups over half of the weights where blocks repeat, by names", [row for row in deep if "share" in row["plain"]],
         lambda row: row["plain"]["share"] > 1 / 2),
        ("the same with an example", [row for row in deep if row["example"]], lambda row: row["example"]["share"] > 1 / 2),
        ("0 % of dependent pairs out of order with an example", told, lambda row: row["example"]["read"] > 0),
        ("0 % of all pairs, though two that do not depend on each other, as in towers side by side, may lie either way",
         told, lambda row: row["example"]["raw"] > 0),
        ("an example was found on which the model runs", built, lambda row: not row["example"])):
        lines.append(f"| {goal} | {sum(not missed(row) for row in among)} of {len(among)} | {listed(filter(missed, among))} |")
    for head, found, reason in (
        (f"Not built, or more than {LIMIT} s of computing", [row for row in rows if "not built" in row], "not built"),
        ("Built, but no example of this script's was one that the model runs on, so that only its names were read",
         [row for row in built if not row["example"]], "error")):
        early = sum("class" not in row and row["library"] == "transformers" and reason == "error" for row in found)
        later = f" {early} of them were tried by an earlier version of the script only; `--retry` tries them again." if early else ""
        lines += ["", f"## {head.partition(',')[0]}", "", f"{head}: {len(found)}.{later}", "", "| library | model | what it said |",
                  "| --- | --- | --- |"]
        lines += [f"| {row['library']} | {row['model']} | {plainly(row[reason])} |" for row in sorted(found, key=lambda row: row["model"])]
    lines += ["", "## Models", "",
              "| library | model | layers by names | largest | out of order | layers with an example | largest | out of order | used |",
              "| --- | --- | --- | --- | --- | --- | --- | --- | --- |"]
    for row in sorted(built, key=lambda row: (row["library"], row["model"].lower())):
        other = library_class(row)
        cells = [row["library"], row["model"] + (f" (as {other})" if other else "")]
        for part in (row["plain"], row["example"]):
            cells += [f"refused: {part['refused']}", "-", "-"] if "refused" in part else ["not run", "-", "-"] if not part else [
                str(part["groups"]), f"{part['share']:.0%}", f"{percent(part['raw'])} / {percent(part['read'])}"]
        used = row["example"].get("used")
        lines.append(f"| {' | '.join(cells)} | {'-' if used is None else f'{used:.0%}'} |")
    return "\n".join(lines) + "\n"


def library_class(row: dict[str, Any]) -> str:
    "The class that was measured, where it is not the one that the row is called by"
    return row["class"] if row["library"] == "transformers" and row.get("class", row["model"]) != row["model"] else ""


class TooLong(BaseException):
    "No failure of the model, so that nobody tries another way"


def too_long(*_: Any) -> None:
    raise TooLong(f"more than {LIMIT} s of computing")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("torchvision", "timm", "transformers"))
    parser.add_argument("--model", nargs="*", help="only these")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no model after so long")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    parser.add_argument("--part", type=int, nargs=2, default=(0, 1), metavar=("I", "N"), help="every N-th model from the I-th on")
    parser.add_argument("--again", action="store_true", help="forget what was measured")
    parser.add_argument("--retry", action="store_true", help="try again what was not built or ran on no example")
    args = parser.parse_args()
    start = time.monotonic()
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity(50)
    torch.set_num_threads(1)
    kept = args.out.with_suffix(".jsonl")
    if args.again:
        kept.unlink(missing_ok=True)
    rows = [json.loads(line) for line in kept.read_text(encoding="utf-8").splitlines()] if kept.exists() else []
    done = {(row["library"], row["model"]): row for row in rows}
    tried = {key for key, row in done.items() if row.get("example") or not args.retry}
    types = list({case[1]: case for case in transformers_cases()}.values()) # several types may share a class
    random.Random(0).shuffle(types) # so that those measured say something about the others
    cases = [*timm_cases(), *torchvision_cases(), *types]
    signal.signal(signal.SIGPROF, too_long)
    for case in cases[args.part[0]::args.part[1]]:
        library, name = case[:2]
        if (library, name) in tried or args.only not in (None, library) or (args.model and name not in args.model):
            continue
        if time.monotonic() - start > 60 * args.minutes:
            break
        signal.setitimer(signal.ITIMER_PROF, LIMIT)
        try:
            row = measured(*case)
        except (Exception, TooLong) as error:
            row = {"library": library, "model": name, "not built": f"{type(error).__name__}: {error}"[:200]}
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        done[library, name] = row
        kept.write_text("".join(json.dumps(row) + "\n" for row in done.values()), encoding="utf-8")
    args.out.write_text(page(list(done.values()), cases), encoding="utf-8")


if __name__ == "__main__":
    main()

"""layer_groups on the architecture zoo, on random trees and after real forward passes; LARS as a torch optimizer must survive."""

import copy
import io
import pickle
import random
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dals.optim.layers import layer_groups
from dals.optim.layerwise import LARS, discriminative

pytestmark = pytest.mark.filterwarnings("ignore:layer_groups")  # a block of a tiny network is easily a third of it

ENDS = dict(bos_token_id=1, eos_token_id=2, pad_token_id=0)
TINY = dict(hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32)
TEXT = dict(**TINY, vocab_size=50, max_position_embeddings=20, **ENDS)


def hf(kind, config, **options):
    transformers = pytest.importorskip("transformers")
    if not hasattr(transformers, kind): pytest.skip(f"transformers {transformers.__version__} has no {kind}")
    with torch.device("cpu"):  # they are small, and older releases read numbers off a tensor while they build one
        return getattr(transformers, kind)(getattr(transformers, config)(**options))


def clip(kind="CLIP", **extra):
    transformers = pytest.importorskip("transformers")
    tower = dict(hidden_size=16, num_attention_heads=2, intermediate_size=32)
    return getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(
        text_config=dict(**tower, num_hidden_layers=2, vocab_size=50, max_position_embeddings=20, **ENDS),
        vision_config=dict(**tower, num_hidden_layers=4, image_size=32, patch_size=8), **extra))


def vision(name, **options):
    return getattr(pytest.importorskip("torchvision").models, name)(**options)


def timm_model(name, **options):
    return pytest.importorskip("timm").create_model(name, **options)


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.classifier = nn.Linear(16, 6)  # registered before what lies below it
        self.encoder = hf("BertModel", "BertConfig", **TEXT)


class NanoGPT(nn.Module):
    def __init__(self):
        super().__init__()
        self.transformer = nn.ModuleDict(dict(
            wte=nn.Embedding(10, 8), wpe=nn.Embedding(10, 8),
            h=nn.ModuleList([nn.TransformerEncoderLayer(8, 2, 16) for _ in range(2)]), ln_f=nn.LayerNorm(8)))
        self.lm_head = nn.Linear(8, 10, bias=False)
        self.transformer.wte.weight = self.lm_head.weight


class Bare(nn.Module):
    def __init__(self, **shapes):
        super().__init__()
        self.first, self.second = nn.Linear(2, 2), nn.Linear(2, 2)
        for name, shape in shapes.items():
            setattr(self, name, nn.Parameter(torch.zeros(shape)))


DISTILBERT = dict(dim=16, n_layers=6, n_heads=2, hidden_dim=32, vocab_size=50, max_position_embeddings=20)
T5 = dict(d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, vocab_size=50, **ENDS)
BART = dict(d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=16,
            decoder_ffn_dim=16, vocab_size=50, max_position_embeddings=20, **ENDS, forced_eos_token_id=2)
WHISPER = {**BART, "num_mel_bins": 8, "decoder_start_token_id": 1}
WHISPER.pop("max_position_embeddings")
GPT2 = dict(n_embd=16, n_layer=3, n_head=2, vocab_size=50, n_positions=20, **ENDS)


def numbered(pattern, n):
    return [pattern.format(i) for i in range(n)]


ZOO = {  # name -> (a builder, the names of its layers)
    "mlp": (lambda: nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.Dropout(), nn.Linear(8, 2)), ["0", "2", "4"]),
    "bert": (lambda: hf("BertForSequenceClassification", "BertConfig", **TEXT),
             ["bert.embeddings", *numbered("bert.encoder.layer.{}", 3), "bert.pooler.dense", "classifier"]),
    "bert, masked words": (lambda: hf("BertForMaskedLM", "BertConfig", **TEXT),
                           ["bert.embeddings", *numbered("bert.encoder.layer.{}", 3), "cls.predictions.transform.dense"]),
    "bert, head registered first": (Classifier, ["encoder.embeddings", *numbered("encoder.encoder.layer.{}", 3), "encoder.pooler.dense",
                                                 "classifier"]),
    "roberta": (lambda: hf("RobertaForSequenceClassification", "RobertaConfig", **TEXT),
                ["roberta.embeddings", *numbered("roberta.encoder.layer.{}", 3), "classifier.dense", "classifier.out_proj"]),
    "distilbert": (lambda: hf("DistilBertForSequenceClassification", "DistilBertConfig", **DISTILBERT),
                   ["distilbert.embeddings", *numbered("distilbert.transformer.layer.{}", 6), "pre_classifier", "classifier"]),
    "gpt2": (lambda: hf("GPT2LMHeadModel", "GPT2Config", **GPT2), ["transformer.wte", *numbered("transformer.h.{}", 3)]),
    "gpt2, classifier": (lambda: hf("GPT2ForSequenceClassification", "GPT2Config", **GPT2),
                         ["transformer.wte", *numbered("transformer.h.{}", 3), "score"]),
    "nano gpt": (NanoGPT, ["transformer.wte", *numbered("transformer.h.{}", 2)]),
    "llama": (lambda: hf("LlamaForCausalLM", "LlamaConfig", **TEXT, num_key_value_heads=2),
              ["model.embed_tokens", *numbered("model.layers.{}", 3), "lm_head"]),
    "t5": (lambda: hf("T5ForConditionalGeneration", "T5Config", **T5),
           ["shared", *numbered("encoder.block.{}", 2), *numbered("decoder.block.{}", 2)]),
    "t5, encoder, one block": (lambda: hf("T5EncoderModel", "T5Config", **{**T5, "num_layers": 1}), ["shared", "encoder.block.0"]),
    "bart": (lambda: hf("BartForSequenceClassification", "BartConfig", **BART),
             ["model.shared", *numbered("model.encoder.layers.{}", 2), *numbered("model.decoder.layers.{}", 2),
              "classification_head.dense", "classification_head.out_proj"]),
    "whisper": (lambda: hf("WhisperForConditionalGeneration", "WhisperConfig", **WHISPER),
                ["model.encoder.conv1", "model.encoder.conv2", *numbered("model.encoder.layers.{}", 2), "model.decoder.embed_tokens",
                 *numbered("model.decoder.layers.{}", 2)]),
    "hf vit": (lambda: hf("ViTForImageClassification", "ViTConfig", **TINY, image_size=32, patch_size=8), None),
    "hf swin": (lambda: hf("SwinForImageClassification", "SwinConfig", embed_dim=8, depths=[2, 2], num_heads=[2, 2], image_size=32), None),
    "sentence encoder": (lambda: nn.Sequential(hf("BertModel", "BertConfig", **TEXT), nn.Linear(16, 2)),
                         ["0.embeddings", *numbered("0.encoder.layer.{}", 3), "0.pooler.dense", "1"]),
    "resnet18": (lambda: vision("resnet18"), ["conv1", *[f"layer{s}.{b}" for s in (1, 2, 3, 4) for b in (0, 1)], "fc"]),
    "timm resnet18": (lambda: timm_model("resnet18"), ["conv1", *[f"layer{s}.{b}" for s in (1, 2, 3, 4) for b in (0, 1)], "fc"]),
    "vit": (lambda: vision("VisionTransformer", image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32),
            ["conv_proj", *numbered("encoder.layers.encoder_layer_{}", 2), "heads.head"]),
    "timm vit": (lambda: timm_model("vit_tiny_patch16_224", embed_dim=24, depth=2), ["patch_embed", *numbered("blocks.{}", 2), "head"]),
    "densenet": (lambda: vision("densenet121"), None),
    "efficientnet": (lambda: vision("efficientnet_b0"), None),
    "googlenet": (lambda: vision("googlenet", init_weights=False), None),
    "swin": (lambda: vision("swin_t"), None),
    "convnext": (lambda: timm_model("convnext_atto"), None),
    "torch transformer": (lambda: nn.Transformer(8, 2, 2, 2, 16, batch_first=True),
                          [*numbered("encoder.layers.{}", 2), *numbered("decoder.layers.{}", 2)]),
    "clip": (clip, None),
    "siglip": (lambda: clip("Siglip"), None),
}


def check(model, groups):
    """What holds for every model: each trainable parameter once, depth a rising number in [0, 1], names of their own."""
    grouped = [id(p) for group in groups for p in group["params"]]
    assert sorted(grouped) == sorted({id(p) for p in model.parameters() if p.requires_grad})
    depths, names = [group["depth"] for group in groups], [group["name"] for group in groups]
    assert depths == sorted(depths) and 0 <= depths[0] and depths[-1] <= 1
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("name", ZOO)
def test_zoo(name):
    build, layers = ZOO[name]
    model = build()
    groups = layer_groups(model)
    check(model, groups)
    assert (groups[0]["depth"], groups[-1]["depth"], groups[-1]["above"]) == (0, 1, 0)
    if layers is not None:
        assert [group["name"] for group in groups] == layers
        assert [group["above"] for group in groups] == list(range(len(groups)))[::-1]
        assert [group["depth"] for group in groups] == [i / (len(groups) - 1) for i in range(len(groups))]
    torch.optim.SGD(discriminative(groups, 0.1), 0.1)  # torch refuses a parameter in two groups


def test_blocks_of_an_image_net_are_layers():
    count = {name: len(layer_groups(ZOO[name][0]())) for name in ("densenet", "googlenet", "swin", "efficientnet")}
    assert count == {"densenet": 63, "googlenet": 15, "swin": 17, "efficientnet": 19}


@pytest.mark.parametrize("kind", ["CLIP", "Siglip"])
def test_towers_are_apart(kind):
    model = clip(kind)
    groups = layer_groups(model)
    tower = {"text": [], "visi": []}
    for group in groups:
        owners = {name.partition("_")[0] for name, p in model.named_parameters() if any(p is q for q in group["params"])} - {"logit"}
        assert len(owners) == 1, group["name"]
        tower[owners.pop().replace("visual", "vision")[:4]].append(group)
    for name, height in (("text", 4), ("visi", 6)):
        assert [group["depth"] for group in tower[name]] == [i / (height - 1) for i in range(height)]
        assert [group["lr"] for group in discriminative(tower[name], 1.0)] == pytest.approx([2.6**-i for i in range(height)][::-1])
    scale = next(p for name, p in model.named_parameters() if name == "logit_scale")
    assert any(scale is p for p in groups[-1]["params"])


def test_a_head_over_two_towers_lies_above_both():
    model = nn.ModuleDict(dict(
        text_model=nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)),
        image_model=nn.Sequential(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 3), nn.Conv2d(2, 2, 3)), head=nn.Linear(4, 2)))
    above = {group["name"]: group["above"] for group in layer_groups(model)}
    assert above == {"text_model.0": 2, "text_model.1": 1, "image_model.0": 3, "image_model.1": 2, "image_model.2": 1, "head": 0}
    depth = {group["name"]: group["depth"] for group in layer_groups(model)}
    assert (depth["text_model.0"], depth["text_model.1"], depth["image_model.2"], depth["head"]) == (0, 1 / 2, 2 / 3, 1)


@pytest.mark.parametrize("name", ["gpt2", "t5", "bert, masked words", "nano gpt"])
def test_tied_weights_stay_at_the_bottom(name):
    model = ZOO[name][0]()
    owners = [n for n, p in model.named_parameters(remove_duplicate=False) if p is next(iter(layer_groups(model)[0]["params"]))]
    assert len(owners) > 1


def test_bare_parameters():
    groups = layer_groups(Bare(cls_token=(1, 1, 2), pos_embed=(1, 4, 2), logit_scale=(), text_projection=(2, 2)))
    assert [len(group["params"]) for group in groups] == [4, 4]
    for name in ("mystery", "codebook"):
        with pytest.raises(ValueError, match=f"'{name}'.*submodule"):
            layer_groups(Bare(**{name: (2, 2)}))
    constant = Bare(mystery=(2, 2))
    constant.mystery.requires_grad_(False)
    assert len(layer_groups(constant)) == 2  # what does not train needs no place
    with pytest.raises(ValueError, match=r"'part\.inner\.mystery'"):
        stage = Bare(mystery=(2, 2))
        stage.blocks = nn.ModuleList([nn.TransformerEncoderLayer(8, 2, 16)])
        layer_groups(nn.ModuleDict(dict(part=nn.ModuleDict(dict(inner=stage, other=nn.Linear(2, 2))))))


WRAPPERS = [nn.DataParallel, torch.compile, torch.optim.swa_utils.AveragedModel, lambda model: torch.compile(nn.DataParallel(model))]


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_wrappers_change_nothing(wrap):
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    wrapped, plain = ([(group["name"], group["depth"], [p.shape for p in group["params"]]) for group in layer_groups(m)]
                      for m in (wrap(model), model))
    assert wrapped == plain


def test_compiled_part_inside_a_model():
    model, plain = Classifier(), Classifier()
    model.encoder = torch.compile(model.encoder)
    assert [group["name"] for group in layer_groups(model)] == [group["name"] for group in layer_groups(plain)]


def test_frozen_layers_keep_their_place():
    model = ZOO["distilbert"][0]()
    rates = {group["name"]: group["lr"] for group in discriminative(layer_groups(model), 1.0)}
    model.distilbert.embeddings.requires_grad_(False)
    model.distilbert.transformer.layer[3].requires_grad_(False)
    groups = discriminative(layer_groups(model), 1.0)
    check(model, groups)
    assert len(groups) == len(rates) - 2
    assert all(group["lr"] == rates[group["name"]] for group in groups)


def test_only_biases_trained():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    for name, p in model.named_parameters():
        p.requires_grad_("bias" in name)
    assert [group["depth"] for group in layer_groups(model)] == [0, 0.5, 1]


def test_parametrized_layers_are_single():
    weight_norm = nn.utils.parametrizations.weight_norm
    model = nn.ModuleDict(dict(body=nn.Sequential(weight_norm(nn.Linear(2, 2)), nn.Linear(2, 2)), head=weight_norm(nn.Linear(2, 2))))
    assert [(group["name"], len(group["params"])) for group in layer_groups(model)] == [("body.0", 3), ("body.1", 2), ("head", 3)]


@pytest.mark.parametrize("model", [nn.Identity(), nn.Linear(2, 2).requires_grad_(False), nn.Sequential()])
def test_nothing_to_train(model):
    with pytest.raises(ValueError, match="no trainable parameter"):
        layer_groups(model)


def test_the_model_is_left_alone():
    model = ZOO["nano gpt"][0]()
    before = copy.deepcopy(model.state_dict())
    order = [name for name, _ in model.named_modules()]
    layer_groups(model)
    assert order == [name for name, _ in model.named_modules()]
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


# ---- the kinds of shared models that names alone once misread; the order is written by hand

STAGES = [2, 2]
PVT = dict(image_size=32, num_encoder_blocks=2, depths=STAGES, sequence_reduction_ratios=[2, 1], hidden_sizes=[8, 16], patch_sizes=[4, 2],
           strides=[4, 2], num_attention_heads=[1, 2], mlp_ratios=[2, 2])
POOL = dict(num_encoder_blocks=2, depths=STAGES, hidden_sizes=[8, 16], patch_sizes=[7, 3], strides=[4, 2], padding=[2, 1])
IN_STEP = [f"{{0}}.encoder.{part}" for i in (0, 1) for part in (f"patch_embeddings.{i}", f"block.{i}.0", f"block.{i}.1")]


def bert_with_a_late_pooler(name):
    return lambda: hf(f"{name}ForSequenceClassification", f"{name}Config", **TEXT)


def gemma3n():
    return hf("Gemma3nForCausalLM", "Gemma3nTextConfig", vocab_size=50, vocab_size_per_layer_input=50, hidden_size=16, intermediate_size=32,
              hidden_size_per_layer_input=8, num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=1, head_dim=8, laurel_rank=4,
              num_kv_shared_layers=0, layer_types=["full_attention"] * 3, activation_sparsity_pattern=[0.0] * 3, **ENDS)


def glpn():
    return hf("GLPNForDepthEstimation", "GLPNConfig", num_encoder_blocks=2, depths=STAGES, hidden_sizes=[8, 16], patch_sizes=[7, 3],
              strides=[4, 2], sr_ratios=[2, 1], num_attention_heads=[1, 2], mlp_ratios=[2, 2], decoder_hidden_size=8)


def mobilevit():
    return hf("MobileViTForImageClassification", "MobileViTConfig", image_size=32, hidden_sizes=[16, 16, 16],
              neck_hidden_sizes=[8, 8, 8, 8, 8, 8, 16])


LATE_POOLER = ["{0}.embeddings", *numbered("{{0}}.layers.{}", 3), "{0}.pooler.dense", "classifier"]
BY_HAND = {  # name -> (a builder, the names of its layers from bottom to top)
    "nomic bert": (bert_with_a_late_pooler("NomicBert"), [name.format("nomic_bert") for name in LATE_POOLER]),
    "gte": (bert_with_a_late_pooler("Gte"), [name.format("gte") for name in LATE_POOLER]),
    "pvt": (lambda: hf("PvtForImageClassification", "PvtConfig", **PVT), [*[name.format("pvt") for name in IN_STEP], "classifier"]),
    "poolformer": (lambda: hf("PoolFormerForImageClassification", "PoolFormerConfig", **POOL),
                   [*[name.format("poolformer") for name in IN_STEP], "classifier"]),
    "regnet": (lambda: timm_model("regnety_002"), [
        "stem", "s1.b1", "s2.b1", *[f"s3.b{j}" for j in range(1, 5)], *[f"s4.b{j}" for j in range(1, 8)], "head.fc"]),
    "nest": (lambda: timm_model("nest_tiny"), [
        "patch_embed", *numbered("levels.0.transformer_encoder.{}", 2), "levels.1.pool.conv",
        *numbered("levels.1.transformer_encoder.{}", 2), "levels.2.pool.conv", *numbered("levels.2.transformer_encoder.{}", 8), "head"]),
    "gemma 3n": (gemma3n, ["model.embed_tokens", *numbered("model.altup_projections.{}", 3), *numbered("model.layers.{}", 3),
                           *numbered("model.altup_unembed_projections.{}", 3)]),
    "fasternet": (lambda: timm_model("fasternet_t0"), [
        "patch_embed", "stages.0.blocks.0", "stages.1.downsample.reduction", *numbered("stages.1.blocks.{}", 2),
        "stages.2.downsample.reduction", *numbered("stages.2.blocks.{}", 8), "stages.3.downsample.reduction",
        *numbered("stages.3.blocks.{}", 2), "conv_head", "classifier"]),
    "glpn": (glpn, [*[name.format("glpn") for name in IN_STEP], "decoder.stages.0", "decoder.stages.1", "head.head.0", "head.head.2"]),
    "mobilevit": (mobilevit, [
        "mobilevit.conv_stem", "mobilevit.encoder.layer.0.layer.0", *numbered("mobilevit.encoder.layer.1.layer.{}", 3),
        *[f"mobilevit.encoder.layer.{i}.{part}" for i, n in ((2, 2), (3, 4), (4, 3)) for part in (
            "downsampling_layer", "conv_kxk", "conv_1x1", *numbered("transformer.layer.{}", n), "conv_projection", "fusion")],
        "mobilevit.conv_1x1_exp", "classifier"]),
    "swin": (lambda: hf("SwinForImageClassification", "SwinConfig", embed_dim=8, depths=STAGES, num_heads=[2, 2], image_size=32), [
        "swin.embeddings", *numbered("swin.encoder.layers.0.blocks.{}", 2), "swin.encoder.layers.0.downsample.reduction",
        *numbered("swin.encoder.layers.1.blocks.{}", 2), "classifier"]),
    "densenet": (lambda: timm_model("densenet121", block_config=(2, 3)), [
        "features.conv0", *[f"features.denseblock1.denselayer{i}" for i in (1, 2)], "features.transition1.conv",
        *[f"features.denseblock2.denselayer{i}" for i in (1, 2, 3)], "classifier"]),
}


class Uses(TorchDispatchMode):
    "The order in which parameters are computed with, heard one level below the library's ear."

    def __init__(self, model):
        super().__init__()
        self.names, self.order = {id(p): name for name, p in model.named_parameters()}, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.order += [name for x in tree_leaves((args, kwargs)) if (name := self.names.get(id(x))) and name not in self.order]
        return func(*args, **(kwargs or {}))


def out_of_order(model, groups, batch):
    "Pairs of used parameters whose groups lie against the order of use."
    with torch.no_grad(), Uses(model) as uses:
        model(batch) if isinstance(batch, torch.Tensor) else model(**batch)
    depth = {id(p): group["depth"] for group in groups for p in group["params"]}
    named = dict(model.named_parameters())
    found = [depth[id(named[name])] for name in uses.order if id(named[name]) in depth]
    assert len(found) > 1
    return sum(a > b for i, a in enumerate(found) for b in found[i + 1:])


@pytest.mark.parametrize("name", BY_HAND)
def test_order_by_hand(name):
    build, layers = BY_HAND[name]
    with torch.device("meta"):
        model = build()
    groups = layer_groups(model)
    check(model, groups)
    assert [group["name"] for group in groups] == layers


def test_twenty_orders_are_written_by_hand():
    assert len(BY_HAND) + sum(layers is not None for _, layers in ZOO.values()) >= 20


def test_lists_run_in_step_only_beside_blocks_of_their_number():
    def row(kind, n):
        return nn.ModuleList([kind() for _ in range(n)])

    def linear(): return nn.Linear(2, 2)
    def norm(): return nn.LayerNorm(2)
    for n in (3, 2):
        model = nn.ModuleDict(dict(patch_embed=row(linear, 2), blocks=row(linear, n), norm=row(norm, 2)))
        names = [group["name"] for group in layer_groups(model)]
        embeds, blocks = numbered("patch_embed.{}", 2), numbered("blocks.{}", n)
        assert names == ([*embeds, *blocks] if n == 3 else [embeds[0], blocks[0], embeds[1], blocks[1]])
        assert [len(group["params"]) for group in layer_groups(model)] == ([2, 2, 2, 2, 6] if n == 3 else [2, 4, 2, 4])


IMAGES = (
    "regnety_002", "densenet121", "nest_tiny", "edgenext_xx_small", "iformer_s", "dla34", "coat_tiny", "crossvit_tiny_240", "fasternet_t0",
    "twins_pcpvt_small", "davit_tiny", "levit_128s", "mobilevit_xxs", "efficientvim_m1", "nextvit_small")


@pytest.mark.parametrize("name", IMAGES)
def test_stages_are_opened_and_the_forward_pass_is_followed(name):
    with torch.device("meta"):
        model = timm_model(name).eval()
    batch = torch.zeros(1, *model.pretrained_cfg["input_size"])
    total = sum(p.numel() for p in model.parameters())
    for groups in (layer_groups(model), layer_groups(model, batch)):
        check(model, groups)
        assert max(sum(p.numel() for p in group["params"]) for group in groups) < total / 3
    assert out_of_order(model, groups, batch.to("meta")) == 0


def test_the_pooler_of_a_followed_encoder_lies_between_blocks_and_classifier():
    model = bert_with_a_late_pooler("NomicBert")()
    batch = {"input_ids": torch.arange(5, 13)[None]}
    groups = layer_groups(model, batch)
    assert [group["name"] for group in groups] == BY_HAND["nomic bert"][1]
    assert out_of_order(model, groups, batch) == 0


def test_per_layer_projections_of_gemma_lie_at_the_bottom():
    model = gemma3n()
    [below] = [group for group in layer_groups(model) if any(p is model.model.per_layer_model_projection.weight for p in group["params"])]
    assert below["depth"] == 0
    batch = {"input_ids": torch.arange(5, 13)[None]}
    assert out_of_order(model, layer_groups(model, batch), batch) == 0


# ---- whole models that were refused, lumped or misread: what each must come to, with an example and without

SEES = dict(**TINY, image_size=16, patch_size=8)
SPELLS = dict(**{**TEXT, "max_position_embeddings": 64})


def llava_next():
    return hf("LlavaNextForConditionalGeneration", "LlavaNextConfig", text_config=dict(model_type="llama", **SPELLS),
              vision_config=dict(model_type="clip_vision_model", projection_dim=16, **SEES),
              image_token_index=40, image_grid_pinpoints=[[16, 16]])


def idefics2():
    return hf("Idefics2ForConditionalGeneration", "Idefics2Config", vision_config=SEES, image_token_id=40,
              text_config=dict(model_type="mistral", num_key_value_heads=2, head_dim=8, **SPELLS),
              perceiver_config=dict(resampler_n_latents=4, resampler_depth=2, resampler_n_heads=2, resampler_head_dim=8,
                                    num_key_value_heads=1, hidden_size=16))


def granite_speech():
    return hf("GraniteSpeechForConditionalGeneration", "GraniteSpeechConfig", text_config=dict(model_type="granite", **SPELLS),
              encoder_config=dict(input_dim=8, num_layers=2, hidden_dim=16, num_heads=2, output_dim=5, context_size=10, max_pos_emb=16,
                                  conv_kernel_size=3),
              projector_config=dict(model_type="blip_2_qformer", hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                                    intermediate_size=32, encoder_hidden_size=16, cross_attention_frequency=1),
              audio_token_index=40, window_size=10, downsample_rate=5, has_lora_adapter=False)


def spoken(n):  # a sentence with n places for what was seen or heard
    return torch.tensor([[5, *[40] * n, 6]])


PICTURE = {"pixel_values": torch.zeros(1, 3, 32, 32)}
WHOLE = {  # name -> (a builder, an example)
    "nomic bert": (bert_with_a_late_pooler("NomicBert"), {"input_ids": torch.arange(5, 13)[None]}),
    "gte": (bert_with_a_late_pooler("Gte"), {"input_ids": torch.arange(5, 13)[None]}),
    "gemma 3n": (gemma3n, {"input_ids": torch.arange(5, 13)[None]}),
    "pvt": (BY_HAND["pvt"][0], PICTURE), "poolformer": (BY_HAND["poolformer"][0], PICTURE), "glpn": (glpn, PICTURE),
    "mobilevit": (mobilevit, PICTURE),
    "llava next": (llava_next, {"input_ids": spoken(10), "pixel_values": torch.zeros(1, 2, 3, 16, 16),
                                "image_sizes": torch.tensor([[16, 16]])}),
    "idefics2": (idefics2, {"input_ids": spoken(4), "pixel_values": torch.ones(1, 1, 3, 16, 16)}),
    "granite speech": (granite_speech, {"input_ids": spoken(4), "input_features": torch.ones(1, 20, 8)}),
}


def group_of(model, groups, name):
    "The group that holds a parameter."
    p = model.get_parameter(name)
    return next(group for group in groups if any(p is q for q in group["params"]))


@pytest.mark.parametrize("name", WHOLE)
def test_whole_models_have_a_place_for_everything(name):
    build, batch = WHOLE[name]
    model = build().eval()
    check(model, layer_groups(model))
    groups = layer_groups(model, batch)
    check(model, groups)
    assert out_of_order(model, groups, batch) == 0


@pytest.mark.parametrize("name", ["pvt", "poolformer", "glpn", "mobilevit"])
def test_names_alone_tell_the_order_of_stages(name):
    build, batch = WHOLE[name]
    model = build().eval()
    assert out_of_order(model, layer_groups(model), batch) == 0


BARE = {  # a parameter of no layer, the tower before it and the blocks that read it
    "llava next": ("model.image_newline", "model.vision_tower.encoder.layers.2", "model.language_model.layers.0"),
    "idefics2": ("model.connector.perceiver_resampler.latents", "model.vision_model.encoder.layers.2", "model.text_model.layers.0"),
    "granite speech": ("model.projector.query", "model.encoder.layers.1", "model.language_model.layers.0"),
}


@pytest.mark.parametrize("name", BARE)
def test_bare_parameters_of_whole_models_are_placed(name):
    build, batch = WHOLE[name]
    bare, below, above = BARE[name]
    model = build().eval()
    for example in (batch,) if name == "llava next" else (None, batch):
        groups = layer_groups(model, example)
        depth = {group["name"]: group["depth"] for group in groups}
        assert depth[below] <= group_of(model, groups, bare)["depth"] < depth[above]
    if name == "llava next":  # its name speaks of a token
        assert group_of(model, layer_groups(model), bare)["depth"] == 0


BLOCKS = {  # the blocks that forward runs through, each a layer of its own
    "regnety_002": ["s1.b1", "s2.b1", *[f"s3.b{j}" for j in range(1, 5)], *[f"s4.b{j}" for j in range(1, 8)]],
    "densenet121": [f"features.denseblock{i + 1}.denselayer{j + 1}" for i, n in enumerate((6, 12, 24, 16)) for j in range(n)],
    "nest_tiny": [f"levels.{i}.transformer_encoder.{j}" for i, n in enumerate((2, 2, 8)) for j in range(n)],
    "edgenext_xx_small": [f"stages.{i}.blocks.{j}" for i, n in enumerate((2, 2, 6, 2)) for j in range(n)],
    "iformer_s": [f"stages.{i}.blocks.{j}" for i, n in enumerate((2, 2, 19, 6)) for j in range(n)],
    "dla34": ["level2.tree1", "level2.tree2", *[f"level{i}.tree{j}.tree{k}" for i in (3, 4) for j in (1, 2) for k in (1, 2)],
              "level5.tree1", "level5.tree2"],
}


@pytest.mark.parametrize("name", BLOCKS)
def test_one_group_a_block(name):
    with torch.device("meta"):
        model = timm_model(name).eval()
    for example in (None, torch.zeros(1, *model.pretrained_cfg["input_size"])):
        names = [group["name"] for group in layer_groups(model, example)]
        assert [layer for layer in names if layer in BLOCKS[name]] == BLOCKS[name]
        assert not [layer for layer in names if any(layer.startswith(f"{block}.") for block in BLOCKS[name])]


def test_mobilevits_stages_are_opened():
    model = mobilevit()
    blocks = [f"mobilevit.encoder.layer.{i}.transformer.layer.{j}" for i, n in ((2, 2), (3, 4), (4, 3)) for j in range(n)]
    assert set(blocks) <= {group["name"] for group in layer_groups(model)}


@pytest.mark.parametrize(("name", "tokens"), [("coat_tiny", [f"cls_token{i}" for i in (1, 2, 3, 4)]),
                                              ("crossvit_tiny_240", ["cls_token_0", "cls_token_1"])])
def test_class_tokens_lie_at_the_bottom(name, tokens):
    with torch.device("meta"):
        model = timm_model(name)
    groups = layer_groups(model)
    assert all(group_of(model, groups, token) is groups[0] for token in tokens)


def test_downsampling_of_fasternet_lies_before_its_blocks():
    with torch.device("meta"):
        model = timm_model("fasternet_s").eval()
    for groups in (layer_groups(model), layer_groups(model, torch.zeros(1, 3, 224, 224))):
        names = [group["name"] for group in groups]
        for stage in (1, 2, 3):
            at = names.index(f"stages.{stage}.downsample.reduction")
            assert names[at - 1].startswith(f"stages.{stage - 1}.blocks.") and names[at + 1] == f"stages.{stage}.blocks.0"


def test_positions_of_twins_lie_where_forward_uses_them():
    with torch.device("meta"):
        model = timm_model("twins_pcpvt_small").eval()
    plain, told = ([group["name"] for group in layer_groups(model, example)] for example in (None, torch.zeros(1, 3, 224, 224)))
    for i in range(4):
        assert told.index(f"pos_block.{i}") == told.index(f"blocks.{i}.0") + 1  # after the first block of the stage
        assert plain.index(f"patch_embeds.{i}") < plain.index(f"pos_block.{i}")
    assert all(plain.index(f"pos_block.{i}") < plain.index(f"patch_embeds.{i + 1}") for i in range(3))


def test_peft_on_a_whole_model():
    peft = pytest.importorskip("peft")
    plain = ZOO["bert"][0]()
    lora = peft.LoraConfig(target_modules=["query", "value"], modules_to_save=["pooler", "classifier"])
    tuned = peft.get_peft_model(ZOO["bert"][0](), lora)
    above = {group["name"]: group["above"] for group in layer_groups(plain)}
    for layer, group in zip(list(above)[1:], layer_groups(tuned), strict=True):
        assert group["above"] == above[layer] and layer.removesuffix(".dense") in group["name"]
        assert all(p.requires_grad for p in group["params"])


@pytest.mark.parametrize("key", ["cls_token1", "cls_token_0", "image_newline", "latents", "query", "bos_latent", "latent_scaling_factor",
                                 "no_object_pointer", "text_prompt", "image_end", "glb_img_feature_extensor"])
def test_known_tokens_lie_at_the_bottom(key):
    model = Bare(**{key: (1, 2)})
    assert any(p is getattr(model, key) for p in layer_groups(model)[0]["params"])


@pytest.mark.parametrize("key", ["logit_scale", "scaling", "high_res_vision_alpha", "beta", "layer_gamma", "gain", "factor", "gate"])
def test_known_factors_lie_at_the_top(key):
    model = Bare(**{key: (2,)})
    assert any(p is getattr(model, key) for p in layer_groups(model)[-1]["params"])


class Swapped(nn.Module):
    "Linear layers and bare matrices of nameless names, registered in one order and used in another."

    def __init__(self, kinds, order):
        super().__init__()
        for i in order:
            setattr(self, f"m{i}x", nn.Linear(3, 3) if kinds[i] == "linear" else nn.LayerNorm(3) if kinds[i] == "norm" else
                    nn.TransformerEncoderLayer(3, 1, 4, batch_first=True) if kinds[i] == "block" else nn.Parameter(torch.eye(3)))
        self.kinds = kinds

    def forward(self, x):
        for i, kind in enumerate(self.kinds):
            x = x @ getattr(self, f"m{i}x") if kind == "bare" else getattr(self, f"m{i}x")(x)
        return x


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(["linear", "norm", "bare", "block"]), min_size=2, max_size=7).flatmap(
    lambda kinds: st.tuples(st.just(kinds), st.permutations(range(len(kinds))))))
def test_depth_is_the_order_of_use(drawn):
    kinds, order = drawn
    model, batch = Swapped(kinds, order).eval(), torch.ones(2, 4, 3)
    groups = layer_groups(model, batch)
    check(model, groups)
    assert out_of_order(model, groups, batch) == 0
    if {"linear", "block"} & set(kinds):
        assert [group["name"] for group in groups] == [f"m{i}x" for i, kind in enumerate(kinds) if kind in ("linear", "block")]


class Touchy(nn.Module):
    "Counts its calls, keeps what it saw, moves buffers, draws numbers, and looks at values."

    def __init__(self):
        super().__init__()
        self.up, self.norm, self.drop, self.first = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 4)
        self.register_buffer("seen", torch.zeros(3))
        self.calls, self.kept, self.looks = 0, {}, False

    def forward(self, x):
        self.calls += 1
        self.seen += 1
        x = self.drop(self.norm(self.first(x))) + torch.rand(4) * random.random()
        self.seen = self.seen * 2
        self.kept["x"] = x
        self.up.bias.data.add_(1)
        if self.looks and x.sum().item() > 1e9:
            return x
        return self.up(x)


@pytest.mark.parametrize("looks", [False, True])
def test_a_followed_model_does_not_notice(looks):
    model, calls = Touchy(), []
    model.looks = looks
    for module in model.modules():
        module.register_forward_hook(lambda *_: calls.append("forward"))
        module.register_forward_pre_hook(lambda *_: calls.append("before"))
    model.norm.eval()
    batch = torch.ones(5, 4)
    before, parts = copy.deepcopy(model.state_dict()), {name: id(x) for name, x in [*model.named_parameters(), *model.named_buffers()]}
    modes, states = [m.training for m in model.modules()], (torch.get_rng_state(), random.getstate())
    groups = layer_groups(model, batch)
    assert [group["name"] for group in groups] == ["first", "up"]
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert parts == {name: id(x) for name, x in [*model.named_parameters(), *model.named_buffers()]}
    assert modes == [m.training for m in model.modules()] and (model.calls, model.kept, calls) == (0, {}, [])
    assert torch.equal(states[0], torch.get_rng_state()) and states[1] == random.getstate()
    assert torch.equal(batch, torch.ones(5, 4)) and all(p.requires_grad and p.grad is None for p in model.parameters())


def test_weights_that_torch_computes_in_hooks_are_followed():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        old, older = nn.utils.spectral_norm(nn.Linear(3, 3)), nn.utils.weight_norm(nn.Linear(3, 3))
    chain = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)), old, older)
    assert [(group["name"], len(group["params"])) for group in layer_groups(chain, torch.ones(2, 3))] == [("0", 3), ("1", 2), ("2", 3)]


def test_examples_are_tensors_tuples_and_dicts():
    model = nn.Bilinear(3, 3, 2)
    x = torch.ones(2, 3)
    for example in ((x, x), {"input1": x, "input2": x}):
        assert [group["depth"] for group in layer_groups(model, example)] == [0.5]
    for wrong in (x, torch.ones(2, 5), {"nothing": x}):
        with pytest.raises(ValueError, match="cannot run the model on the example.*tuple.*dict"):
            layer_groups(model, wrong)


def test_what_is_not_used_follows_what_it_is_registered_behind():
    class Spare(nn.Module):
        def __init__(self):
            super().__init__()
            self.top, self.low, self.spare = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)
            self.mask_weight = nn.Parameter(torch.ones(2))
            self.frozen = nn.Linear(2, 2).requires_grad_(False)

        def forward(self, x):
            return self.top(self.low(x))
    groups = layer_groups(Spare(), torch.ones(1, 2))
    assert [group["name"] for group in groups] == ["low", "spare", "top"]  # what neither trains nor runs is no layer


class Reader(nn.Module):
    "A text tower that may read what the image tower made."

    def __init__(self, reads):
        super().__init__()
        self.text_model = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
        self.vision_model = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
        self.reads = reads

    def forward(self, x):
        image = self.vision_model[1](self.vision_model[0](x))
        text = self.text_model[1](self.text_model[0](x) + (image if self.reads else 0))
        return image * text


def test_towers_stand_side_by_side_only_if_neither_reads_the_other():
    def depth(model):
        return {group["name"]: group["depth"] for group in layer_groups(model, torch.ones(1, 2))}
    assert depth(Reader(False)) == {"text_model.0": 0, "text_model.1": 1, "vision_model.0": 0, "vision_model.1": 1}
    assert depth(Reader(True)) == {"vision_model.0": 0, "vision_model.1": 1 / 3, "text_model.0": 2 / 3, "text_model.1": 1}
    batch = {"input_ids": torch.tensor([[1, 5, 2]]), "pixel_values": torch.zeros(1, 3, 32, 32)}
    assert [group["depth"] for group in layer_groups(clip(), batch)] == [group["depth"] for group in layer_groups(clip())]


class Listener(nn.Module):
    "Two towers of different height; a norm and a head read one of them, or both."

    def __init__(self, reads, first):
        super().__init__()
        for name in ("vision_tower", "audio_tower")[::1 if first == "vision" else -1]:
            setattr(self, name, nn.Sequential(*(nn.Linear(2, 2) for _ in range(4 if name == "vision_tower" else 2))))
        self.norm, self.head, self.reads = nn.LayerNorm(2), nn.Linear(2, 2), reads

    def forward(self, x):
        read = {"vision": self.vision_tower, "audio": self.audio_tower}
        return self.head(self.norm(sum(read[name](x) for name in self.reads)))


@pytest.mark.parametrize("first", ["vision", "audio"])
@pytest.mark.parametrize("reads", [["vision"], ["audio"], ["vision", "audio"], ["audio", "vision"]])
def test_a_norm_over_towers_joins_the_tower_that_it_reads(first, reads):
    model, x = Listener(reads, first), torch.ones(1, 2)
    groups = layer_groups(model, x)
    check(model, groups)
    home = "audio_tower.1" if reads == ["audio"] else "vision_tower.3"  # the top of the tallest tower below it
    assert group_of(model, groups, "norm.weight")["name"] == home
    assert {group["name"]: group["depth"] for group in groups}["head"] == 1
    if len(reads) == 1:
        assert out_of_order(model, groups, x) == 0
    assert group_of(model, layer_groups(model), "norm.weight")["name"] == "vision_tower.3"  # names do not say which it reads


def test_numbered_parts_of_a_block_do_not_split_it():
    "As in CoaT, whose parallel blocks look at three sizes with an attention each."
    class Parallel(nn.Module):
        def __init__(self, part):
            super().__init__()
            for i in (2, 3, 4):
                setattr(self, f"{part}{i}", Block(2))
            self.fc = nn.Linear(2, 2)
    for part in ("factoratt_crpe", "self_att", "attn", "attention_", "ffn", "moe"):
        model = nn.ModuleDict(dict(parallel_blocks=nn.ModuleList([Parallel(part) for _ in range(3)]), head=nn.Linear(2, 2)))
        assert [group["name"] for group in layer_groups(model)] == [*numbered("parallel_blocks.{}", 3), "head"]


class Tagger(nn.Module):
    def __init__(self, kind, **options):
        super().__init__()
        self.words, self.rnn = nn.Embedding(9, 4), kind(4, 4, batch_first=True, **options)
        self.head = nn.Linear(8 if options.get("bidirectional") else 4, 2)

    def forward(self, x):
        return self.head(self.rnn(self.words(x))[0])


@pytest.mark.parametrize("options", [{}, dict(bidirectional=True), dict(bias=False)])
@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
def test_a_recurrent_stack_in_one_module_is_a_layer_each(kind, options):
    model, batch = Tagger(kind, num_layers=11, **options), torch.ones(1, 3, dtype=torch.long)
    for groups in (layer_groups(model), layer_groups(model, batch)):
        check(model, groups)
        assert [group["name"] for group in groups] == ["words", *numbered("rnn.{}", 11), "head"]
        tensors = 8 if "bidirectional" in options else 2 if "bias" in options else 4
        assert [len(group["params"]) for group in groups] == [1, *[tensors] * 11, 2]
    assert [group["name"] for group in layer_groups(Tagger(kind, num_layers=1))] == ["words", "rnn", "head"]
    assert [group["name"] for group in layer_groups(nn.LSTM(2, 2, num_layers=2))] == ["0", "1"]
    inside = nn.Sequential(nn.Linear(2, 2), nn.ModuleDict({"rnn": kind(2, 2, num_layers=2, **options)}), nn.Linear(2, 2))
    assert [group["name"] for group in layer_groups(inside)] == ["0", "1.rnn.0", "1.rnn.1", "2"] # in an item of a chain too


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(4, 4, num_layers=2)

    def forward(self, x):
        return self.lstm(x)[0]


def test_a_recurrent_stack_behind_a_class_of_somebodys_own_is_opened():
    model = nn.Sequential(nn.Linear(3, 4), Recurrent(), nn.Linear(4, 2))
    for groups in (layer_groups(model), layer_groups(model, torch.ones(5, 1, 3))):
        assert [group["name"] for group in groups] == ["0", "1.lstm.0", "1.lstm.1", "2"]


def test_place():
    model = Bare(mystery=(2, 2), scale=())

    def at(place, example=None):
        return [[name for name, p in model.named_parameters() if any(p is q for q in group["params"])]
                for group in layer_groups(model, example, place)]
    first, second = ["first.weight", "first.bias"], ["second.weight", "second.bias"]
    assert at({"mystery": "bottom"}) == [["mystery", *first], ["scale", *second]]
    assert at({"mystery": "top", "scale": "bottom"}) == [["scale", *first], ["mystery", *second]]
    assert at({"mystery": "first"}) == at({"mystery": "bottom"})
    assert at({"mystery": "top", "first": "top"}) == [["mystery", "scale", *first, *second]]
    assert at({name: "bottom" for name in ("mystery", "scale", "first", "second")}) == [["mystery", "scale", *first, *second]]
    for place, words in (({"mysteri": "top"}, "Is it 'mystery'"), ({"mystery": "middle"}, "'bottom', 'top' or a layer: first, second"),
                         ({"zzz": "top"}, "no such parameter")):
        with pytest.raises(ValueError, match=words):
            at(place)
    with pytest.raises(ValueError, match=r"example=.*place=\{'mystery': 'bottom'\}"):
        layer_groups(model)


def test_peft_keeps_a_frozen_twin_that_is_no_layer():
    """The shapes of PEFT's wrappers, by hand: ModulesToSaveWrapper, a LoRA layer, a prompt encoder."""
    def wrapper(original):
        return nn.ModuleDict(dict(original_module=original.requires_grad_(False),
                                  modules_to_save=nn.ModuleDict(dict(default=copy.deepcopy(original).requires_grad_(True)))))

    class Lora(nn.Module):
        def __init__(self, base):
            super().__init__()
            self.base_layer = base.requires_grad_(False)
            self.lora_A, self.lora_B = (nn.ModuleDict(dict(default=nn.Linear(16, 16))) for _ in "AB")
    plain = ZOO["bert"][0]()
    above = {group["name"]: group["above"] for group in layer_groups(plain)}
    tuned = ZOO["bert"][0]()
    tuned.bert.embeddings.requires_grad_(False)
    tuned.classifier = wrapper(tuned.classifier)
    tuned.bert.pooler.dense = Lora(tuned.bert.pooler.dense)
    found = {group["name"]: group["above"] for group in layer_groups(tuned)}
    assert found.pop("classifier.modules_to_save.default") == 0
    assert found == {name: n for name, n in above.items() if name not in ("classifier", "bert.embeddings")}
    whole = nn.Module()
    whole.base_model, whole.prompt_encoder = plain, nn.ModuleDict(dict(default=nn.Sequential(nn.Embedding(4, 16), nn.Linear(16, 16))))
    groups = layer_groups(whole)
    assert {id(p) for p in whole.prompt_encoder.parameters()} <= {id(p) for p in groups[0]["params"]}
    assert [group["above"] for group in groups][1:] == list(above.values())[1:]


class TwoMatrices(nn.Module):
    def __init__(self, a, b):
        super().__init__()
        self.weight, self.scale = nn.Parameter(torch.ones(b, a)), nn.Parameter(torch.ones(b, 1))

    def forward(self, x):
        return nn.functional.linear(x, self.weight * self.scale)


class Adapted(nn.Module):
    def __init__(self, a, b):
        super().__init__()
        self.base_layer, self.lora_A, self.lora_B = nn.Linear(a, b), nn.Linear(a, 2, bias=False), nn.Linear(2, b, bias=False)

    def forward(self, x):
        return self.base_layer(x) + self.lora_B(self.lora_A(x))


class Residual(nn.Module):
    def __init__(self, a, b):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(a, b), nn.ReLU(), nn.Linear(b, b))

    def forward(self, x):
        return self.body(x)


@pytest.mark.filterwarnings("ignore:.*weight_norm")
@pytest.mark.parametrize("example", [None, torch.ones(2, 90)])
@pytest.mark.parametrize("layer", [nn.Linear, TwoMatrices, Adapted, lambda a, b: nn.utils.weight_norm(nn.Linear(a, b)),
                                   lambda a, b: nn.utils.parametrizations.weight_norm(nn.Linear(a, b))])
def test_a_large_layer_of_a_plain_network_is_a_layer_and_no_warning(layer, example, recwarn):
    model = nn.Sequential(layer(90, 30), nn.ReLU(), layer(30, 30), nn.ReLU(), layer(30, 30), nn.ReLU(), layer(30, 5))
    groups = layer_groups(model, example)
    assert [group["name"] for group in groups] == ["0", "2", "4", "6"]
    assert not [warning for warning in recwarn if "layer_groups" in str(warning.message)]


def test_a_large_layer_beside_blocks_that_hide_in_one_child_is_named():
    model = nn.Sequential(TwoMatrices(300, 30), *(Residual(30, 30) for _ in range(4)), nn.Linear(30, 5))
    with pytest.warns(UserWarning, match="'0' holds 5.% of the weights and stays whole"):
        layer_groups(model)


def test_no_layer_is_most_of_a_deep_network():
    class Lump(nn.Module):
        def __init__(self, big):
            super().__init__()
            self.blocks = nn.Sequential(*(nn.TransformerEncoderLayer(4, 2, 8) for _ in range(4)))
            self.attention = big
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_ = layer_groups(Lump(nn.ModuleDict(dict(a=nn.Linear(40, 40), b=nn.Linear(40, 40)))))
        assert [group["name"] for group in open_][-2:] == ["attention.a", "attention.b"]
        layer_groups(Lump(nn.Embedding(1000, 4)))  # a table cannot be divided
        layer_groups(nn.Sequential(nn.Linear(2, 99), nn.Linear(99, 99)))  # nor is it said of a network without blocks
    with pytest.warns(UserWarning, match=r"'attention' holds 9\d% of the weights"):
        layer_groups(Lump(nn.LSTM(40, 40)))


DISTIL_LAYERS = ["embeddings", *(f"transformer.layer.{i}" for i in range(6))]
OWN = {  # the networks that records were made with: their layers are part of what the records mean
    "synthetic": ["0", "2", "4", "6"], "synthetic-released": ["0", "2", "4", "6"],
    "cifar10": ["features.0", "features.3", "features.6", "classifier.1", "classifier.3"],
    "trec6+minilm-l6": ["encoder.embeddings", *numbered("encoder.encoder.layer.{}", 6), "pre_classifier", "classifier"],
}


@pytest.mark.parametrize("name", [*OWN, "distilbert"])
def test_the_groups_of_our_own_networks_stay(name):
    from dals.lab.tasks import available, get_task
    if name == "distilbert":
        model = ZOO[name][0]()
        layers = [*(f"distilbert.{layer}" for layer in DISTIL_LAYERS), "pre_classifier", "classifier"]
    else:
        if sentence := available(name) if "minilm" in name else None:
            pytest.skip(sentence)
        model, layers = get_task(name).model(), OWN[name]
    groups = layer_groups(model)
    assert [(group["name"], group["depth"], group["above"]) for group in groups] == [
        (layer, i / (len(layers) - 1), len(layers) - 1 - i) for i, layer in enumerate(layers)]
    for group in groups:  # and each holds its own module's parameters, in their order
        assert [id(p) for p in group["params"]] == [id(p) for p in model.get_submodule(group["name"]).parameters()]


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 2), nn.Linear(2, width)


class Part(nn.Module):
    def __init__(self, children):
        super().__init__()
        for name, child in children.items():
            setattr(self, name, child)


NAMES = ["embed", "encoder", "decoder", "head", "norm", "text_model", "vision_model", "module", "fc1", "blocks", "attn",
         "classifier", "stem"]
leaves = st.builds(lambda make: make(), st.sampled_from([
    lambda: nn.Linear(2, 2), lambda: nn.Conv2d(1, 1, 1), lambda: nn.LayerNorm(2), lambda: nn.Embedding(3, 2), nn.ReLU, lambda: Block(2),
    lambda: nn.Linear(2, 2).requires_grad_(False), lambda: nn.MultiheadAttention(2, 1), lambda: Bare(pos_embed=(1, 2), scale=())]))
trees = st.recursive(leaves, lambda inner: st.one_of(
    st.lists(inner, min_size=1, max_size=4).map(lambda items: nn.Sequential(*items)),
    st.lists(inner, min_size=1, max_size=4).map(nn.ModuleList),
    st.dictionaries(st.sampled_from(NAMES), inner, min_size=1, max_size=4).map(Part),
    st.dictionaries(st.sampled_from(NAMES), inner, min_size=1, max_size=3).map(nn.ModuleDict)), max_leaves=12)


@settings(max_examples=150, deadline=None)
@given(trees, st.booleans())
def test_any_tree(model, tie):
    matrices = [m for m in model.modules() if isinstance(m, nn.Linear)]
    if tie and len(matrices) > 1:
        matrices[-1].weight = matrices[0].weight
    if not any(p.requires_grad for p in model.parameters()):
        with pytest.raises(ValueError, match="no trainable"):
            layer_groups(model)
        return
    groups = layer_groups(model)
    check(model, groups)
    assert any(group["above"] == 0 for group in groups) or not all(p.requires_grad for p in model.parameters())
    for group in groups:
        assert group["depth"] == 0.5 or (group["depth"] == 1) == (group["above"] == 0)
    assert max(group["lr"] for group in discriminative(groups, 1.0)) <= 1


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from(["linear", "norm", "relu", "block"]), min_size=1, max_size=10)
       .filter(lambda kinds: {"linear", "block"} & set(kinds)))
def test_matrices_count_in_a_chain(kinds):
    make = {"linear": lambda: nn.Linear(2, 2), "norm": lambda: nn.BatchNorm1d(2), "relu": nn.ReLU,
            "block": lambda: nn.TransformerEncoderLayer(2, 1, 2)}
    groups = layer_groups(nn.Sequential(*(make[kind]() for kind in kinds)))
    layers = [i for i, kind in enumerate(kinds) if kind in ("linear", "block")]
    assert [group["name"] for group in groups] == [str(i) for i in layers]
    assert [group["above"] for group in groups] == list(range(len(layers)))[::-1]


def problem():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
    return model, torch.randn(32, 4), torch.randn(32, 2)


def train(model, optimizer, x, y, steps):
    for _ in range(steps):
        def closure():
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(x), y)
            loss.backward()
            return loss
        optimizer.step(closure)


@pytest.mark.parametrize("via", ["state dict", "pickle", "deepcopy"])
def test_lars_goes_on_bit_equal(via):
    model, x, y = problem()
    optimizer = LARS(discriminative(layer_groups(model), 0.3), 0.3, trust=0.05, weight_decay=0.01)
    train(model, optimizer, x, y, 10)
    if via == "state dict":
        twin = copy.deepcopy(model)
        other = LARS(layer_groups(twin), 9.0)
        file = io.BytesIO()
        torch.save(optimizer.state_dict(), file)
        file.seek(0)
        other.load_state_dict(torch.load(file, weights_only=True))
    else:
        clone = copy.deepcopy if via == "deepcopy" else lambda pair: pickle.loads(pickle.dumps(pair))
        twin, other = clone((model, optimizer))
    train(model, optimizer, x, y, 10)
    train(twin, other, x, y, 10)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), twin.parameters(), strict=True))


def test_lars_takes_groups_late_bf16_and_tensor_rates():
    a = nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    b = nn.Parameter(torch.ones(2))
    optimizer = LARS([a], torch.tensor(0.5), trust=0.5, momentum=0.0)
    optimizer.add_param_group({"params": [b], "lr": 0.1, "trust": 0.1})
    a.grad, b.grad = torch.ones_like(a), torch.ones_like(b)
    assert optimizer.step() is None
    assert a.dtype == torch.bfloat16 and torch.allclose(a.float(), torch.full((4,), 0.75), atol=1e-2)
    assert torch.allclose(b, torch.full((2,), 0.99))


def test_lars_under_a_scheduler_stands_still_at_rate_zero():
    model, x, y = problem()
    optimizer = LARS(model.parameters(), 0.3, momentum=0.0, trust=0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: float(k == 0))
    train(model, optimizer, x, y, 1)
    scheduler.step()
    before = copy.deepcopy(model.state_dict())
    train(model, optimizer, x, y, 3)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())

"""layer_groups on the architecture zoo and on random trees; LARS as a torch optimizer must survive."""

import copy
import io
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dals.layerwise import LARS, discriminative, layer_groups

ENDS = dict(bos_token_id=1, eos_token_id=2, pad_token_id=0)
TINY = dict(hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32)
TEXT = dict(**TINY, vocab_size=50, max_position_embeddings=20, **ENDS)


def hf(kind, config, **options):
    transformers = pytest.importorskip("transformers")
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
    assert count == {"densenet": 9, "googlenet": 15, "swin": 17, "efficientnet": 19}


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

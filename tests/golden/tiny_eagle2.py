"""A tiny Eagle2 with seeded random weights, and what Transformers computes with its parts.

Transformers has no Eagle2. Its checkpoints carry their own class, `Eagle2ChatModel` (NVIDIA, `modeling_eagle_chat.py`), which
is Transformers' `SiglipVisionModel` and `Qwen2ForCausalLM` joined like this, for tiles of one size:

    h = vision_model(tiles).last_hidden_state            [tiles, g * g, c]   g = image_size / patch_size
    x = pixel_shuffle(h as [tiles, g, g, c], 1 / 2)      [tiles, g / 2, g / 2, 4 * c]
    features = mlp1(x)                                   LayerNorm, Linear, GELU (erf), Linear
    embeddings at the positions of <IMG_CONTEXT> = features, in order; positions count up as for text

where `pixel_shuffle(x [n, w, h, c], s)` views x as [n, w, h * s, c / s], swaps axes 1 and 2, views that as
[n, h * s, w * s, c / s**2] and swaps axes 1 and 2 again.
"""

import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer
from torch import nn
from transformers import Qwen2Config, Qwen2ForCausalLM, SiglipVisionConfig, SiglipVisionModel

from tiny import BOS, CHANGES_LOGITS, EOS, PAD, STEPS, VOCAB, train_tokenizer, write_json
from tiny_vision_language import FIRST_TURN_STEPS, VL_VOCAB, initialise

NAME = "tiny-eagle2"
SPECIAL = ("<img>", "</img>", "<IMG_CONTEXT>")
IMG, IMG_END, IMG_CONTEXT = range(VOCAB, VOCAB + len(SPECIAL))
VISION = dict(
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=2,
    image_size=16,
    patch_size=4,
    hidden_act="gelu_pytorch_tanh",
    layer_norm_eps=1e-6,
    vision_use_head=False,
)
TEXT = dict(
    vocab_size=VL_VOCAB,
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=96,
    max_position_embeddings=256,
    rms_norm_eps=1e-6,
    rope_theta=10_000.0,
    tie_word_embeddings=False,
    bos_token_id=BOS,
    eos_token_id=EOS,
    pad_token_id=PAD,
)
TILES = {"A": 1, "B": 3, "C": 2}
TOKENS = (VISION["image_size"] // VISION["patch_size"]) ** 2 // 4  # of a tile
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}[{{ message['role'] }}] {% if message['content'] is string %}"
    "{{ message['content'] | trim }}{% else %}{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "<img><IMG_CONTEXT></img>{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}\n"
    "{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}"
)


def pixel_shuffle(x: torch.Tensor, scale: float = 0.5) -> torch.Tensor:
    n, w, h, c = x.shape
    x = x.reshape(n, w, int(h * scale), int(c / scale)).transpose(1, 2)
    x = x.reshape(n, int(h * scale), int(w * scale), int(c / scale**2))
    return x.transpose(1, 2)


class Eagle2(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.vision_model = SiglipVisionModel._from_config(SiglipVisionConfig(**VISION), attn_implementation="eager")
        self.language_model = Qwen2ForCausalLM._from_config(Qwen2Config(**TEXT), attn_implementation="eager")
        width, hidden_size = 4 * VISION["hidden_size"], TEXT["hidden_size"]
        self.mlp1 = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, hidden_size), nn.GELU(), nn.Linear(hidden_size, hidden_size)
        )

    def features(self, tiles: torch.Tensor) -> torch.Tensor:
        hidden = self.vision_model(pixel_values=tiles).last_hidden_state
        side = VISION["image_size"] // VISION["patch_size"]
        shuffled = pixel_shuffle(hidden.reshape(len(hidden), side, side, -1))
        return self.mlp1(shuffled.reshape(len(hidden), TOKENS, -1)).flatten(0, 1)

    def forward(self, ids: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """The logits of a whole sequence, without a cache."""
        embeddings = self.language_model.get_input_embeddings()(ids)
        embeddings[ids == IMG_CONTEXT] = features
        return self.language_model(inputs_embeds=embeddings, use_cache=False).logits[0].float()


def model() -> Eagle2:
    made = Eagle2().float().eval()
    initialise(made)
    for name, parameter in made.named_parameters():
        if "layer_norm" in name or "layernorm" in name or name == "mlp1.0.weight":
            offset = 1.0 if name.endswith("weight") else 0.0
            generator = torch.Generator().manual_seed(len(name))
            value = offset + 0.25 * torch.randn(parameter.shape, generator=generator)
            parameter.copy_(value.to(torch.bfloat16))
    return made


def published_name(name: str) -> str:
    """As the published checkpoints name tensors: their SiglipVisionModel holds a module `vision_model`."""
    return name.replace("vision_model.", "vision_model.vision_model.", 1) if name.startswith("vision_model.") else name


def write_checkpoint(folder: Path, made: Eagle2) -> None:
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir()
    tensors = {published_name(name): value.to(torch.bfloat16).contiguous() for name, value in made.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    write_json(
        folder / "config.json",
        {
            "architectures": ["Eagle2ChatModel"],
            "model_type": "eagle_chat",
            "downsample_ratio": 0.5,
            "dynamic_image_size": True,
            "force_image_size": VISION["image_size"],
            "llm_config": TEXT
            | {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_act": "silu", "use_sliding_window": False},
            "max_dynamic_patch": 12,
            "min_dynamic_patch": 1,
            "mlp_checkpoint": True,
            "pre_feature_reduction": False,
            "keep_aspect_ratio": False,
            "select_layer": -1,
            "template": "qwen2-chat",
            "torch_dtype": "bfloat16",
            "use_backbone_lora": 0,
            "use_llm_lora": 0,
            "use_thumbnail": True,
            "vision_config": VISION | {"model_type": "siglip_vision_model", "num_channels": 3},
        },
    )
    write_json(folder / "generation_config.json", dict(bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD))
    train_tokenizer(folder / "tokenizer.json")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in SPECIAL])
    assert [tokenizer.token_to_id(text) for text in SPECIAL] == [IMG, IMG_END, IMG_CONTEXT]
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "add_bos_token": False,
            "bos_token": "<s>",
            "eos_token": "</s>",
            "pad_token": "<pad>",
            "clean_up_tokenization_spaces": False,
            "model_max_length": TEXT["max_position_embeddings"],
            "chat_template": CHAT_TEMPLATE,
        },
    )
    side = dict(height=VISION["image_size"], width=VISION["image_size"])
    write_json(
        folder / "preprocessor_config.json",
        {
            "image_processor_type": "Eagle2ImageProcessor",
            "size": side,
            "min_dynamic_tiles": 1,
            "max_dynamic_tiles": 4,
            "use_thumbnail": True,
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5],
        },
    )


def images() -> dict[str, torch.Tensor]:
    """Tiles `[tiles, 3, image_size, image_size]` as large as normalised pixels are."""
    generator = torch.Generator().manual_seed(37)
    side = VISION["image_size"]
    made = {name: torch.rand((tiles, 3, side, side), generator=generator) for name, tiles in TILES.items()}
    return {name: (2 * pixels - 1).to(torch.bfloat16).float() for name, pixels in made.items()}


def prompt(parts: list[int | str], generator: torch.Generator) -> torch.Tensor:
    """So many tokens of text for each number, and for each name that image between its marks."""
    ids: list[int] = []
    for part in parts:
        if isinstance(part, int):
            ids += torch.randint(PAD + 1, VOCAB, (part,), generator=generator).tolist()
        else:
            ids += [IMG, *[IMG_CONTEXT] * (TOKENS * TILES[part]), IMG_END]
    return torch.tensor([ids])


def golden_case(made: Eagle2, ids: torch.Tensor, names: list[str]) -> dict[str, torch.Tensor]:
    tiles = images()
    features = made.features(torch.cat([tiles[name] for name in names]))
    sequence, rows = ids, []
    for _ in range(STEPS):
        rows.append(made(sequence, features)[-1])
        sequence = torch.cat([sequence, rows[-1].argmax().view(1, 1)], dim=1)
    return {
        "input_ids": ids[0],
        "images": torch.tensor([list(TILES).index(name) for name in names]),
        "prompt_logits": made(ids, features),
        "output_ids": sequence[0, ids.shape[1] :],
        "step_logits": torch.stack(rows),
    }


def golden_tensors(made: Eagle2) -> dict[str, torch.Tensor]:
    tensors = {}
    for name, tiles in images().items():
        tensors[f"image.{name}.pixel_values"] = tiles
        tensors[f"image.{name}.features"] = made.features(tiles)
    generator = torch.Generator().manual_seed(41)
    one = prompt([5, "A", 7], generator)
    cases = {"one": golden_case(made, one, ["A"])}
    cases["three"] = golden_case(made, prompt([3, "A", 4, "B", "C", 6], generator), ["A", "B", "C"])
    answer = cases["one"]["output_ids"][None, :FIRST_TURN_STEPS]
    cases["two_turns"] = golden_case(made, torch.cat([one, answer, prompt([3, "B", 5], generator)], dim=1), ["A", "B"])
    cases["two_turns"]["first_turn"] = torch.tensor([one.shape[1], FIRST_TURN_STEPS])
    for case, values in cases.items():
        tensors |= {f"case.{case}.{key}": value for key, value in values.items()}
    return {key: value.contiguous() for key, value in tensors.items()}


def check_features(made: Eagle2) -> dict[str, float]:
    """How far the logits move when a part is left out: a reader that ignores it must not pass."""
    tiles, ids = images()["B"], prompt([5, "B", 7], torch.Generator().manual_seed(41))
    expected = made(ids, made.features(tiles))

    def changed(module: nn.Module, name: str) -> torch.Tensor:
        parameter = module.get_parameter(name)
        kept = parameter.clone()
        parameter.zero_()
        logits = made(ids, made.features(tiles))
        parameter.copy_(kept)
        return logits

    moved = {
        "position embedding": changed(made.vision_model, "embeddings.position_embedding.weight"),
        "patch bias": changed(made.vision_model, "embeddings.patch_embedding.bias"),
        "post layer norm": changed(made.vision_model, "post_layernorm.bias"),
        "the order of tiles": made(ids, made.features(tiles.flip(0))),
        "the order of rows": made(ids, made.features(tiles.transpose(2, 3))),
    }
    moved = {name: (logits - expected).abs().max().item() for name, logits in moved.items()}
    assert min(moved.values()) > CHANGES_LOGITS, moved
    return moved


def make(folder: Path) -> None:
    made = model()
    write_checkpoint(folder / NAME, made)
    moved = check_features(made)
    print(f"{NAME}: without its features logits differ by", {k: round(v, 2) for k, v in moved.items()})
    tensors = golden_tensors(made)
    output = folder / f"{NAME}.images.safetensors"
    save_file(tensors, output)
    for key, value in tensors.items():
        if key.endswith("step_logits"):
            top = value.topk(2).values
            print(f"    {key}: up to {value.abs().max():.1f}, smallest margin {(top[:, 0] - top[:, 1]).min():.4f}")
    print(f"    {output.name}: {output.stat().st_size} bytes")
    print("   ", {file.name: file.stat().st_size for file in sorted((folder / NAME).iterdir())})

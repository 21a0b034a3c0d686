"""Tiny vision-language checkpoints with seeded random weights, and what Transformers computes with them."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer
from torch import nn
from transformers import GenerationConfig, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.vision_utils import get_vision_position_ids, get_vision_window_index

from tiny import BOS, CHANGES_LOGITS, EOS, PAD, STEPS, VOCAB, train_tokenizer, write_json

NAME = "tiny-qwen-2.5-vl"
SPECIAL = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
VISION_START, VISION_END, IMAGE, VIDEO = range(VOCAB, VOCAB + len(SPECIAL))
VL_VOCAB = 296  # the last rows of the table are no token's, as in the published checkpoints
FIRST_TURN_STEPS = 8  # of the first turn's answer, before the second turn
VISION = dict(
    depth=4,
    hidden_size=32,
    num_heads=2,
    intermediate_size=48,
    out_hidden_size=64,
    patch_size=4,
    temporal_patch_size=2,
    spatial_merge_size=2,
    window_size=16,  # 2 by 2 merged patches
    fullatt_block_indexes=[1, 3],
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
    use_sliding_window=False,
    rope_parameters=dict(rope_type="default", rope_theta=10_000.0, mrope_section=[2, 3, 3]),
)
# Patches: windows cut on both sides, one window and a bit, an extreme aspect ratio.
GRIDS = {"A": (1, 6, 10), "B": (1, 4, 6), "C": (1, 2, 14)}
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}[{{ message['role'] }}] {% if message['content'] is string %}"
    "{{ message['content'] | trim }}{% else %}{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}\n"
    "{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}"
)
# Of the published shape, for the indices alone.
INDEX_GRIDS = [
    [(1, 4, 6)],
    [(1, 8, 8)],
    [(1, 10, 14), (1, 8, 16)],
    [(1, 2, 40), (1, 30, 2), (1, 18, 22)],
    [(2, 6, 10)],
    [(1, 74, 74)],
]


def config() -> Qwen2_5_VLConfig:
    return Qwen2_5_VLConfig(
        text_config=TEXT | dict(bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD),
        vision_config=VISION,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=VISION_START,
        vision_end_token_id=VISION_END,
        tie_word_embeddings=False,
    )


def initialise(model: nn.Module) -> None:
    """Weights large enough that every part moves the logits well above rounding; the numbers are exact in bfloat16."""
    generator = torch.Generator().manual_seed(23)
    for name, parameter in sorted(model.named_parameters()):
        noise = torch.randn(parameter.shape, generator=generator)
        if name.endswith(("norm.weight", "norm1.weight", "norm2.weight", "layernorm.weight", "ln_q.weight")):
            value = 1 + 0.25 * noise
        elif name.endswith("bias"):
            value = 0.3 * noise
        elif "embed_tokens" in name:
            value = noise
        elif "lm_head" in name:
            value = 0.4 * noise
            value[VOCAB:] = 0  # no answer holds the tokens of images
        else:
            value = 1.6 * parameter[0].numel() ** -0.5 * noise
        parameter.copy_(value.to(torch.bfloat16))


def write_as_published(path: Path) -> None:
    """The text model's fields beside `vision_config`, as the published checkpoints have them."""
    written = json.loads(path.read_text())
    text = written.pop("text_config")
    rope = text.pop("rope_parameters")
    text.pop("model_type", None)
    text.pop("layer_types", None)
    text.pop("dtype", None)
    vision = written["vision_config"]
    vision.pop("rope_parameters", None)
    vision.pop("dtype", None)
    vision["model_type"] = "qwen2_5_vl"
    vision["in_chans"] = vision.pop("in_channels")
    vision["spatial_patch_size"] = vision["patch_size"]
    written |= text
    written["rope_theta"] = rope["rope_theta"]
    written["rope_scaling"] = dict(type="mrope", mrope_section=rope["mrope_section"])
    written["torch_dtype"] = written.pop("dtype")
    write_json(path, written)


def write_checkpoint(folder: Path) -> None:
    model = Qwen2_5_VLForConditionalGeneration(config()).float()
    initialise(model)
    if folder.exists():
        shutil.rmtree(folder)
    model.generation_config = GenerationConfig(bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD)
    model.to(torch.bfloat16).save_pretrained(folder)
    write_as_published(folder / "config.json")
    train_tokenizer(folder / "tokenizer.json")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in SPECIAL])
    assert [tokenizer.token_to_id(text) for text in SPECIAL] == [VISION_START, VISION_END, IMAGE, VIDEO]
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
    write_json(
        folder / "preprocessor_config.json",
        {
            "image_processor_type": "Qwen2VLImageProcessor",
            "patch_size": VISION["patch_size"],
            "temporal_patch_size": VISION["temporal_patch_size"],
            "merge_size": VISION["spatial_merge_size"],
            "min_pixels": 8 * 8,
            "max_pixels": 64 * 64,
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711],
        },
    )


def load(folder: Path) -> Qwen2_5_VLForConditionalGeneration:
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    model.generation_config.eos_token_id = None
    return model


def images() -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Flattened patches `[patches, 3 * 2 * 4 * 4]` as large as normalised pixels are, and the grid, by name."""
    generator = torch.Generator().manual_seed(29)
    columns = 3 * VISION["temporal_patch_size"] * VISION["patch_size"] ** 2
    made = {}
    for name, grid in GRIDS.items():
        patches = grid[0] * grid[1] * grid[2]
        pixels = 1.5 * torch.randn((patches, columns), generator=generator)
        made[name] = (pixels.to(torch.bfloat16).float(), torch.tensor([grid]))
    return made


def prompt(parts: list[int | str], generator: torch.Generator) -> torch.Tensor:
    """So many tokens of text for each number, and for each name that image between its marks."""
    ids: list[int] = []
    for part in parts:
        if isinstance(part, int):
            ids += torch.randint(PAD + 1, VOCAB, (part,), generator=generator).tolist()
        else:
            t, h, w = GRIDS[part]
            ids += [VISION_START, *[IMAGE] * (t * h * w // VISION["spatial_merge_size"] ** 2), VISION_END]
    return torch.tensor([ids])


def forward(model: nn.Module, ids: torch.Tensor, pixels: torch.Tensor, grids: torch.Tensor, **changes) -> torch.Tensor:
    """The logits of a whole sequence, without a cache."""
    model.model.rope_deltas = None
    inputs = dict(
        input_ids=ids,
        mm_token_type_ids=(ids == IMAGE).int(),
        pixel_values=pixels,
        image_grid_thw=grids,
        use_cache=False,
    )
    return model(**(inputs | changes)).logits[0].float()


def golden_case(model: nn.Module, ids: torch.Tensor, names: list[str], steps: int = STEPS) -> dict[str, torch.Tensor]:
    made = images()
    pixels = torch.cat([made[name][0] for name in names])
    grids = torch.cat([made[name][1] for name in names])
    sequence, rows = ids, []
    for _ in range(steps):
        rows.append(forward(model, sequence, pixels, grids)[-1])
        sequence = torch.cat([sequence, rows[-1].argmax().view(1, 1)], dim=1)
    step_logits, output_ids = torch.stack(rows), sequence[0, ids.shape[1] :]
    # Transformers' own cached decoding, with its rope delta, must agree.
    model.model.rope_deltas = None
    made_by_generate = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        mm_token_type_ids=(ids == IMAGE).int(),
        pixel_values=pixels,
        image_grid_thw=grids,
        do_sample=False,
        max_new_tokens=steps,
        output_logits=True,
        return_dict_in_generate=True,
    )
    assert made_by_generate.sequences[0].tolist() == sequence[0].tolist()
    assert (torch.cat(made_by_generate.logits).float() - step_logits).abs().max() < 1e-4
    positions, delta = model.model.get_rope_index(ids, (ids == IMAGE).int(), grids)
    return {
        "input_ids": ids[0],
        "images": torch.tensor([list(GRIDS).index(name) for name in names]),
        "position_ids": positions[:, 0],
        "rope_delta": delta[0],
        "prompt_logits": forward(model, ids, pixels, grids),
        "output_ids": output_ids,
        "step_logits": step_logits,
    }


def golden_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    tensors = {}
    made = images()
    for name, (pixels, grid) in made.items():
        tensors[f"image.{name}.pixel_values"] = pixels
        tensors[f"image.{name}.grid_thw"] = grid[0]
        tensors[f"image.{name}.features"] = model.model.visual(pixels, grid).pooler_output
    together = model.model.visual(
        torch.cat([pixels for pixels, _ in made.values()]), torch.cat([grid for _, grid in made.values()])
    )
    alone = torch.cat([tensors[f"image.{name}.features"] for name in made])
    assert (together.pooler_output - alone).abs().max() < 1e-4

    generator = torch.Generator().manual_seed(31)
    one = prompt([5, "A", 7], generator)
    cases = {"one": golden_case(model, one, ["A"])}
    cases["three"] = golden_case(model, prompt([3, "A", 4, "B", "C", 6], generator), ["A", "B", "C"])
    answer = cases["one"]["output_ids"][None, :FIRST_TURN_STEPS]
    second = torch.cat([one, answer, prompt([3, "B", 5], generator)], dim=1)
    cases["two_turns"] = golden_case(model, second, ["A", "B"])
    cases["two_turns"]["first_turn"] = torch.tensor([one.shape[1], FIRST_TURN_STEPS])
    for case, values in cases.items():
        tensors |= {f"case.{case}.{key}": value for key, value in values.items()}
    return {key: value.contiguous() for key, value in tensors.items()}


def check_features(folder: Path, model: nn.Module) -> dict[str, float]:
    """How far the logits move when a feature is left out: a reader that ignores it must not pass."""
    made = images()
    ids = prompt([5, "A", 7], torch.Generator().manual_seed(31))
    pixels, grid = made["A"]
    expected = forward(model, ids, pixels, grid)
    plain = torch.arange(ids.shape[1]).expand(3, 1, -1)

    def changed(change) -> torch.Tensor:
        other = load(folder)
        change(other.model)
        return forward(other, ids, pixels, grid)

    def all_layers(attend_fully: bool):
        def change(inner: nn.Module) -> None:
            inner.visual.fullatt_block_indexes = list(range(VISION["depth"])) if attend_fully else []

        return change

    def without_positions(inner: nn.Module) -> None:
        inner.visual.rotary_pos_emb.inv_freq.zero_()

    moved = {
        "M-RoPE": forward(model, ids, pixels, grid, position_ids=plain),
        "windows": changed(all_layers(True)),
        "full attention": changed(all_layers(False)),
        "rotary of patches": changed(without_positions),
        "the image": forward(model, ids, pixels.flip(0), grid),
    }
    moved = {name: (logits - expected).abs().max().item() for name, logits in moved.items()}
    assert min(moved.values()) > CHANGES_LOGITS, moved
    return moved


def write_indices(path: Path) -> None:
    """Windows, positions of patches and positions of tokens, of images of several sizes at once."""
    shape = dict(patch_size=14, spatial_merge_size=2, window_size=112)
    configured = config()
    configured.vision_config.spatial_merge_size = shape["spatial_merge_size"]
    with torch.device("meta"):
        model = Qwen2_5_VLForConditionalGeneration(configured).model
    cases = []
    for grids in INDEX_GRIDS:
        grid_thw = torch.tensor(grids)
        window_index, cu_window_seqlens = get_vision_window_index(grid_thw, **{k: v for k, v in shape.items()})
        positions = get_vision_position_ids(grid_thw, shape["spatial_merge_size"])
        tokens = [t * h * w // shape["spatial_merge_size"] ** 2 for t, h, w in grids]
        lengths = [4, *[3] * (len(grids) - 1), 5]  # of the text before each image, and behind the last
        types = [kind for text, image in zip(lengths, [*tokens, 0]) for kind in [0] * text + [1] * image]
        rope, delta = model.get_rope_index(torch.zeros((1, len(types)), dtype=torch.long), torch.tensor([types]), grid_thw)
        cases.append(
            {
                "grid_thw": grids,
                "window_index": window_index.tolist(),
                "cu_window_seqlens": cu_window_seqlens.tolist(),
                "patch_positions": positions.T.tolist(),
                "text_lengths": lengths,
                "token_positions": rope[:, 0].tolist(),
                "rope_delta": delta.item(),
            }
        )
    path.write_text(json.dumps(shape | {"cases": cases}, separators=(",", ":")) + "\n")


def make(folder: Path) -> None:
    path = folder / NAME
    write_checkpoint(path)
    model = load(path)
    assert model.config.text_config.rope_parameters["mrope_section"] == [2, 3, 3]
    assert list(model.config.vision_config.fullatt_block_indexes) == [1, 3]
    moved = check_features(path, model)
    print(f"{NAME}: without its features logits differ by", {k: round(v, 2) for k, v in moved.items()})
    tensors = golden_tensors(model)
    output = folder / f"{NAME}.images.safetensors"
    save_file(tensors, output)
    for key, value in tensors.items():
        if key.endswith("step_logits"):
            top = value.topk(2).values
            print(f"    {key}: up to {value.abs().max():.1f}, smallest margin {(top[:, 0] - top[:, 1]).min():.4f}")
    write_indices(folder / "qwen2-5-vl-indices.json")
    print(f"    {output.name}: {output.stat().st_size} bytes")
    print("   ", {file.name: file.stat().st_size for file in sorted(path.iterdir())})

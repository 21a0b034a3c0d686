"""Tiny Llama checkpoints with seeded random weights, one for each way that the family differs, and their logits."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig, LlamaForCausalLM

from prompts import PROMPTS, station_log

VOCAB = 288  # 3 special tokens, 256 bytes, 29 merges
BOS, EOS, PAD = 0, 1, 2
PROMPT_LENGTHS = (1, 7, 33, 130)
FULL_PROMPT_LOGITS = 33  # prompts up to this length have the logits of all positions
STEPS = 32
SHAPE = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=96)

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}[{{ message['role'] }}] {{ message['content'] | trim }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)

# name -> (differences from SHAPE in Transformers' names, keys written as checkpoints older than Transformers 5 have them)
CHECKPOINTS: dict[str, tuple[dict, bool]] = {
    # Rotary default, untied head, grouped queries.
    "tiny-llama-2": (
        dict(
            max_position_embeddings=256,
            tie_word_embeddings=False,
            rope_parameters=dict(rope_type="default", rope_theta=10_000.0),
        ),
        True,
    ),
    # Wavelengths are 6.3, 20, 63, 199, …: kept below 16, blended between 16 and 64, divided above 64.
    "tiny-llama-3.1": (
        dict(
            max_position_embeddings=512,
            tie_word_embeddings=True,
            rope_parameters=dict(
                rope_type="llama3",
                rope_theta=10_000.0,
                factor=8.0,
                low_freq_factor=1.0,
                high_freq_factor=4.0,
                original_max_position_embeddings=64,
            ),
        ),
        True,
    ),
    # One key-value head for each query head, biases everywhere.
    "tiny-llama-bias-yarn": (
        dict(
            num_key_value_heads=4,
            attention_bias=True,
            mlp_bias=True,
            max_position_embeddings=256,
            tie_word_embeddings=True,
            rope_parameters=dict(
                rope_type="yarn", rope_theta=10_000.0, factor=4.0, original_max_position_embeddings=64
            ),
        ),
        False,
    ),
    # A head size that hidden_size / num_attention_heads does not give, one key-value head, two weight files.
    "tiny-llama-linear": (
        dict(
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=24,
            max_position_embeddings=256,
            tie_word_embeddings=False,
            rope_parameters=dict(rope_type="linear", rope_theta=10_000.0, factor=4.0),
        ),
        False,
    ),
}
SHARDED = "tiny-llama-linear"


def initialise(model: LlamaForCausalLM, seed: int) -> None:
    """Weights large enough that attention, biases, norms and positions all move the logits well above rounding."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(model.named_parameters()):
        noise = torch.randn(parameter.shape, generator=generator)
        if name.endswith("norm.weight"):
            parameter.copy_(1.0 + 0.25 * noise)
        elif name.endswith("bias"):
            parameter.copy_(0.3 * noise)
        elif "embed_tokens" in name:
            parameter.copy_(noise)
        elif "lm_head" in name:
            parameter.copy_(0.4 * noise)
        else:  # [out, in]
            parameter.copy_(1.6 * parameter.shape[1] ** -0.5 * noise)


def train_tokenizer(path: Path) -> None:
    """A byte-level BPE that encodes every string, with a few merges learnt from this folder's prompts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = [AddedToken(text, special=True) for text in ("<s>", "</s>", "<pad>")]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([station_log(20), *(p for p in PROMPTS.values() if isinstance(p, str))], trainer)
    assert tokenizer.get_vocab_size() == VOCAB
    assert [tokenizer.token_to_id(text) for text in ("<s>", "</s>", "<pad>")] == [BOS, EOS, PAD]
    text = "The depot: 12 wagons — à Ωmega 🎉\n"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text
    tokenizer.save(str(path))


def write_legacy_config(path: Path) -> None:
    """The keys that Llama checkpoints were published with before Transformers 5: rope_theta, rope_scaling, torch_dtype."""
    config = json.loads(path.read_text())
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    config["torch_dtype"] = config.pop("dtype")
    config.pop("head_dim", None)
    write_json(path, config)


def write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")


def write_checkpoint(folder: Path, differences: dict, legacy: bool, seed: int) -> None:
    config = LlamaConfig(
        vocab_size=VOCAB, rms_norm_eps=1e-5, bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD, **SHAPE | differences
    )
    model = LlamaForCausalLM(config).float()
    initialise(model, seed)
    if folder.exists():
        shutil.rmtree(folder)
    model.generation_config = GenerationConfig(bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD)
    model.save_pretrained(folder, max_shard_size="200KB" if folder.name == SHARDED else "5GB")
    if legacy:
        write_legacy_config(folder / "config.json")
    train_tokenizer(folder / "tokenizer.json")
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "add_bos_token": False,
            "bos_token": "<s>",
            "eos_token": "</s>",
            "pad_token": "<pad>",
            "clean_up_tokenization_spaces": False,
            "model_max_length": config.max_position_embeddings,
            "chat_template": CHAT_TEMPLATE,
        },
    )


def load(folder: Path, **changes) -> LlamaForCausalLM:
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", **changes
    ).eval()
    model.generation_config.eos_token_id = None
    return model


def prompts(seed: int) -> dict[int, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {n: torch.randint(PAD + 1, VOCAB, (1, n), generator=generator) for n in PROMPT_LENGTHS}


def golden_tensors(model: LlamaForCausalLM, seed: int) -> dict[str, torch.Tensor]:
    tensors = {}
    for length, ids in prompts(seed).items():
        made = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=STEPS,
            output_logits=True,
            return_dict_in_generate=True,
        )
        step_logits = torch.cat(made.logits).float()
        output_ids = made.sequences[0, length:]
        assert output_ids.tolist() == step_logits.argmax(-1).tolist()
        # Once without a cache, over the whole sequence: the cached steps must agree with it.
        whole = model(input_ids=made.sequences, use_cache=False).logits[0].float()
        assert (whole[length - 1 : -1] - step_logits).abs().max() < 1e-4
        name = f"prompt.{length}"
        tensors[f"{name}.input_ids"] = ids[0].contiguous()
        tensors[f"{name}.output_ids"] = output_ids.contiguous()
        tensors[f"{name}.step_logits"] = step_logits.contiguous()
        if length <= FULL_PROMPT_LOGITS:
            tensors[f"{name}.prompt_logits"] = model(input_ids=ids, use_cache=False).logits[0].float().contiguous()
    return tensors


def check_positions_matter(folder: Path, model: LlamaForCausalLM, seed: int) -> float:
    """How far the logits move when the rotary scaling is left out: a reader that ignores it must not pass."""
    rope = dict(model.config.rope_parameters)
    if rope["rope_type"] == "default":
        return float("nan")
    plain = load(folder, rope_parameters=dict(rope_type="default", rope_theta=rope["rope_theta"]))
    ids = prompts(seed)[33]
    moved = (plain(input_ids=ids).logits - model(input_ids=ids).logits).abs().max().item()
    assert plain.config.rope_parameters["rope_type"] == "default" and moved > 0.5, moved
    return moved


def make_all(folder: Path) -> None:
    for seed, (name, (differences, legacy)) in enumerate(CHECKPOINTS.items(), start=1):
        checkpoint = folder / name
        write_checkpoint(checkpoint, differences, legacy, seed)
        model = load(checkpoint)
        for key, value in differences["rope_parameters"].items():
            assert model.config.rope_parameters[key] == value, (name, key, model.config.rope_parameters)
        moved = check_positions_matter(checkpoint, model, seed)
        tensors = golden_tensors(model, seed)
        output = folder / f"{name}.golden.safetensors"
        save_file(tensors, output)
        steps = torch.cat([value for key, value in tensors.items() if key.endswith("step_logits")])
        top = steps.topk(2).values
        print(
            f"{name}: logit deviation {steps.std():.2f}, smallest margin {(top[:, 0] - top[:, 1]).min():.4f}, "
            f"logits without rotary scaling differ by {moved:.2f}, golden {output.stat().st_size} bytes"
        )
        print("   ", {file.name: file.stat().st_size for file in sorted(checkpoint.iterdir())})

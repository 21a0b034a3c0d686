"""Tiny checkpoints with seeded random weights, and what Transformers computes with them."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from prompts import PROMPTS, station_log

VOCAB = 288  # 3 special tokens, 256 bytes, 29 merges
BOS, EOS, PAD = 0, 1, 2
FULL_PROMPT_LOGITS = 33  # prompts up to this length have the logits of all positions
STEPS = 32
# How far a token's last expert is ahead of the next one, in largest router logits: twice what half precision may move one
# by, as `half_precisions_give_transformers_tokens_where_margins_allow` has it of tokens. A token that is nearer than that to
# another expert would say nothing about a program that chooses it.
CLEAR_CHOICE = 2 * 16 * 2**-8
CHANGES_LOGITS = 0.3  # what a feature has to change in some logit, for a reader that ignores it not to pass

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}[{{ message['role'] }}] {{ message['content'] | trim }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


@dataclass(frozen=True)
class Golden:
    """Prompts of these lengths in engines for `max_seq_len` tokens; `suffix` is part of the file's name."""

    prompt_lengths: tuple[int, ...]
    suffix: str = ""
    max_seq_len: int | None = None


@dataclass(frozen=True)
class Checkpoint:
    name: str
    model_type: str
    config: dict  # in the names of Transformers' class
    features: dict[str, dict | Callable]  # what has to matter -> config fields (or a change of the model) without it
    goldens: tuple[Golden, ...] = (Golden((33, 130)),)
    dtype: torch.dtype = torch.bfloat16  # of the file: the numbers are exact in it
    unit_offset: bool = False  # norms by 1 + weight
    embedding: float = 1.0  # deviation of the embeddings
    clear_choices: float = 0.0  # what embeddings have of the experts that their token is to choose
    stacked: bool = False  # experts as Transformers 5 has them in memory, not as it has published them
    last_norm: float = 0.0  # added to the weight of the last norm
    shard: str = "5GB"
    rewrite: Callable[[dict], None] | None = None  # config.json as other versions write it
    rename: Callable[[dict], dict] | None = None  # tensors as other versions name them
    seed: int = field(default=0)


def initialise(model: PreTrainedModel, checkpoint: Checkpoint) -> None:
    """Weights large enough that attention, biases, norms and positions all move the logits well above rounding."""
    generator = torch.Generator().manual_seed(checkpoint.seed)
    for name, parameter in sorted(model.named_parameters()):
        noise = torch.randn(parameter.shape, generator=generator)
        if name.endswith("norm.weight") or ".ln_" in name and name.endswith(".weight"):
            value = 0.25 * noise + (0.0 if checkpoint.unit_offset else 1.0)
            if name == "model.norm.weight":
                value += checkpoint.last_norm
        elif name.endswith("bias"):
            value = 0.3 * noise
        elif "embed_tokens" in name or "wte" in name or "wpe" in name:
            value = checkpoint.embedding * noise
        elif "lm_head" in name:
            value = 0.4 * noise
        else:  # [out, in], but [in, out] in GPT-2
            inputs = parameter.shape[0 if checkpoint.model_type == "gpt2" else -1]
            value = 1.6 * inputs**-0.5 * noise
        parameter.copy_(value.to(checkpoint.dtype))
    if checkpoint.clear_choices:
        choose_clearly(model, checkpoint, generator)


def choose_clearly(model: PreTrainedModel, checkpoint: Checkpoint, generator: torch.Generator) -> None:
    """Gives each token experts of its own: its embedding, the directions that routers look for, in an order of its own."""
    routers = [module for name, module in model.named_modules() if name.endswith("mlp.gate")]
    experts, top_k = routers[0].num_experts, routers[0].top_k
    table = model.get_input_embeddings().weight
    directions = torch.linalg.qr(torch.randn(table.shape[1], experts, generator=generator))[0].T
    order = torch.stack([torch.randperm(experts, generator=generator) for _ in table])
    scores = torch.cat([torch.linspace(1.5, 1.0, top_k), torch.linspace(-1.0, -1.5, experts - top_k)])
    table.add_(checkpoint.clear_choices * scores[order] @ directions)
    table.copy_(table.to(checkpoint.dtype))
    for router in routers:
        router.weight.copy_((0.3 * (0.2 * router.weight + directions)).to(checkpoint.dtype))


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


def write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")


def write_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    tokens = dict(bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD)
    config = AutoConfig.for_model(checkpoint.model_type, vocab_size=VOCAB, **tokens, **checkpoint.config)
    model = AutoModelForCausalLM.from_config(config).float()
    initialise(model, checkpoint)
    if folder.exists():
        shutil.rmtree(folder)
    model.generation_config = GenerationConfig(**tokens)
    model.to(checkpoint.dtype).save_pretrained(
        folder, max_shard_size=checkpoint.shard, save_original_format=not checkpoint.stacked
    )
    if checkpoint.rewrite:
        config_json = json.loads((folder / "config.json").read_text())
        checkpoint.rewrite(config_json)
        write_json(folder / "config.json", config_json)
    if checkpoint.rename:
        weights = folder / "model.safetensors"
        save_file(checkpoint.rename(load_file(weights)), weights, metadata={"format": "pt"})
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


def load(folder: Path, **changes) -> PreTrainedModel:
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", **changes
    ).eval()
    model.generation_config.eos_token_id = None
    return model


def prompts(checkpoint: Checkpoint, lengths: tuple[int, ...]) -> dict[int, torch.Tensor]:
    generator = torch.Generator().manual_seed(checkpoint.seed)
    return {n: torch.randint(PAD + 1, VOCAB, (1, n), generator=generator) for n in lengths}


def golden_tensors(model: PreTrainedModel, checkpoint: Checkpoint, golden: Golden) -> dict[str, torch.Tensor]:
    tensors = {}
    for length, ids in prompts(checkpoint, golden.prompt_lengths).items():
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


def check_choices(model: PreTrainedModel, golden: dict[str, torch.Tensor]) -> float:
    """By how much the last expert that a token chooses is ahead of the next one, at the least."""
    margins = []

    def measure(router, _, output) -> None:
        logits = output[0].sort(descending=True).values
        margins.append(((logits[:, router.top_k - 1] - logits[:, router.top_k]) / logits.abs().max()).min().item())

    hooks = [
        module.register_forward_hook(measure) for name, module in model.named_modules() if name.endswith("mlp.gate")
    ]
    for key, ids in golden.items():
        if key.endswith("input_ids"):
            output_ids = golden[key.replace("input_ids", "output_ids")]
            model(input_ids=torch.cat([ids, output_ids])[None], use_cache=False)
    for hook in hooks:
        hook.remove()
    assert min(margins) > CLEAR_CHOICE, min(margins)
    return min(margins)


def check_features(folder: Path, model: PreTrainedModel, checkpoint: Checkpoint) -> dict[str, float]:
    """How far the logits move when a feature is left out: a reader that ignores it must not pass."""
    ids = prompts(checkpoint, (130,))[130]
    expected = model(input_ids=ids, use_cache=False).logits
    moved = {}
    for feature, without in checkpoint.features.items():
        if callable(without):
            other = load(folder)
            without(other)
        else:
            other = load(folder, **json.loads(json.dumps(without)))
            for key, value in without.items():
                assert getattr(other.config, key) == value or isinstance(value, dict), (feature, key)
        moved[feature] = (other(input_ids=ids, use_cache=False).logits - expected).abs().max().item()
        assert moved[feature] > CHANGES_LOGITS, (checkpoint.name, feature, moved[feature])
    return moved


def make(folder: Path, checkpoint: Checkpoint) -> None:
    path = folder / checkpoint.name
    write_checkpoint(path, checkpoint)
    model = load(path)
    for key, value in checkpoint.config.items():
        found = getattr(model.config, key)
        if isinstance(value, dict):
            found = {name: found[name] for name in value}
        assert found == value, (checkpoint.name, key, found, value)
    moved = check_features(path, model, checkpoint)
    print(f"{checkpoint.name}: without its features logits differ by", {k: round(v, 2) for k, v in moved.items()})
    for golden in checkpoint.goldens:
        tensors = golden_tensors(model, checkpoint, golden)
        if checkpoint.clear_choices:
            print(f"    experts chosen by {check_choices(model, tensors):.3f} of the largest router logit or more")
        metadata = {"max_seq_len": str(golden.max_seq_len)} if golden.max_seq_len else None
        output = folder / f"{checkpoint.name}{golden.suffix}.golden.safetensors"
        save_file(tensors, output, metadata=metadata)
        steps = torch.cat([value for key, value in tensors.items() if key.endswith("step_logits")])
        top = steps.topk(2).values
        print(
            f"    {output.name}: {output.stat().st_size} bytes, logits up to {steps.abs().max():.1f}, "
            f"smallest margin {(top[:, 0] - top[:, 1]).min():.4f}"
        )
    print("   ", {file.name: file.stat().st_size for file in sorted(path.iterdir())})

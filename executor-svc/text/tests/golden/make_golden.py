"""Makes the golden data of the text tests with Transformers.

Run from this folder with Transformers, tokenizers and Jinja installed: `python make_golden.py`. It trains four small
tokenizers, one of each kind that decodes in its own way, and writes

* `<kind>.tokenizer.json` and `<kind>.tokenizer_config.json`: what the Rust side loads;
* `tokenizers.json`: texts with their tokens, and tokens with their text;
* `chat.json`: conversations with each template's rendering or refusal, and tokens of some of them.
"""

import datetime
import json
import random
from pathlib import Path

import transformers
import transformers.utils.chat_template_utils as chat_template_utils
from jinja2.exceptions import TemplateError
from tokenizers import (AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers)
from transformers import PreTrainedTokenizerFast

HERE = Path(__file__).parent
NOW = datetime.datetime(2024, 7, 26, 12, 0, 0)

TEXTS = [
    "",
    " ",
    "Hello, world!",
    "  two leading spaces and a trailing one ",
    "don't stop . I 've seen it , they 're here ? yes !",
    "line one\nline two\n\n\ttabbed",
    "Zażółć gęślą jaźń, naïve façade",
    "你好,世界。こんにちは",
    "emoji 😀👩‍👩‍👧‍👦🇵🇱 done",
    "<|im_start|>user\nspecial tokens in text<|im_end|>\n",
    "numbers 1234567890 and 3.14",
    "the cat sat on the mat. The Cat Sat On The Mat.",
    "\u200bzero width\u00a0nbsp\ufffdreplacement",
]
CORPUS = TEXTS * 3 + [
    "the quick brown fox jumps over the lazy dog",
    "system user assistant tool message content role answer question",
    "You are a helpful assistant. What is the capital of France? The capital of France is Paris.",
] * 4
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def byte_level():
    """As GPT-2, Llama 3, Qwen and SmolLM2."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=SPECIAL, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens([AddedToken("<think>", normalized=False), AddedToken("zażółć", normalized=False)])
    # Left over from a training script, as in some checkpoints: no effect unless a call asks for them.
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=9)
    return tokenizer, {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>",
                       "clean_up_tokenization_spaces": True}


def byte_fallback():
    """As Llama 2, Mistral and Phi-3: SentencePiece BPE with bytes for unknown characters."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    special = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    ascii_corpus = ["".join(c for c in text if c < "\u0180").replace(" ", "▁") for text in CORPUS]
    trainer = trainers.BpeTrainer(vocab_size=480, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(ascii_corpus, trainer)
    data = json.loads(tokenizer.to_str())
    data["added_tokens"] = [token for token in data["added_tokens"] if token["id"] < 3]
    tokenizer = Tokenizer.from_str(json.dumps(data))
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
                                           decoders.Strip(" ", 1, 0)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)])
    return tokenizer, {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def unigram():
    """As T5 and XGLM: SentencePiece Unigram."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=300, special_tokens=["<unk>", "<s>", "</s>"], unk_token="<unk>",
                                      show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    return tokenizer, {"eos_token": "</s>", "unk_token": "<unk>", "clean_up_tokenization_spaces": True}


def word_piece():
    """As BERT: words and their `##` continuations."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=400, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]"],
                                        show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    return tokenizer, {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]",
                       "clean_up_tokenization_spaces": True}


def write(name, value):
    (HERE / name).write_text(json.dumps(value, ensure_ascii=False) + "\n", encoding="utf-8")


def write_cases(name, head, cases):
    """One case a line, so that changes can be read."""
    lines = ",\n".join(json.dumps(case, ensure_ascii=False) for case in cases)
    head = json.dumps({"transformers": transformers.__version__, **head})[:-1]
    (HERE / name).write_text(f'{head}, "cases": [\n{lines}\n]}}\n', encoding="utf-8")


def load(kind):
    config = json.loads((HERE / f"{kind}.tokenizer_config.json").read_text())
    return PreTrainedTokenizerFast(tokenizer_file=str(HERE / f"{kind}.tokenizer.json"), **config)


def tokenizer_cases(kind, rng):
    tokenizer = load(kind)
    encoded = [{
        "text": text,
        "tokens": tokenizer.encode(text, add_special_tokens=False),
        "tokens_with_special": tokenizer.encode(text, add_special_tokens=True),
    } for text in TEXTS]
    sequences = [case["tokens_with_special"] for case in encoded]
    # Any sequence, tokens outside the vocabulary among them.
    sequences += [[rng.randrange(len(tokenizer) + 3) for _ in range(rng.randrange(1, 40))] for _ in range(40)]
    decoded = [{
        "tokens": tokens,
        "text": tokenizer.decode(tokens),
        "text_without_special": tokenizer.decode(tokens, skip_special_tokens=True),
    } for tokens in sequences]
    return {"kind": kind, "vocab_size": len(tokenizer), "special_token_ids": sorted(
        token for token, added in tokenizer.added_tokens_decoder.items() if added.special),
            "encoded": encoded, "decoded": decoded}


CONVERSATIONS = [
    [("user", "Hello")],
    [("user", "  padded \n")],
    [("system", "You are terse."), ("user", "What is 2 + 2?")],
    [("user", "Hi"), ("assistant", " Hello! "), ("user", "Who are you?")],
    [("system", "S"), ("user", "Q"), ("assistant", "<think>\nhmm\n</think>\n\nA"), ("user", "again")],
    [("system", "S"), ("user", "Q"), ("assistant", "<think>\nhmm\n</think>\n\nA")],
    [("user", "Q"), ("assistant", "A"), ("assistant", "B")],
    [("user", "one"), ("user", "two")],
    [("assistant", "first"), ("user", "second")],
    [("user", "weather?"), ("assistant", "let me see"), ("tool", '{"t": 21}'), ("assistant", "21 degrees")],
    [("user", "weather?"), ("tool", "a <b> & \"c\" 'd' é 😀\n"), ("tool", "b")],
    [("wizard", "an unknown role")],
    [("user", "")],
    [("user", "{{ messages }} {% raw %} <|im_end|> 你好 😀 \\n")],
    [("user", "1"), ("assistant", "2"), ("skip", "3"), ("user", "4"), ("assistant", "5"), ("user", "6")],
]


class Frozen(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return NOW


def chat_cases():
    chat_template_utils.datetime = Frozen
    tokenizer = load("byte_level")
    cases = []
    for path in sorted((HERE / "templates").glob("*.jinja")):
        template = path.read_text()
        for conversation in CONVERSATIONS:
            for add_generation_prompt in (False, True):
                messages = [{"role": role, "content": content} for role, content in conversation]
                case = {"template": path.name, "messages": messages, "add_generation_prompt": add_generation_prompt}
                arguments = dict(chat_template=template, add_generation_prompt=add_generation_prompt)
                try:
                    case["text"] = tokenizer.apply_chat_template(messages, tokenize=False, **arguments)
                    if path.name in ("chatml.jinja", "qwen.jinja"):
                        case["tokens"] = tokenizer.apply_chat_template(messages, return_dict=False, **arguments)
                except TemplateError as error:
                    case["error"] = error.message
                    case["refused"] = type(error) is TemplateError
                cases.append(case)
    return {"now_unix_s": int(NOW.replace(tzinfo=datetime.timezone.utc).timestamp())}, cases


def main():
    kinds = [byte_level, byte_fallback, unigram, word_piece]
    for make in kinds:
        # Unigram's training may pick other pieces on another run; keep what is there.
        if (HERE / f"{make.__name__}.tokenizer.json").exists():
            continue
        tokenizer, config = make()
        write(f"{make.__name__}.tokenizer.json", json.loads(tokenizer.to_str()))
        write(f"{make.__name__}.tokenizer_config.json", config)
    rng = random.Random(1)
    write_cases("tokenizers.json", {}, [tokenizer_cases(make.__name__, rng) for make in kinds])
    write_cases("chat.json", *chat_cases())


if __name__ == "__main__":
    main()

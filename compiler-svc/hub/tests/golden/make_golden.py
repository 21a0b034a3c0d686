"""Makes the golden data beside this file from libraries that this project did not write.

    python make_golden.py transformers SMOLLM2.gguf GEMMA3.gguf   needs torch, transformers, gguf, sentencepiece
    python make_golden.py llama.cpp SMOLLM2.gguf GEMMA3.gguf      needs llama-cpp-python

SMOLLM2.gguf is SmolLM2-135M-Instruct.Q4_1.gguf and GEMMA3.gguf is gemma-3-270m-q4_k_m.gguf, as
`scripts/fetch_models.py smollm2 gemma3` fetches them. The output does not depend on the machine.
"""

import json
import os
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))

TEXTS = [
    "",
    " ",
    "Hello, world!",
    "The quick brown fox jumps over the lazy dog.",
    "  two leading spaces, two trailing  ",
    "a   b    c     d\t\te \t f",
    "line\nbreak\r\nwindows\n\n\nthree   \n   indented",
    "caf\u00e9 na\u00efve \u00fcber Stra\u00dfe \u0141\u00f3d\u017a \u00c5ngstr\u00f6m cafe\u0301",
    "\u4f60\u597d\uff0c\u4e16\u754c\u3002\u3053\u3093\u306b\u3061\u306f \uc548\ub155\ud558\uc138\uc694",
    "\u0645\u0631\u062d\u0628\u0627 \u05e9\u05dc\u05d5\u05dd \u0928\u092e\u0938\u094d\u0924\u0947 \u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35",
    "\U0001f600\U0001f680 \U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466 \u2764\ufe0f \U0001f1e9\U0001f1ea",
    "0 1 12 123 1234567890 3.14159 -2e10 1,000,000 0xFF",
    "I'm you're he'd we'll they've don't O'Brien 'quoted' I'M",
    "def fibonacci(n: int) -> int:\n    if n < 2:\n        return n\n    return fibonacci(n-1) + fibonacci(n-2)\n",
    "for (let i = 0; i < 10; i++) { console.log(`${i}`); } // comment",
    "<html><body class=\"a-b_c\">&nbsp;</body></html>",
    "SELECT * FROM t WHERE x >= 5 AND y != 'z';",
    "https://example.com/path?query=1&other=%20#fragment",
    "<|im_start|>user\nWhat is 2+2?<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|>system\nYou are helpful.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n",
    "text<|im_end|>text<|endoftext|> <|im_start|> <repo_name>x<file_sep>",
    "<|im_start|im_end|> <|unknown|> <| endoftext|>",
    "MiXeD cAsE ALLCAPS camelCase snake_case kebab-case",
    "\u2200x\u2208\u211d: x\u00b2 \u2265 0 \u2234 \u221a2 \u2248 1.41421",
    "zero\u200bwidth non\u00a0breaking soft\u00adhyphen \ufeffBOM",
    "\x00\x01\x7f control",
    "a" * 200,
    "!" * 40 + "?" * 40,
    "\u2581underscore \u0120G \u010aC",
]

# Whitespace before a digit. The model's own tokenizer splits off digits first; transformers' GGUF loader does not know
# `tokenizer.ggml.pre = smollm`, so only llama.cpp is a reference here.
TEXTS_WITH_SPACE_BEFORE_DIGITS = [
    "a  12",
    "Steps:\n\n1. First\n\n2. Second",
    "   7   8",
    "x =    10\n    20",
    "\n\n2024\n\n\n2025",
]

SENTENCEPIECE_CORPUS = """
The quick brown fox jumps over the lazy dog. The dog sleeps, and the fox runs away over the hill.
A model reads tokens and writes tokens; a tokenizer turns text into tokens and tokens into text.
She sells sea shells by the sea shore. The shells that she sells are sea shells, I am sure.
Numbers like 12, 345 and 6789 are text too. So are caf\u00e9, na\u00efve and stra\u00dfe.
How much wood would a woodchuck chuck if a woodchuck could chuck wood? As much wood as a woodchuck could.
"""

SENTENCEPIECE_TEXTS = [
    "",
    "The quick brown fox",
    "the dog and the woodchuck",
    "  two  spaces   inside and before",
    "trailing ",
    "caf\u00e9 na\u00efve stra\u00dfe",
    "byte fallback: \u4f60\u597d \U0001f680",
    "12345 tokens\nnew line\ttab",
    "xyzzy QWERTY",
]


def dump(name, value):
    with open(os.path.join(HERE, name), "w", encoding="ascii") as file:
        json.dump(value, file, indent=1, sort_keys=True)
        file.write("\n")


def quantisation():
    """Random blocks of every format, and what gguf-py decodes them to."""
    import gguf
    import numpy

    random = numpy.random.default_rng(20240607)
    # Format: (byte offsets of fp16 numbers in a block).
    formats = {
        "Q8_0": [0], "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2],
        "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208],
    }
    folder = os.path.join(HERE, "quantisation")
    os.makedirs(folder, exist_ok=True)

    def write(name, data, kind):
        values = gguf.quants.dequantize(data, kind).astype("<f4")
        data.tofile(os.path.join(folder, name + ".blocks"))
        values.tofile(os.path.join(folder, name + ".f32"))

    for name, halves in formats.items():
        kind = gguf.GGMLQuantizationType[name]
        _, size = gguf.GGML_QUANT_SIZES[kind]
        data = random.integers(0, 256, size=(5, size), dtype=numpy.uint8)
        for offset in halves:
            scales = (random.standard_normal(5) * 0.05).astype("<f2")
            data[:, offset : offset + 2] = scales.view(numpy.uint8).reshape(5, 2)
        # The extremes of every field, in one block.
        data[4] = 0xFF
        for offset in halves:
            data[4, offset : offset + 2] = numpy.array([0.125], "<f2").view(numpy.uint8)
        write(name, data.reshape(-1), kind)
    # Normal, subnormal and largest numbers.
    halves = numpy.array([0, 0x8000, 1, 0x03FF, 0x0400, 0x7BFF, 0xFBFF, 0x3C01], "<u2")
    write("F16", halves.view(numpy.uint8), gguf.GGMLQuantizationType.F16)
    brains = numpy.array([0, 0x8000, 1, 0x007F, 0x0080, 0x7F7F, 0xFF7F, 0x3F81], "<u2")
    write("BF16", brains.view(numpy.uint8), gguf.GGMLQuantizationType.BF16)


def sample(state, names):
    """A few elements of tensors, by flat index."""
    out = {}
    for name in names:
        tensor = state[name].float()
        flat = tensor.flatten()
        indices = sorted({int(flat.numel() * part / 97) for part in range(97)} | {0, flat.numel() - 1})
        out[name] = {"shape": list(tensor.shape), "indices": indices, "values": [float(flat[i]) for i in indices]}
    return out


CONFIG_FIELDS = [
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "max_position_embeddings", "rms_norm_eps", "vocab_size", "tie_word_embeddings", "hidden_act", "attention_bias",
    "mlp_bias", "head_dim", "bos_token_id", "eos_token_id", "pad_token_id", "model_type", "architectures",
]


def encodings(tokenizer, texts):
    out = []
    for text in texts:
        ids = tokenizer.encode(text)
        out.append({
            "text": text,
            "ids": ids,
            "decoded": tokenizer.decode(ids, clean_up_tokenization_spaces=False),
            "decoded_without_special": tokenizer.decode(
                ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
            ),
        })
    return out


def smollm2(path):
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    where = {"pretrained_model_name_or_path": os.path.dirname(path), "gguf_file": os.path.basename(path)}
    tokenizer = AutoTokenizer.from_pretrained(**where)
    model = AutoModelForCausalLM.from_pretrained(**where)
    config = AutoConfig.from_pretrained(**where)
    layer = "model.layers.%d."
    names = ["model.embed_tokens.weight", "model.norm.weight"] + [
        layer % number + name
        for number in (0, 17, 29)
        for name in (
            "self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight",
            "self_attn.o_proj.weight", "mlp.gate_proj.weight", "mlp.down_proj.weight", "input_layernorm.weight",
            "post_attention_layernorm.weight",
        )
    ]
    state = model.state_dict()
    fields = {name: getattr(config, name) for name in CONFIG_FIELDS}
    fields["architectures"] = [type(model).__name__]
    fields["rope_theta"] = config.rope_parameters["rope_theta"]
    dump("smollm2_transformers.json", {
        "chat_template": tokenizer.chat_template,
        "config": fields,
        "encodings": encodings(tokenizer, TEXTS),
        "tensor_names": sorted(name for name in state if name != "lm_head.weight"),
        "tensors": sample(state, names),
    })


GEMMA3_CONFIG_FIELDS = [
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
    "max_position_embeddings", "rms_norm_eps", "vocab_size", "tie_word_embeddings", "hidden_activation",
    "sliding_window", "query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping", "bos_token_id",
    "eos_token_id", "pad_token_id", "model_type", "architectures",
]


def gemma3(path):
    from transformers import AutoConfig, AutoModelForCausalLM

    where = {"pretrained_model_name_or_path": os.path.dirname(path), "gguf_file": os.path.basename(path)}
    model = AutoModelForCausalLM.from_pretrained(**where)
    config = AutoConfig.from_pretrained(**where)
    layer = "model.layers.%d."
    names = ["model.embed_tokens.weight", "model.norm.weight"] + [
        layer % number + name
        for number in (17,)
        for name in (
            "input_layernorm.weight", "self_attn.q_proj.weight", "self_attn.k_norm.weight", "self_attn.v_proj.weight",
            "self_attn.o_proj.weight", "post_attention_layernorm.weight", "pre_feedforward_layernorm.weight",
            "mlp.gate_proj.weight", "mlp.down_proj.weight", "post_feedforward_layernorm.weight",
        )
    ]
    state = model.state_dict()
    fields = {name: getattr(config, name) for name in GEMMA3_CONFIG_FIELDS}
    fields["architectures"] = [type(model).__name__]
    fields["rope_theta"] = config.rope_parameters["full_attention"]["rope_theta"]
    fields["rope_local_base_freq"] = config.rope_parameters["sliding_attention"]["rope_theta"]
    full = [index + 1 for index, kind in enumerate(config.layer_types) if kind == "full_attention"]
    fields["sliding_window_pattern"] = full[0]
    assert full == list(range(full[0], config.num_hidden_layers + 1, full[0]))
    dump("gemma3_transformers.json", {
        "config": fields,
        "tensor_names": sorted(name for name in state if name != "lm_head.weight"),
        "tensors": sample(state, names),
    })


def sentencepiece():
    """A tiny llama with a SentencePiece vocabulary: the GGUF file, and what transformers reads from it."""
    import gguf
    import numpy
    import sentencepiece as spm
    from transformers import AutoModelForCausalLM

    random = numpy.random.default_rng(7)
    hidden, heads, key_value_heads, feed_forward, layers = 32, 4, 2, 64, 2
    path = os.path.join(HERE, "tiny_sentencepiece.gguf")
    with tempfile.TemporaryDirectory() as folder:
        corpus = os.path.join(folder, "corpus.txt")
        with open(corpus, "w", encoding="utf-8") as file:
            file.write(SENTENCEPIECE_CORPUS)
        prefix = os.path.join(folder, "model")
        spm.SentencePieceTrainer.train(
            input=corpus, model_prefix=prefix, vocab_size=400, model_type="bpe", byte_fallback=True,
            character_coverage=1.0, remove_extra_whitespaces=False, normalization_rule_name="identity",
            num_threads=1, minloglevel=2,
        )
        pieces = spm.SentencePieceProcessor(model_file=prefix + ".model")
        size = pieces.vocab_size()
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_context_length(64)
        writer.add_embedding_length(hidden)
        writer.add_block_count(layers)
        writer.add_feed_forward_length(feed_forward)
        writer.add_head_count(heads)
        writer.add_head_count_kv(key_value_heads)
        writer.add_layer_norm_rms_eps(1e-6)
        writer.add_rope_dimension_count(hidden // heads)
        writer.add_vocab_size(size)
        writer.add_tokenizer_model("llama")
        writer.add_token_list([pieces.id_to_piece(i) for i in range(size)])
        writer.add_token_scores([pieces.get_score(i) for i in range(size)])
        kinds = gguf.TokenType
        writer.add_token_types([
            kinds.UNKNOWN if pieces.is_unknown(i)
            else kinds.CONTROL if pieces.is_control(i)
            else kinds.BYTE if pieces.is_byte(i)
            else kinds.NORMAL
            for i in range(size)
        ])
        writer.add_bos_token_id(pieces.bos_id())
        writer.add_eos_token_id(pieces.eos_id())
        writer.add_unk_token_id(pieces.unk_id())

        def tensor(name, *shape):
            writer.add_tensor(name, random.standard_normal(shape).astype(numpy.float32))

        kv = hidden // heads * key_value_heads
        tensor("token_embd.weight", size, hidden)
        tensor("output_norm.weight", hidden)
        tensor("output.weight", size, hidden)
        for number in range(layers):
            block = f"blk.{number}."
            tensor(block + "attn_norm.weight", hidden)
            tensor(block + "attn_q.weight", hidden, hidden)
            tensor(block + "attn_k.weight", kv, hidden)
            tensor(block + "attn_v.weight", kv, hidden)
            tensor(block + "attn_output.weight", hidden, hidden)
            tensor(block + "ffn_norm.weight", hidden)
            tensor(block + "ffn_gate.weight", feed_forward, hidden)
            tensor(block + "ffn_up.weight", feed_forward, hidden)
            tensor(block + "ffn_down.weight", hidden, feed_forward)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        encodings = []
        for text in SENTENCEPIECE_TEXTS:
            ids = pieces.encode(text)
            encodings.append({"text": text, "ids": [pieces.bos_id()] + ids, "decoded": pieces.decode(ids)})
    model = AutoModelForCausalLM.from_pretrained(HERE, gguf_file=os.path.basename(path))
    state = model.state_dict()
    dump("tiny_sentencepiece.json", {"encodings": encodings, "tensors": sample(state, sorted(state))})


def llama_cpp(path, name, add_bos):
    from llama_cpp import Llama

    model = Llama(path, vocab_only=True, verbose=False)
    texts = [text for text in TEXTS if "\x00" not in text] + TEXTS_WITH_SPACE_BEFORE_DIGITS
    dump(name, [
        {"text": text, "ids": model.tokenize(text.encode("utf-8"), add_bos=add_bos, special=True)} for text in texts
    ])


if __name__ == "__main__":
    reference, smollm2_path, gemma3_path = sys.argv[1], *map(os.path.abspath, sys.argv[2:4])
    if reference == "transformers":
        quantisation()
        smollm2(smollm2_path)
        gemma3(gemma3_path)
        sentencepiece()
    elif reference == "llama.cpp":
        llama_cpp(smollm2_path, "smollm2_llama_cpp.json", add_bos=False)
        llama_cpp(gemma3_path, "gemma3_llama_cpp.json", add_bos=True)
    else:
        sys.exit(__doc__)

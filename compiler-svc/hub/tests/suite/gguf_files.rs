//! Small GGUF files, made on the spot.

/// A metadata value.
#[derive(Debug, Clone)]
pub(crate) enum Value {
    U32(u32),
    F32(f32),
    Bool(bool),
    String(String),
    Strings(Vec<String>),
    I32s(Vec<i32>),
    F32s(Vec<f32>),
    /// A type and anything.
    Raw(u32, Vec<u8>),
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::String(text.to_owned())
    }
}

/// A tensor's description and data.
#[derive(Debug, Clone)]
pub(crate) struct Tensor {
    pub(crate) name: String,
    /// As in the file: fastest first.
    pub(crate) dimensions: Vec<u64>,
    pub(crate) kind: u32,
    pub(crate) data: Vec<u8>,
    /// Instead of the next free one.
    pub(crate) offset: Option<u64>,
}

/// A file to be.
#[derive(Debug, Clone)]
pub(crate) struct Gguf {
    pub(crate) version: u32,
    pub(crate) pairs: Vec<(String, Value)>,
    pub(crate) tensors: Vec<Tensor>,
    /// Instead of the true ones.
    pub(crate) tensor_count: Option<u64>,
    pub(crate) pair_count: Option<u64>,
}

fn string(out: &mut Vec<u8>, text: &[u8]) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text);
}

impl Gguf {
    /// A llama of one layer with a byte-level vocabulary: F32 tensors, hidden size 8, two heads.
    pub(crate) fn tiny() -> Self {
        let alphabet = byte_alphabet();
        let mut tokens: Vec<String> = alphabet.iter().map(char::to_string).collect();
        tokens.extend(["he", "ll", "<|end|>"].map(str::to_owned));
        let mut types = vec![1; tokens.len()];
        types[258] = 3;
        let vocabulary = tokens.len() as u64;
        let pairs: Vec<(&str, Value)> = vec![
            ("general.architecture", "llama".into()),
            ("llama.context_length", Value::U32(32)),
            ("llama.embedding_length", Value::U32(8)),
            ("llama.block_count", Value::U32(1)),
            ("llama.feed_forward_length", Value::U32(16)),
            ("llama.attention.head_count", Value::U32(2)),
            ("llama.attention.layer_norm_rms_epsilon", Value::F32(1e-5)),
            ("tokenizer.ggml.model", "gpt2".into()),
            ("tokenizer.ggml.pre", "gpt-2".into()),
            ("tokenizer.ggml.tokens", Value::Strings(tokens)),
            ("tokenizer.ggml.token_type", Value::I32s(types)),
            ("tokenizer.ggml.merges", Value::Strings(vec!["h e".to_owned(), "l l".to_owned()])),
            ("tokenizer.ggml.eos_token_id", Value::U32(258)),
        ];
        let mut file = Self {
            version: 3,
            pairs: pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect(),
            tensors: Vec::new(),
            tensor_count: None,
            pair_count: None,
        };
        for (name, dimensions) in [
            ("token_embd.weight", vec![8, vocabulary]),
            ("output_norm.weight", vec![8]),
            ("blk.0.attn_q.weight", vec![8, 8]),
            ("blk.0.attn_k.weight", vec![8, 8]),
        ] {
            file.tensor(name, &dimensions);
        }
        file
    }

    /// Adds an F32 tensor whose elements count up from 0.
    pub(crate) fn tensor(&mut self, name: &str, dimensions: &[u64]) -> &mut Tensor {
        let data =
            (0..dimensions.iter().product::<u64>()).flat_map(|index| (index as f32).to_le_bytes()).collect();
        self.tensors.push(Tensor {
            name: name.to_owned(),
            dimensions: dimensions.to_vec(),
            kind: 0,
            data,
            offset: None,
        });
        self.tensors.last_mut().unwrap()
    }

    pub(crate) fn set(&mut self, key: &str, value: impl Into<Value>) {
        self.unset(key);
        self.pairs.push((key.to_owned(), value.into()));
    }

    pub(crate) fn unset(&mut self, key: &str) {
        self.pairs.retain(|(name, _)| name != key);
    }

    /// The header's bytes, and all bytes.
    pub(crate) fn bytes(&self) -> (usize, Vec<u8>) {
        let mut out = b"GGUF".to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend(self.tensor_count.unwrap_or(self.tensors.len() as u64).to_le_bytes());
        out.extend(self.pair_count.unwrap_or(self.pairs.len() as u64).to_le_bytes());
        for (key, value) in &self.pairs {
            string(&mut out, key.as_bytes());
            write(&mut out, value);
        }
        let mut data: Vec<u8> = Vec::new();
        for tensor in &self.tensors {
            string(&mut out, tensor.name.as_bytes());
            out.extend((tensor.dimensions.len() as u32).to_le_bytes());
            tensor.dimensions.iter().for_each(|dimension| out.extend(dimension.to_le_bytes()));
            out.extend(tensor.kind.to_le_bytes());
            out.extend(tensor.offset.unwrap_or(data.len() as u64).to_le_bytes());
            if tensor.offset.is_none() {
                data.extend(&tensor.data);
                data.resize(data.len().next_multiple_of(32), 0);
            }
        }
        let header = out.len();
        out.resize(header.next_multiple_of(32), 0);
        out.extend(data);
        (header, out)
    }
}

fn write(out: &mut Vec<u8>, value: &Value) {
    let mut array = |element: u32, count: usize| {
        out.extend(9u32.to_le_bytes());
        out.extend(element.to_le_bytes());
        out.extend((count as u64).to_le_bytes());
    };
    match value {
        Value::U32(number) => out.extend([4u32.to_le_bytes(), number.to_le_bytes()].concat()),
        Value::F32(number) => out.extend([6u32.to_le_bytes(), number.to_le_bytes()].concat()),
        Value::Bool(truth) => {
            out.extend(7u32.to_le_bytes());
            out.push(u8::from(*truth));
        }
        Value::String(text) => {
            out.extend(8u32.to_le_bytes());
            string(out, text.as_bytes());
        }
        Value::Strings(texts) => {
            array(8, texts.len());
            texts.iter().for_each(|text| string(out, text.as_bytes()));
        }
        Value::I32s(numbers) => {
            array(5, numbers.len());
            numbers.iter().for_each(|number| out.extend(number.to_le_bytes()));
        }
        Value::F32s(numbers) => {
            array(6, numbers.len());
            numbers.iter().for_each(|number| out.extend(number.to_le_bytes()));
        }
        Value::Raw(kind, bytes) => {
            out.extend(kind.to_le_bytes());
            out.extend(bytes);
        }
    }
}

/// How byte-level BPE spells each byte: printable ones as they are, the others from U+0100 on.
pub(crate) fn byte_alphabet() -> Vec<char> {
    let mut others = 256u32..;
    (0..=255u8)
        .map(|byte| match byte {
            b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF => char::from(byte),
            _ => char::from_u32(others.next().unwrap()).unwrap(),
        })
        .collect()
}

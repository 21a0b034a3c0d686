//! From a guide to a matcher, for one vocabulary.

use std::sync::Arc;
use std::thread::Builder;

use llguidance::api::ParserLimits;
use llguidance::{Matcher, ParserFactory};
use roundhouse_text::{TokenBytes, Tokenizer};
use toktrie::{INVALID_TOKEN, TokEnv, TokRxInfo, TokTrie, TokenId, TokenizerEnv};

use crate::mask_pool::{MaskPool, reason};
use crate::{Guide, GuideError, TokenGuide};

/// The longest token in bytes that a grammar can use.
const MAX_TOKEN_BYTES: usize = 255;

/// The library calls itself for each rule on the way from a grammar's first to its last, of which the longest grammar has
/// several thousand, each with some kilobytes. Only what is used of a stack takes memory.
const COMPILE_STACK_BYTES: usize = 256 << 20;

/// Bounds the states of a lexer, each of 1 to 2 KiB, of one output.
const MAX_LEXER_STATES: usize = 32 * 1024;

/// Makes guides of one engine's tokens. Takes some megabytes and a moment to make: one an engine, when first needed.
pub struct GrammarCompiler {
    factory: ParserFactory,
    pool: Arc<MaskPool>,
}

impl GrammarCompiler {
    /// Of a tokenizer, for a model with logits for tokens below `vocab_size`; an output ends with one of `end_tokens`.
    ///
    /// # Errors
    /// [`GuideError::Tokenizer`].
    pub fn new(tokenizer: Arc<Tokenizer>, vocab_size: usize, end_tokens: &[u32]) -> Result<Self, GuideError> {
        let unusable = |reason: String| GuideError::Tokenizer { reason };
        let mut written = tokenizer.token_bytes().map_err(|error| unusable(error.to_string()))?;
        written.resize(vocab_size, TokenBytes::Absent);
        let words: Vec<Vec<u8>> = written.into_iter().map(trie_word).collect();
        let size = u32::try_from(words.len()).map_err(|error| unusable(error.to_string()))?;
        let end_tokens: Vec<u32> = end_tokens.iter().copied().filter(|&token| token < size).collect();
        let info = TokRxInfo::new(size, end_tokens.first().copied().unwrap_or(INVALID_TOKEN));
        let mut trie = TokTrie::from(&info, &words);
        if !end_tokens.is_empty() {
            trie = trie.with_eos_tokens(&end_tokens);
        }
        let environment: TokEnv = Arc::new(Vocabulary::new(tokenizer, trie));
        let mut factory =
            ParserFactory::new_simple(&environment).map_err(|error| unusable(error.to_string()))?;
        factory.quiet();
        *factory.limits_mut() = ParserLimits {
            max_lexer_states: MAX_LEXER_STATES,
            verbose_errors: false,
            ..ParserLimits::default()
        };
        Ok(Self { factory, pool: Arc::new(MaskPool::start()) })
    }

    /// A guide for one output. The work is bounded, and may take some tens of milliseconds.
    ///
    /// # Errors
    /// [`GuideError`] says what is wrong with the grammar.
    pub fn compile(&self, guide: &Guide) -> Result<TokenGuide, GuideError> {
        let fault = |reason: String| GuideError::Invalid { kind: guide.kind(), reason };
        std::thread::scope(|scope| {
            let thread = Builder::new().name("grammar".to_owned()).stack_size(COMPILE_STACK_BYTES);
            let compiling = thread.spawn_scoped(scope, || self.compile_here(guide));
            let compiled = compiling.map_err(|error| fault(format!("no thread to read it on: {error}")))?;
            compiled.join().map_err(|_| fault("reading it ended abnormally".to_owned()))?
        })
    }

    fn compile_here(&self, guide: &Guide) -> Result<TokenGuide, GuideError> {
        let kind = guide.kind();
        let invalid = |message: String| GuideError::Invalid { kind, reason: reason(&message) };
        let parser = self.factory.create_parser(guide.grammar()?);
        let matcher = Matcher::new(Ok(parser.map_err(|error| invalid(error.to_string()))?));
        match matcher.get_error() {
            Some(message) => Err(invalid(message)),
            None => TokenGuide::new(Box::new(matcher), Arc::clone(&self.pool)),
        }
    }
}

/// What a token is in the trie: special ones behind a byte that no text has.
fn trie_word(token: TokenBytes) -> Vec<u8> {
    match token {
        TokenBytes::Text(bytes) if bytes.len() <= MAX_TOKEN_BYTES => bytes,
        TokenBytes::Special(name) if name.len() < MAX_TOKEN_BYTES => {
            let mut word = vec![TokTrie::SPECIAL_TOKEN_MARKER];
            word.extend(name.as_bytes());
            word
        }
        TokenBytes::Text(_) | TokenBytes::Special(_) | TokenBytes::Absent => Vec::new(),
    }
}

/// The vocabulary as the library sees it.
struct Vocabulary {
    tokenizer: Arc<Tokenizer>,
    trie: TokTrie,
    is_canonical: bool,
}

impl Vocabulary {
    fn new(tokenizer: Arc<Tokenizer>, trie: TokTrie) -> Self {
        let mut vocabulary = Self { tokenizer, trie, is_canonical: true };
        // Where the tokenizer adds something to a text, such as a space before it, its tokens are not those of the
        // middle of a text, and the model chooses its own.
        vocabulary.is_canonical = ["a", "{\"a\": 1}", " b\n"].iter().all(|text| {
            let tokens = vocabulary.tokenize_bytes(text.as_bytes());
            vocabulary.trie.decode_raw(&tokens) == text.as_bytes()
        });
        vocabulary
    }
}

impl TokenizerEnv for Vocabulary {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<TokenId> {
        self.trie.tokenize_with_greedy_fallback(bytes, |text| {
            let tokens = self.tokenizer.encode(text, false).unwrap_or_default();
            match tokens.is_empty() || tokens.iter().any(|&token| self.tokenizer.is_special(token)) {
                // A text that the tokenizer cannot encode, or that spells out a special token.
                true => self.trie.greedy_tokenize(text.as_bytes()),
                false => tokens,
            }
        })
    }

    fn tokenize_is_canonical(&self) -> bool {
        self.is_canonical
    }
}

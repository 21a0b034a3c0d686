//! A session's history and the new tokens of a turn are together what Transformers makes of the whole conversation.

use std::time::SystemTime;

use crate::common;
use roundhouse_text::{
    ChatMessage, ChatTemplate, Continuation, RenderOptions, TextError, Tokenizer, continue_conversation,
};

const NOW: SystemTime = SystemTime::UNIX_EPOCH;

struct Session {
    tokenizer: Tokenizer,
    template: ChatTemplate,
    messages: Vec<ChatMessage>,
    history: Vec<u32>,
}

impl Session {
    fn new(template: &str) -> Self {
        let source = std::fs::read_to_string(common::golden_path("templates").join(template)).unwrap();
        let special_tokens = common::config("byte_level").special_tokens;
        Self {
            tokenizer: common::tokenizer("byte_level"),
            template: ChatTemplate::new(&source, special_tokens).unwrap(),
            messages: Vec::new(),
            history: Vec::new(),
        }
    }

    fn say(&mut self, role: &str, content: &str) {
        self.messages.push(ChatMessage { role: role.to_owned(), content: content.into() });
    }

    /// Begins the answer, and checks the history against the whole conversation.
    fn turn(&mut self) -> Continuation {
        let options = RenderOptions { add_generation_prompt: true, now: NOW };
        let continuation =
            continue_conversation(&self.tokenizer, &self.template, &self.history, &self.messages, &options)
                .unwrap();
        self.history.truncate(continuation.keep_prefix_len);
        self.history.extend(&continuation.new_tokens);
        let whole = self.template.render(&self.messages, &options).unwrap();
        assert_eq!(self.history, self.tokenizer.encode(&whole, false).unwrap());
        assert!(!continuation.new_tokens.is_empty());
        continuation
    }

    fn generate(&mut self, text: &str) {
        self.history.extend(self.tokenizer.encode(text, false).unwrap());
    }
}

#[test]
fn the_end_of_turn_token_may_be_in_the_history_or_not() {
    for end in ["<|im_end|>", ""] {
        let mut session = Session::new("chatml.jinja");
        session.say("user", "Hello");
        assert_eq!(session.turn().keep_prefix_len, 0);
        session.generate("Hi there");
        session.generate(end);
        let before = session.history.len();
        session.say("assistant", "Hi there");
        session.say("user", "Bye");
        let continuation = session.turn();
        assert_eq!(continuation.keep_prefix_len, before, "all of the history stays, ended by {end:?}");
        let text = session.tokenizer.decode(&continuation.new_tokens, false).unwrap();
        let rest = "\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n";
        assert_eq!(text, if end.is_empty() { format!("<|im_end|>{rest}") } else { rest.to_owned() });
    }
}

#[test]
fn an_answer_cut_at_a_stop_string_loses_the_tokens_past_its_text() {
    let mut session = Session::new("chatml.jinja");
    session.say("user", "Hello");
    session.turn();
    session.generate("one");
    let kept = session.history.len();
    session.generate("\n\nSTOP and more");
    session.say("assistant", "one");
    session.say("user", "go on");
    assert_eq!(session.turn().keep_prefix_len, kept);
}

#[test]
fn a_template_that_rewrites_an_answer_keeps_what_is_before_it() {
    let mut session = Session::new("qwen.jinja");
    session.say("user", "Q");
    session.turn();
    let prompt = session.history.len();
    let answer = "<think>\nreasons\n</think>\n\nA";
    session.generate(answer);
    session.generate("<|im_end|>");
    session.say("assistant", answer);
    session.say("user", "more");
    let keep = session.turn().keep_prefix_len;
    assert_eq!(keep, prompt, "the reasoning is left out of the next turn's prompt");
}

#[test]
fn tokens_that_are_not_the_tokenizers_choice_are_replaced() {
    let mut session = Session::new("chatml.jinja");
    session.say("user", "Hello");
    session.turn();
    let prompt = session.history.len();
    for letter in ["t", "h", "e"] {
        session.generate(letter);
    }
    assert_eq!(session.history.len(), prompt + 3);
    session.say("assistant", "the");
    session.say("user", "next");
    let keep = session.turn().keep_prefix_len;
    assert!((prompt..prompt + 3).contains(&keep), "{keep} of {prompt} and 3");
}

#[test]
fn there_is_always_a_token_to_compute() {
    let mut session = Session::new("chatml.jinja");
    session.say("user", "Hello");
    let whole = session.turn().new_tokens.len();
    let again = session.turn();
    assert_eq!((again.keep_prefix_len, again.new_tokens.len()), (whole - 1, 1));
}

#[test]
fn messages_that_render_to_nothing_are_an_error() {
    let mut session = Session::new("chatml.jinja");
    session.template = ChatTemplate::new("{# #}", std::collections::BTreeMap::new()).unwrap();
    session.say("user", "Hello");
    let options = RenderOptions { add_generation_prompt: true, now: NOW };
    let result = continue_conversation(
        &session.tokenizer,
        &session.template,
        &session.history,
        &session.messages,
        &options,
    );
    assert!(matches!(result, Err(TextError::EmptyRendering)));
}

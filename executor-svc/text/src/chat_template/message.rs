//! What conversations are made of.

use serde::{Deserialize, Serialize};

/// A message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChatMessage {
    /// `system`, `user`, `assistant`, or another role that the template knows.
    pub role: String,
    /// What it says.
    pub content: Content,
}

/// What a message says: in templates and as JSON a string, or a list of Transformers' parts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Content {
    /// Text.
    Text(String),
    /// Text and images.
    Parts(Vec<ContentPart>),
}

/// A part of a message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ContentPart {
    /// Text.
    Text {
        /// The text.
        text: String,
    },
    /// The conversation's next image, for which the template writes the model's placeholder.
    Image,
}

impl Content {
    /// Bytes of text.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Parts(parts) => parts.iter().map(ContentPart::len).sum(),
        }
    }

    /// Whether it says nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        match self {
            Self::Text(text) => text.is_empty(),
            Self::Parts(parts) => parts.is_empty(),
        }
    }

    /// As text where it has no image.
    #[must_use]
    pub fn simplified(self) -> Self {
        match self {
            Self::Parts(parts) if parts.iter().all(|part| *part != ContentPart::Image) => {
                let texts = parts.into_iter().map(|part| match part {
                    ContentPart::Text { text } => text,
                    ContentPart::Image => String::new(),
                });
                Self::Text(texts.collect())
            }
            content => content,
        }
    }

    /// How many images it has.
    #[must_use]
    pub fn images(&self) -> usize {
        match self {
            Self::Text(_) => 0,
            Self::Parts(parts) => parts.iter().filter(|part| matches!(part, ContentPart::Image)).count(),
        }
    }
}

impl ContentPart {
    fn len(&self) -> usize {
        match self {
            Self::Text { text } => text.len(),
            Self::Image => 0,
        }
    }
}

impl From<String> for Content {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<&str> for Content {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

//! Transformers' `{% generation %}` blocks, which mark the assistant's tokens for training.

use std::borrow::Cow;

/// The template with each block tag as one of a block that only opens a scope. Whitespace control stays as it is.
pub(super) fn replace(source: &str) -> Cow<'_, str> {
    if !source.contains("generation") {
        return Cow::Borrowed(source);
    }
    let mut replaced = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start);
        replaced.push_str(before);
        let end = tag.find("%}").map_or(tag.len(), |end| end + 2);
        let (tag, after) = tag.split_at(end);
        let name = tag.trim_start_matches("{%").trim_end_matches("%}");
        match name.trim_start_matches(['-', '+']).trim_end_matches(['-', '+']).trim() {
            "generation" => replaced.push_str(&tag.replacen("generation", "with", 1)),
            "endgeneration" => replaced.push_str(&tag.replacen("endgeneration", "endwith", 1)),
            _ => replaced.push_str(tag),
        }
        rest = after;
    }
    replaced.push_str(rest);
    Cow::Owned(replaced)
}

#[cfg(test)]
mod tests {
    use super::replace;

    #[test]
    fn only_the_tags_are_replaced_and_keep_their_whitespace_control() {
        assert_eq!(
            replace("{%- generation -%}{{ generation }}{% set x = 'generation' %}{%endgeneration%}{% if"),
            "{%- with -%}{{ generation }}{% set x = 'generation' %}{%endwith%}{% if"
        );
    }
}

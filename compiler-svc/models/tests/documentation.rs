//! The documentation says what the code does.
#![expect(clippy::unwrap_used, reason = "a panic in a test is a failed test")]

use std::path::Path;

fn repository(file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(file);
    std::fs::read_to_string(path).unwrap()
}

/// The blocks of a language in a text.
fn blocks(text: &str, language: &str) -> Vec<String> {
    let fence = format!("```{language}\n");
    text.split(&fence).skip(1).map(|block| block.split("```").next().unwrap().to_owned()).collect()
}

#[test]
fn the_worked_example_is_a_family_of_the_table() {
    let text = repository("docs/adding-a-model.md");
    let files = [
        ("compiler-svc/models/src/families/olmo2.rs", "rust"),
        ("compiler-svc/models/src/families.rs", "rust"),
        ("tests/golden/tiny_families.py", "python"),
        ("tests/src/golden.rs", "rust"),
    ];
    for language in ["rust", "python"] {
        let blocks = blocks(&text, language);
        assert!(!blocks.is_empty());
        for block in blocks {
            let of_language = || files.iter().filter(|(_, other)| *other == language);
            let found = of_language().any(|(file, _)| repository(file).contains(&block));
            assert!(found, "docs/adding-a-model.md shows what no file has:\n{block}");
        }
    }
    assert!(text.contains(&repository("compiler-svc/models/src/families/olmo2.rs")), "the example is whole");
}

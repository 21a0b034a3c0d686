//! The documentation says what the code does.
#![expect(clippy::unwrap_used, reason = "a panic in a test is a failed test")]

use std::path::Path;

use roundhouse_engine::{CacheKind, Precision};
use roundhouse_models::FAMILIES;

fn repository(file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(file);
    std::fs::read_to_string(path).unwrap()
}

/// Family × cache, with the precisions in the cells.
fn table() -> String {
    let precisions: Vec<&str> = Precision::ALL.iter().map(|precision| precision.name()).collect();
    let caches: Vec<&str> = CacheKind::ALL.iter().map(|cache| cache.name()).collect();
    let row = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
    let names = ["`architectures`", "`model_type`", "models"].map(str::to_owned);
    let columns: Vec<String> =
        names.into_iter().chain(caches.iter().map(|cache| format!("`{cache}`"))).collect();
    let mut table = row(columns.clone());
    table += &format!("|{}\n", "---|".repeat(columns.len()));
    for family in FAMILIES {
        let mut cells = vec![
            format!("`{}`", family.architecture),
            format!("`{}`", family.model_type),
            family.models.to_owned(),
        ];
        cells.extend(caches.iter().map(|_| precisions.join(", ")));
        table += &row(cells);
    }
    table
}

#[test]
fn the_table_of_models_is_the_table_of_families() {
    let text = repository("docs/models.md");
    let (_, rest) = text.split_once("<!-- families:").unwrap();
    let (_, rest) = rest.split_once("-->\n").unwrap();
    let (found, _) = rest.split_once("<!-- end of families -->").unwrap();
    let expected = table();
    assert!(found == expected, "docs/models.md differs; it should have:\n{expected}");
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

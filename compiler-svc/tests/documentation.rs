//! docs/models.md has the table of what is built.

#![cfg(feature = "tensorrt")]
#![expect(clippy::unwrap_used, reason = "a panic in a test is its failure")]

use std::path::{Path, PathBuf};

use roundhouse_backend::LibrarySearch;
use roundhouse_compiler::backends::Backends;
use roundhouse_compiler::support::{BackendSupport, FamilySupport, QuantizedForm, SUPPORT, SupportTable};
use roundhouse_engine::{BackendKind, CacheKind, Precision};

/// What a cell without any precision has.
const NONE: &str = "–";

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn row(cells: &[String]) -> String {
    format!("| {} |\n", cells.join(" | "))
}

fn header(columns: &[String]) -> String {
    row(columns) + &format!("|{}\n", "---|".repeat(columns.len()))
}

fn form_name(form: QuantizedForm) -> String {
    format!("{}{}", form.format.name(), if form.has_offsets { " with offsets" } else { "" })
}

/// The families, and for each backend its engines: precisions by cache, and by the quantised weights that they multiply
/// with.
fn table(families: &[FamilySupport]) -> String {
    let mut text = header(&["`architectures`", "`model_type`", "models"].map(str::to_owned));
    for FamilySupport { family, .. } in families {
        let names = [format!("`{}`", family.architecture), format!("`{}`", family.model_type)];
        text += &row(&[&names[..], &[family.models.to_owned()]].concat());
    }
    for backend in [BackendKind::Cpu, BackendKind::Cuda, BackendKind::TensorRt] {
        text += &format!("\n### `{backend}`\n\n");
        let caches = CacheKind::ALL.iter().map(|cache| format!("`{cache}`"));
        let forms = QuantizedForm::ALL.map(form_name);
        text += &header(
            &std::iter::once("`model_type`".to_owned()).chain(caches).chain(forms).collect::<Vec<_>>(),
        );
        for FamilySupport { family, backends } in families {
            let built = backends.iter().find(|support| support.backend == backend);
            let mut cells = vec![format!("`{}`", family.model_type)];
            cells.extend(built.map_or_else(Vec::new, cells_of));
            text += &row(&cells);
        }
    }
    text
}

/// By cache, and by quantised weights.
fn cells_of(support: &BackendSupport) -> Vec<String> {
    let precisions = |fits: &dyn Fn(&roundhouse_compiler::support::PrecisionSupport) -> bool| {
        let names: Vec<&str> = support
            .precisions
            .iter()
            .filter(|&support| fits(support))
            .map(|support| support.precision.name())
            .collect();
        if names.is_empty() { NONE.to_owned() } else { names.join(", ") }
    };
    let caches = CacheKind::ALL.iter().map(|cache| precisions(&|support| support.caches.contains(cache)));
    let forms = QuantizedForm::ALL;
    let forms = forms.iter().map(|form| precisions(&|support| support.quantized.contains(form)));
    caches.chain(forms).collect()
}

fn backends() -> Backends {
    let library = |variable: &str, folder: &str| LibrarySearch {
        path: std::env::var_os(variable).map(PathBuf::from),
        folders: vec![workspace().join(".roundhouse").join(folder)],
    };
    let tensorrt = library("ROUNDHOUSE_TENSORRT_LIBRARY", "tensorrt");
    let backends = Backends::new(tensorrt, library("ROUNDHOUSE_NVRTC_LIBRARY", "nvrtc"));
    assert_eq!(backends.available(), BackendKind::ALL, "`make tensorrt nvrtc` first");
    backends
}

#[test]
fn the_table_of_models_is_the_table_of_what_is_built() {
    let text = std::fs::read_to_string(workspace().join("docs/models.md")).unwrap();
    let (_, rest) = text.split_once("<!-- families:").unwrap();
    let (_, rest) = rest.split_once("-->\n\n").unwrap();
    let (found, _) = rest.split_once("\n<!-- end of families -->").unwrap();
    let expected = table(&SUPPORT.families(&backends()));
    assert!(found == expected, "docs/models.md differs; it should have:\n\n{expected}");
}

#[test]
fn what_is_not_built_shows() {
    use roundhouse_compiler::support::Refusal;
    const REFUSALS: &[Refusal] = &[
        Refusal {
            architecture: Some("GPT2LMHeadModel"),
            backend: Some(BackendKind::TensorRt),
            precision: Some(Precision::Bf16),
            cache: Some(CacheKind::StaticV1),
            reason: "",
        },
        Refusal {
            architecture: None,
            backend: Some(BackendKind::Cpu),
            precision: None,
            cache: Some(CacheKind::None),
            reason: "",
        },
    ];
    let text = table(&SupportTable::without(REFUSALS).families(&backends()));
    let (cpu, rest) = text.split_once("### `cuda`").unwrap();
    let (cuda, tensorrt) = rest.split_once("### `tensorrt`").unwrap();
    let line = |text: &str| {
        let (_, rest) = text.rsplit_once("\n| `gpt2` |").unwrap();
        rest.split(" | ").take(4).map(|cell| cell.trim().to_owned()).collect::<Vec<_>>()
    };
    let all = "fp32, fp16, bf16";
    assert_eq!(line(cpu), [NONE, all, all, all]);
    assert_eq!(line(cuda), [all, all, all, all]);
    assert_eq!(line(tensorrt), [all, "fp32, fp16", all, all]);
}

//! `run-vlm` as a process: an answer about images in files, and why there is none.

use std::path::PathBuf;
use std::process::Output;

use crate::support::{json, roundhouse, tiny_llama};

fn golden(name: &str) -> PathBuf {
    tiny_llama().with_file_name(name)
}

/// Runs it on images of the golden files, in one process.
fn run_vlm(home: &str, model: &str, images: &[&str]) -> Output {
    let model = golden(model);
    let images: Vec<_> = images.iter().map(|image| golden("vision").join(image)).collect();
    let mut arguments = vec!["run-vlm", "--json", "--backend", "cpu", "--precision", "fp32", "--home", home];
    arguments.extend(["--ignore-eos", "--num_tokens", "12", "--prompt", "what is it?", "--model"]);
    arguments.push(model.to_str().unwrap());
    for image in &images {
        arguments.extend(["--image_path", image.to_str().unwrap()]);
    }
    roundhouse(&arguments)
}

#[test]
fn a_question_about_images_is_answered_by_both_families() {
    let folder = tempfile::tempdir().unwrap();
    let home = folder.path().to_str().unwrap();
    for model in ["tiny-qwen-2.5-vl", "tiny-eagle2"] {
        let one = json(&run_vlm(home, model, &["photo.jpg"]));
        let again = json(&run_vlm(home, model, &["photo.jpg"]));
        let two = json(&run_vlm(home, model, &["photo.jpg", "palette.png"]));
        assert_eq!(one["output_token_ids"].as_array().unwrap().len(), 12, "{one}");
        assert_eq!(one["output_token_ids"], again["output_token_ids"], "{model}");
        assert_eq!((&one["engine_reused"], &again["engine_reused"]), (&false.into(), &true.into()));
        assert_ne!(one["output_token_ids"], two["output_token_ids"], "{model}: the second image is not seen");
        assert!(two["prompt_tokens"].as_u64() > one["prompt_tokens"].as_u64(), "{two}");
    }
}

#[test]
fn what_is_no_image_and_who_takes_none_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let home = folder.path().to_str().unwrap();
    for (model, image, expected) in [
        ("tiny-qwen-2.5-vl", "cases.json", "IMAGE_FORMAT_UNSUPPORTED"),
        ("tiny-llama-2", "photo.jpg", "IMAGES_NOT_SUPPORTED"),
        ("tiny-llama-2", "missing.png", "missing.png"),
    ] {
        let output = run_vlm(home, model, &[image]);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && error.contains(expected), "{error}");
    }
}

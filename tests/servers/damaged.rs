//! Checkpoints that must never reach a server.

use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use safetensors::tensor::TensorView;

use crate::rig::checkpoint;

/// Copies of the demo's checkpoint with one thing wrong each: what it is, the directory, a word of the refusal.
pub fn all(folder: &Path) -> Vec<(&'static str, PathBuf, &'static str)> {
    let missing = folder.join("missing");
    let truncated = copy(folder, "truncated");
    let weights = truncated.join("model.safetensors");
    let length = std::fs::metadata(&weights).unwrap().len();
    std::fs::File::options().write(true).open(&weights).unwrap().set_len(length / 2).unwrap();
    let norm = "model.norm.weight";
    let without = copy(folder, "without");
    rewrite(&without, |name, _, _| name != norm);
    let shape = copy(folder, "shape");
    rewrite(&shape, |name, shape, bytes| {
        if name == norm {
            shape[0] -= 1;
            bytes.truncate(bytes.len() / (shape[0] + 1) * shape[0]);
        }
        true
    });
    let number = copy(folder, "number");
    rewrite(&number, |name, _, bytes| {
        if name == norm {
            // As bf16, twice; as f32, once.
            bytes[..4].copy_from_slice(&[0xc0, 0x7f, 0xc0, 0x7f]);
        }
        true
    });
    vec![
        ("a weight that is no number", number, norm),
        ("a path that is not there", missing, "missing"),
        ("a truncated file", truncated, "model.safetensors"),
        ("a missing tensor", without, norm),
        ("a tensor of another shape", shape, norm),
    ]
}

fn copy(folder: &Path, name: &str) -> PathBuf {
    let target = folder.join(name);
    std::fs::create_dir(&target).unwrap();
    for entry in std::fs::read_dir(checkpoint("checkpoint-a")).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), target.join(entry.file_name())).unwrap();
    }
    target
}

/// Writes the weights again; `change` may alter a tensor's shape and bytes, and leaves it out with `false`.
fn rewrite(directory: &Path, change: impl Fn(&str, &mut Vec<usize>, &mut Vec<u8>) -> bool) {
    let path = directory.join("model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    let read = SafeTensors::deserialize(&bytes).unwrap();
    let mut kept = Vec::new();
    for (name, view) in read.tensors() {
        let (mut shape, mut data) = (view.shape().to_vec(), view.data().to_vec());
        if change(&name, &mut shape, &mut data) {
            kept.push((name, view.dtype(), shape, data));
        }
    }
    let views = kept.iter().map(|(name, dtype, shape, data)| (name, TensorView::new(*dtype, shape.clone(), data).unwrap()));
    safetensors::serialize_to_file(views, None, &path).unwrap();
}

//! Step 2: is what lies on the device what was read, and does it compute what the CPU computes?

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use grail_model::{Checkpoint, Device, Drift, Kind, Mode, Precision, Tensor};
use safetensors::Dtype;
use safetensors::tensor::TensorView;

use super::{GROUP, Outcome, Site, prove, prover};
use crate::bench::workload::{GroupShape, Shape, Workload, random_weights, write_weights};

const SHAPE: Shape = Shape { hidden: 256, layers: 3, intermediate: 512, heads: 8, kv_heads: 2, vocabulary: 1000 };
const JOB: GroupShape = GroupShape { groups: 2, completions: 4, prompt: 24, median: 60.0, sigma: 0.6, longest: 200, seed: 3 };
/// The tensor that a change is made to, and how many of its values.
const CHANGED: (&str, i64) = ("model.layers.1.mlp.up_proj.weight", 500);
/// Single precision on another processor: sums in another order.
const LOGPROB_LIMIT: f64 = 1e-3;
const IDENTICAL: f64 = 0.98;

pub(super) fn check(site: &Site) -> anyhow::Result<Outcome> {
    let folder = tempfile::tempdir()?;
    let (one, two) = (folder.path().join("one"), folder.path().join("two"));
    let [forth, back] = checkpoints(&one, &two, folder.path())?;
    let hash = |directory: &Path| anyhow::Ok(Checkpoint::open(directory)?.weights_hash()?);
    let (first, second) = (hash(&one)?, hash(&two)?);
    let mut resident = site.load(&one)?;
    println!("{resident}");
    same("after the load", resident.weights_hash(), &first)?;
    // In f16 the bytes of a bf16 file cannot be had back, so a change of some is refused.
    if site.precision.on(site.device()) != Kind::Half {
        resident.apply_files(&[forth], &second)?;
        same("after the change", resident.weights_hash(), &second)?;
        resident.apply_files(&[back], &first)?;
        same("after the way back", resident.weights_hash(), &first)?;
    }
    resident.reload(&two)?;
    same("after the reload", resident.weights_hash(), &second)?;
    resident.reload(&one)?;

    let work = Workload::new(&one, &JOB)?;
    let host = site.load_as(&one, Device::Cpu, Precision::F32)?;
    let wanted = prove(&mut prover(&host, Mode::Exact), &host, &work.sequences, GROUP)?;
    let single = site.load_as(&one, site.device(), Precision::F32)?;
    let drift = |got: &[_]| Drift::between(&wanted, got).context("proofs of other sequences");
    for mode in [Mode::Exact, Mode::Packed, Mode::PackedShared] {
        let found = drift(&prove(&mut prover(&single, mode), &single, &work.sequences, GROUP)?)?;
        println!("{mode} in f32, from the CPU's f32: {found}");
        ensure!(
            found.logprob_max <= LOGPROB_LIMIT && found.identical_sketches >= IDENTICAL,
            "{mode} in f32 is not what the CPU computes: {found}"
        );
        let as_used = drift(&prove(&mut prover(&resident, mode), &resident, &work.sequences, GROUP)?)?;
        println!("{mode} as it is used, from the CPU's f32: {as_used}");
    }
    Ok(Outcome::Passed("hashes, change and way back, sketches and log-probabilities are the CPU's".into()))
}

fn same(when: &str, got: &str, want: &str) -> anyhow::Result<()> {
    ensure!(got == want, "{when} the device holds {got}, want {want}");
    println!("{when}: {got}, as in the files");
    Ok(())
}

/// Two checkpoints that differ in some values of one tensor, and the files of changes from one to the other and back.
fn checkpoints(one: &Path, two: &Path, folder: &Path) -> anyhow::Result<[PathBuf; 2]> {
    let mut named = random_weights(&SHAPE, one, 1, Device::Cpu)?;
    random_weights(&SHAPE, two, 1, Device::Cpu)?;
    write_weights(&named, one)?;
    let (_, tensor) = named.iter_mut().find(|(name, _)| name == CHANGED.0).context("no such tensor")?;
    let mut flat = tensor.f_flatten(0, -1)?.f_narrow(0, 0, CHANGED.1)?;
    let old = bytes(&flat)?;
    // Exact in bf16, and another number everywhere.
    let _ = flat.f_mul_scalar_(-2.0)?.f_add_scalar_(1.0)?;
    let new = bytes(&flat)?;
    write_weights(&named, two)?;
    let write = |name: &str, values: &[u8]| {
        let positions: Vec<u8> = (0..CHANGED.1 as u32).flat_map(u32::to_le_bytes).collect();
        let count = vec![CHANGED.1 as usize];
        let views = BTreeMap::from([
            (format!("{}.positions", CHANGED.0), TensorView::new(Dtype::U32, count.clone(), &positions)?),
            (format!("{}.values", CHANGED.0), TensorView::new(Dtype::BF16, count, values)?),
        ]);
        let path = folder.join(name);
        safetensors::serialize_to_file(views, None, &path)?;
        anyhow::Ok(path)
    };
    Ok([write("forth.safetensors", &new)?, write("back.safetensors", &old)?])
}

/// The bytes of a bf16 tensor: the upper halves of the same numbers in f32.
fn bytes(tensor: &Tensor) -> anyhow::Result<Vec<u8>> {
    let wide = Vec::<f32>::try_from(&tensor.f_to_kind(Kind::Float)?)?;
    Ok(wide.iter().flat_map(|value| ((value.to_bits() >> 16) as u16).to_le_bytes()).collect())
}

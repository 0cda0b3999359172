//! What the workers of a pool must agree on: a proof must not depend on which of them made it.

use grail_faults::Fault;
use grail_link::message::WorkerHello;

use crate::plan::ProofSlot;

/// Whether a worker computes on what its slot was given. A worker on the CPU is as wrong for a GPU as one on a GPU that nobody gave it,
/// whatever the rest of the pool does: on the CPU all would agree.
///
/// # Errors
/// What it computes on instead, why, and what to do.
pub fn on_its_device(slot: &ProofSlot, hello: &WorkerHello) -> Result<(), String> {
    match (&slot.gpu, hello.device.starts_with("cuda")) {
        (Some(_), true) | (None, false) => Ok(()),
        (Some(gpu), false) => {
            let why = hello.device_reason.as_ref().map_or(String::new(), |reason| format!(" ({reason})"));
            Err(format!(
                "it computes on {} ({}) where GPU {gpu} was given to it{why}; {}",
                hello.device,
                hello.device_name,
                Fault::Unusable.advice()
            ))
        }
        (None, true) => Err(format!(
            "it computes on {} ({}) where the CPU was given to it; end whatever sets CUDA_VISIBLE_DEVICES behind the supervisor's back",
            hello.device, hello.device_name
        )),
    }
}

/// What the first worker of a pool said it computes with; it settles that for all others.
#[derive(Debug, Default)]
pub(super) struct Agreement(Option<WorkerHello>);

impl Agreement {
    /// Lets a worker into the pool.
    ///
    /// # Errors
    /// When it computes with something else than the first one: every fact that differs, with both values.
    pub fn join(&mut self, hello: &WorkerHello) -> Result<(), String> {
        let first = self.0.get_or_insert_with(|| hello.clone());
        let differences: Vec<String> = facts(first)
            .into_iter()
            .zip(facts(hello))
            .filter(|((_, theirs), (_, own))| theirs != own)
            .map(|((fact, theirs), (_, own))| format!("{fact} {own} instead of {theirs}"))
            .collect();
        if differences.is_empty() {
            return Ok(());
        }
        Err(format!("it computes with {}, as proof-worker {} settled for the pool", differences.join(", "), first.slot))
    }
}

/// Everything that may change the bits of a proof. The device's index does not.
fn facts(hello: &WorkerHello) -> [(&'static str, String); 8] {
    [
        ("device kind", hello.device.split(':').next().unwrap_or_default().to_owned()),
        ("device", hello.device_name.clone()),
        ("CUDA driver", hello.driver.clone().unwrap_or_else(|| "none".to_owned())),
        ("libtorch", hello.libtorch.clone()),
        ("dtype", hello.dtype.clone()),
        ("attention", hello.attention.clone()),
        ("precision tuning", hello.precision_tuning.to_string()),
        ("proof mode", hello.mode.clone()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello() -> WorkerHello {
        WorkerHello {
            pid: 100,
            slot: 4,
            device: "cuda:0".into(),
            device_reason: None,
            device_name: "NVIDIA H200".into(),
            driver: Some("13.0".into()),
            libtorch: "2.11.0".into(),
            dtype: "bf16".into(),
            attention: "sdpa".into(),
            precision_tuning: 0,
            mode: "exact".into(),
        }
    }

    #[test]
    fn pid_slot_and_index_may_differ_and_nothing_else() {
        let mut agreement = Agreement::default();
        agreement.join(&hello()).unwrap();
        agreement.join(&WorkerHello { pid: 101, slot: 5, device: "cuda:1".into(), ..hello() }).unwrap();
        let others = [
            (WorkerHello { device: "cpu".into(), ..hello() }, "device kind cpu instead of cuda"),
            (WorkerHello { device_name: "NVIDIA A100".into(), ..hello() }, "device NVIDIA A100 instead of NVIDIA H200"),
            (WorkerHello { driver: None, ..hello() }, "CUDA driver none instead of 13.0"),
            (WorkerHello { libtorch: "2.9.1".into(), ..hello() }, "libtorch 2.9.1 instead of 2.11.0"),
            (WorkerHello { dtype: "f32".into(), ..hello() }, "dtype f32 instead of bf16"),
            (WorkerHello { attention: "eager".into(), ..hello() }, "attention eager instead of sdpa"),
            (WorkerHello { precision_tuning: 2, ..hello() }, "precision tuning 2 instead of 0"),
            (WorkerHello { mode: "packed".into(), ..hello() }, "proof mode packed instead of exact"),
        ];
        for (other, words) in others {
            let error = agreement.join(&other).unwrap_err();
            assert_eq!(error, format!("it computes with {words}, as proof-worker 4 settled for the pool"));
        }
    }

    #[test]
    fn a_worker_that_computes_on_the_cpu_is_none_for_a_gpu_and_the_reason_is_told() {
        let slot = |gpu: Option<&str>| ProofSlot { slot: 0, gpu: gpu.map(Into::into) };
        let reason = Some("libtorch_nvshmem.so: undefined symbol: nvmlInit_v2".to_owned());
        let on_cpu = WorkerHello { device: "cpu".into(), device_name: "cpu AVX512".into(), device_reason: reason, ..hello() };
        on_its_device(&slot(Some("3")), &hello()).unwrap();
        on_its_device(&slot(None), &on_cpu).unwrap();
        let error = on_its_device(&slot(Some("3")), &on_cpu).unwrap_err();
        for words in
            ["cpu AVX512", "GPU 3 was given", "undefined symbol: nvmlInit_v2", "LD_LIBRARY_PATH", "systemd", "nvidia-smi -L"]
        {
            assert!(error.contains(words), "{words}: {error}");
        }
        assert!(on_its_device(&slot(None), &hello()).unwrap_err().contains("the CPU was given"));
    }

    #[test]
    fn every_difference_is_named() {
        let mut agreement = Agreement::default();
        agreement.join(&hello()).unwrap();
        let error = agreement.join(&WorkerHello { dtype: "f32".into(), mode: "packed".into(), ..hello() }).unwrap_err();
        assert!(error.contains("dtype f32 instead of bf16, proof mode packed instead of exact"), "{error}");
    }
}

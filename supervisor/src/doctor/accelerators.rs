//! GPUs, their driver, and whether proof workers and the generation server can use them.

use std::ffi::OsString;
use std::time::Duration;

use grail_engines::{Engine, Installed};
use grail_link::message::WorkerHello;
use grail_process::{Launch, ProgramOutput, Spawner, environment};
use grail_settings::Settings;
use grail_supervision::gpu::{Card, Driver, Nvml, SensorError};
use grail_workers::plan::{self, Plan, ProofSlot};
use grail_workers::{ChildPrograms, Programs, on_its_device};

use super::greeting::{Unfit, trial_of_worker};
use super::row::{Row, Verdict};

const GPUS: &str = "GPUs";
const WORKER: &str = "proof worker";
const SERVER: &str = "server";
const GIB: u64 = 1 << 30;
/// The least compute capability: bf16, which proofs are made in (grail-miner 13).
const CAPABILITY: (i32, i32) = (8, 0);
/// The least memory of a GPU that the network asks, with a gigabyte's allowance for how it is counted.
const CARD_BYTES: u64 = 23 * GIB;
/// A child waits for its GPU while more is in use.
const IDLE_BYTES: u64 = 2 * GIB;
/// A worker says hello as soon as libtorch and CUDA are up; its first proof waits for kernels to be loaded.
const TRIAL_PATIENCE: Duration = Duration::from_secs(120);
/// Importing a server's packages takes long on a cold disk.
const IMPORT_PATIENCE: Duration = Duration::from_secs(180);
/// Most of a program's output that is read, in bytes.
const MOST: u64 = 4 << 20;

/// The layout that the settings ask for, or why there is none.
pub(super) fn layout(settings: &Settings) -> Result<Plan, String> {
    plan::of_host(settings).map_err(|errors| errors.0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
}

fn used(plan: &Plan) -> Vec<String> {
    plan.generation.iter().flatten().cloned().chain(plan.proof.iter().filter_map(|slot| slot.gpu.clone())).collect()
}

/// May block: it asks the driver.
pub(super) fn gpus(layout: &Result<Plan, String>, running: bool) -> Row {
    let plan = match layout {
        Ok(plan) => plan,
        Err(errors) => return Row::failed(GPUS, errors, "compare with nvidia-smi -L; indices count within CUDA_VISIBLE_DEVICES"),
    };
    let used = used(plan);
    if used.is_empty() {
        return Row::ok(GPUS, "none is used: proofs on the CPU, embedded engine");
    }
    match Nvml::open(&[]) {
        Ok(nvml) => gpus_row(nvml.driver(), &used.iter().map(|gpu| (gpu.clone(), nvml.card(gpu))).collect::<Vec<_>>(), running),
        Err(error) => {
            let found = format!("{} used, nothing is known about them: {error}", used.len());
            Row::warning(GPUS, found, "mining works without, but nobody tells when a GPU is taken, hot or broken")
        }
    }
}

fn gpus_row(driver: Option<Driver>, cards: &[(String, Result<Card, SensorError>)], running: bool) -> Row {
    let driver = driver.map_or("driver unknown".into(), |driver| {
        format!("driver {} for CUDA {}.{}", driver.version, driver.cuda.0, driver.cuda.1)
    });
    let (mut lines, mut failures, mut warnings) = (vec![driver], Vec::new(), Vec::new());
    for (gpu, card) in cards {
        let card = match card {
            Ok(card) => card,
            Err(error) => {
                lines.push(error.to_string());
                failures.push(format!("GPU {gpu} does not answer: see dmesg for NVRM lines, reset or leave it out"));
                continue;
            }
        };
        let (used, total) = (card.memory_used as f64 / GIB as f64, card.memory_total as f64 / GIB as f64);
        lines.push(format!(
            "GPU {gpu}: {}, {used:.1} of {total:.1} GiB used, compute capability {}.{}",
            card.name, card.capability.0, card.capability.1
        ));
        if card.capability < CAPABILITY {
            failures.push(format!("GPU {gpu} cannot compute in bf16: one of capability 8.0 or more is needed (A100 and newer)"));
        } else if card.memory_total < CARD_BYTES {
            warnings
                .push(format!("GPU {gpu} is smaller than the 24 GB the network asks: see grail-supervisor plan --checkpoint"));
        }
        if card.memory_used > IDLE_BYTES && !running {
            warnings.push(format!("somebody uses GPU {gpu} and no supervisor runs: end that (nvidia-smi), a start waits for it"));
        }
    }
    let found = lines.join("\n");
    match (failures.is_empty(), warnings.is_empty()) {
        (false, _) => Row::failed(GPUS, found, failures.join("; ")),
        (true, false) => Row::warning(GPUS, found, warnings.join("; ")),
        (true, true) => Row::ok(GPUS, found),
    }
}

/// Starts proof workers of the layout as a run starts them, to hear what libtorch they have and on what they compute, and to see
/// each prove a small sequence in the type, mode and attention of the settings. One for each GPU, all at once as in a run; workers on
/// the CPU are all alike, and one of them will do.
pub(super) async fn workers(settings: &Settings, layout: &Result<Plan, String>) -> Vec<Row> {
    let needed = [ChildPrograms::ProofWorker, ChildPrograms::GenLauncher];
    let programs = match Programs::find(settings.programs.as_deref(), &needed) {
        Ok(programs) => programs,
        Err(error) => return vec![Row::failed_as_told(WORKER, &error)],
    };
    let slots = layout.as_ref().map(|plan| plan.proof.as_slice()).unwrap_or_default();
    let tried = slots.iter().enumerate().filter(|(place, slot)| *place == 0 || slot.gpu.is_some()).map(|(_, slot)| slot);
    let trials = tried.map(async |slot| {
        let asked = trial_of_worker(&programs, slot, &settings.proof);
        let trial = match tokio::time::timeout(TRIAL_PATIENCE, asked).await {
            Ok(answer) => answer,
            Err(_) => Err(Unfit::Start(format!("it has not proved a small sequence within {} s", TRIAL_PATIENCE.as_secs()))),
        };
        worker_row(slot, &trial)
    });
    let rows = futures::future::join_all(trials).await;
    if rows.is_empty() { vec![Row::not_asked(WORKER, "there is no layout to start it in")] } else { rows }
}

fn worker_row(slot: &ProofSlot, trial: &Result<WorkerHello, Unfit>) -> Row {
    let what = slot.gpu.as_ref().map_or(WORKER.to_owned(), |gpu| format!("{WORKER} GPU {gpu}"));
    let (hello, unfit) = match trial {
        Ok(hello) => (hello, None),
        Err(Unfit::Compute(hello, why)) => (&**hello, Some(why)),
        Err(Unfit::Device(why)) => return Row { what: what.into(), verdict: Verdict::Failed, found: why.clone(), remedy: None },
        Err(Unfit::Start(why)) => {
            return Row::failed(
                what,
                format!("grail-proof-worker does not start: {why}"),
                "set libtorch up (make setup), or set programs.folder",
            );
        }
    };
    let on =
        hello.driver.as_ref().map_or(hello.device_name.clone(), |driver| format!("{} with CUDA {driver}", hello.device_name));
    let how = format!("in {}, {} attention, {}, tuning {}", hello.dtype, hello.attention, hello.mode, hello.precision_tuning);
    let found = format!("libtorch {} computes on {on}, {how}", hello.libtorch);
    match (on_its_device(slot, hello), unfit) {
        (Err(why), _) => Row { what: what.into(), verdict: Verdict::Failed, found: format!("{found}: {why}"), remedy: None },
        (Ok(()), None) => Row::ok(what, format!("{found}; it proved a small sequence")),
        (Ok(()), Some(why)) => Row::failed(
            what,
            format!("{found}, and cannot prove: {why}"),
            "take the network's settings: leave proof.dtype, proof.mode, proof.precision_tuning and proof.force_eager_attention out",
        ),
    }
}

/// Asks the configured Python for the generation server, imports and all.
pub(super) async fn server(settings: &Settings) -> Row {
    let generation = &settings.generation;
    if !generation.servers.is_empty() {
        return Row::not_asked(SERVER, "generation.servers run elsewhere; `run` asks them and says which of them answer");
    }
    if generation.backend == "embedded" {
        return Row::ok(SERVER, "the embedded engine, which is part of grail-gen-launcher");
    }
    let engine = generation.engine();
    let python = generation.python.display().to_string();
    let asked = async {
        let spawner = Spawner::start().map_err(|error| error.to_string())?;
        let version = ask(&spawner, settings, vec!["-c".into(), engine.version_program().into()]).await?;
        // Without a version there is nothing whose imports are worth waiting for.
        if version.output.trim().is_empty() {
            return Ok((version, None));
        }
        let help = ask(&spawner, settings, vec!["-m".into(), engine.module().into(), "--help".into()]).await?;
        Ok::<_, String>((version, Some(help)))
    };
    let row = match tokio::time::timeout(IMPORT_PATIENCE, asked).await {
        Ok(Ok((version, help))) => server_row(engine, &python, &version, help.as_ref()),
        Ok(Err(error)) => server_failed(engine, &error),
        Err(_) => server_failed(engine, &format!("{python} did not import it within {} s", IMPORT_PATIENCE.as_secs())),
    };
    match generation.exposed() {
        Some(exposed) if row.verdict == Verdict::Ok => {
            Row::warning(SERVER, format!("{}; {exposed}", row.found), "leave them out, or let nobody else use this host")
        }
        _ => row,
    }
}

async fn ask(spawner: &Spawner, settings: &Settings, arguments: Vec<OsString>) -> Result<ProgramOutput, String> {
    let launch = Launch {
        name: "generation server's version".into(),
        program: settings.generation.python.clone(),
        arguments,
        // No GPU is needed for this, and none must be touched.
        environment: environment::for_child(std::env::vars_os(), [("CUDA_VISIBLE_DEVICES".into(), "".into())]),
    };
    spawner.ask(launch, MOST).await.map_err(|error| error.to_string())
}

fn server_row(engine: Engine, python: &str, version: &ProgramOutput, help: Option<&ProgramOutput>) -> Row {
    let name = engine.name();
    let Some(help) = help else {
        let printed = last_line(&version.errors);
        let found =
            if printed.is_empty() { format!("{name} is not installed in {python}") } else { format!("{python}: {printed}") };
        return server_failed(engine, &found);
    };
    if !help.status.success() {
        return server_failed(
            engine,
            &format!("{} is installed in {python} and cannot be imported: {}", version.output.trim(), last_line(&help.errors)),
        );
    }
    let installed = match Installed::read(engine, &version.output, &help.output) {
        Ok(installed) => installed,
        Err(error) => return server_failed(engine, &error.to_string()),
    };
    let measured = Installed::measured(engine);
    let (found, measured) = (installed.version(), measured.version());
    let built = installed.warning().map(|warning| format!("; {warning}")).unwrap_or_default();
    let text = format!("{name} {found} in {python}, imported{built}");
    if found == measured {
        Row::ok(SERVER, text)
    } else {
        let remedy = format!("flags are taken from its own --help; {measured} is the release this version was measured with");
        Row::warning(SERVER, text, remedy)
    }
}

fn server_failed(engine: Engine, found: &str) -> Row {
    let (package, key) = match engine {
        Engine::Sglang => ("sglang[all]", "generation.sglang_python (GRAIL_SGLANG_PYTHON)"),
        Engine::Vllm => ("vllm", "generation.vllm_python (GRAIL_VLLM_PYTHON)"),
    };
    let measured = Installed::measured(engine);
    let measured = measured.version();
    Row::failed(
        SERVER,
        found,
        format!("install it there (pip install '{package}=={measured}'), or set {key} to the Python that has it"),
    )
}

fn last_line(text: &str) -> String {
    text.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or_default().chars().take(300).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::ExitStatus;

    use super::super::Verdict;
    use super::*;

    fn card(memory_used: u64, memory_total: u64, capability: (i32, i32)) -> Result<Card, SensorError> {
        Ok(Card { name: "NVIDIA A100".into(), memory_used: memory_used * GIB, memory_total: memory_total * GIB, capability })
    }

    #[test]
    fn cards_are_judged_by_what_proofs_need() {
        let driver = || Some(Driver { version: "580.65".into(), cuda: (13, 0) });
        let judged = |card, running| gpus_row(driver(), &[("0".to_owned(), card)], running);
        assert_eq!(judged(card(0, 80, (8, 0)), false).verdict, Verdict::Ok);
        assert_eq!(judged(card(70, 80, (8, 0)), true).verdict, Verdict::Ok, "the supervisor's own children use it");
        assert_eq!(judged(card(70, 80, (8, 0)), false).verdict, Verdict::Warning);
        assert_eq!(judged(card(0, 16, (8, 0)), false).verdict, Verdict::Warning);
        assert_eq!(judged(card(0, 80, (7, 5)), false).verdict, Verdict::Failed);
        let gone = judged(Err(SensorError::Gone { gpu: "0".into(), reason: "lost".into() }), false);
        assert!(gone.verdict == Verdict::Failed && gone.found.contains("CUDA 13.0"), "{gone:?}");
    }

    #[test]
    fn a_worker_on_the_cpu_is_no_worker_of_a_gpu() {
        let hello = |device: &str| WorkerHello {
            pid: 1,
            slot: 0,
            device: device.into(),
            device_reason: (device == "cpu").then(|| "libcudnn.so.9: cannot open shared object file".into()),
            device_name: "NVIDIA H200".into(),
            driver: None,
            libtorch: "2.11.0".into(),
            dtype: "bf16".into(),
            attention: "sdpa".into(),
            precision_tuning: 0,
            mode: "exact".into(),
        };
        let slot = |gpu: Option<&str>| ProofSlot { slot: 0, gpu: gpu.map(Into::into) };
        let row = worker_row(&slot(Some("1")), &Ok(hello("cuda:0")));
        assert_eq!((row.verdict, row.what.as_ref()), (Verdict::Ok, "proof worker GPU 1"));
        let row = worker_row(&slot(None), &Ok(hello("cpu")));
        assert_eq!((row.verdict, row.what.as_ref()), (Verdict::Ok, "proof worker"));
        let row = worker_row(&slot(Some("1")), &Ok(hello("cpu")));
        assert!(row.verdict == Verdict::Failed && row.found.contains("LD_LIBRARY_PATH"), "{row:?}");
        assert!(row.found.contains("GPU 1 was given") && row.found.contains("libcudnn.so.9"), "{row:?}");
        assert_eq!(worker_row(&slot(None), &Err(Unfit::Start("no libtorch".into()))).verdict, Verdict::Failed);
        let row = worker_row(&slot(None), &Err(Unfit::Compute(Box::new(hello("cpu")), "it ended".into())));
        assert!(row.verdict == Verdict::Failed && row.found.contains("cannot prove: it ended"), "{row:?}");
        let row = worker_row(&slot(Some("1")), &Err(Unfit::Device("the device is gone".into())));
        assert!(row.verdict == Verdict::Failed && row.remedy.is_none(), "what to do is in what the worker says: {row:?}");
    }

    #[test]
    fn a_server_must_be_there_import_and_be_new_enough() {
        let said = |code: i32, output: &str, errors: &str| ProgramOutput {
            status: ExitStatus::from_raw(code << 8),
            output: output.into(),
            errors: errors.into(),
        };
        let judged = |version: &str, help: Option<ProgramOutput>| {
            server_row(Engine::Sglang, "python3", &said(0, version, ""), help.as_ref())
        };
        let help = || Some(said(0, "usage: --port --weight-version", ""));
        assert_eq!(judged("sglang 0.5.23", help()).verdict, Verdict::Ok);
        assert_eq!(judged("sglang 0.5.24", help()).verdict, Verdict::Warning);
        let from_source = Some(said(0, "usage: --port --weight-version --cuda-graph-backend-prefill", ""));
        let row = judged("conda 24.1.2\nsglang 0.0.0.dev1+g1a2b3c4d5\n", from_source);
        assert!(row.verdict == Verdict::Warning && row.found.contains("built between two releases"), "{row:?}");
        for (version, help, word) in [
            ("", None, "not installed"),
            ("sglang 0.5.23", Some(said(1, "", "Traceback\nImportError: libcudart\n")), "ImportError: libcudart"),
            ("sglang 0.4.10", help(), "too old"),
            ("sglang 0.5.23", Some(said(0, "nothing", "")), "--port"),
        ] {
            let row = judged(version, help);
            assert!(row.verdict == Verdict::Failed && row.found.contains(word), "{word}: {row:?}");
        }
    }
}

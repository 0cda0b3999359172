//! Scripted GPUs, and the real library where this host has none.

use std::collections::VecDeque;
use std::sync::mpsc;
use std::time::Duration;

use grail_process::clock;

use super::*;
use crate::board::Board;

const GIB: u64 = 1 << 30;

/// One look of a script: what every GPU answers, and the XIDs that follow it.
type Scene = (Result<GpuReading, SensorError>, Vec<(String, u32)>);

/// Plays looks in order; the last one again and again. Tells after every look.
struct Script {
    looks: VecDeque<Scene>,
    done: mpsc::Sender<()>,
}

impl Sensor for Script {
    fn read(&mut self, _gpu: &str) -> Result<GpuReading, SensorError> {
        self.looks.front().expect("a look").0.clone()
    }

    fn xids(&mut self, _wait: Duration) -> Result<Vec<(String, u32)>, SensorError> {
        if self.looks.len() == 1 {
            // The test has gone when nobody listens; then the watch ends by itself.
            let _ = self.done.send(());
            std::thread::sleep(Duration::from_millis(1));
            return Ok(Vec::new());
        }
        self.looks.pop_front().map_or(Err(SensorError::Lost("the script is over".into())), |(_, xids)| Ok(xids))
    }
}

/// Watches GPU 0 until the script has been played.
fn play(looks: impl IntoIterator<Item = Scene>) -> (Gpus, Board) {
    let board = Board::default();
    let (done, played) = mpsc::channel();
    let script = Script { looks: looks.into_iter().collect(), done };
    let gpus = Gpus::watch(vec!["0".into()], board.clone(), || Ok(script)).unwrap();
    played.recv_timeout(Duration::from_secs(20)).unwrap();
    (gpus, board)
}

fn used(bytes: u64) -> GpuReading {
    GpuReading { memory_used: bytes, memory_total: 80 * GIB, ..GpuReading::default() }
}

fn notes(board: &Board) -> Vec<String> {
    board
        .snapshot()
        .child_events
        .iter()
        .map(|event| serde_json::to_value(event).unwrap()["note"].as_str().unwrap_or("-").to_owned())
        .collect()
}

#[test]
fn readings_and_xids_are_known_and_shown() {
    let before = clock::monotonic();
    let (gpus, board) = play([(Ok(used(GIB)), vec![("0".into(), 31)]), (Ok(used(70 * GIB)), vec![])]);
    assert_eq!(gpus.look("0", None), Look::Known(used(70 * GIB)));
    assert_eq!(gpus.xids_since("0", before), [31]);
    assert!(gpus.xids_since("0", clock::monotonic()).is_empty(), "an XID of an earlier life is no XID of this one");
    assert_eq!(gpus.look("1", None), Look::Unknown);
    assert_eq!(board.snapshot().gpus["0"].memory_used, 70 * GIB);
    assert_eq!(notes(&board), ["the driver reports XID 31"]);
}

#[test]
fn a_gpu_that_stops_answering_is_gone_and_said_to_be_once() {
    let gone = || Err(SensorError::Gone { gpu: "0".into(), reason: "the target device has been lost".into() });
    let (gpus, board) = play([(Ok(used(GIB)), vec![]), (gone(), vec![]), (gone(), vec![]), (gone(), vec![])]);
    assert!(gpus.is_gone("0"));
    assert_eq!(notes(&board), ["GPU 0 does not answer: the target device has been lost"]);
    let (gpus, board) = play([(gone(), vec![]), (Ok(used(GIB)), vec![])]);
    assert!(!gpus.is_gone("0"));
    assert_eq!(notes(&board).last().unwrap(), "it answers again");
}

#[test]
fn a_library_that_is_lost_at_run_time_is_said_once_and_leaves_the_rest_alone() {
    let lost = || Err(SensorError::Lost("driver/library version mismatch".into()));
    let (gpus, board) = play([(Ok(used(GIB)), vec![]), (lost(), vec![]), (lost(), vec![])]);
    assert!(!gpus.is_gone("0"), "an unknown GPU is no lost GPU");
    assert_eq!(notes(&board), ["-"]);
    assert!(serde_json::to_string(&board.snapshot().child_events).unwrap().contains("gpus_unknown"));
}

#[test]
fn without_the_library_everything_goes_on_and_nothing_is_known() {
    if Nvml::open(&[]).is_ok() {
        // A host with a driver: then the real library must find no such GPU, and nothing more can be shown here.
        assert!(Nvml::open(&[]).unwrap().read("GPU-none").is_err());
        return;
    }
    let board = Board::default();
    let gpus = Gpus::watch(vec!["0".into()], board.clone(), || Nvml::open(&["0".into()])).unwrap();
    let start = clock::monotonic();
    while board.snapshot().child_events.is_empty() && start.elapsed() < Duration::from_secs(10) {
        std::thread::sleep(Duration::from_millis(5));
    }
    let said = serde_json::to_string(&board.snapshot().child_events).unwrap();
    assert!(said.contains("gpus_unknown") && said.contains("libnvidia-ml.so"), "{said}");
    assert!(!gpus.is_gone("0"));
    let clearance = Clearance::new(Duration::ZERO, Clearance::LIMIT);
    assert_eq!(gpus.look("0", None), Look::Unknown);
    assert_eq!(clearance.judge(Duration::ZERO, "0", &Look::Unknown), Verdict::Free);
}

#[test]
fn a_child_starts_when_the_memory_is_back_and_the_holder_is_named_when_it_is_not() {
    let clearance = Clearance::new(Duration::from_secs(100), Duration::from_secs(30));
    let at = |second| Duration::from_secs(second);
    assert_eq!(clearance.judge(at(100), "3", &Look::Known(used(600 << 20))), Verdict::Free);
    let mut held = used(71 * GIB);
    let Verdict::Wait(holder) = clearance.judge(at(101), "3", &Look::Known(held.clone())) else { panic!("it must wait") };
    assert!(holder.contains("another container"), "{holder}");
    let process = |pid, program: &str, bytes| GpuProcess { pid, program: program.into(), bytes };
    held.processes = vec![process(7, "small", Some(GIB)), process(4242, "python", Some(70 * GIB))];
    let Verdict::Held(holder) = clearance.judge(at(130), "3", &Look::Known(held)) else { panic!("the time is over") };
    assert_eq!(holder, "71.0 GiB of 80.0 GiB of GPU 3 are in use by python (pid 4242) with 70.0 GiB, small (pid 7) with 1.0 GiB");
    assert_eq!(clearance.judge(at(500), "3", &Look::Unknown), Verdict::Free, "what is unknown keeps nobody from mining");
}

#[test]
fn a_look_that_is_still_to_come_is_waited_for_and_one_from_before_does_not_count() {
    let clearance = Clearance::new(Duration::from_secs(100), Duration::from_secs(30));
    assert_eq!(clearance.judge(Duration::from_secs(100), "0", &Look::Awaited), Verdict::Blind, "no reading yet is not free");
    let over = Duration::from_secs(100) + Clearance::FIRST_LOOK;
    assert_eq!(clearance.judge(over, "0", &Look::Awaited), Verdict::Free, "and no library keeps a host from mining");

    let (open, opened) = mpsc::channel::<()>();
    let (done, played) = mpsc::channel();
    let script = Script { looks: [(Ok(used(70 * GIB)), vec![])].into(), done };
    let slow_start = move || {
        let _ = opened.recv();
        Ok(script)
    };
    let gpus = Gpus::watch(vec!["0".into()], Board::default(), slow_start).unwrap();
    assert_eq!((gpus.look("0", None), gpus.look("1", None)), (Look::Awaited, Look::Unknown));
    assert_eq!(Gpus::default().look("0", None), Look::Unknown, "nobody watches");
    open.send(()).unwrap();
    played.recv_timeout(Duration::from_secs(20)).unwrap();
    assert_eq!(gpus.look("0", None), Look::Known(used(70 * GIB)));
    let much_later = clock::monotonic() + Duration::from_secs(3600);
    assert_eq!(gpus.look("0", Some(much_later)), Look::Awaited, "it says nothing of who has gone since");
}

#[test]
fn a_gpu_without_xids_is_told_of_and_the_others_tell_theirs() {
    struct Half(Script);
    impl Sensor for Half {
        fn read(&mut self, gpu: &str) -> Result<GpuReading, SensorError> {
            self.0.read(gpu)
        }
        fn without_xids(&self) -> Vec<(String, String)> {
            vec![("1".into(), "not supported".into())]
        }
        fn xids(&mut self, wait: Duration) -> Result<Vec<(String, u32)>, SensorError> {
            self.0.xids(wait)
        }
    }
    let before = clock::monotonic();
    let board = Board::default();
    let (done, played) = mpsc::channel();
    let looks = [(Ok(used(GIB)), vec![("0".into(), 31)]), (Ok(used(GIB)), vec![])];
    let script = Script { looks: looks.into(), done };
    let gpus = Gpus::watch(vec!["0".into(), "1".into()], board.clone(), || Ok(Half(script))).unwrap();
    played.recv_timeout(Duration::from_secs(20)).unwrap();
    assert_eq!((gpus.xids_since("0", before), gpus.xids_since("1", before)), (vec![31], vec![]));
    assert!(notes(&board)[0].contains("does not tell its XIDs (not supported)"), "{:?}", notes(&board));
}

#[test]
fn changes_are_worth_a_line_and_states_are_not() {
    let mut judge = Judge::default();
    let mut look = |temperature, errors, cap| {
        let reading = GpuReading {
            temperature: Some(temperature),
            slowdown_temperature: Some(87),
            uncorrected_errors: Some(errors),
            power_cap: Some(cap),
            default_power_cap: Some(700.0),
            ..GpuReading::default()
        };
        judge.look(&reading).into_iter().map(|note| (note.serious, note.text)).collect::<Vec<_>>()
    };
    assert_eq!(look(60, 0, 700.0), []);
    assert_eq!(look(86, 0, 700.0), [(false, "86 °C, and the driver slows it down at 87 °C".into())]);
    assert_eq!(look(84, 0, 700.0), [], "it has not cooled down");
    assert_eq!(look(86, 0, 700.0), [], "nor was it cool in between");
    assert_eq!(look(70, 2, 700.0), [(true, "2 memory error(s) that could not be corrected".into())]);
    assert_eq!(look(70, 2, 450.0), [(false, "its power is capped at 450 W of 700 W".into())]);
    assert_eq!(look(70, 2, 450.0), []);
}

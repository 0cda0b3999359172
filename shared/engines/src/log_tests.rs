//! Lines as SGLang 0.5.23 and vLLM 0.23.0 printed them.

use super::*;

fn read(line: &str) -> (String, Level, String) {
    let Line { process, level, text } = LogReader::default().read(line);
    (process.to_owned(), level, text.to_owned())
}

#[test]
fn the_lines_of_both_servers_are_taken_apart() {
    for (line, process, level, text) in [
        ("[2026-11-21 09:36:19] Load weight begin. avail mem=19.03 GB", "", Level::Info, "Load weight begin. avail mem=19.03 GB"),
        (
            "[2026-11-21 09:36:19 TP1] Memory pool end. avail mem=17.22 GB",
            "TP1",
            Level::Info,
            "Memory pool end. avail mem=17.22 GB",
        ),
        (
            "[2026-11-21 09:36:52] INFO:     127.0.0.1:43426 - \"POST /generate HTTP/1.1\" 200 OK",
            "",
            Level::Debug,
            "127.0.0.1:43426 - \"POST /generate HTTP/1.1\" 200 OK",
        ),
        (
            "INFO:     127.0.0.1:43426 - \"POST /generate HTTP/1.1\" 503 Service Unavailable",
            "",
            Level::Info,
            "127.0.0.1:43426 - \"POST /generate HTTP/1.1\" 503 Service Unavailable",
        ),
        (
            "[2026-11-21 09:36:52] Decode batch, #running-req: 1, #token: 196, token usage: 0.00, cpu graph: False",
            "",
            Level::Debug,
            "Decode batch, #running-req: 1, #token: 196, token usage: 0.00, cpu graph: False",
        ),
        (
            "[2026-11-21 09:36:52] Subprocess detokenizer (pid=20652) crashed with exit code -9. Triggering SIGQUIT for cleanup...",
            "",
            Level::Error,
            "Subprocess detokenizer (pid=20652) crashed with exit code -9. Triggering SIGQUIT for cleanup...",
        ),
        (
            "/v/lib/python3.11/site-packages/sglang/launch_server.py:71: UserWarning: 'python -m sglang.launch_server' is still",
            "",
            Level::Warning,
            "/v/lib/python3.11/site-packages/sglang/launch_server.py:71: UserWarning: 'python -m sglang.launch_server' is still",
        ),
        (
            "(EngineCore pid=29381) WARNING 11-21 09:49:11 [vllm.py:1055] Enforce eager set, disabling torch.compile",
            "EngineCore",
            Level::Warning,
            "[vllm.py:1055] Enforce eager set, disabling torch.compile",
        ),
        (
            " WARN grail_gen_launcher::embedded: The weights are refused.",
            "",
            Level::Warning,
            "grail_gen_launcher::embedded: The weights are refused.",
        ),
        (
            "launch_server.py: error: unrecognized arguments: --disable-piecewise-cuda-graph",
            "",
            Level::Error,
            "launch_server.py: error: unrecognized arguments: --disable-piecewise-cuda-graph",
        ),
    ] {
        assert_eq!(read(line), (process.to_owned(), level, text.to_owned()));
    }
}

#[test]
fn a_traceback_is_an_error_down_to_the_line_that_names_the_exception() {
    let lines = [
        ("[2026-11-21 09:50:01] Scheduler hit an exception: Traceback (most recent call last):", Level::Error),
        ("  File \"/v/sglang/srt/managers/scheduler.py\", line 3310, in run_scheduler_process", Level::Error),
        ("    scheduler.event_loop_normal()", Level::Error),
        ("IndexError: index out of range in self", Level::Error),
        ("[2026-11-21 09:50:01] Load weight begin.", Level::Info),
    ];
    let mut reader = LogReader::default();
    for (line, level) in lines {
        assert_eq!(reader.read(line).level, level, "{line}");
    }
}

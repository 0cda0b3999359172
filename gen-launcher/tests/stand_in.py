"""Stands in for SGLang or vLLM: the same module names, flags and routes, and the behaviour that was measured on the real ones.

Its state folder holds one file per wish of the test: `race` (an update replaces the weights and says 400 because the cache was
not flushed), `refuse` (an update says 400 and changes nothing), `broken` (vLLM's reload fails), `hang` (a start stops after a
line, and neither ends nor goes on), `needs_gpu` (the import fails where no GPU is visible), `slow_help` (seconds until the help
comes), `late` (seconds in which a start prints lines and does not listen).
Every call is written to `calls`, the command line to `argv`, the environment to `environment`, every question for help to `helps`.
"""
import http.server
import json
import os
import sys
import threading
import time

FOLDER = os.environ["SGLANG_STAND_IN"]
VLLM = sys.argv[0].endswith("api_server.py")
FLAGS = (
    "--model --served-model-name --host --port --dtype --kv-cache-dtype --tensor-parallel-size --gpu-memory-utilization "
    "--max-model-len --max-num-seqs --tokenizer --enable-sleep-mode --enforce-eager"
    if VLLM
    else "--model-path --served-model-name --host --port --dtype --tp-size --mem-fraction-static --context-length "
    "--trust-remote-code --load-balance-method --disable-custom-all-reduce --cuda-graph-backend-prefill --disable-cuda-graph "
    "--max-running-requests --weight-version --enable-metrics --api-key --admin-api-key --config"
).split()


def wish(name):
    return os.path.exists(os.path.join(FOLDER, name))


def seconds(name):
    path = os.path.join(FOLDER, name)
    if not os.path.exists(path):
        return 0.0
    with open(path) as file:
        return float(file.read())


def note(name, text):
    with open(os.path.join(FOLDER, name), "a") as file:
        file.write(text + "\n")


if wish("needs_gpu") and not os.environ.get("CUDA_VISIBLE_DEVICES"):
    sys.exit("RuntimeError: Found no NVIDIA driver on your system")
if "--help" in sys.argv:
    note("helps", "help")
    time.sleep(seconds("slow_help"))
    print("usage: [-h] " + " ".join(f"[{flag} X]" for flag in FLAGS))
    sys.exit(0)
for word in sys.argv[1:]:
    if word.startswith("--") and word not in FLAGS:
        print(f"error: unrecognized arguments: {word}", file=sys.stderr)
        sys.exit(2)


def value(flag):
    return sys.argv[sys.argv.index(flag) + 1]


note("argv", " ".join(sys.argv[1:]))
note("environment", json.dumps(dict(os.environ)))
if wish("hang"):
    print("[2026-11-21 09:36:19] Init torch distributed begin.", flush=True)
    os.remove(os.path.join(FOLDER, "hang"))
    threading.Event().wait()
LISTENS = time.monotonic() + seconds("late")
while time.monotonic() < LISTENS:
    print("[2026-11-21 09:36:19] Compiling kernels.", flush=True)
    time.sleep(0.1)
KEY, ADMIN_KEY = os.environ.get("VLLM_API_KEY") if VLLM else None, None
if "--config" in sys.argv:
    note("config", f"{os.stat(value('--config')).st_mode & 0o777:o} {value('--config')}")
    with open(value("--config")) as config:
        keys = json.load(config)
    KEY, ADMIN_KEY = keys.get("api-key"), keys.get("admin-api-key")
STATE = {"version": None if VLLM else value("--weight-version"), "paused": False, "flushed": True}
READY_AT = time.monotonic() + 0.5


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def answer(self, status, body=None):
        data = json.dumps(body).encode() if body is not None else b""
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def locked(self):
        # Where there is a key for administrators, no other one changes weights.
        key = ADMIN_KEY if ADMIN_KEY is not None and self.command == "POST" and self.path != "/generate" else KEY
        wrong = key is not None and self.path != "/health" and self.headers.get("authorization") != f"Bearer {key}"
        if wrong:
            self.answer(401, {"error": "Unauthorized"})
        return wrong

    def do_GET(self):
        if self.locked():
            return None
        if self.path == "/health":
            # SGLang's probe fails while it is warming up, and while it is paused.
            ready = time.monotonic() > READY_AT and (VLLM or not STATE["paused"])
            self.answer(200 if ready else 503)
        elif self.path == "/model_info":
            self.answer(200, {"weight_version": STATE["version"]})
        elif self.path == "/server_info":
            self.answer(200, {"context_length": int(value("--context-length"))})
        elif self.path == "/v1/models":
            self.answer(200, {"data": [{"id": "vllm_active", "max_model_len": int(value("--max-model-len"))}]})
        else:
            self.answer(404)

    def do_POST(self):
        text = self.rfile.read(int(self.headers.get("content-length") or 0)).decode()
        note("calls", f"{self.path} {text}".strip())
        body = json.loads(text) if text else {}
        if self.locked():
            return None
        if self.path.startswith(("/pause", "/pause_generation")):
            STATE["paused"] = True
            self.answer(200, {})
        elif self.path in ("/continue_generation", "/resume"):
            STATE["paused"] = False
            self.answer(200, {})
        elif self.path == "/update_weights_from_disk":
            if wish("refuse"):
                return self.answer(400, {"success": False, "message": "no weights there"})
            STATE["version"] = body["weight_version"]
            if wish("race"):
                return self.answer(400, {"success": False, "message": "weights updated, cache not flushed"})
            self.answer(200, {"success": True, "message": "done"})
        elif self.path == "/collective_rpc" and wish("broken"):
            self.answer(500, {"error": {"message": "shape mismatch"}})
        else:
            self.answer(200, {})


server = http.server.ThreadingHTTPServer((value("--host"), int(value("--port"))), Handler)
threading.Thread(target=server.serve_forever).start()

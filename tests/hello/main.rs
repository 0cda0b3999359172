//! The least workload there is, a template: one child that echoes, an event in the journal, a line in the status. Life cycle, GPUs,
//! orderly stop, journal and board are the supervision's. This program is the host and, started by it with `--socket`, the child.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use grail_link::Connection;
use grail_process::Spawner;
use grail_supervision::board::{Board, Part};
use grail_supervision::children::{Cause, Event, Kept, Life, LifePolicy, Opening, Team, broken, unexpected};
use grail_supervision::event;
use grail_supervision::gpu::Gpus;
use grail_supervision::host::{Host, StopTime, Workload};
use grail_supervision::journal::{Journal, read};
use grail_supervision::state::StateFolder;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

const LIMIT: Duration = Duration::from_secs(60);

event! {
    /// The child has answered.
    Greeted, "greeted", lasting: true, info "The child has answered."
    {
        /// What it said.
        answer: String,
    }
}

/// The workload's part of the board: `"greeted": 1` in status.json.
#[derive(Default)]
struct Greetings(AtomicU64);

impl Part for Greetings {
    fn fields(&self) -> Map<String, Value> {
        Map::from_iter([("greeted".to_owned(), self.0.load(Ordering::Relaxed).into())])
    }
}

/// How the child is started, and what it is asked for.
struct Echo {
    spawner: Spawner,
    socket: PathBuf,
    answer: watch::Sender<Option<String>>,
}

impl Kept for Echo {
    type In = String;
    type Out = String;

    fn opening(&self) -> Opening<'_> {
        let program = std::env::current_exe().expect("this program");
        Opening { spawner: &self.spawner, program, socket: self.socket.clone(), arguments: Vec::new(), environment: Vec::new() }
    }

    fn grace(&self) -> Duration {
        Duration::from_secs(5)
    }

    fn greet(&mut self, hello: String) -> Result<(), Cause> {
        (hello == "ready").then_some(()).ok_or_else(|| unexpected(&hello))
    }

    async fn serve(&mut self, mut link: Connection<String, String>, life: &Life) -> Cause {
        life.tell(Event::Work(1));
        let asked = link.outbox.send(&"hello".to_owned()).await;
        match asked.and(link.inbox.receive().await) {
            Ok(Some(answer)) => _ = self.answer.send_replace(Some(answer)),
            Ok(None) => return Cause::Closed,
            Err(error) => return broken(error),
        }
        life.tell(Event::Advanced);
        life.tell(Event::Idle);
        std::future::pending().await
    }
}

struct Hello {
    team: Arc<Team>,
    answer: watch::Receiver<Option<String>>,
    journal: Journal,
    greetings: Arc<Greetings>,
}

fn start(spawner: &Spawner, socket: PathBuf, board: &Board, journal: &Journal) -> Hello {
    let (told, answer) = watch::channel(None);
    let echo = Echo { spawner: spawner.clone(), socket, answer: told };
    let mut team = Team::new("echo", 1);
    team.keep(echo, "echo".into(), LifePolicy::uniform(LIMIT), board, Gpus::default());
    let greetings = Arc::new(Greetings::default());
    board.show(greetings.clone());
    Hello { team: Arc::new(team), answer, journal: journal.clone(), greetings }
}

impl Workload for Hello {
    type Children = Arc<Team>;

    async fn work(&mut self, stop: &CancellationToken) {
        let answered = async { self.answer.wait_for(Option::is_some).await.ok().and_then(|answer| answer.clone()) };
        tokio::select! {
            Some(answer) = answered => {
                self.journal.record(&Greeted { answer });
                self.greetings.0.fetch_add(1, Ordering::Relaxed);
            }
            () = stop.cancelled() => {}
        }
    }

    fn children(&self) -> Arc<Team> {
        self.team.clone()
    }
}

/// The child: says hello, echoes, and ends when its socket does.
async fn child(socket: &Path) {
    let mut link: Connection<String, String> = Connection::connect(socket).await.expect("the host's socket");
    link.outbox.send(&"ready".to_owned()).await.expect("a host that listens");
    while let Ok(Some(text)) = link.inbox.receive().await {
        link.outbox.send(&text).await.expect("a host that listens");
    }
}

async fn host(folder: &Path) {
    let state = StateFolder::lock(folder).expect("a folder of its own");
    let (socket, journal) = (state.sockets().join("echo.sock"), state.journal());
    let time = StopTime { budget: LIMIT, grace: None };
    let mut host = Host::open(state, "nobody", time).expect("threads");
    let (board, records) = (host.board.clone(), host.journal.clone());
    host.run(|spawner| Ok(start(spawner, socket, &board, &records))).await.expect("a child that echoes");
    host.close(async {}).await;
    let told = read(&journal).expect("a journal").entries;
    let answers: Vec<Greeted> = told.iter().filter_map(|entry| entry.event()).collect();
    assert_eq!(answers, [Greeted { answer: "hello".into() }]);
    let status: Value = serde_json::from_slice(&std::fs::read(folder.join("status.json")).expect("a status")).expect("JSON");
    assert_eq!((&status["greeted"], &status["children"]["echo"]["starts"]), (&1.into(), &1.into()), "{status:#}");
    println!("hello ... ok");
}

#[tokio::main]
async fn main() {
    match std::env::args().skip_while(|word| word != "--socket").nth(1) {
        Some(socket) => child(Path::new(&socket)).await,
        None => host(tempfile::tempdir().expect("a folder").path()).await,
    }
}

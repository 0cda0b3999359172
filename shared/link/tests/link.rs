//! Frames survive the trip, hostile bytes do not, and only the right peer gets in.

use std::time::Duration;

use grail_link::message::{FromWorker, ProofJob, ProofSequence, Revision, SequenceProof, ToWorker};
use grail_link::{Connection, LinkError, Listener, decode_frame, encode_frame};
use proptest::prelude::*;

fn proof(sketches: Vec<u32>, logprobs: Vec<f32>) -> FromWorker {
    FromWorker::Sequence(SequenceProof { job: 7, index: 3, sketches, logprobs, commitments_hash: [9; 32], examined: None })
}

proptest! {
    #[test]
    fn frames_round_trip(sketches in prop::collection::vec(any::<u32>(), 0..300), logprobs in prop::collection::vec(-50f32..0.0, 0..300)) {
        let message = proof(sketches, logprobs);
        prop_assert_eq!(decode_frame::<FromWorker>(&encode_frame(&message).unwrap()).unwrap(), message);
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = decode_frame::<FromWorker>(&bytes);
    }

    #[test]
    fn damaged_frames_are_refused(at in 0usize..60, bit in 0u8..8) {
        let mut frame = encode_frame(&proof(vec![1, 2, 3], vec![-0.5])).unwrap();
        let at = at % frame.len();
        frame[at] ^= 1 << bit;
        prop_assert!(decode_frame::<FromWorker>(&frame).is_err());
    }
}

#[test]
fn a_frame_of_another_build_says_so() {
    let mut frame = encode_frame(&proof(vec![], vec![])).unwrap();
    frame[2] = 99;
    let error = decode_frame::<FromWorker>(&frame).unwrap_err().to_string();
    assert!(error.contains("version 99"), "{error}");
}

#[test]
fn an_absurd_length_is_refused_before_allocation() {
    let mut frame = encode_frame(&proof(vec![], vec![])).unwrap();
    frame[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
    assert!(decode_frame::<FromWorker>(&frame).unwrap_err().to_string().contains("larger than the limit"));
}

#[tokio::test]
async fn messages_cross_a_socket_and_the_end_is_seen() {
    let folder = tempfile::tempdir().unwrap();
    let listener = Listener::bind(&folder.path().join("run/worker.sock")).unwrap();
    let path = listener.path().to_owned();
    let child = tokio::spawn(async move {
        let mut link: Connection<ToWorker, FromWorker> = Connection::connect(&path).await.unwrap();
        while let Some(ToWorker::Prove(job)) = link.inbox.receive().await.unwrap() {
            link.outbox.send(&FromWorker::JobDone { job: job.id, seconds: 0.0, seconds_beside: 0.0 }).await.unwrap();
        }
    });
    let mut link: Connection<FromWorker, ToWorker> = listener.accept(std::process::id()).await.unwrap();
    for id in 0..20 {
        let sequence = ProofSequence { tokens: vec![1; 5000], prompt_length: 3, coefficients: [-127; 16] };
        let revision = Revision { window: 30, weights_hash: "00".repeat(16) };
        let job = ProofJob { id, revision, sequences: vec![sequence; 16], examine: None };
        link.outbox.send(&ToWorker::Prove(job)).await.unwrap();
        assert_eq!(link.inbox.receive().await.unwrap(), Some(FromWorker::JobDone { job: id, seconds: 0.0, seconds_beside: 0.0 }));
    }
    drop(link);
    tokio::time::timeout(Duration::from_secs(60), child).await.expect("the child sees the end").unwrap();
}

#[tokio::test]
async fn another_process_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let listener = Listener::bind(&folder.path().join("run/worker.sock")).unwrap();
    let path = listener.path().to_owned();
    tokio::spawn(async move { Connection::<(), ()>::connect(&path).await });
    let refused = listener.accept::<(), ()>(1).await;
    assert!(matches!(refused, Err(LinkError::WrongPeer { expected: 1, .. })), "{refused:?}");
}

#[tokio::test]
async fn long_paths_and_open_folders_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let long = folder.path().join("x".repeat(120)).join("worker.sock");
    assert!(matches!(Listener::bind(&long), Err(LinkError::PathTooLong { .. })));
    let open = folder.path().join("open");
    std::fs::create_dir(&open).unwrap();
    std::fs::set_permissions(&open, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    assert!(matches!(Listener::bind(&open.join("worker.sock")), Err(LinkError::FolderNotPrivate { .. })));
}

use super::*;

fn chunks(numbers: std::ops::Range<u8>) -> Vec<ChunkId> {
    numbers.map(|number| ChunkId::new([number; 32])).collect()
}

fn session(number: u8) -> SessionId {
    SessionId::new([number; 16])
}

#[tokio::test(start_paused = true)]
async fn sessions_wait_for_what_others_send_and_never_in_a_circle() {
    let mut expected = Expected::default();
    expected.expect(None, session(1), &chunks(0..100));
    expected.expect(None, session(2), &chunks(50..200));
    let wait = |expected: &mut Expected, number, ids| match expected.next(
        None,
        session(number),
        ids,
        expected.ended,
    ) {
        Next::Wait(awaited) => Some(awaited.ids),
        _ => None,
    };
    // The one that asked first waits for the other, too.
    assert_eq!(wait(&mut expected, 1, chunks(90..140)), Some(chunks(100..140)));
    assert!(expected.of_others(None, session(2), &chunks(0..100)).is_none(), "that one waits for it");
    expected.expect(None, session(3), &chunks(200..240));
    assert_eq!(wait(&mut expected, 3, chunks(0..50)), Some(chunks(0..50)));
    assert!(expected.of_others(None, session(2), &chunks(200..240)).is_none(), "it does by way of the first");
    let all = expected.of_others(None, session(4), &chunks(0..250)).unwrap();
    assert_eq!((all.ids, all.senders.len()), (chunks(0..240), 3));
    assert!(expected.of_others(None, session(4), &chunks(0..20)).is_none(), "too few to wait for");
    let stranger = Some(WriterId::new([1; 16]));
    assert!(expected.of_others(stranger, session(4), &chunks(0..250)).is_none(), "of no use to it");
}

/// Whoever goes away while it waits holds nobody up.
#[tokio::test(start_paused = true)]
async fn who_does_not_wait_any_more_is_waited_for() {
    let coming = Coming::default();
    coming.expected().expect(None, session(1), &chunks(0..100));
    coming.expected().expect(None, session(2), &chunks(100..200));
    let Next::Wait(awaited) = coming.expected().next(None, session(1), chunks(100..200), 0) else {
        panic!("it waits");
    };
    let waiting = Waiting { coming: &coming, session: session(1), awaited: &awaited, since: Instant::now() };
    assert!(coming.expected().of_others(None, session(2), &chunks(0..100)).is_none());
    tokio::time::advance(Duration::from_secs(1)).await;
    drop(waiting);
    assert!(coming.expected().of_others(None, session(2), &chunks(0..100)).is_some());
    assert_eq!(coming.expected().asker(session(1)).waited, Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn what_does_not_come_is_not_waited_for_any_longer() {
    let mut expected = Expected::default();
    expected.expect(None, session(1), &chunks(0..100));
    tokio::time::advance(PATIENCE / 2).await;
    assert!(expected.of_others(None, session(2), &chunks(0..100)).is_some());
    // Asking again does not prolong it.
    expected.expect(None, session(1), &chunks(0..100));
    tokio::time::advance(PATIENCE / 2).await;
    assert!(expected.of_others(None, session(2), &chunks(0..100)).is_none());
    // Then it is up to who asked last.
    expected.expect(None, session(2), &chunks(0..100));
    assert!(expected.of_others(None, session(3), &chunks(0..100)).is_some());
    expected.ends(session(2));
    assert!(expected.of_others(None, session(3), &chunks(0..100)).is_none());
}

#[tokio::test(start_paused = true)]
async fn only_so_much_is_expected() {
    let mut expected = Expected::default();
    let many: Vec<ChunkId> = (0..MOST as u64 + 10)
        .map(|number| {
            let mut id = [0; 32];
            id[..8].copy_from_slice(&number.to_le_bytes());
            ChunkId::new(id)
        })
        .collect();
    expected.expect(None, session(1), &many);
    assert_eq!(expected.chunks.len(), MOST);
    tokio::time::advance(PATIENCE).await;
    expected.expect(None, session(2), &many[..100]);
    assert_eq!(expected.chunks.len(), 100);
    expected.ends(session(1));
    expected.ends(session(2));
    assert!(expected.chunks.is_empty() && expected.sessions.is_empty());
}

#[tokio::test(start_paused = true)]
async fn who_sends_something_is_waited_for_longer() {
    let mut expected = Expected::default();
    expected.expect(None, session(1), &chunks(0..100));
    for _ in 0..3 {
        tokio::time::advance(PATIENCE / 2).await;
        expected.has_sent(session(1));
    }
    let awaited = expected.of_others(None, session(2), &chunks(0..100)).unwrap();
    assert_eq!(awaited.until, Instant::now() + PATIENCE);
    tokio::time::advance(PATIENCE).await;
    assert!(expected.of_others(None, session(2), &chunks(0..100)).is_none());
}

/// A session can store everything and end between a look-up and what is made of it.
#[tokio::test(start_paused = true)]
async fn nothing_is_sent_again_because_its_sender_has_just_ended() {
    let mut expected = Expected::default();
    let ids = chunks(0..100);
    assert_eq!(expected.next(None, session(1), ids.clone(), 0), Next::Send);
    let before_the_lookup = expected.ended;
    expected.has_sent(session(1));
    expected.ends(session(1));
    let next = expected.next(None, session(2), ids.clone(), before_the_lookup);
    assert_eq!(next, Next::LookAgain(ids.clone()));
    assert_eq!(expected.next(None, session(2), ids, expected.ended), Next::Send);
}

#[tokio::test(start_paused = true)]
async fn sessions_that_vanish_are_forgotten() {
    let mut expected = Expected::default();
    for number in 1..100 {
        expected.expect(None, session(number), &chunks(0..100));
    }
    tokio::time::advance(FORGOTTEN).await;
    expected.expect(None, session(100), &chunks(0..100));
    assert_eq!(expected.sessions.len(), 1);
    assert!(expected.of_others(None, session(101), &chunks(0..100)).is_some());
}

/// Whoever asks for the same again and again holds others up, but not for ever.
#[tokio::test(start_paused = true)]
async fn nobody_is_held_up_for_ever() {
    let mut expected = Expected::default();
    let mut rounds = 0;
    loop {
        expected.expect(None, session(1), &chunks(0..100));
        let Some(awaited) = expected.of_others(None, session(2), &chunks(0..100)) else { break };
        let wait = awaited.until - Instant::now();
        assert!(!wait.is_zero());
        tokio::time::advance(wait).await;
        expected.asker(session(2)).waited += wait;
        rounds += 1;
    }
    assert_eq!(rounds, LONGEST.as_secs() / PATIENCE.as_secs());
}

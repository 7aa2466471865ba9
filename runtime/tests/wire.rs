//! Messages there and back, in frames that arrive in any pieces, and bytes that are none.

use lutite_runtime::decode::Phase;
use lutite_runtime::sample::SamplerConfig;
use lutite_runtime::split::codec::{CodecSpec, Precision};
use lutite_runtime::split::frame::{Frame, FrameError, Frames, HEADER_BYTES, Header, write};
use lutite_runtime::split::message::{Bounds, Card, MAX_TEXT_BYTES, Message, Open, Refusal, Ticket};

const BOUNDS: Bounds = Bounds { state_bytes: 100, batch: 8 };

fn codec() -> CodecSpec {
    CodecSpec {
        width: 576,
        precision: Precision::Bits(6),
        channels: vec![3, 17, 500],
        indexed: 16,
        guard: 0.25,
    }
}

/// One of each kind, and of what they may lack.
fn messages() -> Vec<Message<'static>> {
    let card = Card { fingerprint: [9; 32], layers: 30, least: 2, width: 576, context: 4096, batch: 64 };
    let open = Open {
        fingerprint: [7; 32],
        cut: 12,
        codec: codec(),
        context: 2048,
        sampling: SamplerConfig { seed: 1 << 60, ..SamplerConfig::default() },
    };
    let ticket = Ticket { session: [1; 16], secret: [2; 32] };
    vec![
        Message::Hello { versions: (1, 3), token: "secret" },
        Message::Hello { versions: (1, 1), token: "" },
        Message::Welcome { version: 1, models: vec![card.clone(), Card { least: 0, ..card }] },
        Message::Welcome { version: 1, models: vec![] },
        Message::Open(Box::new(open)),
        Message::Opened { ticket, lease_s: 120, window: 4 },
        Message::Step { phase: Phase::Prompt, sample: false, tokens: &[1; 12], count: 3, states: &[5; 99] },
        Message::Step { phase: Phase::Answer, sample: true, tokens: &[], count: 1, states: &[8; 40] },
        Message::Done { token: Some(0), compute_us: 5000, queue_us: 3 },
        Message::Done { token: None, compute_us: 1, queue_us: 0 },
        Message::Rewind,
        Message::Recode(Box::new(CodecSpec { precision: Precision::Lossless, channels: vec![], ..codec() })),
        Message::Resume(ticket),
        Message::Resumed,
        Message::Ping(77),
        Message::Pong(78),
        Message::Close,
        Message::Error { refusal: Refusal::Busy, retry_ms: 900, text: "noch nicht frei, später" },
    ]
}

fn all_in_one() -> Vec<u8> {
    let mut bytes = Vec::new();
    messages().iter().enumerate().for_each(|(i, m)| m.write(i as u32, 1000 + i as u32, &mut bytes));
    bytes
}

#[test]
fn every_message_arrives_in_pieces_of_any_size() {
    let bytes = all_in_one();
    for size in [1, 2, 7, 23, 24, 25, 100, 1000, bytes.len()] {
        let mut frames = Frames::default();
        let mut expected = messages().into_iter().enumerate();
        for piece in bytes.chunks(size) {
            frames.push(piece);
            while let Some(frame) = frames.next(|kind| BOUNDS.cap(kind)).unwrap() {
                let (i, message) = expected.next().unwrap();
                assert_eq!((frame.header.seq, frame.header.pos), (i as u32, 1000 + i as u32));
                assert_eq!(Message::read(&frame).unwrap(), Some(message));
            }
        }
        assert_eq!(expected.next(), None);
    }
}

/// With any bit flipped, what arrives are the messages before it, and those behind it only where it waits for more.
#[test]
fn no_flipped_bit_makes_another_message() {
    let bytes = all_in_one();
    let sent = messages();
    let mut refused = 0;
    for bit in 0..8 * bytes.len() {
        let mut bad = bytes.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        let mut frames = Frames::default();
        frames.push(&bad);
        let mut got = 0;
        loop {
            match frames.next(|kind| BOUNDS.cap(kind)) {
                Ok(Some(frame)) => {
                    assert_eq!(Message::read(&frame).unwrap().as_ref(), Some(&sent[got]), "bit {bit}");
                    got += 1;
                }
                Ok(None) => break,
                Err(e) => {
                    assert!(e.to_string().len() < 200);
                    refused += 1;
                    break;
                }
            }
        }
        assert!(got < sent.len(), "bit {bit}");
    }
    assert!(refused > 7 * bytes.len());
}

#[test]
fn what_is_no_frame_is_refused_at_once() {
    let next = |bytes: &[u8]| {
        let mut frames = Frames::default();
        frames.push(bytes);
        frames.next(|kind| BOUNDS.cap(kind)).map(|frame| frame.map(|f| f.header))
    };
    assert_eq!(next(b"GET "), Err(FrameError::Foreign(*b"GET ")));
    assert_eq!(next(b"LR"), Ok(None));
    assert!(next(b"LR\x02\x01").unwrap_err().to_string().contains("does not speak LRS/1"));
    // A length is refused before its bytes come, and takes no memory.
    let mut bytes = Vec::new();
    Message::Rewind.write(1, 2, &mut bytes);
    bytes[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
    let why = next(&bytes).unwrap_err().to_string();
    assert!(why.contains("has 4294967295 bytes, at most 1088"), "{why}");
    // Before there is a session there are no states.
    let mut bytes = Vec::new();
    messages()[6].write(1, 2, &mut bytes);
    let mut frames = Frames::default();
    frames.push(&bytes);
    assert!(matches!(frames.next(|kind| Bounds::default().cap(kind)), Err(FrameError::Long { cap: 3, .. })));
}

#[test]
fn payloads_that_mean_nothing() {
    let read = |kind: u8, must: bool, payload: &[u8]| {
        let header = Header { kind, must, seq: 1, pos: 2 };
        Message::read(&Frame { header, payload }).map(|m| format!("{m:?}")).map_err(|e| e.to_string())
    };
    let mut framed = Vec::new();
    for message in messages() {
        framed.clear();
        message.write(1, 2, &mut framed);
        let (kind, payload) = (framed[3], &framed[HEADER_BYTES..]);
        let is_step = matches!(message, Message::Step { .. });
        for end in 0..payload.len() {
            // How long states are is for the codec to say.
            if let Ok(other) = read(kind, true, &payload[..end]) {
                assert!(is_step && other.contains("Step"), "{message:?} {end}");
            }
        }
        let longer: Vec<u8> = payload.iter().copied().chain([0]).collect();
        assert!(is_step || read(kind, true, &longer).unwrap_err().contains("goes on behind its end"));
    }
    assert!(read(200, true, &[]).unwrap_err().contains("kind 200 is not known here"));
    assert_eq!(read(200, false, &[1, 2, 3]), Ok("None".into()));
    assert!(read(5, true, &[0, 0, 0]).unwrap_err().contains("of no tokens"));
    assert!(read(5, true, &[8, 1, 0]).unwrap_err().contains("no known sort"));
    assert!(read(6, true, &[2; 13]).unwrap_err().contains("a token and has none"));
    assert!(read(1, true, &[1, 1, 2, 0, 0xff, 0xff]).unwrap_err().contains("a text that is none"));
    assert!(read(2, true, &[1, 65]).unwrap_err().contains("too many models"));
}

#[test]
fn long_texts_are_cut_at_a_character() {
    let text = "ä".repeat(MAX_TEXT_BYTES);
    let mut bytes = Vec::new();
    Message::Error { refusal: Refusal::Failed, retry_ms: 0, text: &text }.write(0, 0, &mut bytes);
    let mut frames = Frames::default();
    frames.push(&bytes);
    let frame = frames.next(|kind| BOUNDS.cap(kind)).unwrap().unwrap();
    let Ok(Some(Message::Error { text, .. })) = Message::read(&frame) else { panic!("no error") };
    assert_eq!(text.len(), MAX_TEXT_BYTES);
    // A frame may be empty.
    let mut bytes = Vec::new();
    write(Header { kind: 99, must: false, seq: 0, pos: 0 }, &mut bytes, |_| {});
    frames.push(&bytes);
    let frame = frames.next(|_| 0).unwrap().unwrap();
    assert_eq!((frame.payload, Message::read(&frame)), (&[][..], Ok(None)));
}

//! Hidden states on their way from the first layers to the others: what sending them in fewer bits costs, and how long it takes.
//!
//!     cargo bench -p lutite-benches --bench wire -- FILE TEXT CALIBRATION [TOKENS [EVERY]]      default: 512 1
//!
//! FILE is a packed model. For every cut (or every EVERYth), channels are agreed on by what CALIBRATION's states are like; then TEXT
//! goes through the model in two halves, once as it is and once for each precision. Printed are the bytes of a state, KL divergence of the
//! next token's distribution to that of the undisturbed model, how often the likeliest token is the same, and the most that a single
//! token lost. At the end, how many tokens a second several texts have together behind a cut, and the time of encoding and decoding a
//! state.

use lutite_kernels::isa::Isa;
use lutite_kernels::ops::softmax::log_sum_exp;
use lutite_models::halves::{Back, Front, Text};
use lutite_models::{OpenOptions, Tokenizer};
use lutite_runtime::decode::{Logits, Phase};
use lutite_runtime::os::map::Map;
use lutite_runtime::sample::argmax;
use lutite_runtime::split::codec::{Codec, CodecSpec, Precision};
use lutite_runtime::store::{Bytes, ModelFile, is_packed};
use std::hint::black_box;
use std::time::Instant;

/// Bits, and bytes that a state may take.
const PRECISIONS: [(u8, usize); 4] = [(8, 640), (6, 490), (5, 418), (4, 345)];

/// Tokens of a step.
const BATCH: usize = 64;

/// Values sent apart, agreed and indexed, of a state of 576 values.
const APART: usize = 22;

fn main() {
    let mut args = std::env::args().skip(1).filter(|arg| !arg.starts_with("--"));
    let Some(path) = args.next() else {
        println!("no file was named: nothing is measured");
        return;
    };
    let text = args.next().expect("a text");
    let calibration = args.next().expect("a text to calibrate with");
    let mut number = |or: usize| args.next().map_or(or, |n| n.parse().expect("a number"));
    let (tokens, every) = (number(512), number(1));
    let file = ModelFile::from(&Bytes::new(Map::open(&path).expect("a file")));
    let tokenizer = Tokenizer::from_gguf(&file.gguf().expect("a model")).expect("a tokenizer");
    let read = |name: &str| {
        let text = std::fs::read_to_string(name).expect("a text");
        let end = (0..=text.len().min(12 * tokens)).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0);
        let mut ids = tokenizer.encode(&text[..end], true, false);
        ids.truncate(tokens);
        ids
    };
    let (text, calibration) = (read(&text), read(&calibration));
    let isa = Isa::from_env().expect("a tier");
    let workers = std::thread::available_parallelism().map_or(1, |n| n.get());
    let packed = is_packed(&file.gguf().expect("a model")).expect("a model");
    let path = if packed { lutite_models::Path::Lut } else { lutite_models::Path::Plain };
    let options = OpenOptions { path, workers, batch: BATCH, context: Some(tokens), ..OpenOptions::new(isa) };
    let front = |cut| Front::open(&file, &options, cut).expect("a front");
    let layers = front(0).config().layers;
    println!("| cut | bits | agreed | bytes, mean | most | KL | same top token, % | most of a token |");
    println!("|---:|---:|---:|---:|---:|---:|---:|---:|");
    let mut totals = vec![(0.0f64, 0.0f64, f64::INFINITY); PRECISIONS.len()];
    for cut in (0..=layers).step_by(every) {
        let mut front = front(cut);
        let width = front.config().dim;
        let known = states(&mut front, &calibration);
        let sent = states(&mut front, &text);
        let mut back = Back::open(&file, &options, cut).expect("a back");
        let vocab = front.config().vocab;
        let expected = logits(&mut back, &sent, width);
        for (i, (bits, bytes)) in PRECISIONS.into_iter().enumerate() {
            let spec = spec(&known, width, bits, bytes);
            let agreed = spec.channels.len();
            let mut codec = Codec::new(spec).expect("a codec");
            let (mut wire, mut got) = (Vec::new(), vec![0.0; sent.len()]);
            let mut most = 0;
            for (x, to) in sent.chunks_exact(width).zip(got.chunks_exact_mut(width)) {
                let before = wire.len();
                codec.encode(x, &mut wire).expect("finite states");
                most = most.max(wire.len() - before);
                codec.decode(&wire[before..], to).expect("what was encoded");
            }
            let found = logits(&mut back, &got, width);
            let (mut sum, mut worst, mut same) = (0.0f64, 0.0f64, 0);
            for (p, q) in expected.chunks_exact(vocab).zip(found.chunks_exact(vocab)) {
                let kl = divergence(p, q);
                (sum, worst) = (sum + kl, worst.max(kl));
                same += usize::from(argmax(p) == argmax(q));
            }
            let n = text.len() as f64;
            let (mean, kl, top) = (wire.len() as f64 / n, sum / n, 100.0 * same as f64 / n);
            println!("| {cut} | {bits} | {agreed} | {mean:.1} | {most} | {kl:.5} | {top:.1} | {worst:.3} |");
            let t = &mut totals[i];
            *t = (t.0.max(mean), t.1.max(kl), t.2.min(top));
        }
    }
    for ((bits, _), (bytes, kl, top)) in PRECISIONS.into_iter().zip(totals) {
        println!(
            "{bits} bits, over all cuts: {bytes:.1} bytes, KL {kl:.5}, same top token {top:.1} %, at worst"
        );
    }
    together(&file, &options, layers);
    times();
}

/// Tokens of several texts in one step of the layers behind a third of them, as a worker does them.
fn together(file: &ModelFile, options: &OpenOptions, layers: usize) {
    println!("| texts | ms a step | tokens/s |");
    println!("|---:|---:|---:|");
    let mut back = Back::open(file, options, layers / 3).expect("a back");
    let width = Front::open(file, options, 0).expect("a front").config().dim;
    for n in [1, 2, 4, 8] {
        let slots: Vec<usize> =
            (0..n).map(|i| if i == 0 { 0 } else { back.add_text().expect("memory") }).collect();
        let states: Vec<f32> = (0..n * width).map(|i| (i % 37) as f32 - 18.0).collect();
        let mut times = Vec::new();
        for pos in 0..200 {
            let text = |slot: &usize| Text { slot: *slot, start: pos, tokens: 1, wanted: true };
            let texts: Vec<Text> = slots.iter().map(text).collect();
            let start = Instant::now();
            black_box(back.step_texts(&texts, &states, Phase::Answer).expect("logits"));
            times.push(start.elapsed().as_secs_f64());
        }
        slots.into_iter().skip(1).for_each(|slot| back.remove_text(slot));
        times.sort_by(f64::total_cmp);
        let ms = 1e3 * times[times.len() / 2];
        println!("| {n} | {ms:.2} | {:.0} |", 1e3 * n as f64 / ms);
    }
}

/// What leaves a front, `[tokens][width]`.
fn states(front: &mut Front, tokens: &[u32]) -> Vec<f32> {
    front.rewind(0);
    let mut all = Vec::new();
    for part in tokens.chunks(BATCH) {
        all.extend_from_slice(front.step(part, Phase::Prompt).expect("states"));
    }
    all
}

fn logits(back: &mut Back, states: &[f32], width: usize) -> Vec<f32> {
    back.rewind(0);
    let mut all = Vec::new();
    for part in states.chunks(BATCH * width) {
        all.extend_from_slice(back.step(part, Phase::Prompt, Logits::All).expect("logits"));
    }
    all
}

/// What is agreed on, by what states are like.
fn spec(states: &[f32], width: usize, bits: u8, bytes: usize) -> CodecSpec {
    let apart = APART;
    let mut often = vec![0usize; width];
    for x in states.chunks_exact(width) {
        let mut order: Vec<usize> = (0..width).collect();
        order.sort_by(|a, b| x[*b].abs().total_cmp(&x[*a].abs()));
        order.iter().take(apart).for_each(|c| often[*c] += 1);
    }
    // A place costs a byte, and an agreed channel two of every token.
    let tokens = states.len() / width;
    let channels: Vec<u16> = (0..width).filter(|c| 3 * often[*c] > 2 * tokens).map(|c| c as u16).collect();
    let rest = width - channels.len();
    let room =
        |n: usize| 6 + 2 * channels.len() + 3 * n + ((rest - n) * usize::from(bits)).div_ceil(8) <= bytes;
    let indexed = (0..=255).rev().find(|n| room(*n)).unwrap_or(0);
    CodecSpec { width, precision: Precision::Bits(bits), channels, indexed: indexed as u8, guard: 1.0 }
}

/// KL divergence of `q`'s distribution to `p`'s, both as logits, in nats.
fn divergence(p: &[f32], q: &[f32]) -> f64 {
    let (a, b) = (log_sum_exp(p), log_sum_exp(q));
    let of = |(p, q): (&f32, &f32)| {
        let (p, q) = (f64::from(*p) - a, f64::from(*q) - b);
        p.exp() * (p - q)
    };
    p.iter().zip(q).map(of).sum()
}

/// Times of a state's way.
fn times() {
    println!("| width | bits | encode, us | decode, us |");
    println!("|---:|---:|---:|---:|");
    for width in [576usize, 4096] {
        for bits in [4, 6] {
            let channels: Vec<u16> = (0..8).map(|i| (i * width / 8 + 3) as u16).collect();
            let indexed = (width / 48).min(255) as u8;
            let spec = CodecSpec { width, precision: Precision::Bits(bits), channels, indexed, guard: 1.0 };
            let mut codec = Codec::new(spec).expect("a codec");
            let mut state = 1u64;
            let mut noise = || {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
            };
            // Sums of few are heavier at the ends than those of many.
            let x: Vec<f32> =
                (0..width).map(|_| (noise() + noise() + noise()) / (noise().abs() + 0.05)).collect();
            let (mut bytes, mut to) = (Vec::with_capacity(codec.max_bytes()), vec![0.0; width]);
            let mut best = [f64::INFINITY; 2];
            for _ in 0..2000 {
                bytes.clear();
                let start = Instant::now();
                codec.encode(black_box(&x), &mut bytes).expect("finite");
                best[0] = best[0].min(start.elapsed().as_secs_f64());
                let start = Instant::now();
                codec.decode(black_box(&bytes), &mut to).expect("what was encoded");
                best[1] = best[1].min(start.elapsed().as_secs_f64());
                black_box(&to);
            }
            println!("| {width} | {bits} | {:.1} | {:.1} |", best[0] * 1e6, best[1] * 1e6);
        }
    }
}

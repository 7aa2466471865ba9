//! Slow twins, and files that lie.

use super::base::{BaseError, BaseReader, BaseWriter};
use super::protocol::{Chunk, Cut, CutError, Step};
use super::score::{self, Compared, Reference};
use super::stats::{Divergence, Mean, percentile};
use crate::args::Protocol;
use std::path::{Path, PathBuf};

/// Numbers that look random: a linear congruential generator, from -1 to 1.
fn noise(seed: u64, n: usize) -> Vec<f64> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

fn logits(seed: u64, n: usize, spread: f64) -> Vec<f32> {
    noise(seed, n).into_iter().map(|x| (x * spread) as f32).collect()
}

/// The definition, with the library's functions.
fn slow_log_probs(row: &[f32]) -> Vec<f64> {
    let sum: f64 = row.iter().map(|x| f64::from(*x).exp()).sum();
    row.iter().map(|x| f64::from(*x) - sum.ln()).collect()
}

#[test]
fn scores_equal_their_definition() {
    for (n, spread) in [(1, 3.0), (7, 0.0), (8, 2.0), (513, 20.0), (49_152, 12.0), (1000, 300.0)] {
        let (p, q) = (logits(n as u64, n, spread), logits(n as u64 + 1, n, spread));
        let (slow_p, slow_q) = (slow_log_probs(&p), slow_log_probs(&q));
        let lse = score::log_sum_exp(&p).unwrap();
        assert!((lse - lutite_kernels::ops::softmax::log_sum_exp(&p)).abs() < 1e-10, "{n}");
        let target = n as u32 / 2;
        let got = score::compare(Reference::Logits(&p), &q, target).unwrap();
        let kl: f64 = slow_p.iter().zip(&slow_q).map(|(p, q)| p.exp() * (p - q)).sum();
        assert!((got.kl - kl).abs() < 1e-9 * kl.abs().max(1.0), "{n}: {} {kl}", got.kl);
        assert!((got.nll + slow_q[target as usize]).abs() < 1e-9);
        assert!((got.reference_nll + slow_p[target as usize]).abs() < 1e-9);
        assert!((score::nll(&q, target).unwrap() - got.nll).abs() < 1e-12);
        let p_diff = slow_q[target as usize].exp() - slow_p[target as usize].exp();
        assert!((got.p_diff - p_diff).abs() < 1e-9);
        let best = |row: &[f64]| (0..row.len()).max_by(|a, b| row[*a].total_cmp(&row[*b])).unwrap();
        assert!(got.same_top == (best(&slow_p) == best(&slow_q)) || spread == 0.0);
        let same = score::compare(Reference::Logits(&p), &p, target).unwrap();
        assert!(same.same_top && same.kl.abs() < 1e-15 && same.p_diff == 0.0);
    }
}

#[test]
fn numbers_that_are_none_give_no_score() {
    for odd in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for at in [0, 5, 19] {
            let (fine, mut row) = (logits(1, 20, 1.0), logits(2, 20, 1.0));
            row[at] = odd;
            assert_eq!(score::log_sum_exp(&row), None);
            assert_eq!(score::nll(&row, 3), None);
            assert_eq!(score::compare(Reference::Logits(&row), &fine, 3), None);
            assert_eq!(score::compare(Reference::LogProbs(&fine), &row, 3), None);
        }
    }
    assert_eq!(score::nll(&[0.0; 4], 4), None);
    assert_eq!(score::log_sum_exp(&[]), None);
    assert_eq!(score::compare(Reference::Logits(&[0.0; 4]), &[0.0; 5], 1), None);
}

#[test]
fn each_keeps_the_order() {
    for (threads, n) in [(1, 5), (2, 5), (3, 64), (9, 4), (0, 3), (4, 0)] {
        assert_eq!(score::each(threads, n, |i| i * i), (0..n).map(|i| i * i).collect::<Vec<_>>());
    }
}

#[test]
fn means_and_percentiles() {
    let x: Vec<f64> = noise(3, 1001).into_iter().map(|x| x + 5.0).collect();
    let mean: Mean = x.iter().copied().collect();
    // llama-perplexity's formulas.
    let n = x.len() as f64;
    let (sum, squares) = (x.iter().sum::<f64>() / n, x.iter().map(|x| x * x).sum::<f64>() / n);
    assert!((mean.mean() - sum).abs() < 1e-12);
    assert!((mean.error() - ((squares - sum * sum) / (n - 1.0)).sqrt()).abs() < 1e-12);
    assert!((mean.perplexity_error() - sum.exp() * mean.error()).abs() < 1e-9);
    assert_eq!((Mean::default().error(), Mean::from_iter([2.0]).error()), (0.0, 0.0));

    let sorted: Vec<f64> = (0..=1000).map(f64::from).collect();
    for (fraction, is) in [(0.0, 0.0), (0.5, 500.0), (0.99, 990.0), (0.9995, 999.5), (1.0, 1000.0)] {
        assert!((percentile(&sorted, fraction) - is).abs() < 1e-9, "{fraction}");
    }
    assert_eq!((percentile(&[7.0], 0.3), percentile(&[1.0, 2.0], 0.5)), (7.0, 1.5));
    assert!(percentile(&[], 0.5).is_nan());
}

#[test]
fn divergence_is_llama_perplexitys() {
    let a = noise(5, 4000);
    let all: Vec<Compared> = a
        .chunks_exact(4)
        .map(|x| Compared {
            kl: x[0].abs(),
            nll: 3.0 + x[1] + 0.1 * x[2],
            reference_nll: 3.0 + x[1],
            p_diff: x[3] * 0.1,
            same_top: x[0] < 0.9,
        })
        .collect();
    let d = Divergence::of(&all);
    let n = all.len() as f64;
    let mean = |f: &dyn Fn(&Compared) -> f64| all.iter().map(f).sum::<f64>() / n;
    let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-9, "{a} {b}");
    close(d.mean_kl, mean(&|p| p.kl));
    close(d.perplexity, mean(&|p| p.nll).exp());
    close(d.reference_perplexity, mean(&|p| p.reference_nll).exp());
    close(d.perplexity_ratio, d.perplexity / d.reference_perplexity);
    // Its error by way of the covariance, as llama.cpp has it.
    let error = |f: &dyn Fn(&Compared) -> f64| (mean(&|p| f(p) * f(p)) - mean(f).powi(2)) / (n - 1.0);
    let covariance =
        (mean(&|p| p.nll * p.reference_nll) - mean(&|p| p.nll) * mean(&|p| p.reference_nll)) / (n - 1.0);
    let of_ratio = (error(&|p| p.nll) + error(&|p| p.reference_nll) - 2.0 * covariance).sqrt();
    close(d.perplexity_ratio_error, d.perplexity_ratio * of_ratio);
    let rms = mean(&|p| p.p_diff * p.p_diff).sqrt();
    close(d.rms_p_diff, rms);
    close(d.rms_p_diff_error, 0.5 / rms * error(&|p| p.p_diff * p.p_diff).sqrt());
    let same = mean(&|p| f64::from(u8::from(p.same_top)));
    close(d.top1_agreement, same);
    close(d.top1_agreement_error, (same * (1.0 - same) / (n - 1.0)).sqrt());
    let mut kl: Vec<f64> = all.iter().map(|p| p.kl).collect();
    kl.sort_by(f64::total_cmp);
    assert_eq!((d.positions, d.max_kl), (1000, kl[999]));
    close(d.median_kl, (kl[499] + kl[500]) / 2.0);
    assert!(d.median_kl < d.p99_kl && d.p99_kl < d.p99_9_kl && d.p99_9_kl < d.max_kl);
}

#[test]
fn the_llama_protocol_scores_second_halves_behind_bos() {
    let cut = Cut::new((10..35).collect(), Protocol::Llama, 8, Some(1), usize::MAX).unwrap();
    assert_eq!((cut.chunks(), cut.positions(), cut.tokens().len()), (3, 9, 24));
    let chunk = cut.chunk(1);
    // Tokens 18 to 25: the last is not fed, the predictions of positions 4, 5 and 6 are scored.
    assert_eq!(chunk.targets(), [23, 24, 25]);
    let steps: Vec<Step<'_>> = chunk.steps(3).collect();
    let tokens: Vec<u32> = steps.iter().flat_map(|s| s.tokens.to_vec()).collect();
    assert_eq!(tokens, [1, 19, 20, 21, 22, 23, 24]);
    let lengths: Vec<_> = steps.iter().map(|s| (s.tokens.len(), s.targets.len())).collect();
    assert_eq!(lengths, [(3, 0), (1, 0), (3, 3)]);
    let plain = Cut::new((10..35).collect(), Protocol::Llama, 8, None, 2).unwrap();
    assert_eq!((plain.chunks(), plain.chunk(1).steps(100).next().unwrap().tokens[0]), (2, 18));
    // An odd length: the longer part is scored less one, as n_ctx / 2 is rounded down.
    let odd = Cut::new((0..7).collect(), Protocol::Llama, 7, None, 1).unwrap();
    assert_eq!(odd.chunk(0).targets(), [4, 5, 6]);
}

#[test]
fn the_papers_protocol_scores_all_and_replaces_nothing() {
    let cut = Cut::new((10..35).collect(), Protocol::Papers, 8, Some(1), usize::MAX).unwrap();
    assert_eq!((cut.chunks(), cut.positions()), (3, 21));
    let chunk = cut.chunk(0);
    let steps: Vec<Step<'_>> = chunk.steps(64).collect();
    assert_eq!(steps.len(), 1);
    assert_eq!(steps[0].tokens, (10..17).collect::<Vec<u32>>());
    assert_eq!(steps[0].targets, (11..18).collect::<Vec<u32>>());
}

#[test]
fn a_limit_of_positions_cuts_the_tail_off() {
    let whole = Chunk::new(&[5, 6, 7, 8, 9, 10], 2, None);
    let mut chunk = whole.clone();
    chunk.limit(2);
    assert_eq!(chunk.targets(), [8, 9]);
    assert_eq!(chunk.steps(9).last().unwrap().tokens, [7, 8]);
    chunk.limit(9);
    assert_eq!(chunk.targets(), [8, 9]);
}

#[test]
fn texts_that_cannot_be_cut() {
    let cut = |n: u32, protocol, context, limit| {
        Cut::new((0..n).collect(), protocol, context, None, limit).map(|c| c.chunks())
    };
    assert_eq!(cut(7, Protocol::Llama, 8, 9), Err(CutError::TextTooShort { tokens: 7, context: 8 }));
    assert_eq!(cut(7, Protocol::Llama, 2, 9), Err(CutError::ChunkTooShort { context: 2, least: 3 }));
    assert_eq!(cut(7, Protocol::Papers, 1, 9), Err(CutError::ChunkTooShort { context: 1, least: 2 }));
    assert_eq!(cut(7, Protocol::Llama, 3, 0), Err(CutError::Nothing));
    assert_eq!((cut(7, Protocol::Llama, 3, 9), cut(7, Protocol::Papers, 2, 9)), (Ok(2), Ok(3)));
}

const CONTEXT: usize = 9;

fn write(dir: &Path, vocab: usize) -> (PathBuf, Cut, Vec<Vec<f32>>) {
    let tokens = (0..2 * CONTEXT as u32 + 3).map(|t| t % vocab as u32).collect();
    let cut = Cut::new(tokens, Protocol::Llama, CONTEXT, Some(1), usize::MAX).unwrap();
    let rows: Vec<_> = (0..cut.positions()).map(|i| logits(i as u64, vocab, 14.0)).collect();
    let path = dir.join("base.kld");
    let mut writer = BaseWriter::create(&path, &cut, vocab).unwrap();
    rows.iter().for_each(|row| writer.row(row).unwrap());
    assert!(!path.exists());
    writer.finish().unwrap();
    assert_eq!(std::fs::read_dir(dir).unwrap().count(), 1);
    (path, cut, rows)
}

#[test]
fn base_files_come_back() {
    for vocab in [50, 51] {
        let dir = tempfile::tempdir().unwrap();
        let (path, cut, rows) = write(dir.path(), vocab);
        let bytes = std::fs::read(&path).unwrap();
        // llama.cpp: nv = 2 * ((n_vocab + 1) / 2) + 4 words of 16 bits.
        let nv = 2 * vocab.div_ceil(2) + 4;
        assert_eq!(bytes.len(), 20 + 4 * 18 + 8 * nv * 2);
        assert_eq!(
            &bytes[..20],
            [b"_logits_" as &[u8], &[9, 0, 0, 0, vocab as u8, 0, 0, 0, 2, 0, 0, 0]].concat()
        );
        assert_eq!(bytes[20..28], [0, 0, 0, 0, 1, 0, 0, 0]);

        let mut reader = BaseReader::open(&path).unwrap();
        reader.expect_vocab(vocab).unwrap();
        assert!(matches!(reader.expect_vocab(vocab + 1), Err(BaseError::Vocab { .. })));
        assert_eq!((reader.context(), reader.chunks(), reader.positions()), (9, 2, 8));
        let mut row = vec![0.0; vocab];
        // Backwards, and one row of a chunk left unread.
        for i in [1, 0] {
            assert_eq!(reader.chunk(i, Some(1)).unwrap(), cut.chunk(i));
            for r in 0..3 {
                reader.row(&mut row).unwrap();
                let original = &rows[i * 4 + r];
                let max = original.iter().copied().fold(f32::MIN, f32::max);
                for (got, (log_p, x)) in row.iter().zip(slow_log_probs(original).iter().zip(original)) {
                    // Half a step of 16 / 65535 at most, or cut off 16 below the largest.
                    let cut_off = *x < max - 16.0;
                    assert!(cut_off || (f64::from(*got) - log_p).abs() < 1.3e-4, "{got} {log_p}");
                    assert!(!cut_off || *got <= -16.0);
                }
                let one = score::compare(Reference::LogProbs(&row), original, 3).unwrap();
                assert!(one.same_top && one.kl.abs() < 1e-4, "{}", one.kl);
            }
        }
    }
}

#[test]
fn rows_of_equal_logits_can_be_written() {
    let dir = tempfile::tempdir().unwrap();
    let cut = Cut::new(vec![0, 1, 2], Protocol::Llama, 3, None, 1).unwrap();
    let path = dir.path().join("flat.kld");
    let mut writer = BaseWriter::create(&path, &cut, 4).unwrap();
    assert!(matches!(writer.row(&[0.0, f32::NAN, 0.0, 0.0]), Err(BaseError::NotFinite)));
    writer.row(&[2.5; 4]).unwrap();
    writer.finish().unwrap();
    let mut reader = BaseReader::open(&path).unwrap();
    reader.chunk(0, None).unwrap();
    let mut row = [0.0; 4];
    reader.row(&mut row).unwrap();
    assert!(row.iter().all(|x| (x + 4f32.ln()).abs() < 1e-6));
}

#[test]
fn a_writer_that_is_dropped_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let cut = Cut::new(vec![0, 1, 2], Protocol::Llama, 3, None, 1).unwrap();
    let path = dir.path().join("x.kld");
    std::fs::write(&path, "older").unwrap();
    drop(BaseWriter::create(&path, &cut, 4).unwrap());
    assert_eq!(std::fs::read(&path).unwrap(), b"older");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    let nowhere = BaseWriter::create(&dir.path().join("no/x.kld"), &cut, 4);
    assert!(matches!(nowhere, Err(BaseError::Io { what: "create", .. })));
}

#[test]
fn base_files_that_lie_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (path, ..) = write(dir.path(), 50);
    let good = std::fs::read(&path).unwrap();
    let open = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        BaseReader::open(&path)
    };
    let patched = |at: usize, with: &[u8]| {
        let mut bytes = good.clone();
        bytes[at..at + with.len()].copy_from_slice(with);
        bytes
    };
    for n in 0..20 {
        assert!(matches!(open(&good[..n]), Err(BaseError::Header { .. })), "{n}");
    }
    for n in [20, 21, 92, good.len() - 1] {
        assert!(matches!(open(&good[..n]), Err(BaseError::Size { .. })), "{n}");
    }
    assert!(matches!(open(&[&good[..], &[0]].concat()), Err(BaseError::Size { .. })));
    assert!(matches!(open(&patched(0, b"_logics_")), Err(BaseError::Header { .. })));
    for at in [8, 12, 16] {
        for count in [0, -1, i32::MIN] {
            let error = open(&patched(at, &count.to_le_bytes()));
            assert!(matches!(error, Err(BaseError::Header { .. })), "{at} {count}");
        }
        for count in [5, 1000, i32::MAX] {
            let error = open(&patched(at, &count.to_le_bytes()));
            assert!(matches!(error, Err(BaseError::Size { .. })), "{at} {count}");
        }
    }
    // All of them at once: 2^93 bytes.
    let largest = i32::MAX.to_le_bytes().repeat(3);
    let error = open(&patched(8, &largest)).unwrap_err();
    assert!(error.to_string().contains("2147483647 chunks"), "{error}");

    let mut row = vec![0.0; 50];
    for token in [50u32, u32::MAX] {
        let mut reader = open(&patched(24, &token.to_le_bytes())).unwrap();
        let error = reader.chunk(0, None).unwrap_err();
        assert!(matches!(&error, BaseError::Damaged { chunk: 1, .. }), "{error}");
        assert!(reader.chunk(1, None).is_ok());
    }
    let first_row = 20 + 4 * 18;
    for (at, value) in [
        (0, f32::NAN),
        (0, -1.0),
        (0, 1.0),
        (0, f32::INFINITY),
        (4, f32::NAN),
        (4, f32::NEG_INFINITY),
        (4, 0.1),
    ] {
        let mut reader = open(&patched(first_row + at, &value.to_le_bytes())).unwrap();
        reader.chunk(0, None).unwrap();
        let error = reader.row(&mut row).unwrap_err();
        assert!(matches!(error, BaseError::Damaged { chunk: 1, .. }), "{at} {value}: {error}");
    }
    assert!(matches!(BaseReader::open(&dir.path().join("none")), Err(BaseError::Io { what: "open", .. })));
}

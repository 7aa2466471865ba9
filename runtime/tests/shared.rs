//! Shared buffers: what may coexist does, what may not panics, and what was written is read.

use lutite_runtime::os::shared::{ALIGN_BYTES, SharedBuf, SharedMat};
use lutite_runtime::pool::{Pool, PoolConfig};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

/// Whether `f` is refused.
fn refused<R>(f: impl FnOnce() -> R) -> bool {
    let refused = catch_unwind(AssertUnwindSafe(|| drop(f())));
    match refused {
        Ok(()) => false,
        Err(payload) => {
            let text = payload.downcast::<String>().expect("a text");
            assert!(text.contains("shared matrix"), "{text}");
            true
        }
    }
}

#[test]
fn guards_exclude_each_other_as_promised() {
    let mat = SharedMat::<f32>::new(3, 100, 32).expect("memory");
    let all = |free_cols: bool, free_rows: bool, free_read: bool| {
        assert_eq!(!refused(|| mat.write_chunk(1)), free_cols);
        assert_eq!(!refused(|| mat.write_row(1)), free_rows);
        assert_eq!(!refused(|| mat.read()), free_read);
    };
    all(true, true, true);
    let read = (mat.read(), mat.read());
    all(false, false, true);
    drop(read.0);
    all(false, false, true);
    drop(read.1);
    let other = mat.write_cols(64..100);
    all(true, false, false);
    assert!(refused(|| mat.write_cols(0..100)));
    // The refused guard gave back the flags it had already taken.
    let same = mat.write_cols(32..64);
    all(false, false, false);
    drop((other, same));
    let other = mat.write_row(0);
    all(false, true, false);
    let same = mat.write_row(1);
    all(false, false, false);
    drop((other, same));
    all(true, true, true);
}

#[test]
fn a_forgotten_guard_stays_in_the_way() {
    let buf = SharedBuf::<u8>::new(10, 4).expect("memory");
    std::mem::forget(buf.write_chunk(0));
    assert!(refused(|| buf.read()));
    assert!(refused(|| buf.write_chunk(0)));
    assert!(!refused(|| buf.write_chunk(1)));
}

#[test]
fn ranges_are_whole_chunks() {
    let buf = SharedBuf::<u16>::new(10, 4).expect("memory");
    assert_eq!(buf.chunks(), 3);
    assert_eq!((0..4).map(|i| buf.chunk_range(i)).collect::<Vec<_>>(), [0..4, 4..8, 8..10, 10..10]);
    for (range, fine) in [
        (0..4, true),
        (0..10, true),
        (4..10, true),
        (8..10, true),
        (0..0, true),
        (10..10, false),
        (0..3, false),
    ] {
        assert_eq!(!refused(|| buf.write(range.clone())), fine, "{range:?}");
    }
    for range in [(2..4), (8..9), (4..12), (usize::MAX - 3..usize::MAX)] {
        assert!(refused(|| buf.write(range.clone())), "{range:?}");
    }
    #[expect(clippy::reversed_empty_ranges)]
    let backwards = 8..4;
    assert!(refused(|| buf.write(backwards)));
    let mat = SharedMat::<u8>::new(2, 2, 2).expect("memory");
    assert!(refused(|| mat.write_row(2)));
    assert!(catch_unwind(|| mat.read().row(2).len()).is_err());
}

#[test]
fn empty_aligned_and_zero() {
    for (rows, dim) in [(0, 0), (0, 5), (5, 0)] {
        let mut mat = SharedMat::<f32>::new(rows, dim, 8).expect("memory");
        assert!(mat.read().is_empty());
        assert_eq!(mat.write_cols(0..dim).rows_mut().count(), rows);
        assert!((0..rows).all(|r| mat.write_row(r).is_empty()));
        assert!(mat.as_mut_slice().is_empty());
    }
    let buf = SharedBuf::<half::f16>::new(1000, 64).expect("memory");
    assert!(buf.read().iter().all(|x| x.to_f32() == 0.0));
    assert_eq!(buf.read().as_ptr().addr() % ALIGN_BYTES, 0);
    assert_eq!(buf.len(), 1000);
}

#[test]
fn too_much_memory_is_an_error() {
    for (rows, dim) in [(usize::MAX, 2), (1 << 40, 1 << 20), (1, isize::MAX as usize - 1)] {
        assert!(SharedMat::<f32>::new(rows, dim, dim).is_err());
    }
}

#[test]
fn columns_and_rows_land_where_they_should() {
    let mut mat = SharedMat::<u32>::new(4, 10, 4).expect("memory");
    mat.set_rows(3);
    for i in 0..mat.chunks() {
        let mut guard = mat.write_chunk(i);
        let cols = guard.cols();
        for (r, row) in guard.rows_mut().enumerate() {
            row.iter_mut().zip(cols.clone()).for_each(|(x, c)| *x = (10 * r + c) as u32);
        }
        guard.row_mut(2)[0] += 100;
        assert_eq!(guard.row(2)[0], (120 + cols.start) as u32);
    }
    mat.write_row(1)[9] = 7;
    let mut expected: Vec<u32> = (0..30).collect();
    (expected[20], expected[24], expected[28], expected[19]) = (120, 124, 128, 7);
    assert_eq!(*mat.read(), *expected);
    assert_eq!(mat.read().row(1), &expected[10..20]);
    assert_eq!(mat.as_mut_slice(), &expected[..]);
    assert!(refused(|| mat.write_row(3)));
    assert!(catch_unwind(AssertUnwindSafe(|| mat.set_rows(5))).is_err());
}

/// Stages of all kinds follow each other on oversubscribed workers; a missing happens-before would show as a
/// wrong sum (and under a race detector).
#[test]
fn stages_on_many_workers_see_each_other() {
    const ROWS: usize = 5;
    const DIM: usize = 203;
    let a = SharedMat::<u64>::new(ROWS, DIM, 16).expect("memory");
    let b = SharedMat::<u64>::new(ROWS, DIM, 64).expect("memory");
    for workers in [2, 4] {
        let mut pool = Pool::new(&PoolConfig { workers, ..PoolConfig::default() }).expect("threads start");
        for token in 0..100u64 {
            pool.each(a.chunks(), |i| {
                let mut out = a.write_chunk(i);
                let cols = out.cols();
                for (r, row) in out.rows_mut().enumerate() {
                    row.iter_mut().zip(cols.clone()).for_each(|(x, c)| *x = token * (r * DIM + c) as u64);
                }
            });
            pool.each(ROWS, |r| {
                let sum: u64 = a.read().iter().sum();
                b.write_row(r).fill(sum + r as u64);
            });
            pool.each(b.chunks(), |i| b.write_chunk(i).rows_mut().flatten().for_each(|x| *x += 1));
            let n = (ROWS * DIM) as u64;
            let sum = token * n * (n - 1) / 2;
            let b = b.read();
            // The guard is the caller's, the chunks that use it are everybody's.
            pool.each(ROWS, |r| assert!(b.row(r).iter().all(|&x| x == sum + r as u64 + 1)));
        }
    }
}

/// Threads grab guards without any order. Whoever gets one checks that nobody else is in: a writer stamps its
/// elements, yields and looks again.
#[test]
fn no_two_guards_ever_overlap() {
    let mat = SharedMat::<u32>::new(3, 24, 8).expect("memory");
    // Refusals are expected by the thousand; their messages would flood the output.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let granted = std::thread::scope(|scope| {
        let threads: Vec<_> = (1..=4u32)
            .map(|id| {
                let mat = &mat;
                scope.spawn(move || {
                    let (mut granted, mut state) = (0u32, id);
                    for _ in 0..20_000 {
                        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                        let pick = (state >> 16) as usize;
                        let held = catch_unwind(AssertUnwindSafe(|| match pick % 3 {
                            0 => {
                                let read = mat.read();
                                let copy = read.to_vec();
                                std::hint::spin_loop();
                                copy == *read
                            }
                            1 => {
                                let mut cols = mat.write_chunk(pick / 3 % 3);
                                cols.rows_mut().for_each(|row| row.fill(id));
                                std::hint::spin_loop();
                                (0..3).all(|r| cols.row(r).iter().all(|&x| x == id))
                            }
                            _ => {
                                let mut row = mat.write_row(pick / 3 % 3);
                                row.fill(id);
                                std::hint::spin_loop();
                                row.iter().all(|&x| x == id)
                            }
                        }));
                        if let Ok(undisturbed) = held {
                            granted += 1;
                            if !undisturbed {
                                return None;
                            }
                        }
                    }
                    Some(granted)
                })
            })
            .collect();
        threads.into_iter().map(|t| t.join().expect("no panic escapes")).collect::<Vec<_>>()
    });
    std::panic::set_hook(hook);
    assert!(granted.iter().all(|g| g.is_some_and(|g| g > 0)), "{granted:?}");
    drop((mat.write_cols(0..24), ()));
    drop((mat.write_row(0), mat.write_row(1), mat.write_row(2)));
}

#[test]
#[ignore = "timing"]
fn guard_cost() {
    const CHUNKS: usize = 1 << 16;
    let buf = SharedBuf::<u8>::new(CHUNKS, 1).expect("memory");
    for workers in [1, 2] {
        let mut pool = Pool::new(&PoolConfig { workers, ..PoolConfig::default() }).expect("threads start");
        let mut best = [f64::MAX; 2];
        for _ in 0..20 {
            let start = Instant::now();
            pool.each(CHUNKS, |_| _ = std::hint::black_box(&buf));
            best[0] = best[0].min(start.elapsed().as_nanos() as f64);
            let start = Instant::now();
            pool.each(CHUNKS, |i| buf.write_chunk(i)[0] = 1);
            best[1] = best[1].min(start.elapsed().as_nanos() as f64);
        }
        let [claim, write] = best.map(|ns| ns / CHUNKS as f64);
        println!("{workers} workers: claim {claim:.1} ns, claim + write guard {write:.1} ns per chunk");
    }
}

use super::*;
use crate::os::file::DataFile;
use crate::store::{Bytes, Directory, Gguf, GgufWriter, PackedInfo, Point, Stack, announce_checksums};
use crate::store::{seal_checksums, tensor_checksums, version_name};
use lutite_kernels::pack::{ParamKind, PlaneShape};
use std::collections::HashMap;
use std::path::Path;
use std::sync::{RwLock, TryLockError};
use xxhash_rust::xxh3::xxh3_64;

/// Matrices and planes of the blocks' versions, in the order of the stack; all begin with 2 planes.
const MATRICES: [&str; 3] = ["blk.0.ffn_up", "blk.0.ffn_down", "output"];
const BLOCKS: [(usize, usize); 7] = [(0, 3), (1, 3), (0, 4), (2, 4), (1, 4), (0, 6), (1, 6)];

fn info(matrix: usize, version: usize, planes: usize) -> PackedInfo {
    let shape = PlaneShape { rows: 64 + 32 * matrix, cols: 128 };
    let name = version_name(MATRICES[matrix], version);
    PackedInfo { name, kind: ParamKind::Hlq8, shape, planes, group: 32 }
}

fn blocks() -> Vec<PackedInfo> {
    let version = |i: usize| BLOCKS[..=i].iter().filter(|b| b.0 == BLOCKS[i].0).count();
    (0..BLOCKS.len()).map(|i| info(BLOCKS[i].0, version(i), BLOCKS[i].1)).collect()
}

/// A stacked file of noise.
fn file(path: &Path) -> Vec<u8> {
    let least: Vec<PackedInfo> = (0..MATRICES.len()).map(|m| info(m, 0, 2)).collect();
    let all = || least.iter().cloned().chain(blocks());
    let mut w = GgufWriter::new();
    w.set("general.architecture", "lut-x").unwrap();
    w.set("lutite.tensors", least.iter().map(PackedInfo::line).collect::<Vec<_>>().as_slice()).unwrap();
    Stack::announce(&mut w, &blocks(), &[0, 4, 7]).unwrap();
    let tensors: Vec<_> = all().flat_map(|i| i.tensors()).collect();
    for (name, ty, dims) in &tensors {
        w.add_tensor(name, *ty, dims).unwrap();
    }
    announce_checksums(&mut w, tensors.len()).unwrap();
    let mut out = w.begin(path).unwrap();
    let (mut sums, mut state) = (Vec::new(), 1u64);
    for (name, ty, dims) in &tensors {
        let bytes = ty.row_bytes(dims[0] as usize).unwrap() * dims[1..].iter().product::<u64>() as usize;
        let data: Vec<u8> = (0..bytes)
            .map(|_| {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                (state >> 56) as u8
            })
            .collect();
        out.tensor(name, &data).unwrap();
        sums.push(xxh3_64(&data));
    }
    let kl = |blocks, kl| Point { blocks, kl, error: 0.1 };
    Stack::store_curve(&mut out, &[kl(0, 2.0), kl(4, 1.0), kl(7, 0.5)]).unwrap();
    seal_checksums(&mut out, &sums).unwrap();
    out.finish().unwrap();
    std::fs::read(path).unwrap()
}

/// Who has matrices, and looks at all of them for every token.
#[derive(Clone)]
struct Net(Arc<RwLock<HashMap<String, Loaded>>>);

impl Host for Net {
    fn between_tokens(&self, apply: &mut dyn FnMut(&mut Exchange<'_>)) -> bool {
        let mut net = match self.0.try_write() {
            Ok(net) => net,
            Err(TryLockError::WouldBlock) => return false,
            Err(e) => panic!("{e}"),
        };
        apply(&mut |matrix, loaded| exchange(&mut net, matrix, loaded));
        true
    }
}

fn exchange(net: &mut HashMap<String, Loaded>, matrix: &str, loaded: Loaded) -> Result<Loaded, String> {
    net.insert(matrix.to_owned(), loaded).ok_or_else(|| format!("no {matrix}"))
}

struct Case {
    net: Net,
    residency: Residency,
    file: Vec<u8>,
}

fn open(bytes: &[u8], home: Home, blocks: usize, limit: Option<u64>) -> Case {
    let gguf = Gguf::parse(bytes).unwrap();
    let sums = tensor_checksums(&gguf, bytes).unwrap();
    let directory = Directory::base(&gguf).unwrap().at(blocks);
    let load = |name: &&str| {
        let piece = Piece::find(&gguf, directory.get(name).unwrap(), &sums).unwrap();
        ((*name).to_owned(), home.load(&piece).unwrap())
    };
    let net = Net(Arc::new(RwLock::new(MATRICES.iter().map(load).collect())));
    let start =
        Start { gguf: &gguf, directory: &directory, sums: &sums, home, blocks, wanted: blocks, limit };
    let residency = Residency::start(start, net.clone()).unwrap();
    Case { net, residency, file: bytes.to_vec() }
}

impl Case {
    /// Holds every matrix against the file, and what is said to be in use against the matrices: at least their versions.
    fn check(&self) -> usize {
        let net = self.net.0.read().unwrap();
        let gguf = Gguf::parse(&self.file).unwrap();
        for loaded in net.values() {
            for (t, data) in loaded.info.find(&gguf).unwrap().iter().zip(&loaded.tensors) {
                assert_eq!(t.data, &data[..], "{}", t.name);
            }
        }
        let at = |n: usize| {
            let directory = Directory::base(&gguf).unwrap().at(n);
            MATRICES.iter().all(|m| directory.get(m).unwrap().name <= net[*m].info.name)
        };
        let blocks = self.residency.handle().resident().blocks;
        assert_eq!((0..=BLOCKS.len()).rev().find(|n| at(*n)), Some(blocks));
        blocks
    }

    /// As [`Self::check`], and no matrix is better than that.
    fn check_settled(&self) -> usize {
        let blocks = self.check();
        let gguf = Gguf::parse(&self.file).unwrap();
        let directory = Directory::base(&gguf).unwrap().at(blocks);
        let net = self.net.0.read().unwrap();
        MATRICES.iter().for_each(|m| assert_eq!(directory.get(m).unwrap().name, net[*m].info.name));
        blocks
    }

    /// A token: what waits is put in place first.
    fn token(&self) {
        if self.residency.is_waiting() {
            let mut net = self.net.0.write().unwrap();
            self.residency.apply(&mut |matrix, loaded| exchange(&mut net, matrix, loaded));
        }
        self.check();
    }
}

fn memory(path: &Path) -> (Home, Arc<Account>) {
    let account = Arc::new(Account::default());
    (Home::Memory { file: Arc::new(DataFile::open(path).unwrap()), account: account.clone() }, account)
}

const LONG: Duration = Duration::from_secs(20);

#[test]
fn the_stack_is_what_was_announced() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = file(&folder.path().join("m.gguf"));
    let gguf = Gguf::parse(&bytes).unwrap();
    let directory = Directory::base(&gguf).unwrap();
    let stack = directory.stack();
    assert_eq!((stack.blocks().len(), stack.present()), (7, 7));
    assert_eq!(stack.file_bytes(7), bytes.len() as u64);
    assert_eq!([0, 2, 4, 7].map(|n| stack.kl(n).map(|kl| kl > 1.0)), [true, true, false, false].map(Some));
    let all = |n: usize| {
        let directory = directory.clone().at(n);
        MATRICES.iter().map(|m| directory.get(m).unwrap().bytes().unwrap() as u64).sum::<u64>()
    };
    for n in 0..=7 {
        assert_eq!(stack.resident_bytes(n), all(n));
    }
    // What fits is the most that can be reached.
    for n in 0..7 {
        let block = &stack.blocks()[n];
        assert_eq!(within(stack, stack.resident_bytes(n) + block.bytes - 1).unwrap(), n);
        assert!(within(stack, stack.resident_bytes(n) + block.bytes).unwrap() > n);
    }
    let why = within(stack, stack.resident_bytes(0) - 1).unwrap_err().to_string();
    assert!(why.contains("too few for the weights"), "{why}");
}

#[test]
fn it_rises_and_falls_in_both_homes_with_and_without_tokens() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    let bytes = file(&path);
    for tokens in [false, true] {
        for map in [false, true] {
            let (home, account) = memory(&path);
            let home = if map { Home::Map(Bytes::new(bytes.clone())) } else { home };
            let case = open(&bytes, home, 2, None);
            assert_eq!(case.check(), 2);
            let handle = case.residency.handle();
            for wanted in [7, 0, 3, 3, 5, 1, 99, 0] {
                handle.set_blocks(wanted);
                if tokens {
                    while !handle.wait(Duration::ZERO) {
                        case.token();
                    }
                }
                assert!(handle.wait(LONG));
                assert_eq!(case.check_settled(), wanted.min(7));
                let resident = handle.resident();
                assert_eq!((resident.target, resident.all), (wanted.min(7), 7));
                if !map {
                    assert_eq!(account.now(), resident.bytes);
                }
            }
            drop(case);
            assert_eq!(account.now(), 0);
        }
    }
}

#[test]
fn random_budgets_under_tokens_are_never_exceeded_on_the_way_up() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    let bytes = file(&path);
    let (home, account) = memory(&path);
    let case = open(&bytes, home, 0, Some(u64::MAX));
    let handle = case.residency.handle();
    let (least, most) = (handle.stack().resident_bytes(0), handle.stack().resident_bytes(7));
    let mut state = 5u64;
    for round in 0..300 {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let before = account.now();
        let limit = least + (state >> 40) % (most - least + 40_000);
        let blocks = handle.set_limit(limit).unwrap();
        // Now and then before it is reached.
        let tokens = if round % 3 == 0 { 2 } else { usize::MAX };
        for _ in 0..tokens {
            if handle.wait(Duration::ZERO) {
                break;
            }
            case.token();
        }
        if tokens == usize::MAX {
            assert!(handle.wait(LONG));
            assert_eq!(case.check_settled(), blocks);
            assert!(account.now() <= limit, "{} {limit}", account.now());
        } else {
            let waiting = 4 << 20;
            assert!(account.now() <= limit.max(before) + waiting);
        }
    }
    assert!(handle.set_limit(least - 1).is_err());
    drop(case);
    assert_eq!(account.now(), 0);
}

#[test]
fn a_damaged_block_is_named_and_the_version_below_it_does_instead() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    let bytes = file(&path);
    let gguf = Gguf::parse(&bytes).unwrap();
    let at = gguf.tensor("blk.0.ffn_up.v2.p1").unwrap().offset as usize;
    let mut damaged = bytes.clone();
    damaged[at + 5] ^= 16;
    std::fs::write(&path, &damaged).unwrap();
    for map in [false, true] {
        let home = if map { Home::Map(Bytes::new(damaged.clone())) } else { memory(&path).0 };
        let case = open(&damaged, home, 0, None);
        let handle = case.residency.handle();
        handle.set_blocks(3);
        assert!(!handle.wait(LONG));
        let resident = handle.resident();
        assert!(resident.failure.as_ref().is_some_and(|why| why.contains("blk.0.ffn_up.v2")), "{resident:?}");
        let planes = || MATRICES.map(|m| case.net.0.read().unwrap()[m].info.planes);
        assert_eq!((case.check(), handle.resident().target, planes()), (2, 3, [3, 3, 2]));
        // A later version has taken its place.
        for wanted in [1, 7, 6] {
            handle.set_blocks(wanted);
            assert!(handle.wait(LONG));
            assert_eq!(case.check_settled(), wanted);
        }
        // On the way down as well it is the one below.
        handle.set_blocks(4);
        assert!(!handle.wait(LONG));
        assert_eq!((case.check(), planes()), (2, [3, 3, 4]));
    }
}

#[test]
fn a_file_that_arrives_gets_better() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    let bytes = file(&path);
    let whole = Gguf::parse(&bytes).unwrap();
    let stack = Directory::base(&whole).unwrap().stack().clone();
    // Cut off anywhere behind the least model it is a smaller one, and before that it is none.
    let least = stack.file_bytes(0) as usize;
    assert!(Gguf::parse(&bytes[..least - 1]).is_err());
    for cut in [least, least + 1, stack.file_bytes(3) as usize - 1, stack.file_bytes(3) as usize] {
        let gguf = Gguf::parse(&bytes[..cut]).unwrap();
        let present = Directory::read(&gguf).unwrap().stack().present();
        assert_eq!(present, (0..=7).rev().find(|n| stack.file_bytes(*n) <= cut as u64).unwrap());
    }
    let arrived = stack.file_bytes(3) as usize + 7;
    std::fs::write(&path, &bytes[..arrived]).unwrap();
    let mut case = open(&bytes[..arrived], memory(&path).0, 0, None);
    let handle = case.residency.handle();
    handle.set_blocks(7);
    assert!(handle.wait(LONG));
    assert_eq!(case.check(), 3);
    std::fs::write(&path, &bytes).unwrap();
    case.file = bytes.clone();
    let start = Instant::now();
    while handle.resident().blocks < 7 {
        assert!(start.elapsed() < LONG);
        case.token();
        thread::sleep(Duration::from_millis(5));
    }
    case.check();
}

#[test]
fn stacks_that_are_none_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = file(&folder.path().join("m.gguf"));
    let find = |text: &str| bytes.windows(text.len()).position(|w| w == text.as_bytes()).unwrap();
    let change = |from: &str, to: &str| {
        assert_eq!(from.len(), to.len());
        let mut bytes = bytes.clone();
        bytes[find(from)..][..to.len()].copy_from_slice(to.as_bytes());
        let gguf = Gguf::parse(&bytes).map_err(|e| e.to_string())?;
        Directory::base(&gguf).map(|_| ()).map_err(|e| e.to_string())
    };
    for (from, to, why) in [
        ("blk.0.ffn_up.v1 kind=hlq8 rows=64", "blk.0.ffn_up.v2 kind=hlq8 rows=64", "follows version 0"),
        (
            "blk.0.ffn_up.v1 kind=hlq8 rows=64",
            "blk.0.ffn_ux.v1 kind=hlq8 rows=64",
            "is no version of a matrix",
        ),
        ("blk.0.ffn_up.v1 kind=hlq8 rows=64", "blk.0.ffn_up.v1 kind=hlq8 rows=63", "another shape"),
        ("output.v1 kind", "output.w1 kind", "is no version of a matrix"),
        ("lutite.stack.curve.kl", "lutite.stack.curve.kx", "the curve"),
    ] {
        let found = change(from, to).unwrap_err();
        assert!(found.contains(why), "{found}");
    }
}

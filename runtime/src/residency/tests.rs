use super::*;
use crate::os::file::DataFile;
use crate::store::{
    Bytes, Directory, Gguf, GgufWriter, LevelsInfo, MatrixInfo, PackedInfo, Point, Stack, announce_checksums,
    seal_checksums, tensor_checksums, version_name,
};
use lutite_kernels::pack::{ParamKind, PlaneShape};
use std::collections::HashMap;
use std::path::Path;
use std::sync::{RwLock, TryLockError};
use xxhash_rust::xxh3::xxh3_64;

/// The last of them is of levels, and begins with one; the others are of planes, and begin with two.
const MATRICES: [&str; 4] = ["blk.0.ffn_up", "blk.0.ffn_down", "output", "blk.1.ffn_up"];
const OF_LEVELS: usize = 3;

/// Matrices and planes or levels of the blocks' versions, in the order of the stack.
const BLOCKS: [(usize, usize); ALL] =
    [(0, 3), (1, 3), (0, 4), (2, 4), (3, 2), (1, 4), (3, 3), (0, 6), (3, 6), (1, 6)];
const ALL: usize = 10;

fn info(matrix: usize, version: usize, planes: usize) -> MatrixInfo {
    let shape = PlaneShape { rows: 64 + 32 * matrix, cols: 128 };
    let name = version_name(MATRICES[matrix], version);
    if matrix == OF_LEVELS {
        return LevelsInfo { name, shape, levels: planes, rank: 2 }.into();
    }
    PackedInfo { name, kind: ParamKind::Hlq8, shape, planes, group: 32 }.into()
}

/// Planes or levels.
fn planes(info: &MatrixInfo) -> usize {
    match info {
        MatrixInfo::Packed(info) => info.planes,
        MatrixInfo::Levels(info) => info.levels,
    }
}

fn blocks() -> Vec<MatrixInfo> {
    let version = |i: usize| BLOCKS[..=i].iter().filter(|b| b.0 == BLOCKS[i].0).count();
    (0..BLOCKS.len()).map(|i| info(BLOCKS[i].0, version(i), BLOCKS[i].1)).collect()
}

/// A stacked file of noise.
fn file(path: &Path) -> Vec<u8> {
    let least: Vec<MatrixInfo> =
        (0..MATRICES.len()).map(|m| info(m, 0, if m == OF_LEVELS { 1 } else { 2 })).collect();
    let all = || least.iter().cloned().chain(blocks());
    let mut w = GgufWriter::new();
    w.set("general.architecture", "lut-x").unwrap();
    w.set("lutite.tensors", least.iter().map(MatrixInfo::line).collect::<Vec<_>>().as_slice()).unwrap();
    Stack::announce(&mut w, &blocks(), &[0, 4, ALL]).unwrap();
    let mut tensors: Vec<_> = all().flat_map(|i| i.tensors()).collect();
    // A version of levels has those of the one before.
    let mut seen = std::collections::HashSet::new();
    tensors.retain(|t| seen.insert(t.0.clone()));
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
    Stack::store_curve(&mut out, &[kl(0, 2.0), kl(4, 1.0), kl(ALL, 0.5)]).unwrap();
    seal_checksums(&mut out, &sums).unwrap();
    out.finish().unwrap();
    std::fs::read(path).unwrap()
}

/// The same with a bit of a tensor flipped.
fn damaged_file(path: &Path, tensor: &str) -> Vec<u8> {
    let mut bytes = file(path);
    let at = Gguf::parse(&bytes).unwrap().tensor(tensor).unwrap().offset as usize;
    bytes[at + 5] ^= 16;
    std::fs::write(path, &bytes).unwrap();
    bytes
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

    fn current(&self, matrix: &str) -> Option<Loaded> {
        self.0.read().unwrap().get(matrix).cloned()
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
        ((*name).to_owned(), home.load(&piece, None).unwrap())
    };
    let net = Net(Arc::new(RwLock::new(MATRICES.iter().map(load).collect())));
    let start =
        Start { gguf: &gguf, stack: directory.stack(), sums: &sums, home, blocks, wanted: blocks, limit };
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
            MATRICES.iter().all(|m| directory.get(m).unwrap().name() <= net[*m].info.name())
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
        MATRICES.iter().for_each(|m| assert_eq!(directory.get(m), Some(&net[*m].info)));
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
    assert_eq!((stack.blocks().len(), stack.present()), (ALL, ALL));
    assert_eq!(stack.file_bytes(ALL), bytes.len() as u64);
    assert_eq!([0, 2, 4, ALL].map(|n| stack.kl(n).map(|kl| kl > 1.0)), [true, true, false, false].map(Some));
    let all = |n: usize| {
        let directory = directory.clone().at(n);
        MATRICES.iter().map(|m| directory.get(m).unwrap().bytes().unwrap() as u64).sum::<u64>()
    };
    for n in 0..=ALL {
        assert_eq!(stack.resident_bytes(n), all(n));
    }
    // What fits is the most that can be reached: on the way there has to be room for each version beside the one before.
    let mut most = 0;
    for n in 0..ALL {
        let need = stack.resident_bytes(n) + stack.blocks()[n].bytes;
        assert!(need <= most || within(stack, need - 1).unwrap() == n);
        most = most.max(need);
        assert!(within(stack, most).unwrap() > n);
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
            for wanted in [ALL, 0, 3, 3, 7, 5, 1, 99, 0] {
                handle.set_blocks(wanted);
                if tokens {
                    while !handle.wait(Duration::ZERO) {
                        case.token();
                    }
                }
                assert!(handle.wait(LONG));
                assert_eq!(case.check_settled(), wanted.min(ALL));
                let resident = handle.resident();
                assert_eq!((resident.target, resident.all), (wanted.min(ALL), ALL));
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
fn what_a_system_wants_back_goes_step_by_step() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    let bytes = file(&path);
    let (home, account) = memory(&path);
    let case = open(&bytes, home, ALL, Some(u64::MAX));
    let handle = case.residency.handle();
    let resident = |blocks| handle.stack().resident_bytes(blocks);
    for (shortage, quarters) in
        [(Shortage::Moderate, 3), (Shortage::Low, 2), (Shortage::Moderate, 3), (Shortage::Critical, 0)]
    {
        let (before, least) = (account.now(), resident(0));
        let blocks = handle.trim(shortage);
        assert!(handle.wait(LONG));
        assert_eq!(case.check_settled(), blocks);
        assert_eq!(account.now(), resident(blocks));
        assert!(account.now() <= least + (before - least) / 4 * quarters, "{shortage:?}");
    }
    // Nothing below the least, and nothing comes back by itself; then it does.
    assert_eq!((handle.trim(Shortage::Critical), account.now()), (0, resident(0)));
    assert_eq!(handle.set_limit(u64::MAX).unwrap(), ALL);
    assert!(handle.wait(LONG));
    assert_eq!(case.check_settled(), ALL);
}

#[test]
fn random_budgets_under_tokens_are_never_exceeded_on_the_way_up() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    let bytes = file(&path);
    let (home, account) = memory(&path);
    let case = open(&bytes, home, 0, Some(u64::MAX));
    let handle = case.residency.handle();
    let (least, most) = (handle.stack().resident_bytes(0), handle.stack().resident_bytes(ALL));
    let mut state = 5u64;
    for round in 0..300 {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let (before, had) = (account.now(), handle.resident().blocks);
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
            // On the way down the lesser versions of all matrices may wait beside what they replace.
            let most = if blocks < had { before + handle.stack().resident_bytes(blocks) } else { limit };
            assert!(account.now() <= most, "{} {most}", account.now());
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
    let damaged = damaged_file(&path, "blk.0.ffn_up.v2.p1");
    for map in [false, true] {
        let home = if map { Home::Map(Bytes::new(damaged.clone())) } else { memory(&path).0 };
        let case = open(&damaged, home, 0, None);
        let handle = case.residency.handle();
        handle.set_blocks(3);
        assert!(!handle.wait(LONG));
        let resident = handle.resident();
        assert!(resident.failure.as_ref().is_some_and(|why| why.contains("blk.0.ffn_up.v2")), "{resident:?}");
        let all = || MATRICES.map(|m| planes(&case.net.0.read().unwrap()[m].info));
        assert_eq!((case.check(), handle.resident().target, all()), (2, 3, [3, 3, 2, 1]));
        // A later version has taken its place.
        for wanted in [1, ALL, ALL - 1] {
            handle.set_blocks(wanted);
            assert!(handle.wait(LONG));
            assert_eq!(case.check_settled(), wanted);
        }
        // On the way down as well it is the one below.
        handle.set_blocks(4);
        assert!(!handle.wait(LONG));
        assert_eq!((case.check(), all()), (2, [3, 3, 4, 1]));
    }
}

#[test]
fn of_levels_only_those_that_are_missing_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    let bytes = file(&path);
    let (home, account) = memory(&path);
    let case = open(&bytes, home, 4, None);
    let handle = case.residency.handle();
    let go = |blocks| {
        let before = account.read();
        handle.set_blocks(blocks);
        assert!(handle.wait(LONG));
        assert_eq!(case.check_settled(), blocks);
        assert_eq!(account.now(), handle.resident().bytes);
        account.read() - before
    };
    let data = |levels: std::ops::Range<usize>| -> Vec<*const u8> {
        let net = case.net.0.read().unwrap();
        net[MATRICES[OF_LEVELS]].tensors[3 * levels.start..3 * levels.end]
            .iter()
            .map(|t| t.as_ptr())
            .collect()
    };
    let level = info(OF_LEVELS, 0, 1).bytes().unwrap() as u64;
    let planes = |n: usize| info(1, 2, n).bytes().unwrap() as u64;
    let first = data(0..1);
    assert_eq!(go(5), level);
    assert_eq!(go(4), 0);
    assert_eq!(go(7), 2 * level + planes(4));
    let three = data(0..3);
    assert_eq!(go(9) - info(0, 3, 6).bytes().unwrap() as u64, 3 * level);
    assert_eq!(data(0..3), three);
    assert_eq!(go(6) - info(0, 2, 4).bytes().unwrap() as u64, 0);
    assert_eq!((data(0..1), data(0..2)), (first, three[..6].to_vec()));
}

#[test]
fn a_damaged_level_leaves_those_below_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    let damaged = damaged_file(&path, "blk.1.ffn_up.b2.u");
    for map in [false, true] {
        let home = if map { Home::Map(Bytes::new(damaged.clone())) } else { memory(&path).0 };
        let case = open(&damaged, home, 0, None);
        let handle = case.residency.handle();
        // No version above has the place of the damaged level taken.
        for wanted in [7, ALL] {
            handle.set_blocks(wanted);
            assert!(!handle.wait(LONG));
            let why = handle.resident().failure.unwrap();
            assert!(why.contains("blk.1.ffn_up.v"), "{why}");
            let levels = planes(&case.net.0.read().unwrap()[MATRICES[OF_LEVELS]].info);
            assert_eq!((case.check(), levels), (6, 2));
        }
        handle.set_blocks(5);
        assert!(handle.wait(LONG));
        assert_eq!(case.check_settled(), 5);
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
        assert_eq!(present, (0..=ALL).rev().find(|n| stack.file_bytes(*n) <= cut as u64).unwrap());
    }
    let arrived = stack.file_bytes(3) as usize + 7;
    std::fs::write(&path, &bytes[..arrived]).unwrap();
    let mut case = open(&bytes[..arrived], memory(&path).0, 0, None);
    let handle = case.residency.handle();
    handle.set_blocks(ALL);
    assert!(handle.wait(LONG));
    assert_eq!(case.check(), 3);
    std::fs::write(&path, &bytes).unwrap();
    case.file = bytes.clone();
    let start = Instant::now();
    while handle.resident().blocks < ALL {
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
        ("levels=6 rank=2", "levels=3 rank=2", "has no more levels"),
        ("levels=3 rank=2", "levels=3 rank=4", "or another rank"),
        ("rows=160 cols=128 levels=2 rank=2", "rows=160 cols=127 levels=2 rank=2", "another shape"),
        ("levels=1 rank=2", "levels=2 rank=2", "has no more levels"),
        ("blk.1.ffn_up kind", "blk.1.f.v1up kind", "b0.sg"),
        ("lutite.stack.curve.kl", "lutite.stack.curve.kx", "the curve"),
    ] {
        let found = change(from, to).unwrap_err();
        assert!(found.contains(why), "{found}");
    }
}

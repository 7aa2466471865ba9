//! Which cores there are, which of them this process may use, and how many workers that makes.
//!
//! On Linux and Android everything is read from `/sys` and `/proc`: the speed of a core from `cpu_capacity`
//! (the scheduler's own measure, 1024 for the fastest), else from `cpufreq/cpuinfo_max_freq`, else all count
//! as equal; hardware threads that share a core from `topology`; the CPUs this process may use from its
//! affinity mask and its cpuset; the CPU time it may use from the CPU quotas of its control group and of
//! every group above. Elsewhere the standard library's count of CPUs is all that is known.
//!
//! The default is one worker per *big* physical core. Decode waits for memory, and a second hardware thread on
//! a core adds no memory bandwidth; a little core adds some, but at each stage's end the big ones wait for
//! its last chunk.

use super::cgroup::{Version, groups, text};
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

/// A core is big if it has at least this share of the fastest core's capacity. Middle clusters of phones have
/// 60 to 90 %, little ones 15 to 45 %.
const BIG_PERCENT: u64 = 60;

/// CPU numbers from this on are taken for a misread file.
const CPUS_MAX: usize = 1 << 14;

/// A physical core, as far as this process may use it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Core {
    /// Its hardware threads, ascending; at least one.
    pub cpus: Vec<usize>,
    /// Its speed, comparable within one [`Topology`] only.
    pub capacity: u64,
}

/// What [`Topology::read`] found.
#[derive(Clone, Debug, PartialEq)]
pub struct Topology {
    /// The cores this process may use, fastest first, then by number; at least one.
    pub cores: Vec<Core>,
    /// The CPU time it may use, in CPUs, and where that is set.
    pub quota: Option<(f64, String)>,
}

impl Topology {
    /// Looks at this machine and process. Do so before any thread is pinned: a pinned thread sees its own CPU
    /// only.
    pub fn read() -> Self {
        Self::read_at(Path::new("/"), allowed_cpus().as_deref()).unwrap_or_else(|| {
            let cpus = std::thread::available_parallelism().map_or(1, usize::from);
            Topology { cores: (0..cpus).map(|i| Core { cpus: vec![i], capacity: 1 }).collect(), quota: None }
        })
    }

    /// As [`Topology::read`], from the `proc` and `sys` folders under `root`, for a process whose affinity
    /// mask is `allowed` (`None`: all CPUs). `None` if those folders do not tell.
    pub fn read_at(root: &Path, allowed: Option<&[usize]>) -> Option<Self> {
        let sys = root.join("sys/devices/system/cpu");
        let mut cpus = parse_cpu_list(&text(&sys.join("online"))?)?;
        narrow(&mut cpus, allowed);
        narrow(&mut cpus, cpuset(root).as_deref());
        let number =
            |cpu: usize, file: &str| text(&sys.join(format!("cpu{cpu}/{file}")))?.parse::<u64>().ok();
        let all = |file: &str| cpus.iter().map(|&cpu| number(cpu, file)).collect::<Option<Vec<_>>>();
        let capacities = all("cpu_capacity")
            .or_else(|| all("cpufreq/cpuinfo_max_freq"))
            .unwrap_or_else(|| vec![1; cpus.len()]);
        let mut cores = BTreeMap::new();
        for (&cpu, capacity) in cpus.iter().zip(capacities) {
            let siblings = ["core_cpus_list", "thread_siblings_list"]
                .iter()
                .find_map(|file| text(&sys.join(format!("cpu{cpu}/topology/{file}"))))
                .and_then(|list| parse_cpu_list(&list));
            let first = siblings.and_then(|list| list.first().copied()).unwrap_or(cpu);
            let core = cores.entry(first).or_insert(Core { cpus: Vec::new(), capacity });
            core.cpus.push(cpu);
            core.capacity = core.capacity.max(capacity);
        }
        let mut cores: Vec<Core> = cores.into_values().collect();
        cores.sort_by_key(|core| (std::cmp::Reverse(core.capacity), core.cpus[0]));
        (!cores.is_empty()).then(|| Topology { cores, quota: cpu_quota(root) })
    }

    /// The cores that are not much slower than the fastest.
    pub fn big_cores(&self) -> &[Core] {
        let floor = self.cores.first().map_or(0, |core| core.capacity.saturating_mul(BIG_PERCENT) / 100);
        let big = self.cores.iter().take_while(|core| core.capacity >= floor).count();
        &self.cores[..big]
    }

    /// Number of workers to use when nobody says otherwise: one per big core, at most the CPU quota, at least
    /// one.
    ///
    /// A quota is rounded to the nearest whole number. A worker more than the quota pays for runs into the
    /// quota's end in every period, and then all workers stand still; with less than half a CPU to gain that
    /// costs more evenness than it brings speed. A worker less leaves paid time unused.
    pub fn default_workers(&self) -> usize {
        let quota = self.quota.as_ref().map_or(usize::MAX, |(cpus, _)| cpus.round() as usize);
        self.big_cores().len().min(quota).max(1)
    }

    /// A CPU for each of `workers` workers to be pinned to: the cores' first hardware threads, fastest core
    /// first, then their second ones. Fewer than `workers` if there are not so many CPUs.
    pub fn worker_cpus(&self, workers: usize) -> Vec<usize> {
        let threads = self.cores.iter().map(|core| core.cpus.len()).max().unwrap_or(0);
        let in_order = (0..threads).flat_map(|t| self.cores.iter().filter_map(move |core| core.cpus.get(t)));
        in_order.copied().take(workers).collect()
    }
}

/// One line, such as `4 cores at 100 %, 4 at 38 %; at most 1.5 CPUs (cpu.max of cgroup v2 /app.slice)`.
impl fmt::Display for Topology {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fastest = self.cores.first().map_or(1, |core| core.capacity.max(1));
        for (i, class) in self.cores.chunk_by(|a, b| a.capacity == b.capacity).enumerate() {
            let percent = class[0].capacity.saturating_mul(100) / fastest;
            let (comma, noun) = match (i, class.len()) {
                (0, 1) => ("", " core"),
                (0, _) => ("", " cores"),
                _ => (", ", ""),
            };
            write!(f, "{comma}{}{noun} at {percent} %", class.len())?;
        }
        match &self.quota {
            Some((cpus, place)) => write!(f, "; at most {cpus:.1} CPUs ({place})"),
            None => Ok(()),
        }
    }
}

/// The last-level cache of this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LastLevelCache {
    /// Size of one, in bytes.
    pub bytes: u64,
    /// How many there are, counted as if all were like that of CPU 0.
    pub count: usize,
}

/// Reads the size of the largest cache of CPU 0 and how many CPUs share it; `None` where the system does not
/// tell.
pub fn last_level_cache() -> Option<LastLevelCache> {
    last_level_cache_at(Path::new("/"))
}

/// As [`last_level_cache`], from the `sys` folder under `root`.
pub fn last_level_cache_at(root: &Path) -> Option<LastLevelCache> {
    let sys = root.join("sys/devices/system/cpu");
    let cache = |i: usize| {
        let dir = sys.join(format!("cpu0/cache/index{i}"));
        // Always in KiB, as `32768K`.
        let kib = text(&dir.join("size"))?.strip_suffix('K')?.parse::<u64>().ok()?;
        let sharers =
            text(&dir.join("shared_cpu_list")).and_then(|l| parse_cpu_list(&l)).map_or(1, |l| l.len());
        Some((kib.checked_mul(1024)?, sharers.max(1)))
    };
    // No processor has as many as 8 kinds of cache.
    let (bytes, sharers) = (0..8).filter_map(cache).max()?;
    let online = text(&sys.join("online")).and_then(|list| parse_cpu_list(&list)).map_or(1, |l| l.len());
    Some(LastLevelCache { bytes, count: online.div_ceil(sharers) })
}

/// Keeps only CPUs that are in `other`, unless none would be left: then `other` is misread or outdated.
fn narrow(cpus: &mut Vec<usize>, other: Option<&[usize]>) {
    if let Some(other) = other
        && cpus.iter().any(|cpu| other.contains(cpu))
    {
        cpus.retain(|cpu| other.contains(cpu));
    }
}

#[cfg(any(target_os = "linux", target_os = "android"))]
fn allowed_cpus() -> Option<Vec<usize>> {
    let mask = rustix::thread::sched_getaffinity(None).ok()?;
    Some((0..rustix::thread::CpuSet::MAX_CPU).filter(|&cpu| mask.is_set(cpu)).collect())
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn allowed_cpus() -> Option<Vec<usize>> {
    None
}

/// How many threads of the caller's mask can run at the same moment. A quota does not count here: it limits
/// the time they run, not how many run at once.
pub(crate) fn concurrency() -> usize {
    allowed_cpus()
        .map_or_else(|| std::thread::available_parallelism().map_or(1, usize::from), |cpus| cpus.len())
}

/// The CPUs of the own cpuset; the kernel has already intersected it with those above.
fn cpuset(root: &Path) -> Option<Vec<usize>> {
    groups(root, "cpuset").iter().find_map(|group| {
        let file = match group.version {
            Version::V1 => "cpuset.effective_cpus",
            Version::V2 => "cpuset.cpus.effective",
        };
        parse_cpu_list(&group.text(file)?).filter(|cpus| !cpus.is_empty())
    })
}

/// The smallest CPU quota of the own group and those above, in CPUs, and where it is set.
fn cpu_quota(root: &Path) -> Option<(f64, String)> {
    let quotas = groups(root, "cpu").into_iter().filter_map(|group| {
        let (file, quota, period) = match group.version {
            // -1 is no quota.
            Version::V1 => {
                let quota = group.number("cpu.cfs_quota_us")?;
                ("cpu.cfs_quota_us", quota, group.number("cpu.cfs_period_us")?)
            }
            // `max 100000` is no quota, and does not parse.
            Version::V2 => {
                let max = group.text("cpu.max")?;
                let (quota, period) = max.split_once(' ')?;
                ("cpu.max", quota.parse::<i64>().ok()?, period.parse::<i64>().ok()?)
            }
        };
        (quota > 0 && period > 0).then(|| (quota as f64 / period as f64, group.describe(file)))
    });
    quotas.min_by(|a, b| a.0.total_cmp(&b.0))
}

/// Parses the kernel's lists, such as `0-3,8`; `None` if it is no such list.
fn parse_cpu_list(list: &str) -> Option<Vec<usize>> {
    let mut cpus = Vec::new();
    for part in list.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (first.parse::<usize>().ok()?, last.parse::<usize>().ok()?);
        if last >= CPUS_MAX {
            return None;
        }
        cpus.extend(first..=last);
    }
    cpus.sort_unstable();
    cpus.dedup();
    Some(cpus)
}

#[cfg(test)]
mod tests {
    use super::parse_cpu_list;

    #[test]
    fn cpu_lists() {
        assert_eq!(parse_cpu_list("0-3,8"), Some(vec![0, 1, 2, 3, 8]));
        assert_eq!(parse_cpu_list("5"), Some(vec![5]));
        assert_eq!(parse_cpu_list(""), Some(vec![]));
        assert_eq!(parse_cpu_list("3-1"), Some(vec![]));
        for bad in ["a", "1-", "-1", "0-99999999999", "0-18446744073709551616", "0:1"] {
            assert_eq!(parse_cpu_list(bad), None, "{bad}");
        }
    }
}

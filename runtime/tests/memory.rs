//! Memory limits, read from the trees of several machines.

mod common;

use common::{add, tree};
use lutite_runtime::os::memory::{MemoryReport, available, available_at, resident, resident_at};
use tempfile::TempDir;

const MIB: u64 = 1 << 20;
/// 4 GiB of memory, 3 GiB available.
const MEMINFO: (&str, &str) = (
    "/proc/meminfo",
    "MemTotal:        4194304 kB\nMemFree:          100000 kB\nMemAvailable:    3145728 kB\nBuffers:  1 kB",
);
const V2: (&str, &str) = ("/proc/self/mountinfo", "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw");

fn read(dir: &TempDir) -> MemoryReport {
    available_at(dir.path()).expect("a report")
}

fn mib(mib: u64) -> String {
    (mib * MIB).to_string()
}

#[test]
fn a_machine_without_limits() {
    let report = read(&tree(&[MEMINFO]));
    assert_eq!((report.bytes, report.total_bytes), (3072 * MIB, 4096 * MIB));
    assert_eq!(report.bound_by, "MemAvailable of this machine");
    assert_eq!(report.to_string(), "   3072.0 MiB left by MemAvailable of this machine");
}

#[test]
fn v2_max_is_no_limit() {
    let dir = tree(&[
        MEMINFO,
        V2,
        ("/proc/self/cgroup", "0::/app"),
        ("/sys/fs/cgroup/app/memory.max", "max"),
        ("/sys/fs/cgroup/app/memory.high", "max"),
        ("/sys/fs/cgroup/app/memory.current", &mib(500)),
    ]);
    let report = read(&dir);
    assert_eq!((report.bytes, report.chain.len()), (3072 * MIB, 1));
}

#[test]
fn v2_page_cache_is_not_use() {
    let stat =
        format!("anon 5\nfile 6\ninactive_file_x 1\ninactive_file {}\nactive_file {}", mib(600), mib(100));
    let dir = tree(&[
        MEMINFO,
        V2,
        ("/proc/self/cgroup", "0::/app"),
        ("/sys/fs/cgroup/app/memory.max", &mib(1000)),
        ("/sys/fs/cgroup/app/memory.current", &mib(900)),
        ("/sys/fs/cgroup/app/memory.stat", &stat),
    ]);
    let report = read(&dir);
    assert_eq!(report.bytes, 700 * MIB);
    assert_eq!(report.bound_by, "memory.max of cgroup v2 /app");
    // Above its limit a group has nothing left, and statistics lag behind each other.
    add(dir.path(), "/sys/fs/cgroup/app/memory.current", &mib(1700));
    assert_eq!(read(&dir).bytes, 0);
    add(dir.path(), "/sys/fs/cgroup/app/memory.current", &mib(500));
    assert_eq!(read(&dir).bytes, 1000 * MIB);
}

#[test]
fn v2_ancestors_and_high() {
    let dir = tree(&[
        MEMINFO,
        V2,
        ("/proc/self/cgroup", "0::/a/b/c"),
        ("/sys/fs/cgroup/a/memory.max", &mib(2000)),
        ("/sys/fs/cgroup/a/memory.current", &mib(1500)),
        ("/sys/fs/cgroup/a/b/memory.max", "max"),
        ("/sys/fs/cgroup/a/b/memory.high", &mib(800)),
        ("/sys/fs/cgroup/a/b/memory.current", &mib(200)),
        ("/sys/fs/cgroup/a/b/c/memory.max", &mib(1000)),
        ("/sys/fs/cgroup/a/b/c/memory.current", &mib(100)),
    ]);
    let report = read(&dir);
    let chain: Vec<_> = report.chain.iter().map(|b| (b.what.as_str(), b.bytes / MIB)).collect();
    let expected = [
        ("memory.max of cgroup v2 /a", 500),
        ("memory.high of cgroup v2 /a/b", 600),
        ("memory.max of cgroup v2 /a/b/c", 900),
        ("MemAvailable of this machine", 3072),
    ];
    assert_eq!(chain, expected);
    assert_eq!(report.bytes, 500 * MIB);
}

#[test]
fn v1_limits_and_huge_ones() {
    let dir = tree(&[
        MEMINFO,
        ("/proc/self/cgroup", "4:memory:/app/job\n0::/"),
        (
            "/proc/self/mountinfo",
            "35 31 0:32 / /cg/memory rw - cgroup cgroup rw,memory\n41 31 0:38 / /cg/unified rw - cgroup2 cgroup2 rw",
        ),
        ("/cg/memory/memory.limit_in_bytes", "9223372036854771712"),
        ("/cg/memory/memory.usage_in_bytes", &mib(3000)),
        ("/cg/memory/app/memory.limit_in_bytes", "9223372036854771712"),
        ("/cg/memory/app/memory.usage_in_bytes", &mib(300)),
        ("/cg/memory/app/job/memory.limit_in_bytes", "9223372036854771712"),
        ("/cg/memory/app/job/memory.usage_in_bytes", &mib(200)),
        ("/cg/memory/app/job/memory.stat", "hierarchical_memory_limit 9223372036854771712\ninactive_file 7"),
    ]);
    assert_eq!(read(&dir).chain.len(), 1);
    add(dir.path(), "/cg/memory/app/memory.limit_in_bytes", &mib(1000));
    add(
        dir.path(),
        "/cg/memory/app/memory.stat",
        &format!("inactive_file 1\ntotal_inactive_file {}", mib(50)),
    );
    let report = read(&dir);
    assert_eq!(report.bytes, 750 * MIB);
    assert_eq!(report.bound_by, "memory.limit_in_bytes of cgroup v1 /app");
    // The only trace of a limit on a group that is not mounted here.
    add(dir.path(), "/cg/memory/app/job/memory.stat", &format!("hierarchical_memory_limit {}", mib(400)));
    let report = read(&dir);
    assert_eq!(report.bytes, 200 * MIB);
    assert_eq!(report.bound_by, "hierarchical_memory_limit of cgroup v1 /app/job");
}

#[test]
fn resource_limits() {
    let head = "Limit                     Soft Limit           Hard Limit           Units     ";
    let limits = |space: &str, data: &str| {
        format!(
            "{head}\nMax data size  {data}  unlimited  bytes\nMax address space  {space}  unlimited  bytes"
        )
    };
    let status = ("/proc/self/status", "Name:\tx\nVmPeak:\t 9 kB\nVmSize:\t 102400 kB\nVmData:\t 51200 kB");
    let dir = tree(&[MEMINFO, status, ("/proc/self/limits", &limits("unlimited", "unlimited"))]);
    assert_eq!(read(&dir).chain.len(), 1);
    add(dir.path(), "/proc/self/limits", &limits(&mib(1000), &mib(2000)));
    let report = read(&dir);
    assert_eq!(report.bytes, 900 * MIB);
    assert_eq!(report.bound_by, "resource limit \"Max address space\"");
    assert_eq!(report.chain[1].bytes, 1950 * MIB);
}

#[test]
fn resident_memory() {
    let dir = tree(&[("/proc/self/status", "VmHWM:\t    2048 kB\nVmRSS:\t    1024 kB")]);
    let resident = resident_at(dir.path()).expect("a report");
    assert_eq!((resident.now_bytes, resident.peak_bytes), (MIB, 2 * MIB));
}

#[test]
fn odd_files_do_no_harm() {
    assert_eq!(available_at(tree(&[]).path()), None);
    assert_eq!(available_at(tree(&[("/proc/meminfo", "MemTotal: 1 kB")]).path()), None);
    assert_eq!(
        available_at(tree(&[("/proc/meminfo", "MemTotal:\nMemAvailable: 99999999999999999999 kB")]).path()),
        None
    );
    assert_eq!(resident_at(tree(&[("/proc/self/status", "VmRSS")]).path()), None);
    let dir = tree(&[
        MEMINFO,
        V2,
        ("/proc/self/cgroup", "0::/app"),
        ("/sys/fs/cgroup/app/memory.max", "-5"),
        ("/sys/fs/cgroup/app/memory.current", "many"),
    ]);
    assert_eq!(read(&dir).chain.len(), 1);
}

#[test]
#[cfg(target_os = "linux")]
fn this_machine() {
    let report = available().expect("Linux tells");
    println!("{report}");
    assert!(report.bytes > 0 && report.bytes <= report.total_bytes);
    let before = resident().expect("Linux tells");
    assert!(before.now_bytes > 0 && before.peak_bytes >= before.now_bytes);
    let big = vec![1u8; 64 << 20];
    assert!(resident().expect("Linux tells").peak_bytes >= before.now_bytes + (48 << 20));
    drop(std::hint::black_box(big));
}

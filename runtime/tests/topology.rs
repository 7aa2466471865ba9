//! Cores and quotas, read from the trees of several machines.

mod common;

use common::{add, tree};
use lutite_runtime::os::topology::{LastLevelCache, Topology, last_level_cache_at};
use tempfile::TempDir;

const V2: (&str, &str) = (
    "/proc/self/mountinfo",
    "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate",
);

/// CPUs that tell nothing.
const NONE: [&[(&str, &str)]; 16] = [&[]; 16];

/// CPUs as (file, value) pairs each, plus other files.
fn machine(cpus: &[&[(&str, &str)]], others: &[(&str, &str)]) -> TempDir {
    let dir = tree(others);
    add(dir.path(), "/sys/devices/system/cpu/online", &format!("0-{}", cpus.len() - 1));
    for (i, files) in cpus.iter().enumerate() {
        for (name, value) in *files {
            add(dir.path(), &format!("/sys/devices/system/cpu/cpu{i}/{name}"), value);
        }
    }
    dir
}

fn read(dir: &TempDir) -> Topology {
    Topology::read_at(dir.path(), None).expect("a topology")
}

#[test]
fn raspberry_pi_5() {
    let cpu: &[_] = &[("cpufreq/cpuinfo_max_freq", "2400000"), ("topology/core_cpus_list", "0")];
    let mut cpus = [cpu; 4];
    let own = ["0", "1", "2", "3"].map(|i| [cpu[0], ("topology/core_cpus_list", i)]);
    cpus.iter_mut().zip(&own).for_each(|(cpu, own)| *cpu = own);
    let pi = read(&machine(&cpus, &[V2, ("/proc/self/cgroup", "0::/user.slice/session-1.scope")]));
    assert_eq!(pi.default_workers(), 4);
    assert_eq!(pi.worker_cpus(9), [0, 1, 2, 3]);
    assert_eq!(pi.to_string(), "4 cores at 100 %");
}

#[test]
fn the_largest_cache_is_the_last() {
    let first: &[_] = &[
        ("cache/index0/size", "32K"),
        ("cache/index0/shared_cpu_list", "0"),
        ("cache/index2/size", "1024K"),
        ("cache/index2/shared_cpu_list", "0"),
        ("cache/index3/size", "32768K"),
        ("cache/index3/shared_cpu_list", "0-1"),
    ];
    let found = last_level_cache_at(machine(&[first, &[], &[], &[]], &[]).path());
    assert_eq!(found, Some(LastLevelCache { bytes: 32 << 20, count: 2 }));
    assert_eq!(last_level_cache_at(machine(&NONE[..4], &[]).path()), None);
}

#[test]
fn phone_with_three_clusters() {
    // Numbering of a common phone: four little, three middle, one prime; capacity wins over frequency.
    let little: &[_] = &[("cpu_capacity", "250"), ("cpufreq/cpuinfo_max_freq", "2000000")];
    let middle: &[_] = &[("cpu_capacity", "800"), ("cpufreq/cpuinfo_max_freq", "2400000")];
    let prime: &[_] = &[("cpu_capacity", "1024"), ("cpufreq/cpuinfo_max_freq", "2800000")];
    let phone = machine(&[little, little, little, little, middle, middle, middle, prime], &[]);
    let all = read(&phone);
    assert_eq!(all.default_workers(), 4);
    assert_eq!(all.worker_cpus(5), [7, 4, 5, 6, 0]);
    assert_eq!(all.to_string(), "1 core at 100 %, 3 at 78 %, 4 at 24 %");
    // A background app is often kept on the little cluster: these are then the biggest there are.
    let background = Topology::read_at(phone.path(), Some(&[0, 1, 2, 3])).expect("a topology");
    assert_eq!(background.default_workers(), 4);
    assert_eq!(background.worker_cpus(2), [0, 1]);
    let mixed = Topology::read_at(phone.path(), Some(&[2, 3, 7])).expect("a topology");
    assert_eq!(mixed.default_workers(), 1);
}

#[test]
fn frequency_stands_in_for_capacity() {
    let little: &[_] = &[("cpufreq/cpuinfo_max_freq", "1000000")];
    let big: &[_] = &[("cpufreq/cpuinfo_max_freq", "2200000")];
    assert_eq!(read(&machine(&[little, little, big, big], &[])).worker_cpus(2), [2, 3]);
    // Half a table of speeds is no table.
    let part: &[_] = &[("cpu_capacity", "1024"), ("cpufreq/cpuinfo_max_freq", "1000000")];
    assert_eq!(read(&machine(&[part, little, big], &[])).default_workers(), 1);
    assert_eq!(read(&machine(&[part, &[], &[]], &[])).default_workers(), 3);
}

#[test]
fn laptop_with_two_threads_per_core() {
    let siblings = ["0,4", "1,5", "2,6", "3,7"].map(|list| [("topology/thread_siblings_list", list)]);
    let cpus: Vec<&[_]> = (0..8).map(|i| &siblings[i % 4][..]).collect();
    let laptop = machine(&cpus, &[]);
    let all = read(&laptop);
    assert_eq!(all.default_workers(), 4);
    assert_eq!(all.worker_cpus(6), [0, 1, 2, 3, 4, 5]);
    let some = Topology::read_at(laptop.path(), Some(&[4, 1, 5])).expect("a topology");
    assert_eq!(some.cores.iter().map(|core| core.cpus.clone()).collect::<Vec<_>>(), [vec![1, 5], vec![4]]);
}

#[test]
fn container_v1_with_half_a_cpu() {
    // Docker without a group namespace: the path in /proc is the host's, and the mount starts at it.
    let dir = machine(
        &NONE[..8],
        &[
            (
                "/proc/self/cgroup",
                "5:cpu,cpuacct:/docker/abc\n3:cpuset:/docker/abc\n1:name=systemd:/docker/abc",
            ),
            (
                "/proc/self/mountinfo",
                "60 50 0:31 /docker/abc /sys/fs/cgroup/cpu,cpuacct ro,relatime master:11 - cgroup cgroup rw,cpu,cpuacct\n\
                 61 50 0:32 /docker/abc /sys/fs/cgroup/cpuset ro - cgroup cgroup rw,cpuset",
            ),
            ("/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "50000"),
            ("/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000"),
            ("/sys/fs/cgroup/cpuset/cpuset.effective_cpus", "2-3,6"),
        ],
    );
    let topology = read(&dir);
    assert_eq!(topology.cores.len(), 3);
    assert_eq!(topology.default_workers(), 1);
    assert_eq!(topology.quota, Some((0.5, "cpu.cfs_quota_us of cgroup v1 /".to_owned())));
    assert_eq!(topology.to_string(), "3 cores at 100 %; at most 0.5 CPUs (cpu.cfs_quota_us of cgroup v1 /)");
    add(dir.path(), "/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "-1");
    assert_eq!(read(&dir).quota, None);
}

#[test]
fn container_v2() {
    let dir =
        machine(&NONE[..4], &[V2, ("/proc/self/cgroup", "0::/"), ("/sys/fs/cgroup/cpu.max", "max 100000")]);
    assert_eq!(read(&dir).default_workers(), 4);
    for (max, workers) in [
        ("50000 100000", 1),
        ("140000 100000", 1),
        ("150000 100000", 2),
        ("300000 100000", 3),
        ("800000 100000", 4),
        ("0 0", 4),
        ("junk", 4),
        ("", 4),
    ] {
        add(dir.path(), "/sys/fs/cgroup/cpu.max", max);
        assert_eq!(read(&dir).default_workers(), workers, "{max}");
    }
}

#[test]
fn the_smallest_quota_above_counts() {
    let dir = machine(
        &NONE,
        &[
            V2,
            ("/proc/self/cgroup", "0::/kube/pod1/app"),
            ("/sys/fs/cgroup/kube/cpu.max", "800000 100000"),
            ("/sys/fs/cgroup/kube/pod1/cpu.max", "250000 100000"),
            ("/sys/fs/cgroup/kube/pod1/app/cpu.max", "max 100000"),
            ("/sys/fs/cgroup/kube/pod1/app/cpuset.cpus.effective", "0-11"),
            // A neighbour is none of our business.
            ("/sys/fs/cgroup/kube/pod2/cpu.max", "10000 100000"),
        ],
    );
    let topology = read(&dir);
    assert_eq!(topology.quota, Some((2.5, "cpu.max of cgroup v2 /kube/pod1".to_owned())));
    assert_eq!(topology.default_workers(), 3);
    assert_eq!(topology.cores.len(), 12);
}

#[test]
fn a_path_outside_of_the_mount_reads_the_top() {
    for path in ["0::/../../other", "0::/elsewhere/../.."] {
        let dir = machine(
            &NONE[..4],
            &[V2, ("/proc/self/cgroup", path), ("/sys/fs/cgroup/cpu.max", "200000 100000")],
        );
        assert_eq!(read(&dir).default_workers(), 2, "{path}");
    }
}

#[test]
fn odd_trees_do_no_harm() {
    assert_eq!(Topology::read_at(tree(&[]).path(), None), None);
    for online in ["", "junk", "0-4294967295"] {
        let dir = tree(&[("/sys/devices/system/cpu/online", online)]);
        assert_eq!(Topology::read_at(dir.path(), None), None, "{online}");
    }
    let dir = machine(
        &NONE[..2],
        &[("/proc/self/cgroup", "::\n0\n\n7:cpu\n0::"), ("/proc/self/mountinfo", " - \nx - cgroup")],
    );
    let topology = Topology::read_at(dir.path(), Some(&[77])).expect("a topology");
    assert_eq!(topology.default_workers(), 2);
}

#[test]
fn this_machine() {
    let topology = Topology::read();
    println!("{topology}");
    assert!(topology.default_workers() >= 1);
    assert!(topology.cores.iter().all(|core| !core.cpus.is_empty()));
    assert!(topology.default_workers() <= topology.cores.len());
}

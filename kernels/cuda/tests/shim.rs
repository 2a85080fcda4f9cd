//! What the shim runs, and what it sees: each probe of `shim/probes.cu` does one thing right or wrong.

use std::ffi::c_void;
use weft_cuda_kernels::arguments;
use weft_cuda_kernels::host::{Error, Launch, Order, kernels};
use weft_cuda_kernels::within::{Range, Touched, parameters};

fn launch(kernel: &str, blocks: u32, threads: u32, order: Order, arguments: &mut [*mut c_void]) -> Result<(), Error> {
    let launch = Launch { kernel, grid: [blocks, 1, 1], threads, shared_bytes: 0, order };
    // SAFETY: the callers below give each probe the parameters that probes.cu names, over vectors that are large enough.
    unsafe { launch.run(arguments) }
}

fn fails(kernel: &str, blocks: u32, message: &str) {
    for order in [Order::FORWARDS, Order::BACKWARDS] {
        let (from, mut to) = (vec![1.0f32; 64], vec![0.0f32; 64]);
        let (from, to): (*const f32, *mut f32) = (from.as_ptr(), to.as_mut_ptr());
        let takes_two = kernel == "probe_races_in_shared";
        let mut arguments = if takes_two { arguments![from, to].to_vec() } else { arguments![to].to_vec() };
        let error = launch(kernel, blocks, 64, order, &mut arguments).unwrap_err().to_string();
        assert!(error.contains(message), "{kernel}: {error}");
    }
}

#[test]
fn barriers_let_threads_exchange_through_shared_memory() {
    let from: Vec<f32> = (0..192).map(|i| i as f32).collect();
    for order in [Order::FORWARDS, Order::BACKWARDS] {
        let mut to = vec![0.0f32; 192];
        let (from, to_at): (*const f32, *mut f32) = (from.as_ptr(), to.as_mut_ptr());
        launch("probe_reverses", 3, 64, order, &mut arguments![from, to_at]).unwrap();
        let want: Vec<f32> = (0..192).map(|i| (i / 64 * 64 + 63 - i % 64) as f32).collect();
        assert_eq!(to, want);
    }
}

#[test]
fn lanes_shuffle_and_vote() {
    for order in [Order::FORWARDS, Order::BACKWARDS] {
        let mut to = vec![0u32; 160];
        let to_at: *mut u32 = to.as_mut_ptr();
        launch("probe_votes_and_shuffles", 1, 32, order, &mut arguments![to_at]).unwrap();
        for (lane, got) in (0u32..).zip(to.chunks(5)) {
            let up = if lane >= 3 { lane - 3 } else { lane };
            let down = if lane + 5 < 32 { lane + 5 } else { lane };
            assert_eq!(got, [31 * 16, up, down, 7, 0xaaaa_aaaa], "lane {lane}");
        }
    }
}

#[test]
fn atomics_of_all_blocks_add_up_and_are_no_race() {
    let mut count = 0u32;
    let at = &raw mut count;
    launch("probe_counts_by_atomics", 5, 64, Order::FORWARDS, &mut arguments![at]).unwrap();
    assert_eq!(count, 320);
}

#[test]
fn a_barrier_that_one_thread_misses_is_told() {
    fails("probe_misses_a_barrier", 1, "of 64 threads 63 wait at a barrier, 0 for their warp, and 1 have ended");
}

#[test]
fn a_warp_that_is_not_complete_is_told() {
    fails("probe_misses_its_warp", 1, "0 wait at a barrier, 32 for their warp, and 32 have ended");
}

// The address sanitizer takes the place of the race check (scripts/asan.sh).
#[cfg(not(race_check_is_off))]
mod races {
    use super::fails;

    #[test]
    fn a_race_in_shared_memory_is_told() {
        fails("probe_races_in_shared", 1, "race in shared memory");
    }

    #[test]
    fn a_race_of_blocks_is_told() {
        fails("probe_races_in_global", 2, "race in global memory: thread 0 writes what another block wrote");
    }

    #[test]
    fn shared_memory_that_nothing_wrote_is_told() {
        fails("probe_reads_what_nothing_wrote", 1, "thread 63 reads shared memory that nothing wrote");
    }
}

#[test]
fn what_no_device_launches_the_shim_refuses() {
    let to: *mut u32 = std::ptr::null_mut();
    let error = launch("probe_counts_by_atomics", 1, 1025, Order::FORWARDS, &mut arguments![to]).unwrap_err();
    assert!(error.to_string().ends_with("no device launches this"), "{error}");
    let error = launch("weft_nothing", 1, 1, Order::FORWARDS, &mut arguments![to]).unwrap_err();
    assert_eq!(error.to_string(), "no kernel weft_nothing");
}

/// The shim's table and the golden table of registers (`make gpu-check`) hold the same kernels.
#[test]
fn every_kernel_for_devices_is_in_the_shim() {
    let golden = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/ptxas.golden.txt")).unwrap();
    let mut compiled: Vec<&str> = golden
        .lines()
        .filter(|line| line.starts_with("sm_"))
        .filter_map(|line| line.split_whitespace().nth(1))
        .collect();
    compiled.sort_unstable();
    compiled.dedup();
    let mut known = kernels();
    known.retain(|name| name.starts_with("weft_"));
    known.sort_unstable();
    assert_eq!(known, compiled);
}

#[test]
#[cfg_attr(race_check_is_off, ignore = "under the address sanitizer the shim sees no accesses")]
fn a_launch_touches_what_it_names_and_tells_it() {
    let (from, mut to) = (vec![1.0f32; 192], vec![0.0f32; 192]);
    let (from, to): (*const f32, *mut f32) = (from.as_ptr(), to.as_mut_ptr());
    let (reads, writes) = (from as usize, to as usize);
    let launch =
        Launch { kernel: "probe_reverses", grid: [3, 1, 1], threads: 64, shared_bytes: 0, order: Order::FORWARDS };
    let run = |ranges: &[Range]| {
        // SAFETY: as in probes.cu: two pointers, over 192 values each.
        let (result, touched) = unsafe { launch.run_within(&mut arguments![from, to], ranges) };
        (result.map_err(|error| error.to_string()), touched)
    };
    let all = [Range::new(reads..reads + 768, false, true), Range::new(writes..writes + 768, true, true)];
    let (result, touched) = run(&all);
    result.unwrap();
    let bytes = |of: fn(&Touched) -> u64| touched.iter().map(|line| of(line).count_ones()).sum::<u32>();
    assert_eq!((bytes(|line| line.read), bytes(|line| line.written)), (768, 768));
    assert!(touched.iter().filter(|line| line.read != 0).all(|line| (reads - 63..reads + 768).contains(&line.at)));

    let short = run(&[Range::new(reads..reads + 764, false, false), all[1]]).0.unwrap_err();
    assert!(short.contains("thread 63 reads 4 bytes at"), "{short}");
    let only_read = run(&[all[0], Range::new(writes..writes + 768, false, false)]).0.unwrap_err();
    assert!(only_read.contains("writes 4 bytes at") && only_read.contains("outside of what"), "{only_read}");
    // The next launch of this thread names nothing, and is not held to anything.
    // SAFETY: as above.
    unsafe { launch.run(&mut arguments![from, to]) }.unwrap();
}

#[test]
fn kernels_say_what_they_take() {
    let norm = parameters("weft_rms_norm_f32").unwrap();
    let sizes: Vec<_> = norm.iter().map(|of| (of.bytes, of.is_pointer())).collect();
    assert_eq!(sizes, [(8, true), (8, true), (4, false), (8, true), (4, false)]);
    assert!(parameters("weft_none").is_none());
}

// Candidates: tokens as keys of 64 bits whose ascending order is that in which they are ranked. The upper half falls with the weight
// (or the logit), the lower half is the id, so that no two are equal and every way to sort them ends in the same order.
#pragma once
#include "sampling_logits.cuh"

namespace weft {

typedef unsigned long long Key;
// Above every key.
constexpr Key NO_KEY = ~0ull;

__device__ __forceinline__ Key key_of(unsigned rank, int id) {
    return static_cast<Key>(~rank) << 32 | static_cast<unsigned>(id);
}
__device__ __forceinline__ unsigned id_of(Key key) { return static_cast<unsigned>(key); }
__device__ __forceinline__ float weight_in(Key key) { return __uint_as_float(~static_cast<unsigned>(key >> 32)); }

// Where candidates are kept: in shared memory, or for rows that have more, in a slot of the workspace with room for a vocabulary.
struct Candidates {
    Key* keys;
    // With each key: a sum of weights, or what it is ranked by before its id.
    Key* others;
    // For merging; null in shared memory, where nothing is merged.
    Key* spare_keys;
    Key* spare_others;
    unsigned capacity;

    __device__ __forceinline__ double* sums() const { return reinterpret_cast<double*>(others); }
};

// The upper end of a range of keys that holds at least `nth` of them, and at most `enough` if there is such a range; with `enough` 0
// the nth itself. `visit(use)` calls `use` with each key of this thread's share, the same ones each time; there are at least `nth`
// below NO_KEY. Radix selection by 11 bits, a visit for each; histograms are in shared memory. All threads call it.
template <typename Visit>
__device__ __forceinline__ Key select(const Visit& visit, unsigned nth, unsigned enough, SampleShared& shared) {
    constexpr int EACH = BINS / SAMPLE_THREADS;
    const int lane = static_cast<int>(threadIdx.x) % WARP, warp = static_cast<int>(threadIdx.x) / WARP;
    Key prefix = 0;
    unsigned below = 0;
    for (int shift = 64; shift > 0;) {
        const int next = shift > 11 ? shift - 11 : 0;
        const unsigned mask = (1u << (shift - next)) - 1;
        for (int bin = threadIdx.x; bin < BINS; bin += SAMPLE_THREADS) shared.bins[bin] = 0;
        __syncthreads();
        visit([&](Key key) {
            if (key != NO_KEY && (shift == 64 || key >> shift == prefix)) {
                atomicAdd(&shared.bins[static_cast<unsigned>(key >> next) & mask], 1u);
            }
        });
        __syncthreads();
        unsigned mine = 0;
#pragma unroll
        for (int i = 0; i < EACH; ++i) mine += shared.bins[threadIdx.x * EACH + i];
        unsigned up_to = mine;
#pragma unroll
        for (int apart = 1; apart < WARP; apart *= 2) {
            const unsigned lower = __shfl_up_sync(ALL_LANES, up_to, apart);
            if (lane >= apart) up_to += lower;
        }
        if (lane == WARP - 1) shared.warp_count[warp] = up_to;
        __syncthreads();
        for (int i = 0; i < warp; ++i) up_to += shared.warp_count[i];
        unsigned before = below + up_to - mine;
        if (before < nth && before + mine >= nth) {
            int bin = static_cast<int>(threadIdx.x) * EACH;
            while (before + shared.bins[bin] < nth) before += shared.bins[bin++];
            shared.found = static_cast<unsigned>(bin);
            shared.below = before;
            shared.inside = shared.bins[bin];
        }
        __syncthreads();
        prefix = prefix << (shift - next) | shared.found;
        below = shared.below;
        shift = next;
        const bool done = below + shared.inside <= enough;
        __syncthreads();
        if (done) return (prefix << shift) | ((1ull << shift) - 1);
    }
    return prefix;
}

// Puts the keys up to `bound` into `candidates`, in any order, and returns how many there are; those beyond the capacity are counted
// only. All threads call it.
template <typename Visit>
__device__ __forceinline__ unsigned gather(const Visit& visit, Key bound, const Candidates& candidates, SampleShared& shared) {
    if (threadIdx.x == 0) shared.found = 0;
    __syncthreads();
    visit([&](Key key) {
        if (key <= bound) {
            const unsigned at = atomicAdd(&shared.found, 1u);
            if (at < candidates.capacity) candidates.keys[at] = key;
        }
    });
    __syncthreads();
    const unsigned count = shared.found;
    __syncthreads();
    return count;
}

// Whether the first of two is ranked first. PAIRS: by `others`, then by id; else by key.
template <bool PAIRS>
__device__ __forceinline__ bool ranks_before(Key key, Key other, Key than_key, Key than_other) {
    if (PAIRS) return other != than_other ? other < than_other : id_of(key) < id_of(than_key);
    return key < than_key;
}

// Bitonic sort of up to CANDIDATES in shared memory. All threads call it.
template <bool PAIRS>
__device__ inline void sort_tile(Key* keys, Key* others, unsigned count) {
    unsigned size = 2;
    while (size < count) size *= 2;
    for (unsigned i = count + threadIdx.x; i < size; i += SAMPLE_THREADS) {
        keys[i] = NO_KEY;
        if (PAIRS) others[i] = NO_KEY;
    }
    __syncthreads();
    for (unsigned run = 2; run <= size; run *= 2) {
        for (unsigned apart = run / 2; apart > 0; apart /= 2) {
            for (unsigned pair = threadIdx.x; pair < size / 2; pair += SAMPLE_THREADS) {
                const unsigned low = 2 * pair - pair % apart, high = low + apart;
                const Key first = keys[low], second = keys[high];
                const Key first_other = PAIRS ? others[low] : 0, second_other = PAIRS ? others[high] : 0;
                const bool ascending = (low & run) == 0;
                if (ranks_before<PAIRS>(second, second_other, first, first_other) == ascending) {
                    keys[low] = second, keys[high] = first;
                    if (PAIRS) others[low] = second_other, others[high] = first_other;
                }
            }
            __syncthreads();
        }
    }
}

// One pass of merging runs of `run` into runs of twice that; each thread makes pieces of eight, whose beginning it finds by bisection.
template <bool PAIRS>
__device__ inline void merge_runs(const Candidates& from, unsigned count, unsigned run) {
    constexpr unsigned PIECE = 8;
    const Key* keys = from.keys;
    const Key* others = from.others;
    auto before = [&](unsigned i, unsigned j) {
        return ranks_before<PAIRS>(keys[i], PAIRS ? others[i] : 0, keys[j], PAIRS ? others[j] : 0);
    };
    for (unsigned at = threadIdx.x * PIECE; at < count; at += SAMPLE_THREADS * PIECE) {
        const unsigned base = at / (2 * run) * (2 * run);
        const unsigned middle = base + run < count ? base + run : count;
        const unsigned end = base + 2 * run < count ? base + 2 * run : count;
        // Of the first `at - base` merged, `low` come from the left run.
        const unsigned merged = at - base;
        unsigned low = merged > end - middle ? merged - (end - middle) : 0;
        unsigned high = merged < middle - base ? merged : middle - base;
        while (low < high) {
            const unsigned half = (low + high) / 2;
            if (before(base + half, middle + merged - half - 1)) {
                low = half + 1;
            } else {
                high = half;
            }
        }
        unsigned left = base + low, right = middle + merged - low;
        for (unsigned to = at; to < at + PIECE && to < end; ++to) {
            const unsigned take = right >= end || (left < middle && before(left, right)) ? left++ : right++;
            from.spare_keys[to] = keys[take];
            if (PAIRS) from.spare_others[to] = others[take];
        }
    }
    __syncthreads();
}

// Sorts candidates. In the workspace tile by tile through shared memory, then by merging. All threads call it.
template <bool PAIRS>
__device__ inline void sort(Candidates& candidates, unsigned count, SampleShared& shared) {
    __syncthreads();
    if (candidates.spare_keys == nullptr) {
        sort_tile<PAIRS>(candidates.keys, candidates.others, count);
        return;
    }
    Key *const tile_keys = shared.pool, *const tile_others = shared.pool + CANDIDATES;
    for (unsigned first = 0; first < count; first += CANDIDATES) {
        const unsigned size = count - first < CANDIDATES ? count - first : CANDIDATES;
        for (unsigned i = threadIdx.x; i < size; i += SAMPLE_THREADS) {
            tile_keys[i] = candidates.keys[first + i];
            if (PAIRS) tile_others[i] = candidates.others[first + i];
        }
        sort_tile<PAIRS>(tile_keys, tile_others, size);
        for (unsigned i = threadIdx.x; i < size; i += SAMPLE_THREADS) {
            candidates.keys[first + i] = tile_keys[i];
            if (PAIRS) candidates.others[first + i] = tile_others[i];
        }
        __syncthreads();
    }
    for (unsigned run = CANDIDATES; run < count; run *= 2) {
        merge_runs<PAIRS>(candidates, count, run);
        Key* const keys = candidates.keys;
        candidates.keys = candidates.spare_keys;
        candidates.spare_keys = keys;
        if (PAIRS) {
            Key* const others = candidates.others;
            candidates.others = candidates.spare_others;
            candidates.spare_others = others;
        }
    }
}

// Running sums in place, from `start` on. `in_order`: one thread adds in order, as the engine does. Else runs are added side by side,
// always the same ones, and the sums differ from those in the last places (prefix_margin). All threads call it.
__device__ inline void add_up(double* values, unsigned count, double start, bool in_order, SampleShared& shared) {
    __syncthreads();
    if (in_order) {
        if (threadIdx.x == 0) {
            double sum = start;
            for (unsigned i = 0; i < count; ++i) {
                sum += values[i];
                values[i] = sum;
            }
        }
        __syncthreads();
        return;
    }
    // About as many runs as each has values.
    const unsigned runs = count <= 4096 ? 64 : RUNS;
    const unsigned length = (count + runs - 1) / runs;
    if (threadIdx.x < runs) {
        const unsigned first = threadIdx.x * length;
        double sum = 0.0;
        for (unsigned i = first; i < first + length && i < count; ++i) {
            sum += values[i];
            values[i] = sum;
        }
        shared.runs[threadIdx.x] = sum;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        double sum = start;
        for (unsigned run = 0; run < runs; ++run) {
            const double of_run = shared.runs[run];
            shared.runs[run] = sum;
            sum += of_run;
        }
    }
    __syncthreads();
    for (unsigned i = threadIdx.x; i < count; i += SAMPLE_THREADS) values[i] += shared.runs[i / length];
    __syncthreads();
}

// By how much two ways to add `count` weights up to `total` can differ, twice: the sum, and a target that is a share of it. Each way
// errs by less than count * 2^-53 * total.
__device__ __forceinline__ double margin_of(unsigned count, double total) {
    return (4.0 * count + 8.0) * (1.0 / 9007199254740992.0) * total;
}

// Whether weights down to `smallest` add up to `total` without rounding, in every order: all are multiples of its last place, and f64
// holds 53 bits of them.
__device__ __forceinline__ bool adds_exactly(float smallest, double total) {
    const int exponent = static_cast<int>(__float_as_uint(smallest) >> 23) - 127;
    if (exponent < -60) return false;
    const double unit = static_cast<double>(__uint_as_float(static_cast<unsigned>(exponent - 23 + 127) << 23));
    return 2.0 * total < unit * 9007199254740992.0;
}

// The first of 0..count for which `reaches` holds, which holds for all behind it too; `count` if for none. All threads call it.
template <typename Reaches>
__device__ __forceinline__ unsigned first_of(unsigned count, const Reaches& reaches, SampleShared& shared) {
    if (threadIdx.x == 0) shared.found = count;
    __syncthreads();
    for (unsigned i = threadIdx.x; i < count; i += SAMPLE_THREADS)
        if (reaches(i) && (i == 0 || !reaches(i - 1))) shared.found = i;
    __syncthreads();
    const unsigned found = shared.found;
    __syncthreads();
    return found;
}

// Whether a sum beside the place where `sums` pass `target` is so near that another order of additions might pass it elsewhere.
__device__ __forceinline__ bool is_near(const double* sums, unsigned count, unsigned found, double target, double margin) {
    return (found < count && fabs(sums[found] - target) <= margin) || (found > 0 && fabs(sums[found - 1] - target) <= margin);
}

}  // namespace weft
